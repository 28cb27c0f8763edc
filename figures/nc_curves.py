"""Neural collapse over the epochs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator

from figures.style import (
    LOSS_COLOURS,
    MARKERS,
    OPTIMIZER_LINES,
    SCORES,
    STYLE,
)

LONG = 12  # epochs from which on the first quarter may leave the frame of the accuracies
PALE = 0.45  # opacity of the second line of a panel


@dataclass
class Curve:
    """One run's rows of nc_metrics.csv, for a picture."""

    name: str
    loss: str
    optimizer: str
    rows: Sequence[dict[str, Any]]

    def points(self, column: str, split: str) -> tuple[list[int], list[float]]:
        """Epochs and values; an empty cell is nan, which leaves a gap in the line."""
        rows = [row for row in self.rows if row["split"] == split]
        values = [math.nan if row[column] is None else row[column] for row in rows]
        return [row["epoch"] for row in rows], values

    @property
    def splits(self) -> list[str]:
        present = {row["split"] for row in self.rows}
        return [split for split in ("train", "test") if split in present]


def nc_figure(curves: Sequence[Curve]) -> plt.Figure:
    """NC1 (log scale), NC2, NC3 and accuracy over epochs, of one run or several overlaid.

    Neural collapse is shown on the training set (the test set where that was not evaluated),
    accuracy on the test set where it was. Of one run also the mean scores and bias are shown, with
    their exact prediction where there is one. CE blue, BCE red; SGD dashed, AdamW solid; a marker
    for each run.
    """
    with plt.rc_context(STYLE):
        layout = [["nc1", "nc2"], ["nc3", "accuracy"]]
        if len(curves) == 1:
            layout.append(["scores", "scores"])
        size = (7.2, 2.5 * len(layout))
        figure, panels = plt.subplot_mosaic(layout, figsize=size, sharex=True)
        nc1, nc2, nc3, accuracy = (panels[name] for name in ("nc1", "nc2", "nc3", "accuracy"))
        if len(curves) == 1:
            _draw_scores(panels["scores"], curves[0])
        for curve, marker in zip(curves, itertools.cycle(MARKERS), strict=False):
            _draw_curve((nc1, nc2, nc3, accuracy), curve, marker)
        measured, tested = ({curve.splits[i] for curve in curves} for i in (0, -1))
        _label(nc1, "NC1: within-class variability", measured)
        _label(nc2, "NC2: distance to a simplex ETF", measured)
        _label(nc3, "NC3: W against class means", measured)
        _label(accuracy, "accuracy, %", tested)
        _scale_nc1(nc1)
        _scale_accuracy(accuracy)
        for axis in (nc2, nc3):
            axis.set_ylim(bottom=0)
        for axis in (nc3, accuracy):  # a panel below has other positions on its axis
            axis.tick_params(labelbottom=True)
        for name in set(layout[-1]):
            panels[name].set_xlabel("epoch")
            panels[name].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        handles, names = nc1.get_legend_handles_labels()
        if "scores" in panels:
            handles, names = (
                own + scores
                for own, scores in zip(
                    (handles, names), panels["scores"].get_legend_handles_labels(), strict=True
                )
            )
        # About 105 characters of the legend fit the figure's width.
        columns = max(1, min(3, 105 // (max(map(len, names)) + 8)))
        figure.legend(handles, names, loc="outside lower center", ncols=columns)
        _explain(nc2, {"classifier W": 1.0, "class means": PALE})
        _explain(accuracy, {"top-1": 1.0, "uniform": PALE})
    return figure


def _draw_curve(axes: Sequence[plt.Axes], curve: Curve, marker: str) -> None:
    nc1, nc2, nc3, accuracy = axes
    measured, tested = curve.splits[0], curve.splits[-1]
    style = {
        "color": LOSS_COLOURS.get(curve.loss, "black"),
        "linestyle": OPTIMIZER_LINES.get(curve.optimizer, ":"),
        "marker": marker,
        "markersize": 4,
        "linewidth": 1.4,
    }
    pale = {**style, "alpha": PALE, "markerfacecolor": "white"}
    epochs, values = curve.points("nc1", measured)
    shown = [value if 0 < value < float("inf") else float("nan") for value in values]
    label = f"{curve.name} ({curve.loss}, {curve.optimizer})" if curve.loss else curve.name
    _plot(nc1, epochs, shown, label=label, **style)
    _plot(nc2, *curve.points("nc2", measured), **style)
    _plot(nc2, *curve.points("nc2_h", measured), **pale)
    _plot(nc3, *curve.points("nc3", measured), **style)
    _plot(accuracy, *curve.points("top1", tested), **style)
    _plot(accuracy, *curve.points("uniform_accuracy", tested), **pale)


def _plot(axis: plt.Axes, epochs: list[int], values: list[float], **style: Any) -> None:
    """A line with a mark at each value, or at ten where they are many. nan leaves a gap."""
    few = sum(map(math.isfinite, values)) <= 25  # matplotlib cannot space the marks of no value
    axis.plot(epochs, values, markevery=1 if few else 0.1, **style)


def _draw_scores(axis: plt.Axes, curve: Curve) -> None:
    """Mean positive score, bias and negative score over epochs; the prediction dashed."""
    split = curve.splits[0]
    measured = ("positive_mean", "bias_mean", "negative_mean")
    predicted = ("predicted_positive", "predicted_bias", "predicted_negative")
    claimed = False
    for column, exact, (title, colour, marker) in zip(
        measured, predicted, SCORES.values(), strict=True
    ):
        epochs, values = curve.points(column, split)
        axis.plot(
            epochs,
            values,
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.4,
            markevery=max(1, len(epochs) // 25),
            label=f"{title}, mean",
        )
        level = curve.points(exact, split)[1][-1]
        if not math.isnan(level):
            axis.axhline(level, color=colour, linestyle="--", linewidth=1.2)
            claimed = True
    if claimed:
        axis.plot([], [], color="black", linestyle="--", linewidth=1.2, label="exact prediction")
    _label(axis, "decision scores and bias", {split})


def _label(axis: plt.Axes, title: str, splits: set[str]) -> None:
    named = {frozenset({"train"}): " (training set)", frozenset({"test"}): " (test set)"}
    axis.set_title(title + named.get(frozenset(splits), ""), fontsize=9)


def _scale_nc1(axis: plt.Axes) -> None:
    """A log scale over whole decades, with readings between them where they are few."""
    values = np.concatenate([line.get_ydata() for line in axis.lines])
    values = values[np.isfinite(values)]
    axis.set_yscale("log")
    if len(values) == 0:
        return
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    axis.set_ylim(10.0**low, 10.0 ** max(high, low + 1))
    if high - low <= 2:
        axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.yaxis.set_minor_formatter(FormatStrFormatter("%g"))


def _scale_accuracy(axis: plt.Axes) -> None:
    """Leave the first epochs' rise out of the frame: what differs comes after it."""
    drawn = [np.asarray(line.get_ydata()) for line in axis.lines]
    tails = [values[len(values) // 4 if len(values) >= LONG else 0 :] for values in drawn]
    values = np.concatenate(tails)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return
    low, high = values.min(), values.max()
    low = min(low, high - 1.0)
    margin = 0.08 * (high - low)
    axis.set_ylim(max(low - margin, 0.0), min(high + margin, 101.0))
    axis.ticklabel_format(axis="y", useOffset=False)


def _explain(axis: plt.Axes, strengths: dict[str, float]) -> None:
    """A small legend of what the full and the pale lines are."""
    for name, alpha in strengths.items():
        face = "white" if alpha < 1 else "black"
        axis.plot(
            [],
            [],
            color="black",
            alpha=alpha,
            marker="o",
            markersize=4,
            markerfacecolor=face,
            label=name,
        )
    axis.legend(fontsize=8)
