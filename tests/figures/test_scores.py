"""The violins of scores and biases."""

import pytest
import torch

from figures.scores import Violins, draw_violins
from metrics.distributions import compute_distribution


def test_every_panel_is_drawn():
    values = {"positive_score": compute_distribution(torch.randn(50))}
    drawn = [Violins(f"panel {i}", "0", values, {}) for i in range(5)]
    figure = draw_violins(drawn, "x", "heading")
    assert figure.get_suptitle() == "heading"
    assert [axis.get_title() for axis in figure.axes] == [f"panel {i}" for i in range(5)]
    assert len({axis.get_ylim() for axis in figure.axes}) == 1


@pytest.mark.parametrize("count", [1, 3, 8])
def test_no_text_is_cut_at_the_edges_or_overlaps(count):
    values = {"positive_score": compute_distribution(torch.arange(50.0))}
    place = "bias_init_mode 3, weight_decay_bias 0.0005, seed 12"
    drawn = [
        Violins(f"ResNet18, imagenette, {loss}, SGD", f"{i} {place}", values, {})
        for loss in ("CE", "BCE")
        for i in range(count)
    ]
    figure = draw_violins(drawn, "run", "a data set of a very long name, " * 4)
    figure.draw_without_rendering()
    whole = figure.get_tightbbox()
    assert whole.x0 >= 0 and whole.x1 <= figure.get_figwidth()
    assert whole.y0 >= 0 and whole.y1 <= figure.get_figheight()
    titles = [axis.title.get_window_extent() for axis in figure.axes]
    assert titles[0].x1 < titles[1].x0
    assert figure.axes[0].get_window_extent().height > 0.9 * figure.dpi


def test_kinds_differ_without_colour():
    spread = compute_distribution(torch.arange(50.0))
    kinds = ("positive_score", "bias", "negative_score")
    figure = draw_violins(
        [Violins("p", "0", dict.fromkeys(kinds, spread), dict.fromkeys(kinds, 1.0))], "x"
    )
    (axis,) = figure.axes
    assert len({violin.get_hatch() for violin in axis.collections}) == 3
    means = [line for line in axis.lines if line.get_linestyle() == "None"]
    exact = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert [line.get_marker() for line in means] == [line.get_marker() for line in exact]
    assert len({line.get_marker() for line in exact}) == len(exact) == 3


def test_names_that_users_chose_are_shown_as_they_are():
    values = {"bias": compute_distribution(torch.arange(5.0))}
    figure = draw_violins([Violins("_a$b$", "$x$", values, {"bias": 1.0})], "run")
    (axis,) = figure.axes
    figure.draw_without_rendering()
    assert axis.get_title().strip().replace("\\$", "$") == "_a$b$"
    assert axis.get_xticklabels()[0].get_text().replace("\\$", "$") == "$x$"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "bias",
        "exact prediction",
    ]
