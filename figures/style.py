"""Colours, marks and style of all figures, and texts that fit them."""

from __future__ import annotations

import bisect
import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from objective import LOSSES, OPTIMIZERS
from utils.console import escape
from utils.files import write_whole


@dataclass(frozen=True)
class ScoreLook:
    """Look of a score or the bias in figures.

    Marks, lines and hatches differ, as colours do. No line is dashed: that is a prediction's.
    """

    title: str
    colour: str
    mark: str
    line: str
    hatch: str


# The paper's red, green and blue.
SCORE_LOOKS = {
    "positive_score": ScoreLook("positive score", "#d62728", "^", "-", "////"),
    "bias": ScoreLook("bias", "#2ca02c", "o", "-.", ""),
    "negative_score": ScoreLook("negative score", "#1f77b4", "v", ":", "\\\\\\\\"),
}
RUN_MARKS = "osD^vP*X"  # runs that share loss and optimizer differ in these
FILLED = 0.97  # share of a figure's width that a legend may take
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


def measure_width(name: str, size: float = 9) -> float:
    """Return the width of a name in inches, in letters of `size` points."""
    font = FontProperties(size=size)
    with _ignore_missing_glyphs():
        width, _, _ = text_to_path.get_text_width_height_descent(escape(name), font, ismath=False)
    return float(width) / 72


def wrap_name(name: str, width: float, size: float = 9) -> str:
    """Return `escape_name` in lines of at most `width` inches, in letters of `size` points.

    Lines end after a space, a comma, "_" or "-" where one is near, else within a word.
    """
    rest, lines = escape(name), []
    while measure_width(rest, size) > width and len(rest) > 1:
        counts = range(1, len(rest))
        wider = bisect.bisect_right(
            counts, width, key=lambda count: measure_width(rest[:count].rstrip(), size)
        )
        fitting = max(1, wider)
        breaks = [found.end() for found in re.finditer(r"[ ,_-]", rest[:fitting])]
        if breaks and breaks[-1] > fitting / 2:
            fitting = breaks[-1]
        lines.append(rest[:fitting])
        rest = rest[fitting:]
    return "\n".join(escape_name(line.strip(" ")) for line in [*lines, rest])


def shorten_name(name: str, length: int) -> str:
    """Return a name of at most `length` characters; an ellipsis stands for a longer one's middle.

    Names of runs and of classes differ at the end as often as at the beginning.
    """
    name = escape(name)
    if len(name) <= length:
        return name
    end = (length - 1) // 2
    return f"{name[: length - 1 - end]}…{name[len(name) - end :]}"


def add_legend(
    figure: plt.Figure, handles: Sequence[Any], names: Sequence[str], columns: int, **options: Any
) -> Any:
    """Add a legend that shows each name below the axes of a figure, and return it.

    It has at most `columns` columns, and no more than fit the width. Names that do not fit in one
    column are wrapped. The figure grows by the height of the legend.
    """
    room = FILLED * figure.get_figwidth()
    for count in range(min(columns, len(names)), 0, -1):
        legend = _place_legend(figure, handles, [*map(escape_name, names)], count, options)
        if _measure(figure, legend)[0] <= room or count == 1:
            break
        legend.remove()
    beyond = _measure(figure, legend)[0] - room
    if beyond > 0:
        size = legend.get_texts()[0].get_fontsize()
        width = max(measure_width(name, size) for name in names) - beyond
        legend.remove()
        wrapped = [wrap_name(name, width, size) for name in names]
        legend = _place_legend(figure, handles, wrapped, 1, options)
    figure.set_figheight(figure.get_figheight() + _measure(figure, legend)[1])
    return legend


def fit_height(figure: plt.Figure, axis: plt.Axes, height: float, rows: int) -> None:
    """Give a figure the height with which its axes, of `rows` rows like `axis`, are `height` high.

    Titles, names of ticks and legends of any size then take no room from them.
    """
    with _ignore_missing_glyphs():
        figure.draw_without_rendering()
    lacking = height - _measure(figure, axis.patch)[1]
    figure.set_figheight(figure.get_figheight() + rows * lacking)


def _place_legend(
    figure: plt.Figure,
    handles: Sequence[Any],
    texts: Sequence[str],
    columns: int,
    options: Mapping[str, Any],
) -> Any:
    """Add a legend of so many columns. Texts are set after it is made.

    Some versions of matplotlib leave out those that begin with "_", whoever gives them.
    """
    place = {"loc": "outside lower center", "ncols": columns}
    legend = figure.legend(handles, ["name"] * len(handles), **place, **options)
    for text, shown in zip(legend.get_texts(), texts, strict=True):
        text.set_text(shown)
    return legend


def _measure(figure: plt.Figure, artist: Any) -> tuple[float, float]:
    """Return width and height of an artist in inches."""
    with _ignore_missing_glyphs():
        extent = artist.get_window_extent()
    return extent.width / figure.dpi, extent.height / figure.dpi


@contextlib.contextmanager
def _ignore_missing_glyphs() -> Iterator[None]:
    """Draw a box for a glyph that the font lacks, without a word."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def render(figure: plt.Figure, kind: str) -> io.BytesIO:
    """Return the file of a figure as png, pdf or svg. A missing glyph is a box without a word."""
    content = io.BytesIO()
    with plt.rc_context(STYLE), _ignore_missing_glyphs():
        figure.savefig(content, format=kind)
    return content


def save_figure(figure: plt.Figure, path: Path) -> None:
    """Write a figure whole, in the format that the path's ending names, and close it.

    Raises UserError if the file cannot be written.
    """
    content = render(figure, path.suffix.lstrip("."))
    plt.close(figure)
    write_whole(path, lambda file: file.write(content.getvalue()))
