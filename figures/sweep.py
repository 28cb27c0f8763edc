"""Scores and bias over a sweep of the unconstrained-feature model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt

from figures.style import SCORE_LOOKS, STYLE, add_legend, wrap_name

WIDTH = 4.2  # inches


@dataclass(frozen=True)
class SweepPoint:
    """One setting of a sweep.

    Attributes:
        value: the value of the swept setting.
        predicted: positive_score, negative_score and bias of the exact minimum, and the extremes
            NAME_min and NAME_max of each; None without a prediction.
        found: the same for the minimum found.
    """

    value: float
    predicted: Mapping[str, Any]
    found: Mapping[str, Any]


def draw_sweep(title: str, axis_label: str, points: Sequence[SweepPoint]) -> plt.Figure:
    """Draw scores and bias over a sweep: predictions as lines, found values as marks.

    Where the classes differ these are means; bands and bars show the extremes.

    Args:
        title: above the axes.
        axis_label: the swept setting.
        points: in the order of the axis; they are drawn at equal distances.
    """
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, 2.6))
        places: Sequence[float] = range(len(points))
        # The lines of a single point would have no length.
        ends, wide = ([-0.5, 0.5], 2) if len(points) == 1 else (places, 1)
        for name, look in SCORE_LOOKS.items():
            line, lowest, highest = (
                _list_expected(points, name + end) for end in ("", "_min", "_max")
            )
            axis.plot(ends, line * wide, color=look.colour, linestyle="--", linewidth=1.4)
            axis.fill_between(
                ends, lowest * wide, highest * wide, color=look.colour, alpha=0.15, linewidth=0
            )
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
        if any(_is_spread(point) for point in points):
            axis.fill_between(
                [], [], [], color="black", alpha=0.15, linewidth=0, label="exact range"
            )
        axis.set_xticks(places, [f"{point.value:g}" for point in points])
        axis.set_xlabel(axis_label)
        axis.set_title(wrap_name(title, 0.9 * WIDTH), fontsize=9)
        handles, names = axis.get_legend_handles_labels()
        add_legend(figure, handles, names, 2)
    return figure


def _is_spread(point: SweepPoint) -> bool:
    """Return whether the exact positive scores differ."""
    low, high = (point.predicted[f"positive_score_{end}"] for end in ("min", "max"))
    return low is not None and high - low > 1e-6


def _list_expected(points: Sequence[SweepPoint], name: str) -> list[float]:
    """Return a predicted value of each point; nan without a prediction."""
    values = [point.predicted[name] for point in points]
    return [math.nan if value is None else value for value in values]


def _list_distances(points: Sequence[SweepPoint], name: str, end: str) -> list[float]:
    """Return the distance of each point's minimum or maximum from its mean."""
    return [abs(point.found[f"{name}_{end}"] - point.found[name]) for point in points]
