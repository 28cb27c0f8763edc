"""The measures over the epochs, in the panels of `metrics.PANELS`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator

from figures.style import (
    RUN_MARKS,
    SCORE_LOOKS,
    STYLE,
    add_legend,
    choose_colour,
    choose_line,
    shorten_name,
)
from metrics import MEASURES, PANELS, SPLIT_NAMES, Measure, Panel

LONG = 12  # from this many epochs on, a "late" panel leaves out the first quarter
MARKED = 25  # a line of at most this many points marks all; a longer one marks ten
LEGEND_CHARACTERS = 105  # about this many characters of the legend fit the figure's width
ENTRY_CHARACTERS = 84  # and this many of one entry, if its letters are wide
# Opacity, and whether marks are filled, of the measures that share a panel.
STRENGTHS = ((1.0, True), (0.45, False), (0.7, False), (0.25, True))


@dataclass
class Curve:
    """One run's rows of nc_metrics.csv, for a picture."""

    name: str
    loss: str | None
    optimizer: str | None
    rows: Sequence[dict[str, Any]]

    def list_points(self, column: str, split: str) -> tuple[list[int], list[float]]:
        """Return epochs and values. An empty cell is nan and leaves a gap in the line."""
        rows = [row for row in self.rows if row["split"] == split]
        values = [math.nan if row[column] is None else row[column] for row in rows]
        return [row["epoch"] for row in rows], values

    def has_values(self, column: str) -> bool:
        """Return whether any row has a value in this column."""
        return any(row[column] is not None for row in self.rows)

    def choose_split(self, measure: Measure) -> str:
        """Return the split of a measure's curve: its own if that was evaluated."""
        present = {row["split"] for row in self.rows}
        return measure.split if measure.split in present else min(present)


