"""The paper's published numbers beside the exact theory."""

import pytest

from reproduction import published
from theory.balanced import find_balanced_minimum


def test_published_numbers():
    assert published.ACCURACY["cifar100", "ResNet50", "BCE", "AdamW", "DA1"] == (75.3, 68.8)
    assert published.ACCURACY["cifar10", "DenseNet121", "CE", "SGD", "DA1+DA2"] == (86.7, 81.5)
    assert published.find_scores(10, "CE", 0.05) == (5.7, -0.6, None)
    assert published.find_scores(10, "BCE", 0.123) == (None, None, None)


def test_the_figures_show_the_exact_minimum():
    """To what can be read off the figures."""
    for (classes, loss, decay), shown in published.SCORE_FIGURES.items():
        exact = find_balanced_minimum(loss, classes, 128 / classes, 5e-4, 5e-4, decay or 0.0)
        computed = (exact.positive_score, exact.negative_score, exact.bias)
        for ours, theirs in zip(computed, shown, strict=True):
            assert theirs is None or ours == pytest.approx(theirs, abs=0.25)
