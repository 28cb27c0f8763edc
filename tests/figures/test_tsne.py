"""The pictures of embeddings, their titles, and the GIF."""

import numpy as np
import pytest
from PIL import Image

from figures.tsne import Panel, compose_titles, draw_embeddings, render_image, write_gif


@pytest.mark.parametrize(("count", "axes"), [(1, 1), (2, 2), (4, 4), (5, 6)])
def test_a_panel_for_each_run(count, axes):
    positions, labels = np.random.default_rng(0).random((40, 2)), np.repeat(np.arange(10), 4)
    panels = [Panel(f"run {i}", positions, labels) for i in range(count)]
    classes = {k: f"class {k}" for k in range(10)}
    figure = draw_embeddings("title", panels, classes)
    assert len(figure.axes) == axes
    drawn = [axis for axis in figure.axes if axis.collections]
    assert [axis.get_title() for axis in drawn] == [f"run {i}" for i in range(count)]
    for axis in drawn:
        points = np.concatenate([part.get_offsets() for part in axis.collections])
        assert sorted(map(tuple, points.tolist())) == sorted(map(tuple, positions.tolist()))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(classes.values())
    assert render_image(figure).width >= 500


def test_many_classes_have_distinct_looks_and_no_legend():
    labels = np.arange(100)
    panel = Panel("run", np.random.default_rng(0).random((100, 2)), labels)
    figure = draw_embeddings("title", [panel], {k: str(k) for k in range(100)})
    assert not figure.legends
    looks = {
        (tuple(part.get_facecolor()[0]), part.get_paths()[0].vertices.tobytes())
        for part in figure.axes[0].collections
        if len(part.get_offsets())
    }
    assert len(looks) == 100


def test_a_gif_of_one_palette(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "red", "blue")]
    frames[2].paste("white", (0, 0, 4, 4))
    frames[2].paste("red", (4, 4, 8, 8))
    write_gif(tmp_path / "x.gif", frames, fps=5)
    with Image.open(tmp_path / "x.gif") as gif:
        for number, frame in enumerate(frames):
            gif.seek(number)
            assert np.abs(np.asarray(gif.convert("RGB"), int) - np.asarray(frame, int)).max() < 3


def test_titles_keep_panels_apart():
    base = {"model": "ViT", "dataset": "cifar10", "loss": "CE", "optimizer": "SGD", "lr": 0.1}
    bce = {**base, "loss": "BCE"}
    other = {**base, "lr": 0.2}
    figure, panels = compose_titles([base, bce], ["a", "b"], "train")
    assert figure == "ViT on cifar10, training set"
    assert panels == ["CE, SGD", "BCE, SGD"]
    assert compose_titles([base, other, bce], list("abc"), "test")[1] == [
        "CE, SGD, lr 0.1",
        "CE, SGD, lr 0.2",
        "BCE, SGD",
    ]
    assert compose_titles([base, base], ["a", "b"], "train")[1] == [
        "a (CE, SGD)",
        "b (CE, SGD)",
    ]
    figure, panels = compose_titles([base, {**base, "model": "MLP"}], ["a", "b"], "test")
    assert (figure, panels) == ("cifar10, test set", ["ViT, CE, SGD", "MLP, CE, SGD"])
