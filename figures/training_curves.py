"""Loss and accuracy of metrics.csv over the epochs, with a band over seeds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator

from figures.curves import (
    LEGEND_COLUMNS,
    ROW_HEIGHT,
    WIDTH,
    Curve,
    Points,
    build_band_handle,
    fill_band,
    plot_points,
)
from figures.style import RUN_MARKS, STYLE, add_legend, choose_colour, choose_line

# Column of metrics.csv and title of each panel.
PANELS = {
    "train_loss": "loss in training",
    "test_loss": "loss (test set)",
    "test_top1": "top-1 accuracy, % (test set)",
    "test_uniform": "uniform accuracy, % (test set)",
}
SPLIT = ""  # rows of metrics.csv are of no split


def draw_training_curves(curves: Sequence[Curve]) -> plt.Figure:
    """Draw losses (log scale) and accuracies over the epochs.

    The colour shows the loss, the line the optimizer, the mark the curve. A band of one sample
    standard deviation on either side surrounds the mean of several runs.

    Args:
        curves: their rows are those of metrics.csv, with `SPLIT` as split.
    """
    with plt.rc_context(STYLE):
        size = (WIDTH, 2 * ROW_HEIGHT)
        figure, grid = plt.subplots(2, 2, figsize=size, sharex=True)
        for axis, (column, title) in zip(grid.flat, PANELS.items(), strict=True):
            lines = [
                _draw_curve(axis, curve, curve.list_points(column, SPLIT), mark)
                for curve, mark in zip(curves, itertools.cycle(RUN_MARKS), strict=False)
            ]
            axis.set_title(title, fontsize=9)
            if column.endswith("loss"):
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
                axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
                axis.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        for axis in grid[-1]:
            axis.set_xlabel("epoch")
        handles, names = list(lines), [curve.name for curve in curves]
        if any(len(curve.runs) > 1 for curve in curves):
            handles.append(build_band_handle())
            names.append("± standard deviation")
        add_legend(figure, handles, names, LEGEND_COLUMNS)
    return figure


def _draw_curve(axis: plt.Axes, curve: Curve, points: Points, mark: str) -> plt.Line2D:
    colour = choose_colour(curve.loss)
    line = plot_points(
        axis, points, color=colour, linestyle=choose_line(curve.optimizer), marker=mark
    )
    fill_band(axis, points, colour)
    return line
