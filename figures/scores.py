"""Violins of decision scores and biases over runs, after the paper's score figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from figures.style import SCORE_LOOKS, STYLE, escape_name, shorten_name
from metrics.distributions import Distribution

WIDTH = 0.42  # half of a violin's greatest width, in steps of the x axis
PLACE_CHARACTERS = 20  # of a name on the x axis
PANEL_SIZE = 2.7, 2.2  # width and height in inches


@dataclass
class Violins:
    """One run in a score figure.

    Attributes:
        panel: the title of its panel.
        place: its name on the x axis.
        values: a distribution by kind, which is positive_score, bias or negative_score; no bias for
            a classifier without one.
        predicted: the exact prediction by kind; None without one.
    """

    panel: str
    place: str
    values: dict[str, Distribution]
    predicted: dict[str, float | None]


def draw_violins(
    runs: Sequence[Violins], x_label: str, heading: str = "", columns: int = 2
) -> plt.Figure:
    """Draw violins of positive scores (red), biases (green) and negative scores (blue).

    Panels and places on the x axis are in the order of `runs`; all panels share one y axis. Marks
    stand at the means, and hatches keep positive and negative scores apart without colour. Dashed
    lines are the exact prediction.
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
            figsize=(max(width, 3.6), PANEL_SIZE[1] * rows + 0.7),
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
            figure.suptitle(escape_name(heading), fontsize=9)
        _add_legend(figure, grid.flat[0], runs, columns)
    return figure


def _draw_panel(axis: plt.Axes, title: str, runs: Sequence[Violins]) -> None:
    axis.set_title(escape_name(title), fontsize=9)
    for place, run in enumerate(runs):
        for kind, distribution in run.values.items():
            _draw_violin(axis, place, kind, distribution)
            exact = run.predicted.get(kind)
            if exact is not None:
                ends = [place - 0.5, place + 0.5]
                colour = SCORE_LOOKS[kind].colour
                axis.plot(ends, [exact, exact], color=colour, linestyle="--", linewidth=1.1)
    names = [shorten_name(run.place, PLACE_CHARACTERS) for run in runs]
    long = len(names) > 1 and max(map(len, names)) * len(names) > 28
    axis.set_xticks(
        range(len(runs)),
        list(map(escape_name, names)),
        rotation=35 if long else 0,
        ha="right" if long else "center",
        rotation_mode="anchor",
        fontsize=8,
    )
    margin = 0.6 if len(runs) > 1 else 1.0
    axis.set_xlim(-margin, len(runs) - 1 + margin)


def _draw_violin(axis: plt.Axes, place: int, kind: str, values: Distribution) -> None:
    look = SCORE_LOOKS[kind]
    positions, densities = (part.numpy() for part in values.trace_outline())
    if len(positions) > 1:
        shape = WIDTH * densities / densities.max()
        axis.fill_betweenx(
            positions,
            place - shape,
            place + shape,
            facecolor=(look.colour, 0.35),
            edgecolor=look.colour,
            linewidth=0.8,
            hatch=look.hatch,
        )
    else:
        ends = [place - WIDTH, place + WIDTH]
        axis.plot(ends, [values.mean, values.mean], color=look.colour, linewidth=1.2)
    axis.plot(
        place,
        values.mean,
        marker=look.mark,
        markersize=4.5,
        color=look.colour,
        markeredgecolor="black",
        markeredgewidth=0.6,
        linestyle="none",
    )


def _add_legend(figure: plt.Figure, axis: plt.Axes, runs: Sequence[Violins], columns: int) -> None:
    for kind, look in SCORE_LOOKS.items():
        if any(kind in run.values for run in runs):
            axis.plot(
                [],
                [],
                marker=look.mark,
                color=look.colour,
                linestyle="none",
                markeredgecolor="black",
                markeredgewidth=0.6,
                label=look.title,
            )
    if any(value is not None for run in runs for value in run.predicted.values()):
        axis.plot([], [], color="black", linestyle="--", linewidth=0.9, label="exact prediction")
    handles, names = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=4 if columns > 1 else 2,
        fontsize=8,
        columnspacing=1.0,
        handletextpad=0.4,
    )


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
