"""Accuracies of a grid of runs beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt

from figures.style import STYLE, add_legend, choose_colour, escape_name
from objective import LOSSES

APART = 0.14  # distance from the middle of a row to its first and last loss, in rows


@dataclass(frozen=True)
class Accuracy:
    """An accuracy in percent.

    Attributes:
        panel: the title of its x axis.
        setting: the title of its row.
        loss: the loss of the runs.
        mean: our mean over seeds; None without a result.
        deviation: the standard deviation over seeds; None for fewer than two.
        published: the paper's number; None without one.
    """

    panel: str
    setting: str
    loss: str
    mean: float | None
    deviation: float | None
    published: float | None


def draw_accuracy_figure(accuracies: Sequence[Accuracy], paper: str = "") -> plt.Figure:
    """Draw a row for each setting and a panel for each accuracy, the losses side by side in a row.

    Bars show the standard deviation over seeds.

    Args:
        accuracies: in the order of panels and rows.
        paper: network and data set of the paper's numbers, for the legend.
    """
    rows, panels, losses = (
        list(dict.fromkeys(getattr(accuracy, name) for accuracy in accuracies))
        for name in ("setting", "panel", "loss")
    )
    size = (1.8 * len(panels) + 1.2, 0.34 * len(rows) + 0.6)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
        for axis, panel in zip(axes[0], panels, strict=True):
            axis.set_xlabel(panel)
            for accuracy in (each for each in accuracies if each.panel == panel):
                place = rows.index(accuracy.setting) + _shift(losses, accuracy.loss)
                _draw_accuracy(axis, accuracy, place)
        axes[0][0].set_yticks(range(len(rows)), list(map(escape_name, rows)), fontsize=8)
        axes[0][0].set_ylim(len(rows) - 0.5, -0.5)
        published = any(accuracy.published is not None for accuracy in accuracies)
        _list_marks(axes[0][0], losses, f"paper ({paper}), " if published else None)
        handles, names = axes[0][0].get_legend_handles_labels()
        add_legend(figure, handles, names, 2, fontsize=8)
    return figure


def _shift(losses: Sequence[str], loss: str) -> float:
    """Return the distance of a loss from the middle of its row."""
    if len(losses) == 1:
        return 0.0
    return APART * (2 * losses.index(loss) / (len(losses) - 1) - 1)


def _list_marks(axis: plt.Axes, losses: Sequence[str], paper: str | None) -> None:
    """Add the marks of all losses to the legend, then the paper's with `paper` before the label."""
    for loss in losses:
        axis.plot([], [], LOSSES[loss].marks[0], color=choose_colour(loss), label=loss)
    for loss in losses if paper is not None else ():
        axis.plot([], [], LOSSES[loss].marks[1], color=choose_colour(loss), label=f"{paper}{loss}")


def _draw_accuracy(axis: plt.Axes, accuracy: Accuracy, place: float) -> None:
    mark, paper_mark = LOSSES[accuracy.loss].marks
    colour = choose_colour(accuracy.loss)
    if accuracy.mean is not None:
        axis.errorbar(
            accuracy.mean,
            place,
            xerr=accuracy.deviation,
            marker=mark,
            markersize=5,
            capsize=2,
            color=colour,
            linestyle="none",
        )
    if accuracy.published is not None:
        axis.plot(accuracy.published, place, paper_mark, color=colour, markersize=5)