def draw_nc_curves(curves: Sequence[Curve]) -> plt.Figure:
    """Draw the measures over the epochs, of one run or of several overlaid.

    The colour shows the loss, the line the optimizer, and the mark the run. The scores and the
    bias of one run are drawn beside their exact prediction.
    """
    panels = list_panels(curves)
    layout = arrange_panels(panels)
    with plt.rc_context(STYLE):
        size = (7.2, 2.5 * len(layout))
        figure, axes = plt.subplot_mosaic(layout, figsize=size, sharex=True)
        entries: list[tuple[Any, str]] = []  # of the legend: lines and their names
        for name, (panel, columns) in panels.items():
            draw = _draw_measures if panel.alone else _draw_runs
            lines = draw(axes[name], columns, curves, panel.scale)
            if panel.alone or not entries:
                entries += lines
            _set_title(axes[name], panel, columns, curves)
            _scale(axes[name], panel.scale)
        _label_epochs(layout, axes)
        handles, names = zip(*entries, strict=True)
        fitting = max(1, min(3, LEGEND_CHARACTERS // (max(map(len, names)) + 8)))
        add_legend(figure, handles, names, loc="outside lower center", ncols=fitting)
        for name, (panel, columns) in panels.items():
            if len(columns) > 1 and not panel.alone:
                _name_measures(axes[name], columns)
    return figure


def list_panels(curves: Sequence[Curve]) -> dict[str, tuple[Panel, list[str]]]:
    """Return the panels of a picture by name, and the columns of each.

    A measure that may be empty is left out if it has no value.
    """
    columns: dict[str, list[str]] = {name: [] for name in PANELS}
    for column, measure in MEASURES.items():
        empty = measure.may_be_empty and not any(curve.has_values(column) for curve in curves)
        if measure.panel and not empty:
            columns.setdefault(measure.panel, []).append(column)
    panels = {name: PANELS.get(name, Panel(name)) for name in columns if columns[name]}
    return {
        name: (panel, columns[name])
        for name, panel in panels.items()
        if len(curves) == 1 or not panel.alone
    }


def arrange_panels(panels: dict[str, tuple[Panel, list[str]]]) -> list[list[str]]:
    """Return the rows of the picture. Each has two panels, or one of the whole width."""
    shared = [name for name, (panel, _) in panels.items() if not panel.alone]
    rows = [shared[i : i + 2] for i in range(0, len(shared), 2)]
    rows += [[name] for name, (panel, _) in panels.items() if panel.alone]
    return [row * 2 if len(row) == 1 else row for row in rows]


def _draw_runs(
    axis: plt.Axes, columns: Sequence[str], curves: Sequence[Curve], scale: str
) -> list[tuple[Any, str]]:
    """Draw measures of several runs; return the first measure's line of each, and its name."""
    lines = []
    for curve, mark in zip(curves, itertools.cycle(RUN_MARKS), strict=False):
        style = {"color": choose_colour(curve.loss), "linestyle": choose_line(curve.optimizer)}
        for column, strength in _pair_strengths(columns):
            epochs, values = curve.list_points(column, curve.choose_split(MEASURES[column]))
            if scale == "log":
                values = [value if 0 < value < math.inf else math.nan for value in values]
            line = _plot(axis, epochs, values, marker=mark, **style, **strength)
            if column == columns[0]:
                setting = f" ({curve.loss}, {curve.optimizer})" if curve.loss else ""
                length = ENTRY_CHARACTERS - len(setting)
                lines.append((line, shorten_name(curve.name, length) + setting))
    return lines


def _draw_measures(
    axis: plt.Axes, columns: Sequence[str], curves: Sequence[Curve], scale: str
) -> list[tuple[Any, str]]:
    """Draw measures of one run, each in a colour of its own, and the exact prediction dashed.

    Returns the lines and their names.
    """
    (curve,) = curves
    lines, predicted = [], False
    for i, column in enumerate(columns):
        measure = MEASURES[column]
        look = SCORE_LOOKS.get(measure.quantity or "")
        colour = look.colour if look else f"C{i}"
        mark = look.mark if look else RUN_MARKS[i % len(RUN_MARKS)]
        split = curve.choose_split(measure)
        epochs, values = curve.list_points(column, split)
        lines.append((_plot(axis, epochs, values, color=colour, marker=mark), measure.name))
        if measure.predicted:
            level = curve.list_points(measure.predicted, split)[1][-1]
            if not math.isnan(level):
                axis.axhline(level, color=colour, linestyle="--", linewidth=1.2)
                predicted = True
    if predicted:
        style = {"color": "black", "linestyle": "--", "linewidth": 1.2}
        lines.append((plt.Line2D([], [], **style), "exact prediction"))
    return lines


def _plot(axis: plt.Axes, epochs: list[int], values: list[float], **style: Any) -> Any:
    """Draw a line with a mark at each value, or at ten if they are many. nan leaves a gap."""
    # matplotlib cannot space the marks of a line without values.
    few = sum(map(math.isfinite, values)) <= MARKED
    every = 1 if few else 0.1
    (line,) = axis.plot(epochs, values, markevery=every, markersize=4, linewidth=1.4, **style)
    return line


def _pair_strengths(columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Pair each column with a style of its own within its panel."""
    for column, (alpha, filled) in zip(columns, itertools.cycle(STRENGTHS), strict=False):
        style: dict[str, Any] = {"alpha": alpha}
        yield column, style if filled else {**style, "markerfacecolor": "white"}


def _name_measures(axis: plt.Axes, columns: Sequence[str]) -> None:
    """Name the measures that share a panel."""
    handles = [
        plt.Line2D(
            [],
            [],
            color="black",
            marker="o",
            markersize=4,
            label=MEASURES[column].name,
            **strength,
        )
        for column, strength in _pair_strengths(columns)
    ]
    axis.legend(handles=handles, fontsize=8)


def _set_title(
    axis: plt.Axes, panel: Panel, columns: Sequence[str], curves: Sequence[Curve]
) -> None:
    """Name a panel, and the split if all its curves have the same one."""
    splits = {curve.choose_split(MEASURES[column]) for curve in curves for column in columns}
    named = f" ({SPLIT_NAMES[splits.pop()]})" if len(splits) == 1 else ""
    axis.set_title(panel.title + named, fontsize=9)


def _label_epochs(layout: Sequence[Sequence[str]], axes: dict[str, plt.Axes]) -> None:
    """Number the epochs below each panel without another of its width below."""
    for row, below in itertools.pairwise(layout):
        if len(set(row)) != len(set(below)):
            for name in row:
                axes[name].tick_params(labelbottom=True)
    for name in set(layout[-1]):
        axes[name].set_xlabel("epoch")
        axes[name].xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def _scale(axis: plt.Axes, scale: str) -> None:
    """Scale the y axis as a `metrics.Panel` names it."""
    if scale == "zero":
        _scale_from_zero(axis)
    elif scale == "log":
        _scale_to_decades(axis)
    elif scale == "late":
        _scale_to_late(axis)


def _collect_values(drawn: Iterable[Any]) -> np.ndarray:
    """Return all finite values of several lines."""
    values = np.concatenate([np.asarray(line, dtype=float) for line in drawn])
    return values[np.isfinite(values)]


def _scale_from_zero(axis: plt.Axes) -> None:
    """Begin at 0 and leave a margin above the largest value."""
    values = _collect_values(line.get_ydata() for line in axis.lines)
    axis.set_ylim(0, 1.08 * values.max() if (values > 0).any() else None)


def _scale_to_decades(axis: plt.Axes) -> None:
    """Take a log scale over whole decades, with labels between them if they are few."""
    values = _collect_values(line.get_ydata() for line in axis.lines)
    axis.set_yscale("log")
    if len(values) == 0:
        return
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    axis.set_ylim(10.0**low, 10.0 ** max(high, low + 1))
    if high - low <= 2:
        axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.yaxis.set_minor_formatter(FormatStrFormatter("%g"))


def _scale_to_late(axis: plt.Axes) -> None:
    """Leave the rise of the first epochs out of the frame, for values in percent."""
    drawn = [line.get_ydata() for line in axis.lines]
    values = _collect_values(line[len(line) // 4 if len(line) >= LONG else 0 :] for line in drawn)
    if len(values) == 0:
        return
    low, high = values.min(), values.max()
    low = min(low, high - 1.0)
    margin = 0.08 * (high - low)
    axis.set_ylim(max(low - margin, 0.0), min(high + margin, 101.0))
    axis.ticklabel_format(axis="y", useOffset=False)
