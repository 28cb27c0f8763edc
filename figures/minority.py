"""Minority collapse: the minimum's rows, scores and biases over the ratio of class sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from figures.style import STYLE, add_legend, choose_colour

WIDTH, ROW_HEIGHT = 7.0, 1.75  # inches
STRENGTHS = (1.0, 0.65, 0.4)  # opacity of the lines of the decays, the first strongest
LINES, MARKS = {"BCE": "-."}, {"BCE": "o"}  # losses differ in these, too; others: "-", "s"
PANELS = {
    "cosine": "cosine between the\nrows of small classes",
    "norm": "norm of a small row,\nrelative to a large one",
    "positive_score": "positive score\nof small classes",
    "bias": "bias of small classes\nabove that of large ones",
}


@dataclass(frozen=True)
class Path:
    """The minimum along the ratio, for one loss, number of classes and decay.

    Attributes:
        loss: the loss.
        classes: K.
        decay: λ_W = λ_H.
        ratios: the ratios of class sizes, rising.
        values: by the names of `PANELS`, a value for each ratio; NaN where it is not defined.
        merging, vanishing: the thresholds.
        found: ratio and values of minima that L-BFGS found on features.
    """

    loss: str
    classes: int
    decay: float
    ratios: Sequence[float]
    values: dict[str, list[float]]
    merging: float
    vanishing: float
    found: list[tuple[float, dict[str, float]]] = field(default_factory=list)


def draw_minority_collapse(paths: Sequence[Path]) -> plt.Figure:
    """Draw a column for each number of classes and a row for each of `PANELS`."""
    counts = sorted({path.classes for path in paths})
    decays = sorted({path.decay for path in paths})
    with plt.rc_context(STYLE):
        size = (WIDTH, ROW_HEIGHT * len(PANELS) + 0.6)
        figure, axes = plt.subplots(
            len(PANELS), len(counts), figsize=size, sharex="col", squeeze=False
        )
        for column, classes in zip(axes.T, counts, strict=True):
            _fill_column(column, classes, paths, decays)
        for axis, title in zip(axes[:, 0], PANELS.values(), strict=True):
            axis.set_ylabel(title)
        _add_key(figure, paths, decays)
    return figure


def _fill_column(
    column: Sequence[plt.Axes], classes: int, paths: Sequence[Path], decays: Sequence[float]
) -> None:
    column[0].set_title(f"K = {classes}", fontsize=9)
    column[-1].set_xlabel("size of a large class / size of a small one")
    shown = [path for path in paths if path.classes == classes]
    for axis, name in zip(column, PANELS, strict=True):
        for path in shown:
            _plot_path(axis, path, name, STRENGTHS[decays.index(path.decay)])
        axis.set_xscale("log")
        axis.set_xlim(left=1)


def _plot_path(axis: plt.Axes, path: Path, name: str, strength: float) -> None:
    colour = choose_colour(path.loss)
    look = {"color": colour, "linewidth": 1.4, "linestyle": LINES.get(path.loss, "-")}
    axis.plot(path.ratios, path.values[name], alpha=strength, **look)
    marks = [(ratio, values[name]) for ratio, values in path.found]
    if marks:
        mark = MARKS.get(path.loss, "s")
        axis.plot(*zip(*marks, strict=True), color=colour, marker=mark, markersize=4, linestyle="")
    axis.axvline(path.merging, color="black", alpha=strength / 2, linewidth=0.8, linestyle=":")
    axis.axvline(path.vanishing, color=colour, alpha=strength / 2, linewidth=0.8, linestyle="--")


def _add_key(figure: plt.Figure, paths: Sequence[Path], decays: Sequence[float]) -> None:
    losses = dict.fromkeys(path.loss for path in paths)
    entries = {
        loss: Line2D([], [], color=choose_colour(loss), linestyle=LINES.get(loss, "-"))
        for loss in losses
    }
    for decay, strength in zip(decays, STRENGTHS, strict=False):
        entries[f"λ_W = λ_H = {decay:g}"] = Line2D([], [], color="black", alpha=strength)
    entries["small rows become equal"] = Line2D([], [], color="black", linestyle=":")
    entries["small rows become 0"] = Line2D([], [], color="grey", linestyle="--")
    for loss in losses:
        entries[f"{loss}, L-BFGS on features"] = Line2D(
            [], [], color=choose_colour(loss), marker=MARKS.get(loss, "s"), linestyle=""
        )
    add_legend(figure, list(entries.values()), list(entries), 4)
