"""Scores, bias, norms and accuracy of the classes at one epoch, beside the exact prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from figures.curves import ROW_HEIGHT, WIDTH
from figures.style import SCORE_LOOKS, STYLE, add_legend, wrap_name
from metrics import CLASS_MEASURES, SPLIT_NAMES

LAYOUT = (("scores", "scores"), ("norms", "accuracy"))
NORM_LOOKS = {"weight_norm": ("#9467bd", "s"), "mean_norm": ("#8c564b", "D")}
SPLIT_LOOKS = {"train": ("black", "o", "-"), "test": ("0.55", "s", "--")}
MARKED = 30  # marks of a line; with more classes not each has one
Rows = Sequence[Mapping[str, Any]]


def draw_classes(splits: Mapping[str, Rows], heading: str = "") -> plt.Figure:
    """Draw the measures of the classes over their number: found as marks, predicted as dashes.

    Args:
        splits: the rows of nc_classes.csv of one epoch, in the order of the classes, by split. All
            panels but that of the accuracies show the training set if it is there.
        heading: above the panels.
    """
    shown = "train" if "train" in splits else next(iter(splits))
    rows = splits[shown]
    with plt.rc_context(STYLE):
        size = (WIDTH, 1.15 * ROW_HEIGHT * len(LAYOUT))
        figure, axes = plt.subplot_mosaic([list(row) for row in LAYOUT], figsize=size)
        looks: dict[str, tuple[str, str]] = {
            name: (SCORE_LOOKS[measure.quantity].colour, SCORE_LOOKS[measure.quantity].mark)
            for name, measure in CLASS_MEASURES.items()
            if measure.quantity
        }
        entries = _draw_measured(axes["scores"], rows, looks)
        entries += _draw_measured(axes["norms"], rows, NORM_LOOKS)
        if any(row["predicted_positive"] is not None for row in rows):
            look = {"linestyle": "--", "marker": "o", "markersize": 6, "markerfacecolor": "none"}
            line = plt.Line2D([], [], color="black", linewidth=1.0, **look)
            entries.append((line, "exact prediction"))
        _draw_accuracies(axes["accuracy"], splits)
        titles = {"scores": "mean scores and bias", "norms": "norms", "accuracy": "top-1, %"}
        for name, axis in axes.items():
            split = "" if name == "accuracy" else f" ({SPLIT_NAMES[shown]})"
            axis.set_title(f"{titles[name]}{split}", fontsize=9)
            axis.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
            axis.set_xlabel("class")
        if heading:
            figure.suptitle(wrap_name(heading, 0.95 * WIDTH, 8), fontsize=8)
        handles, names = zip(*entries, strict=True)
        add_legend(figure, handles, names, 3, fontsize=8)
    return figure


def _draw_measured(
    axis: plt.Axes, rows: Rows, looks: Mapping[str, tuple[str, str]]
) -> list[tuple[Any, str]]:
    """Draw measures of the classes and their predictions; return the marks and their names."""
    entries = []
    for name, (colour, mark) in looks.items():
        measure = CLASS_MEASURES[name]
        exact = [_read(row[measure.predicted or ""]) for row in rows]
        found = [_read(row[name]) for row in rows]
        # Without a prediction a thin line leads from class to class.
        line = "-" if all(map(math.isnan, exact)) else "none"
        style = {"color": colour, "marker": mark, "markersize": 4, "linestyle": line}
        (marks,) = axis.plot(found, **style, linewidth=0.7, markevery=_space_marks(rows))
        # Open marks around the found ones tell predictions apart without colour.
        shown = {"marker": mark, "markersize": 6, "markerfacecolor": "none", "linestyle": "--"}
        axis.plot(exact, color=colour, **shown, linewidth=1.0, markevery=_space_marks(rows))
        entries.append((marks, measure.name))
    return entries


def _draw_accuracies(axis: plt.Axes, splits: Mapping[str, Rows]) -> None:
    for split, rows in splits.items():
        colour, mark, line = SPLIT_LOOKS[split]
        axis.plot(
            [_read(row["top1"]) for row in rows],
            color=colour,
            marker=mark,
            linestyle=line,
            linewidth=0.9,
            markersize=4,
            markevery=_space_marks(rows),
            label=SPLIT_NAMES[split],
        )
    axis.set_ylim(-3, 103)
    axis.legend(fontsize=8, frameon=True, framealpha=0.8, edgecolor="none")


def _space_marks(rows: Rows) -> int:
    return max(1, len(rows) // MARKED)


def _read(value: float | None) -> float:
    """Return a cell's number; NaN, which leaves a gap, for an empty or infinite one."""
    return value if value is not None and math.isfinite(value) else math.nan
