"""Accuracies of a grid of runs beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt

from figures.style import STYLE, choose_colour
from objective import LOSSES
from reproduction.results import MEASURES, Result

APART = 0.14  # of a row, between CE and BCE


def accuracy_figure(results: Sequence[Result], paper: str = "") -> plt.Figure:
    """A row for each setting, CE (blue circles) and BCE (red squares) in it: A in one panel and
    A_Uni beside it, with the standard deviation over seeds; the paper's numbers as crosses,
    with `paper` to say of what they are."""
    rows = list(dict.fromkeys(_setting(result) for result in results))
    measures = [m for m in ("top1", "uniform") if any(m in result.values for result in results)]
    size = (2.4 * len(measures) + 1.4, 0.34 * len(rows) + 1.1)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(measures), figsize=size, sharey=True, squeeze=False)
        for axis, measure in zip(axes[0], measures, strict=True):
            for result in results:
                _draw(axis, result, measure, rows.index(_setting(result)))
            axis.set_xlabel(MEASURES[measure].title.replace("A_Uni", "uniform accuracy"))
        axes[0][0].set_yticks(range(len(rows)), rows, fontsize=8)
        axes[0][0].set_ylim(len(rows) - 0.5, -0.5)
        axes[0][0].set_xlabel("top-1 accuracy %")
        published = any("paper" in r.references.get(m, {}) for r in results for m in measures)
        losses = list(dict.fromkeys(result.labels["loss"] for result in results))
        for index, whose in enumerate(("", f"paper ({paper}), ")[: 1 + published]):
            for loss in losses:
                style = {"marker": LOSSES[loss].marks[index], "linestyle": "none"}
                axes[0][0].plot([], [], color=choose_colour(loss), label=whose + loss, **style)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _setting(result: Result) -> str:
    """The labels but for the loss, and for those of every row only what a reader needs."""
    labels = {**result.labels}
    labels.pop("loss")
    if "imbalance_factor" in labels:
        labels["imbalance_factor"] = f"factor {labels['imbalance_factor']:g}"
    return " ".join(map(str, labels.values()))


def _draw(axis: plt.Axes, result: Result, measure: str, row: int) -> None:
    loss = result.labels["loss"]
    place = row + (APART if loss == "BCE" else -APART)
    mean, published = result.mean(measure), result.references.get(measure, {}).get("paper")
    if mean is not None:
        axis.errorbar(
            mean,
            place,
            xerr=result.std(measure),
            marker=LOSSES[loss].marks[0],
            markersize=5,
            capsize=2,
            color=choose_colour(loss),
            linestyle="none",
        )
    if published is not None:
        mark = LOSSES[loss].marks[1]
        axis.plot(published, place, marker=mark, color=choose_colour(loss), markersize=5)
