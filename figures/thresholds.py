"""Histograms of logits: can one threshold separate all samples?"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch

from figures.style import SCORE_LOOKS, STYLE, add_legend, fit_height, wrap_name
from metrics.accuracy import find_best_threshold
from metrics.extraction import Extracted

WIDTH, HEIGHT = 2.9, 1.5  # of a panel, and of its axes, in inches
HISTOGRAM_BINS = 40
OUTER = 0.005  # the outer bins also count this share of the logits on either side


def draw_thresholds(panels: Sequence[tuple[str, Extracted]]) -> plt.Figure:
    """Draw a panel for each title and its test set after a pass through a model.

    It shows histograms of each sample's positive logit and of its largest negative one, and the
    threshold of the uniform accuracy.
    """
    with plt.rc_context(STYLE):
        size = (WIDTH * len(panels), HEIGHT + 1)
        figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
        for axis, (title, extracted) in zip(axes[0], panels, strict=True):
            _draw_histograms(axis, title, extracted)
        axes[0][0].set_ylabel("test images")
        handles, names = axes[0][0].get_legend_handles_labels()
        add_legend(figure, handles, names, 3)
        fit_height(figure, axes[0][0], HEIGHT, 1)
    return figure


def _draw_histograms(axis: plt.Axes, title: str, extracted: Extracted) -> None:
    positives, negatives = extracted.positives.cpu(), extracted.negatives.cpu()
    accuracy, threshold = find_best_threshold(positives, negatives)
    both = torch.cat([positives, negatives])
    low, high = both.quantile(OUTER).item(), both.quantile(1 - OUTER).item()
    bins = torch.linspace(low, high, HISTOGRAM_BINS + 1).tolist()
    axis.hist(
        negatives.clamp(low, high).tolist(),
        bins,
        color=SCORE_LOOKS["negative_score"].colour,
        alpha=0.75,
        hatch="///",
        edgecolor="white",
        linewidth=0,
        label="largest negative logit",
    )
    axis.hist(
        positives.clamp(low, high).tolist(),
        bins,
        color=SCORE_LOOKS["positive_score"].colour,
        alpha=0.6,
        label="positive logit",
    )
    style = {"color": "black", "linestyle": "--", "linewidth": 1.2}
    axis.axvline(threshold, label="best single threshold", **style)
    shares = f"top-1 {100 * extracted.top1:.1f} %, uniform {100 * accuracy:.1f} %"
    axis.set_title(f"{wrap_name(title, 0.8 * WIDTH)}\n{shares}", fontsize=9)
    axis.set_xlabel("logit of a test image")
