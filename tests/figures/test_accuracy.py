"""The figure of accuracies beside the paper's."""

import matplotlib.pyplot as plt
import pytest

from figures.accuracy import Accuracy, draw_accuracy_figure
from objective import LOSSES


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def read_labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_panels_rows_and_losses():
    accuracies = [
        Accuracy(panel, row, loss, 90.0, 1.0, 92.0)
        for panel in ("top-1", "uniform")
        for row in ("SGD", "AdamW", "other")
        for loss in ("CE", "BCE")
    ]
    figure = draw_accuracy_figure(accuracies, "ResNet18")
    assert [axis.get_xlabel() for axis in figure.axes] == ["top-1", "uniform"]
    ticks = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert ticks == ["SGD", "AdamW", "other"]
    assert read_labels(figure) == ["CE", "BCE", "paper (ResNet18), CE", "paper (ResNet18), BCE"]


def test_losses_stand_side_by_side_in_their_colours():
    accuracies = [Accuracy("top-1", "SGD", loss, 90.0, None, None) for loss in LOSSES]
    figure = draw_accuracy_figure(accuracies)
    bars = figure.axes[0].containers
    places = [bar.lines[0].get_ydata()[0] for bar in bars]
    assert places == sorted(set(places))
    assert sum(places) == pytest.approx(0)
    assert [bar.lines[0].get_color() for bar in bars] == [loss.colour for loss in LOSSES.values()]
    assert read_labels(figure) == list(LOSSES)


def test_what_is_missing_is_left_out():
    figure = draw_accuracy_figure([Accuracy("top-1", "SGD", "CE", None, None, 92.0)])
    assert figure.axes[0].containers == []
    assert [list(line.get_xdata()) for line in figure.axes[0].lines if len(line.get_xdata())] == [
        [92.0]
    ]
