"""Violins of decision scores and biases over runs, after the paper's score figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np

from figures.style import SCORES, STYLE
from metrics.distributions import Distribution

WIDTH = 0.42  # half of a violin's greatest width, in steps of the x axis
KINDS = tuple(SCORES)  # positive_score, bias, negative_score
HATCHES = {"positive_score": "////", "bias": "", "negative_score": "\\\\\\\\"}
PANEL = 2.7, 2.2  # inches


@dataclass
class Violins:
    """One run in a score figure.

    Attributes:
        panel: the title of the panel that it stands in.
        place: what the x axis says below it.
        values: a distribution by kind (`KINDS`); no bias for a classifier without one.
        predicted: the exact prediction by kind, None where there is none.
    """

    panel: str
    place: str
    values: dict[str, Distribution]
    predicted: dict[str, float | None]


def score_figure(
    runs: Sequence[Violins], x_label: str, heading: str = "", columns: int = 2
) -> plt.Figure:
    """Positive scores red, biases green, negative scores blue; a panel for each title in the order
    of `runs`, the runs' places in their order on x, one y axis for all.

    Marks (triangles up and down, circles) stand at the means, and hatches tell positive from
    negative without colour; dashed lines are the exact prediction.
    """
    titles = list(dict.fromkeys(run.panel for run in runs))
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    most = max(sum(run.panel == title for run in runs) for title in titles)
    width = max(PANEL[0], 0.28 * most + 0.5) * columns + 0.4
    with plt.rc_context({**STYLE, "axes.grid.axis": "y", "hatch.linewidth": 0.4}):
        figure, grid = plt.subplots(
            rows,
            columns,
            figsize=(max(width, 3.6), PANEL[1] * rows + 0.7),
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
            figure.suptitle(heading, fontsize=9)
        _add_legend(figure, grid.flat[0], runs, columns)
    return figure


def _draw_panel(axis: plt.Axes, title: str, runs: Sequence[Violins]) -> None:
    axis.set_title(title, fontsize=9)
    for place, run in enumerate(runs):
        for kind, distribution in run.values.items():
            _draw_violin(axis, place, kind, distribution)
            exact = run.predicted.get(kind)
            if exact is not None:
                ends = [place - 0.5, place + 0.5]
                axis.plot(
                    ends, [exact, exact], color=SCORES[kind][1], linestyle="--", linewidth=1.1
                )
    names = [run.place for run in runs]
    long = len(names) > 1 and max(map(len, names)) * len(names) > 28
    axis.set_xticks(
        range(len(runs)),
        names,
        rotation=35 if long else 0,
        ha="right" if long else "center",
        rotation_mode="anchor",
        fontsize=8,
    )
    margin = 0.6 if len(runs) > 1 else 1.0
    axis.set_xlim(-margin, len(runs) - 1 + margin)


def _draw_violin(axis: plt.Axes, place: int, kind: str, values: Distribution) -> None:
    _, colour, marker = SCORES[kind]
    positions, densities = (part.numpy() for part in values.outline())
    if len(positions) > 1:
        shape = WIDTH * densities / densities.max()
        axis.fill_betweenx(
            positions,
            place - shape,
            place + shape,
            facecolor=(colour, 0.35),
            edgecolor=colour,
            linewidth=0.8,
            hatch=HATCHES[kind],
        )
    else:
        axis.plot([place - WIDTH, place + WIDTH], [values.mean] * 2, color=colour, linewidth=1.2)
    axis.plot(
        place,
        values.mean,
        marker=marker,
        markersize=4.5,
        color=colour,
        markeredgecolor="black",
        markeredgewidth=0.6,
        linestyle="none",
    )


def _add_legend(figure: plt.Figure, axis: plt.Axes, runs: Sequence[Violins], columns: int) -> None:
    for kind, (title, colour, marker) in SCORES.items():
        if any(kind in run.values for run in runs):
            axis.fill_between(
                [], [], facecolor=(colour, 0.35), edgecolor=colour, hatch=HATCHES[kind]
            )
            axis.plot(
                [],
                [],
                marker=marker,
                color=colour,
                linestyle="none",
                markeredgecolor="black",
                markeredgewidth=0.6,
                label=title,
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


def summary_rows(name: str, run: Violins) -> list[dict[str, object]]:
    """What is drawn of a run, for a CSV: a row for each kind."""
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
            "q05": values.quantile(0.05),
            "median": values.quantile(0.5),
            "q95": values.quantile(0.95),
            "max": values.max,
            "predicted": run.predicted.get(kind),
        }
        for kind, values in run.values.items()
    ]


def outline_rows(name: str, run: Violins) -> list[dict[str, object]]:
    """The outlines of a run's violins, for a CSV: a row for each point."""
    return [
        {"run": name, "kind": kind, "value": value, "density": density}
        for kind, values in run.values.items()
        for value, density in np.stack(values.outline(), axis=1).tolist()
    ]
