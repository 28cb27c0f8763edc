"""Can one threshold separate all samples? Histograms of logits."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch

from figures.style import (
    NEGATIVE,
    POSITIVE,
    STYLE,
)
from metrics.accuracy import best_threshold
from metrics.extraction import Extracted


def threshold_figure(panels: Sequence[tuple[str, Extracted]]) -> plt.Figure:
    """For each (title, test set passed through a model): can one threshold separate all samples?

    Histograms of every sample's positive logit and of its largest negative one, and the threshold
    of the uniform accuracy. The outermost half percent on either side counts in the outer bins.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 2.7), sharey=True)
        for axis, (title, extracted) in zip(axes, panels, strict=True):
            positives, negatives = extracted.positives.cpu(), extracted.negatives.cpu()
            accuracy, threshold = best_threshold(positives, negatives)
            both = torch.cat([positives, negatives])
            low, high = both.quantile(0.005).item(), both.quantile(0.995).item()
            bins = torch.linspace(low, high, 41).tolist()
            positives, negatives = positives.clamp(low, high), negatives.clamp(low, high)
            axis.hist(
                negatives.tolist(),
                bins,
                color=NEGATIVE,
                alpha=0.75,
                hatch="///",
                edgecolor="white",
                linewidth=0,
                label="largest negative logit",
            )
            axis.hist(positives.tolist(), bins, color=POSITIVE, alpha=0.6, label="positive logit")
            axis.axvline(
                threshold,
                color="black",
                linestyle="--",
                linewidth=1.2,
                label="best single threshold",
            )
            shares = f"top-1 {100 * extracted.top1:.1f} %, uniform {100 * accuracy:.1f} %"
            axis.set_title(f"{title}: {shares}")
            axis.set_xlabel("logit of a test image")
        axes[0].set_ylabel("test images")
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure
