"""The violins of scores and biases."""

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
