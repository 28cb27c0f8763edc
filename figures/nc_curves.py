"""The measures over the epochs, in the panels of `metrics.PANELS`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator

from figures.curves import (
    LEGEND_COLUMNS,
    ROW_HEIGHT,
    WIDTH,
    Curve,
    build_band_handle,
    fill_band,
    plot_points,
)
from figures.style import (
    RUN_MARKS,
    SCORE_LOOKS,
    STYLE,
    add_legend,
    choose_colour,
    choose_line,
    escape_name,
    measure_width,
    wrap_name,
)
from metrics import MEASURES, PANELS, SPLIT_NAMES, Panel

LONG = 12  # from this many epochs on, a "late" panel leaves out the first quarter
ENTRY_WIDTH = 2.4  # inches of a legend's name; the longer name of a single run is the title
EDGE = 0.03  # share of a y axis that stays free at either end: no mark is cut there
# Opacity, and whether marks are filled, of the measures that share a panel.
STRENGTHS = ((1.0, True), (0.45, False), (0.7, False), (0.25, True))


def draw_nc_curves(curves: Sequence[Curve]) -> plt.Figure:
    """Draw the measures over the epochs, of one curve or of several overlaid.

    The colour shows the loss, the line the optimizer, and the mark the curve. A band of one sample
    standard deviation on either side surrounds the mean of several runs. The scores and the bias of
    one run are drawn beside their exact prediction.
    """
    panels = list_panels(curves)
    layout = arrange_panels(panels)
    with plt.rc_context(STYLE):
        size = (WIDTH, ROW_HEIGHT * len(layout))
        figure, axes = plt.subplot_mosaic(layout, figsize=size, sharex=True)
        entries: list[tuple[Any, str]] = []  # of the legend: lines and their names
        for name, (panel, columns) in panels.items():
            draw = _draw_measures if panel.alone else _draw_curves
            lines = draw(axes[name], columns, curves, panel.scale)
            if panel.alone or not entries:
                entries += lines
            _set_title(axes[name], panel, columns, curves)
            scale_axis(axes[name], panel.scale)
        _label_epochs(layout, axes)
        entries = _name_single(figure, curves, entries)
        if any(len(curve.runs) > 1 for curve in curves):
            entries.append((build_band_handle(), "± standard deviation"))
        handles, names = zip(*entries, strict=True)
        add_legend(figure, handles, names, LEGEND_COLUMNS, fontsize=8)
        for name, (panel, columns) in panels.items():
            if len(columns) > 1 and not panel.alone:
                _name_measures(axes[name], columns)
    return figure


def _name_single(
    figure: plt.Figure, curves: Sequence[Curve], entries: list[tuple[Any, str]]
) -> list[tuple[Any, str]]:
    """Make the long name of a single curve the figure's title; return the legend's entries."""
    (line, name), *others = entries
    if len(curves) > 1 or measure_width(name) <= ENTRY_WIDTH:
        return entries
    title = wrap_name(curves[0].name, 0.95 * WIDTH, 8)
    figure.suptitle(title, fontsize=8)
    figure.set_figheight(figure.get_figheight() + 0.15 * (2 + title.count("\n")))
    looks = ", ".join(filter(None, (curves[0].loss, curves[0].optimizer)))
    return [(line, looks or "run"), *others]


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
        if not panel.alone or (len(curves) == 1 and len(curves[0].runs) == 1)
    }


def arrange_panels(panels: dict[str, tuple[Panel, list[str]]]) -> list[list[str]]:
    """Return the rows of the picture. Each has two panels, or one of the whole width."""
    shared = [name for name, (panel, _) in panels.items() if not panel.alone]
    rows = [shared[i : i + 2] for i in range(0, len(shared), 2)]
    rows += [[name] for name, (panel, _) in panels.items() if panel.alone]
    return [row * 2 if len(row) == 1 else row for row in rows]


def _draw_curves(
    axis: plt.Axes, columns: Sequence[str], curves: Sequence[Curve], scale: str
) -> list[tuple[Any, str]]:
    """Draw measures of several curves; return the first measure's line of each, and its name."""
    lines = []
    for curve, mark in zip(curves, itertools.cycle(RUN_MARKS), strict=False):
        style = {"color": choose_colour(curve.loss), "linestyle": choose_line(curve.optimizer)}
        for column, strength in _pair_strengths(columns):
            points = curve.list_points(column, curve.choose_split(MEASURES[column]))
            if scale == "log":
                means = [value if 0 < value < math.inf else math.nan for value in points.means]
                points = points._replace(means=means)
            line = plot_points(axis, points, marker=mark, **style, **strength)
            fill_band(axis, points, style["color"], strength["alpha"])
            if column == columns[0]:
                lines.append((line, curve.name))
    return lines


