"""Scores and bias over a sweep of the unconstrained-feature model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt

from figures.style import SCORE_LOOKS, STYLE, add_legend, wrap_name

WIDTH = 4.2  # inches


@dataclass(frozen=True)
class SweepPoint:
    """One setting of a sweep.

    Attributes:
        value: the value of the swept setting.
        predicted: positive_score, negative_score and bias of the exact minimum; None without a
            prediction.
        found: the same for the minimum found, and NAME_min and NAME_max of each.
    """

    value: float
    predicted: Mapping[str, float | None]
    found: Mapping[str, float]


def draw_sweep(title: str, axis_label: str, points: Sequence[SweepPoint]) -> plt.Figure:
    """Draw scores and bias over a sweep: predictions as lines, found values as marks.

    Args:
        title: above the axes.
        axis_label: the swept setting.
        points: in the order of the axis; they are drawn at equal distances.
    """
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, 2.6))
        places = range(len(points))
        for name, look in SCORE_LOOKS.items():
            expected = [point.predicted[name] for point in points]
            line = [math.nan if value is None else value for value in expected]
            axis.plot(places, line, color=look.colour, linestyle="--", linewidth=1.4)
            axis.errorbar(
                places,
                [point.found[name] for point in points],
                yerr=[_list_distances(points, name, end) for end in ("min", "max")],
                color=look.colour,
                marker=look.mark,
                markersize=6,
                linestyle="none",
                capsize=3,
                label=f"{look.title}, found",
            )
        axis.plot([], [], color="black", linestyle="--", linewidth=1.4, label="exact prediction")
        axis.set_xticks(places, [f"{point.value:g}" for point in points])
        axis.set_xlabel(axis_label)
        axis.set_title(wrap_name(title, 0.9 * WIDTH), fontsize=9)
        handles, names = axis.get_legend_handles_labels()
        add_legend(figure, handles, names, 2)
    return figure


def _list_distances(points: Sequence[SweepPoint], name: str, end: str) -> list[float]:
    """Return the distance of each point's minimum or maximum from its mean."""
    return [abs(point.found[f"{name}_{end}"] - point.found[name]) for point in points]
