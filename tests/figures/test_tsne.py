"""The pictures of embeddings, their titles, and the GIF."""

import numpy as np
import pytest
from PIL import Image

from figures.tsne import Panel, draw_embeddings, render_image, write_gif


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


@pytest.mark.parametrize("count", [1, 2, 4])
def test_no_text_is_cut_at_the_edges(count):
    """Long titles are wrapped, and the legend has as many columns as fit."""
    positions, labels = np.random.default_rng(0).random((40, 2)), np.repeat(np.arange(10), 4)
    long = "BCE, AdamW, " + ", ".join(f"setting_{i} 0.01" for i in range(9))
    classes = {k: f"a class of a long name {k}" for k in range(10)}
    figure = draw_embeddings(f"{long}: epoch 1", [Panel(long, positions, labels)] * count, classes)
    figure.draw_without_rendering()
    whole = figure.get_tightbbox()
    assert whole.x0 >= 0 and whole.x1 <= figure.get_figwidth()
    assert whole.y0 >= 0 and whole.y1 <= figure.get_figheight()
    assert figure.axes[0].get_window_extent().width > 1.4 * figure.dpi
