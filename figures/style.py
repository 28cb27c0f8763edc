"""Colours, marks and style of all figures."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from objective import LOSSES, OPTIMIZERS
from utils.files import write_whole

matplotlib.use("Agg")


@dataclass(frozen=True)
class ScoreLook:
    """Look of a score or the bias in figures; marks and hatches differ, as colours do."""

    title: str
    colour: str
    mark: str
    hatch: str


# The paper's red, green and blue.
SCORE_LOOKS = {
    "positive_score": ScoreLook("positive score", "#d62728", "^", "////"),
    "bias": ScoreLook("bias", "#2ca02c", "o", ""),
    "negative_score": ScoreLook("negative score", "#1f77b4", "v", "\\\\\\\\"),
}
RUN_MARKS = "osD^vP*X"  # runs that share loss and optimizer differ in these
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
}


def choose_colour(loss: str | None) -> str:
    """Return the colour of a loss; black for none."""
    return LOSSES[loss].colour if loss in LOSSES else "black"


def choose_line(optimizer: str | None) -> str:
    """Return the line style of an optimizer; dotted for none."""
    return OPTIMIZERS[optimizer].line if optimizer in OPTIMIZERS else ":"


def escape_name(name: str) -> str:
    """Return a name that users chose in a form that matplotlib shows unchanged.

    "$" would begin a formula, and a legend leaves out names that begin with "_".
    """
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def save_figure(figure: plt.Figure, path: Path) -> None:
    """Write a figure whole, in the format that the path's ending names, and close it.

    Raises UserError if the file cannot be written.
    """
    content = io.BytesIO()
    with plt.rc_context(STYLE):
        figure.savefig(content, format=path.suffix.lstrip("."))
    plt.close(figure)
    write_whole(path, lambda file: file.write(content.getvalue()))
