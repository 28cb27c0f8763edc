"""The pictures of t-SNE embeddings: a panel per run, a file per epoch, a GIF over the epochs."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from figures.style import STYLE, add_legend, render, shorten_name, wrap_name
from utils.files import write_whole

# Ten colours for any kind of colour vision (M. Petroff, arXiv:2107.02270) and ten marks. Class k
# has the colour k mod 10, and no two of 100 classes share both.
COLOURS = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
MARKS = "os^DvPX<p>"
LEGEND_CLASSES = 20  # the legend names at most this many classes
LEGEND_CHARACTERS = 20  # and shows at most this many characters of a name
PANEL_SIDES = 2.4, 1.9  # inches; the second with three columns or more
TITLE_LONGEST = 100  # characters of a panel's title
TURNS = 5  # each class is drawn in this many parts by turns: no class hides another
HOLD = 4  # the GIF's last frame stays this many times as long as the others


@dataclass
class Panel:
    """An embedding to draw.

    Attributes:
        title: the title above the panel.
        positions: [N, 2] in [0, 1].
        labels: int [N], numbers of classes.
    """

    title: str
    positions: np.ndarray
    labels: np.ndarray


def draw_embeddings(title: str, panels: Sequence[Panel], classes: dict[int, str]) -> plt.Figure:
    """Draw embeddings side by side; each of `classes` (number to name) has a colour and a mark."""
    with plt.rc_context(STYLE):
        columns = len(panels) if len(panels) <= 3 else math.ceil(math.sqrt(len(panels)))
        rows, side = -(-len(panels) // columns), PANEL_SIDES[columns > 2]
        width = max(side * columns, 3.4)
        room = 0.82 * width / columns
        titles = [wrap_name(shorten_name(panel.title, TITLE_LONGEST), room) for panel in panels]
        title = wrap_name(title, 0.8 * width)  # in bold letters
        title_lines = title.count("\n") + rows * (1 + max(text.count("\n") for text in titles))
        height = side * rows + 0.3 + 0.16 * title_lines
        figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
        for axis, panel, text in zip(axes.flat, panels, titles, strict=False):
            _scatter(axis, panel, list(classes))
            axis.set_title(text, fontsize=9)
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        figure.suptitle(title, fontsize=9, fontweight="bold")
        _add_legend(figure, classes)
    return figure


def _scatter(axis: plt.Axes, panel: Panel, classes: Sequence[int]) -> None:
    # Fewer points may be larger.
    size = float(np.clip(9000 / len(panel.labels), 4, 16))
    chosen = {number: np.flatnonzero(panel.labels == number) for number in classes}
    for layer in range(TURNS):
        for number in classes:
            x, y = panel.positions[chosen[number][layer::TURNS]].T
            axis.scatter(x, y, s=size, linewidths=0, alpha=0.8, **_choose_look(number))
    axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    axis.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axis.tick_params(labelsize=8)


def _choose_look(number: int) -> dict[str, Any]:
    tens, ones = divmod(number, 10)
    return {"color": COLOURS[ones], "marker": MARKS[(ones + tens) % 10]}


def _add_legend(figure: plt.Figure, classes: dict[int, str]) -> None:
    if len(classes) > LEGEND_CLASSES:
        note = f"{len(classes)} classes, each a colour and mark"
        figure.supxlabel(note, fontsize=8)
        return
    handles = [
        plt.Line2D(
            [], [], linestyle="none", markersize=5, markeredgewidth=0, **_choose_look(number)
        )
        for number in classes
    ]
    names = [shorten_name(name, LEGEND_CHARACTERS) for name in classes.values()]
    spaces = {"handletextpad": 0.1, "columnspacing": 0.8}
    add_legend(figure, handles, names, len(names), fontsize=8, **spaces)


def render_image(figure: plt.Figure) -> Image.Image:
    """Return a figure as pixels, RGB."""
    return Image.open(render(figure, "png")).convert("RGB")


def write_gif(path: Path, frames: Sequence[Image.Image], fps: float) -> None:
    """Write frames of one size as an animated GIF of one palette that repeats without end.

    Raises UserError if the file cannot be written.
    """
    # The last frame has every colour that the others have.
    palette = frames[-1].quantize(256, method=Image.Quantize.MEDIANCUT)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    colours[colours.sum(axis=1).argmax()] = 255  # the page is white; the palette averages it
    palette.putpalette(colours.ravel().tolist())
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    # GIF counts in hundredths of a second.
    duration = 10 * round(100 / fps)
    durations = [duration] * (len(frames) - 1) + [HOLD * duration]
    content = io.BytesIO()
    indexed[0].save(
        content,
        format="GIF",
        save_all=True,
        append_images=indexed[1:],
        duration=durations,
        loop=0,
        optimize=False,
    )
    write_whole(path, lambda file: file.write(content.getvalue()))
