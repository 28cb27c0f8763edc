"""Violins of decision scores and biases over runs, after the paper's score figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from figures.style import (
    SCORE_LOOKS,
    STYLE,
    add_legend,
    fit_height,
    measure_width,
    shorten_name,
    wrap_name,
)
from metrics.distributions import Distribution

WIDTH = 0.42  # half of a violin's greatest width, in steps of the x axis
PLACE_CHARACTERS = 40  # of a name on the x axis
PLACE_WIDTH = 1.1  # inches of a line of it
RANGE = ("predicted_min", "predicted_max")  # columns of the numbers
PANEL_SIZE = 2.3, 1.5  # width, and height of its axes, in inches


@dataclass
class Violins:
    """One run in a score figure.

    Attributes:
        panel: the title of its panel.
        place: its name on the x axis.
        values: a distribution by kind, which is positive_score, bias or negative_score; no bias for
            a classifier without one.
        predicted: the exact prediction by kind, a mean where classes differ; None without one.
        predicted_range: the least and the largest value at the exact minimum by kind, where they
            differ.
    """

    panel: str
    place: str
    values: dict[str, Distribution]
    predicted: dict[str, float | None]
    predicted_range: dict[str, tuple[float, float]] = field(default_factory=dict)


def draw_violins(
    runs: Sequence[Violins], x_label: str, heading: str = "", columns: int = 2
) -> plt.Figure:
    """Draw violins of positive scores (red), biases (green) and negative scores (blue).

    Panels and places on the x axis are in the order of `runs`; all panels share one y axis. Marks
    stand at the means, and hatches keep positive and negative scores apart without colour. Dashed
    lines are the exact prediction, and bars its range.
    """
    titles = list(dict.fromkeys(run.panel for run in runs))
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    most = max(sum(run.panel == title for run in runs) for title in titles)
    width = max(PANEL_SIZE[0], 0.28 * most + 0.5) * columns + 0.4
    with plt.rc_context({**STYLE, "axes.grid.axis": "y", "hatch.linewidth": 0.4}):
        figure, grid = plt.subplots(
            rows,
            columns,
            figsize=(max(width, 3.6), (PANEL_SIZE[1] + 1) * rows),
            sharey=True,
            squeeze=False,
        )
        for axis, title in zip(grid.flat, titles, strict=False):
            _draw_panel(axis, title, [run for run in runs if run.panel == title])
        for axis in grid.flat[len(titles) :]:
            axis.remove()
        for axis in grid[:, 0]:
            axis.set_ylabel("score, bias")
        for axis in grid.flat[max(0, len(titles) - columns) : len(titles)]:
            axis.set_xlabel(x_label)
        if heading:
            figure.suptitle(wrap_name(heading, 0.95 * figure.get_figwidth()), fontsize=9)
        _add_legend(figure, runs)
        fit_height(figure, grid.flat[0], PANEL_SIZE[1], rows)
    return figure


def _draw_panel(axis: plt.Axes, title: str, runs: Sequence[Violins]) -> None:
    axis.set_title(wrap_name(title, PANEL_SIZE[0] - 0.4), fontsize=9)
    for place, run in enumerate(runs):
        for kind, distribution in run.values.items():
            _draw_violin(axis, place, kind, distribution)
            exact = run.predicted.get(kind)
            if exact is not None:
                _draw_prediction(axis, place, kind, exact)
            if kind in run.predicted_range:
                _draw_range(axis, place, kind, run.predicted_range[kind])
    names = [shorten_name(run.place, PLACE_CHARACTERS) for run in runs]
    widest = max(measure_width(name, 8) for name in names)
    long = len(names) > 1 and (widest + 0.1) * len(names) > PANEL_SIZE[0] - 0.6
    axis.set_xticks(
        range(len(runs)),
        [wrap_name(name, PLACE_WIDTH if long else PANEL_SIZE[0] - 0.6, 8) for name in names],
        rotation=35 if long else 0,
        ha="right" if long else "center",
        rotation_mode="anchor",
        fontsize=8,
    )
    margin = 0.6 if len(runs) > 1 else 1.0
    axis.set_xlim(-margin, len(runs) - 1 + margin)


def _draw_prediction(axis: plt.Axes, place: int, kind: str, exact: float) -> None:
    """Draw a dashed line; an open mark at its right end shows the kind without colour."""
    look = SCORE_LOOKS[kind]
    axis.plot(
        [place - 0.5, place + 0.44, place + 0.5],
        [exact] * 3,
        color=look.colour,
        linestyle="--",
        linewidth=1.1,
        marker=look.mark,
        markevery=[1],
        markersize=3.5,
        markerfacecolor="white",
    )


def _draw_range(axis: plt.Axes, place: int, kind: str, ends: tuple[float, float]) -> None:
    """Draw a bar from the least to the largest value, right of the violin; kinds stand apart."""
    kinds = list(SCORE_LOOKS)
    across = place + 0.44 + 0.03 * (kinds.index(kind) - 1)
    axis.plot([across] * 2, ends, color=SCORE_LOOKS[kind].colour, linewidth=1.0, marker="_")


def _draw_violin(axis: plt.Axes, place: int, kind: str, values: Distribution) -> None:
    look = SCORE_LOOKS[kind]
    positions, densities = (part.numpy() for part in values.trace_outline())
    if len(positions) > 1:
        shape = WIDTH * densities / densities.max()
        axis.fill_betweenx(
            positions,
            place - shape,
            place + shape,
            **_choose_fill(kind),
        )
    else:
        ends = [place - WIDTH, place + WIDTH]
        axis.plot(ends, [values.mean, values.mean], color=look.colour, linewidth=1.2)
    axis.plot(place, values.mean, **_choose_mark(kind))


def _add_legend(figure: plt.Figure, runs: Sequence[Violins]) -> None:
    """Name the kinds, each by its mark on a piece of its violin, and the exact prediction."""
    handles: list[Any] = []
    names = []
    for kind, look in SCORE_LOOKS.items():
        if any(kind in run.values for run in runs):
            violin = plt.Rectangle((0, 0), 1, 1, **_choose_fill(kind))
            handles.append((violin, plt.Line2D([], [], **_choose_mark(kind))))
            names.append(look.title)
    if any(value is not None for run in runs for value in run.predicted.values()):
        handles.append(plt.Line2D([], [], color="black", linestyle="--", linewidth=0.9))
        names.append("exact prediction")
    if any(run.predicted_range for run in runs):
        handles.append(plt.Line2D([], [], color="black", linewidth=1.0, marker="|"))
        names.append("its range")
    add_legend(figure, handles, names, 4, fontsize=8, columnspacing=1.0, handletextpad=0.4)


def _choose_fill(kind: str) -> dict[str, Any]:
    look = SCORE_LOOKS[kind]
    return {
        "facecolor": (look.colour, 0.35),
        "edgecolor": look.colour,
        "linewidth": 0.8,
        "hatch": look.hatch,
    }


def _choose_mark(kind: str) -> dict[str, Any]:
    look = SCORE_LOOKS[kind]
    return {
        "marker": look.mark,
        "markersize": 4.5,
        "color": look.colour,
        "markeredgecolor": "black",
        "markeredgewidth": 0.6,
        "linestyle": "none",
    }


def list_summaries(name: str, run: Violins) -> list[dict[str, Any]]:
    """Return the statistics of a run's violins, for a CSV: a row for each kind."""
    return [
        {
            "run": name,
            "panel": run.panel,
            "x": run.place,
            "kind": kind,
            "count": values.count,
            "mean": values.mean,
            "std": values.std,
            "min": values.min,
            "q05": values.find_quantile(0.05),
            "median": values.find_quantile(0.5),
            "q95": values.find_quantile(0.95),
            "max": values.max,
            "predicted": run.predicted.get(kind),
            **dict(zip(RANGE, run.predicted_range.get(kind, (None, None)), strict=True)),
        }
        for kind, values in run.values.items()
    ]


def list_outlines(name: str, run: Violins) -> list[dict[str, Any]]:
    """Return the outlines of a run's violins, for a CSV: a row for each point."""
    return [
        {"run": name, "kind": kind, "value": value, "density": density}
        for kind, values in run.values.items()
        for value, density in np.stack(values.trace_outline(), axis=1).tolist()
    ]
