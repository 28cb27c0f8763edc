"""The histograms of logits and their threshold."""

import pytest
import torch

from figures.thresholds import draw_thresholds
from metrics.accuracy import find_best_threshold
from metrics.extraction import Extracted


@pytest.mark.parametrize("count", [1, 2])
def test_a_panel_for_each_run_with_all_its_samples(count):
    generator = torch.Generator().manual_seed(0)
    positives = torch.randn(500, generator=generator) + 4
    negatives = torch.randn(500, generator=generator)
    labels = torch.zeros(500, dtype=torch.int64)
    rest = [labels[:1], positives, positives, positives > negatives]
    extracted = Extracted(torch.zeros(500, 1), labels, positives, negatives, 0.995, 1.0, *rest)
    long = "a_long_name_of_a_run_" * 8
    figure = draw_thresholds([(f"run {i}, {long}", extracted) for i in range(count)])
    figure.draw_without_rendering()
    whole = figure.get_tightbbox()
    assert whole.x0 >= 0 and whole.x1 <= figure.get_figwidth()
    assert whole.y0 >= 0 and whole.y1 <= figure.get_figheight()
    accuracy, threshold = find_best_threshold(positives, negatives)
    assert len(figure.axes) == count
    for i, axis in enumerate(figure.axes):
        *name, shares = axis.get_title().split("\n")
        assert "".join(name).replace(" ", "") == f"run{i},{long}"
        assert shares == f"top-1 99.5 %, uniform {100 * accuracy:.1f} %"
        assert sum(patch.get_height() for patch in axis.patches) == 1000
        assert axis.lines[0].get_xdata()[0] == pytest.approx(threshold)
