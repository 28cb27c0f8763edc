"""Colours, marks and style of all figures."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from utils.files import write_whole

matplotlib.use("Agg")

# The paper's red, green and blue; marks tell them apart without colour.
POSITIVE, BIAS, NEGATIVE = "#d62728", "#2ca02c", "#1f77b4"
SCORES = {
    "positive_score": ("positive score", POSITIVE, "^"),
    "bias": ("bias", BIAS, "o"),
    "negative_score": ("negative score", NEGATIVE, "v"),
}
LOSS_COLOURS = {"CE": "#1f77b4", "BCE": "#d62728", "MSE": "#2ca02c"}
OPTIMIZER_LINES = {"SGD": "--", "AdamW": "-"}
MARKERS = "osD^vP*X"  # tell runs apart that share loss and optimizer, and in print without colour
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
}


def save_figure(figure: plt.Figure, path: Path) -> None:
    """Write a figure whole, in the format that the path's ending names, and close it."""
    content = io.BytesIO()
    with plt.rc_context(STYLE):
        figure.savefig(content, format=path.suffix.lstrip("."))
    plt.close(figure)
    write_whole(path, lambda file: file.write(content.getvalue()))
