"""Curves over the epochs of one run, or of several seeds as a mean with a band."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from metrics import Measure

MARKED = 25  # a line of at most this many points marks all; a longer one marks ten
WIDTH, ROW_HEIGHT = 5.6, 2.0  # inches of a picture of curves, without the legend
LEGEND_COLUMNS = 3
BAND = 0.16  # opacity of a band


class Points(NamedTuple):
    """The points of a curve; nan leaves a gap in the line.

    Attributes:
        epochs: those that all runs have.
        means: the mean over the runs.
        deviations: the sample standard deviation over the runs; none for one run.
    """

    epochs: list[int]
    means: list[float]
    deviations: list[float] | None


@dataclass
class Curve:
    """The rows of nc_metrics.csv of runs that share a line: of one run, or of several seeds.

    Attributes:
        name: in the legend.
        loss, optimizer: of the runs; None if not known.
        runs: the rows of each run.
    """

    name: str
    loss: str | None
    optimizer: str | None
    runs: Sequence[Sequence[Mapping[str, Any]]]

    def list_points(self, column: str, split: str) -> Points:
        """Return the points of a measure. A point needs the epoch in all runs, and a value there.

        Without a value in one of the runs it is nan.
        """
        cells = [
            {row["epoch"]: row[column] for row in rows if row["split"] == split}
            for rows in self.runs
        ]
        epochs = [epoch for epoch in cells[0] if all(epoch in each for each in cells)]
        values = [[each[epoch] for each in cells] for epoch in epochs]
        means = [_reduce(statistics.fmean, each) for each in values]
        several = len(self.runs) > 1
        deviations = [_reduce(statistics.stdev, each) for each in values] if several else None
        return Points(epochs, means, deviations)

    def has_values(self, column: str) -> bool:
        """Return whether any row has a value in this column."""
        return any(row[column] is not None for rows in self.runs for row in rows)

    def choose_split(self, measure: Measure) -> str:
        """Return the split of a measure's curve: its own if that was evaluated in all runs."""
        present = set.intersection(*({row["split"] for row in rows} for rows in self.runs))
        return measure.split if measure.split in present or not present else min(present)


def _reduce(function: Any, values: Sequence[float | None]) -> float:
    """Return a function of values; nan if one of them is absent or not finite."""
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    return function(numbers) if len(numbers) == len(values) else math.nan


def plot_points(axis: plt.Axes, points: Points, **style: Any) -> Any:
    """Draw a line with a mark at each value, or at ten if they are many. nan leaves a gap."""
    # matplotlib cannot space the marks of a line without values.
    few = sum(map(math.isfinite, points.means)) <= MARKED
    every = 1 if few else 0.1
    style = {"markersize": 4, "linewidth": 1.4, **style}
    (line,) = axis.plot(points.epochs, points.means, markevery=every, **style)
    return line


def fill_band(axis: plt.Axes, points: Points, colour: str, strength: float = 1.0) -> None:
    """Fill the band of one standard deviation on either side of the means of several runs."""
    if points.deviations is None:
        return
    means, deviations = np.array(points.means), np.array(points.deviations)
    style = {"color": colour, "alpha": BAND * strength, "linewidth": 0}
    axis.fill_between(points.epochs, means - deviations, means + deviations, **style)


def build_band_handle() -> plt.Rectangle:
    """Return what stands for a band in a legend."""
    return plt.Rectangle((0, 0), 1, 1, color="black", alpha=BAND, linewidth=0)