def _draw_measures(
    axis: plt.Axes, columns: Sequence[str], curves: Sequence[Curve], scale: str
) -> list[tuple[Any, str]]:
    """Draw measures of one run, each with looks of its own, and the exact prediction dashed.

    An open mark at the end of a prediction shows the measure to which it belongs. Returns the lines
    and their names.
    """
    (curve,) = curves
    lines, predicted = [], False
    for i, column in enumerate(columns):
        measure = MEASURES[column]
        look = SCORE_LOOKS.get(measure.quantity or "")
        colour = look.colour if look else f"C{i}"
        mark = look.mark if look else RUN_MARKS[i % len(RUN_MARKS)]
        style: dict[str, Any] = {"color": colour, "marker": mark}
        style["linestyle"] = look.line if look else "-"
        split = curve.choose_split(measure)
        points = curve.list_points(column, split)
        lines.append((plot_points(axis, points, **style), measure.name))
        if measure.predicted:
            level = curve.list_points(measure.predicted, split).means[-1]
            if not math.isnan(level):
                _draw_prediction(axis, level, colour, mark)
                predicted = True
    if predicted:
        style = {"color": "black", "linestyle": "--", "linewidth": 1.2}
        lines.append((plt.Line2D([], [], **style), "exact prediction"))
    return lines


def _draw_prediction(axis: plt.Axes, level: float, colour: str, mark: str) -> None:
    """Draw a level over all epochs, with an open mark at its right end."""
    axis.axhline(
        level,
        color=colour,
        linestyle="--",
        linewidth=1.2,
        marker=mark,
        markersize=5,
        markerfacecolor="white",
        markevery=[1],
        clip_on=False,
        zorder=3,
    )


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
    axis.legend(handles=handles, fontsize=8, frameon=True, framealpha=0.8, edgecolor="none")


def _set_title(
    axis: plt.Axes, panel: Panel, columns: Sequence[str], curves: Sequence[Curve]
) -> None:
    """Name a panel, and the split if all its curves have the same one."""
    splits = {curve.choose_split(MEASURES[column]) for curve in curves for column in columns}
    named = f"({SPLIT_NAMES[splits.pop()]})" if len(splits) == 1 else ""
    width = 0.43 * WIDTH * (2 if panel.alone else 1)
    space = "\n" if measure_width(f"{panel.title} {named}") > width else " "
    axis.set_title(f"{escape_name(panel.title)}{space}{named}".rstrip(), fontsize=9)


def _label_epochs(layout: Sequence[Sequence[str]], axes: dict[str, plt.Axes]) -> None:
    """Number the epochs below each panel without another of its width below."""
    for row, below in itertools.pairwise(layout):
        if len(set(row)) != len(set(below)):
            for name in row:
                axes[name].tick_params(labelbottom=True)
    for name in set(layout[-1]):
        axes[name].set_xlabel("epoch")
        axes[name].xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def scale_axis(axis: plt.Axes, scale: str) -> None:
    """Scale the y axis as a `metrics.Panel` names it."""
    if scale == "zero":
        _scale_from_zero(axis)
    elif scale == "log":
        _scale_to_decades(axis)
    elif scale == "late":
        _scale_to_late(axis)


def _collect_values(artists: Sequence[np.ndarray], late: bool = False) -> np.ndarray:
    """Return all finite values of artists, each the points [N, 2] of a line or a band.

    Args:
        artists: the points.
        late: whether to leave out the first quarter of the epochs if they are many.
    """
    values = [np.empty(0)]
    for points in artists:
        epochs = np.unique(points[:, 0])
        begin = epochs[len(epochs) // 4] if late and len(epochs) >= LONG else -math.inf
        values.append(points[points[:, 0] >= begin, 1])
    together = np.concatenate(values)
    return together[np.isfinite(together)]


def _list_lines(axis: plt.Axes) -> list[np.ndarray]:
    return [np.asarray(line.get_xydata(), dtype=float) for line in axis.lines]


def _list_bands(axis: plt.Axes) -> list[np.ndarray]:
    return [path.vertices for band in axis.collections for path in band.get_paths()]


def _scale_from_zero(axis: plt.Axes) -> None:
    """Begin at 0 and leave a margin above the largest value."""
    values = _collect_values([*_list_lines(axis), *_list_bands(axis)])
    if (values > 0).any():
        top = 1.08 * values.max()
        axis.set_ylim(-EDGE * top, top)
    else:
        axis.set_ylim(-EDGE, 1)


def _scale_to_decades(axis: plt.Axes) -> None:
    """Take a log scale over whole decades, with labels between them if they are few.

    The lower end of a band may lie at or below 0, which no such scale shows: the lines alone decide
    where the axis begins.
    """
    values = _collect_values(_list_lines(axis))
    if len(values) == 0:
        return
    axis.set_yscale("log", nonpositive="clip")
    highest = _collect_values([*_list_lines(axis), *_list_bands(axis)]).max()
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(highest))
    high = max(high, low + 1)
    edge = EDGE * (high - low)
    axis.set_ylim(10.0 ** (low - edge), 10.0 ** (high + edge))
    if high - low <= 2:
        axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.yaxis.set_minor_formatter(FormatStrFormatter("%g"))


def _scale_to_late(axis: plt.Axes) -> None:
    """Leave the rise of the first epochs out of the frame, for values in percent."""
    values = _collect_values([*_list_lines(axis), *_list_bands(axis)], late=True)
    if len(values) == 0:
        return
    low, high = max(values.min(), 0.0), min(values.max(), 100.0)
    low = min(low, high - 1.0)
    margin = 0.08 * (high - low)
    axis.set_ylim(low - margin, high + margin)
    axis.ticklabel_format(axis="y", useOffset=False)
