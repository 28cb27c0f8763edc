"""The picture of the classes: found beside predicted."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from figures.classes import draw_classes
from metrics import CLASS_MEASURES


def make_rows(num_classes, **cells):
    """Rows of the classes in which every measure has the number of the class."""
    return [{**dict.fromkeys(CLASS_MEASURES, float(k)), **cells} for k in range(num_classes)]


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_found_and_predicted_values_of_every_class_are_drawn(num_classes):
    splits = {"train": make_rows(num_classes), "test": make_rows(num_classes, top1=None)}
    figure = draw_classes(splits, "a run of a very long name, " * 5)
    figure.draw_without_rendering()
    scores, norms, accuracy = figure.axes
    assert (len(scores.lines), len(norms.lines), len(accuracy.lines)) == (6, 4, 2)
    for line in [*scores.lines, *norms.lines]:
        assert line.get_ydata().tolist() == list(range(num_classes))
    assert [line.get_linestyle() for line in scores.lines] == ["None", "--"] * 3
    assert np.isnan(accuracy.lines[1].get_ydata()).all()
    assert "exact prediction" in [text.get_text() for text in figure.legends[0].get_texts()]
    whole = figure.get_tightbbox()
    assert whole.x0 >= 0 and whole.x1 <= figure.get_figwidth()
    plt.close(figure)


def test_classes_without_a_prediction_are_joined_by_lines():
    none = {name: None for name, measure in CLASS_MEASURES.items() if measure.optional}
    figure = draw_classes({"test": make_rows(3, **none)})
    assert [line.get_linestyle() for line in figure.axes[0].lines][::2] == ["-"] * 3
    assert "exact prediction" not in [text.get_text() for text in figure.legends[0].get_texts()]
    assert "(test set)" in figure.axes[0].get_title()
    plt.close(figure)
