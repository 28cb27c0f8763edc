"""Scores and bias over a sweep of the unconstrained-feature model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt

from figures.style import (
    SCORES,
    STYLE,
)


@dataclass
class SweepPoint:
    """One setting of a sweep: predicted and found values by name, a prediction None where any."""

    value: float
    predicted: dict[str, float | None]
    found: dict[str, float]


def sweep_figure(loss: str, swept: str, points: Sequence[SweepPoint]) -> plt.Figure:
    """Scores and bias over the settings of a sweep: prediction as lines, found values as marks."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(4.6, 3.2))
        places = range(len(points))
        for key, (title, colour, marker) in SCORES.items():
            expected = [point.predicted[key] for point in points]
            line = [math.nan if value is None else value for value in expected]
            axis.plot(places, line, color=colour, linestyle="--", linewidth=1.4)
            found = [point.found[key] for point in points]
            reach = [
                [abs(point.found[f"{key}_{end}"] - point.found[key]) for point in points]
                for end in ("min", "max")
            ]
            axis.errorbar(
                places,
                found,
                yerr=reach,
                color=colour,
                marker=marker,
                markersize=6,
                linestyle="none",
                capsize=3,
                label=f"{title}, found",
            )
        axis.plot([], [], color="black", linestyle="--", linewidth=1.4, label="exact prediction")
        axis.set_xticks(places, [f"{point.value:g}" for point in points])
        names = {"bias_decay": "decay of the bias", "bias_init_mean": "initial mean of the bias"}
        axis.set_xlabel(names[swept])
        axis.set_title(f"{loss}: minimum of the unconstrained-feature model")
        figure.legend(loc="outside lower center", ncols=2)
    return figure
