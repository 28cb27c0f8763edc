"""Training from several starts of the bias, over the epochs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from figures.curves import (
    ROW_HEIGHT,
    WIDTH,
    Curve,
    build_band_handle,
    fill_band,
    plot_points,
)
from figures.nc_curves import scale_axis
from figures.style import STYLE, add_legend, choose_colour, wrap_name

# Colour and mark of the starts under one loss, in their order.
LOOKS = (("#d62728", "s"), ("#e69f00", "^"), ("#6a3d9a", "D"), ("#2ca02c", "v"))
OTHER_MARK = "o"  # of another loss, whose colour is its own
LEVEL: dict[str, Any] = {"color": "black", "linewidth": 1.2}
LIMIT = "limit"  # below it, NC2 of W counts as small


@dataclass(frozen=True)
class Panel:
    """A panel of the picture: a column of the rows of one split.

    Attributes:
        column, split: what it shows.
        title: stands above it.
        scale: of the y axis, see `metrics.Panel`.
        level: a level to draw: the column of an exact prediction, or `LIMIT`. None: none.
        of_one_loss: whether another loss is left out, because its values have another meaning.
    """

    column: str
    split: str
    title: str
    scale: str
    level: str | None = None
    of_one_loss: bool = False


PANELS = (
    Panel("nc2", "train", "NC2, classifier W (training set)", "zero", level=LIMIT),
    Panel("nc2_h", "train", "NC2, class means (training set)", "zero"),
    Panel("bias_mean", "train", "mean of the bias", "linear", "predicted_bias", of_one_loss=True),
    Panel("test_loss", "test", "test loss", "log", of_one_loss=True),
    Panel("top1", "test", "top-1, % (test set)", "late"),
    Panel("uniform_accuracy", "test", "uniform accuracy, % (test set)", "late"),
)


def draw_starts(title: str, curves: Sequence[Curve], limit: float) -> plt.Figure:
    """Draw NC2, bias, test loss and accuracies over the epochs, a line for each start.

    A band of one sample standard deviation on either side surrounds the mean of several runs.

    Args:
        title: above the figure.
        curves: their rows have the columns of `PANELS`. The loss of the last one has the starts.
        limit: NC2 of W counts as small below it.
    """
    main = curves[-1].loss
    looks = _choose_looks(curves, main)
    with plt.rc_context(STYLE):
        size = (WIDTH, ROW_HEIGHT * 3 + 0.3)
        figure, axes = plt.subplots(3, 2, figsize=size, sharex=True)
        entries: dict[str, Any] = {}  # of the legend
        for axis, panel in zip(axes.flat, PANELS, strict=True):
            shown = [curve for curve in curves if curve.loss == main or not panel.of_one_loss]
            for curve in shown:
                colour, mark = looks[curve.name]
                points = curve.list_points(panel.column, panel.split)
                line = plot_points(axis, points, color=colour, marker=mark)
                fill_band(axis, points, colour)
                entries.setdefault(curve.name, line)
            if panel.level is not None:
                entries |= _draw_level(axis, panel.level, curves[-1], limit)
            axis.set_title(panel.title + (f", {main}" if panel.of_one_loss else ""), fontsize=9)
            scale_axis(axis, panel.scale)
        for axis in axes[-1]:
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        if any(len(curve.runs) > 1 for curve in curves):
            entries["± standard deviation"] = build_band_handle()
        figure.suptitle(wrap_name(title, 0.95 * WIDTH), fontsize=9)
        add_legend(figure, list(entries.values()), list(entries), 3, fontsize=8)
    return figure


def _choose_looks(curves: Sequence[Curve], main: str | None) -> dict[str, tuple[str, str]]:
    """Choose colour and mark of each curve, by name."""
    starts = [curve.name for curve in curves if curve.loss == main]
    looks = dict(zip(starts, itertools.cycle(LOOKS), strict=False))
    others = {c.name: (choose_colour(c.loss), OTHER_MARK) for c in curves if c.loss != main}
    return looks | others


def _draw_level(axis: plt.Axes, level: str, curve: Curve, limit: float) -> dict[str, Any]:
    """Draw a level over all epochs; return its line for the legend, by its name."""
    if level == LIMIT:
        return {f"NC2 = {limit:g}": axis.axhline(limit, linestyle=":", **LEVEL)}
    exact = curve.list_points(level, "train").means[-1]
    if math.isnan(exact):
        return {}
    return {"exact prediction": axis.axhline(exact, linestyle="--", **LEVEL)}
