"""Colours, marks and style of all figures."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from objective import LOSSES, OPTIMIZERS
from utils.console import escape
from utils.files import write_whole


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
    "text.usetex": False,  # a matplotlibrc's; names are no LaTeX
}


def choose_colour(loss: str | None) -> str:
    """Return the colour of a loss; black for none."""
    return LOSSES[loss].colour if loss in LOSSES else "black"


def choose_line(optimizer: str | None) -> str:
    """Return the line style of an optimizer; dotted for none."""
    return OPTIMIZERS[optimizer].line if optimizer in OPTIMIZERS else ":"


def escape_name(name: str) -> str:
    """Return a name that users chose in a form that matplotlib shows as plain text.

    "$" would begin a formula, and control characters would break the line or have no glyph. For a
    legend, which leaves out names that begin with "_", there is `add_legend`.
    """
    return escape(name).replace("$", r"\$")


def wrap_name(name: str, width: int) -> str:
    """Return `escape_name` in lines of at most `width` characters."""
    lines = textwrap.wrap(escape(name), width) or [""]
    return "\n".join(map(escape_name, lines))


def shorten_name(name: str, length: int) -> str:
    """Return a name of at most `length` characters; an ellipsis stands for a longer one's middle.

    Names of runs and of classes differ at the end as often as at the beginning.
    """
    name = escape(name)
    if len(name) <= length:
        return name
    end = (length - 1) // 2
    return f"{name[: length - 1 - end]}…{name[len(name) - end :]}"


def add_legend(place: Any, handles: Sequence[Any], names: Sequence[str], **options: Any) -> Any:
    """Add a legend to a figure or to axes that shows each name, and return it.

    The names are set after the legend is made: some versions of matplotlib leave out those that
    begin with "_", whoever gives them.
    """
    legend = place.legend(handles, ["name"] * len(handles), **options)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(escape_name(name))
    return legend


def render(figure: plt.Figure, kind: str) -> io.BytesIO:
    """Return the file of a figure as png, pdf or svg. A missing glyph is a box without a word."""
    content = io.BytesIO()
    with plt.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(content, format=kind)
    return content


def save_figure(figure: plt.Figure, path: Path) -> None:
    """Write a figure whole, in the format that the path's ending names, and close it.

    Raises UserError if the file cannot be written.
    """
    content = render(figure, path.suffix.lstrip("."))
    plt.close(figure)
    write_whole(path, lambda file: file.write(content.getvalue()))
