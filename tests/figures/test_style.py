"""Names that users chose are shown as they are, and figures need no display."""

import os
import subprocess
import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from figures.style import (
    STYLE,
    add_legend,
    escape_name,
    measure_width,
    render,
    save_figure,
    shorten_name,
    wrap_name,
)
from tests.helpers import ROOT


def draw_pixels(text: str, **options) -> np.ndarray:
    figure = plt.figure(figsize=(3, 1))
    figure.text(0.1, 0.5, text, **options)
    return np.asarray(Image.open(render(figure, "png")))


@pytest.mark.parametrize("name", ["$x_1$", "a$b", r"\$a$", r"$\frac$", r"a\b_c^d", "$$", "%&#{}~"])
def test_a_name_is_drawn_as_matplotlib_draws_text_without_markup(name):
    drawn = draw_pixels(escape_name(name))
    assert np.array_equal(drawn, draw_pixels(name, parse_math=False))
    assert drawn.min() < 128


def test_control_characters_and_bytes_are_drawn_as_their_escapes():
    assert escape_name("a\nb\x1b\u202e\udce9") == r"a\nb\x1b\u202e\xe9"


def test_a_legend_shows_every_name_beside_its_handle():
    names = ["_private", "__", "$x$", "", "a\nb"]
    figure, axis = plt.subplots()
    lines = [axis.plot([0, 1], label=name)[0] for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        legend = add_legend(figure, lines, names, 3)
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["_private", "__", r"\$x\$", "", r"a\nb"]
    assert len(legend.legend_handles) == len(names)


def test_a_glyph_that_the_font_lacks_is_no_warning(tmp_path):
    figure = plt.figure()
    figure.text(0, 0, "汉字")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, tmp_path / "a.png")
    Image.open(tmp_path / "a.png").verify()


def test_a_long_name_keeps_both_ends():
    assert shorten_name("a" * 10 + "b" * 10, 7) == "aaa…bbb"
    assert shorten_name("a" * 10 + "b" * 10, 8) == "aaaa…bbb"
    assert shorten_name("a" * 7, 7) == "a" * 7


def test_a_wrapped_name_has_no_markup_in_any_line():
    lines = wrap_name("a" * 9 + "$b$\n" + "c" * 9, 0.7).split("\n")
    assert "".join(lines) == "a" * 9 + r"\$b\$\n" + "c" * 9
    assert len(lines) == 3
    assert all(measure_width(line.replace(r"\$", "$")) <= 0.7 for line in lines)


def test_a_line_ends_after_a_word_where_one_is_near():
    assert wrap_name("one_word_other_words, last", 1.2).split("\n") == [
        "one_word_other_",
        "words, last",
    ]
    assert wrap_name("short", 9) == "short"
    assert wrap_name("", 1) == ""
    assert wrap_name("ww", 0.001) == "w\nw"


def test_the_measured_width_is_that_of_the_drawn_text():
    figure = plt.figure(dpi=720)
    drawn = figure.text(0, 0, r"a_b \$x\$ 12, WWW", fontsize=8).get_window_extent().width / 720
    assert measure_width("a_b $x$ 12, WWW", 8) == pytest.approx(drawn, rel=0.02)


@pytest.mark.parametrize("length", [5, 30, 80, 180])
def test_a_legend_takes_fewer_columns_and_lines_that_fit(length):
    """The axes keep their height, and all of the legend lies below them."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(4, 2))
        (line,) = axis.plot([0, 1])
        legend = add_legend(figure, [line] * 4, ["m" * length] * 4, 4)
        figure.draw_without_rendering()
    extent, frame = legend.get_window_extent(), axis.get_tightbbox()
    assert figure.bbox.x0 <= extent.x0 and extent.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= extent.y0 and extent.y1 <= frame.y0 + 1
    assert frame.height > 0.85 * 2 * figure.dpi
    texts = [text.get_text().replace("\n", "") for text in legend.get_texts()]
    assert texts == ["m" * length] * 4


# The last one is what a notebook sets; its package need not be there.
@pytest.mark.parametrize(
    ("backend", "first"),
    [
        ("garbage", ""),
        ("TkAgg", "import matplotlib.pyplot; "),
        ("module://no.such.backend", ""),
        ("module://no.such.backend", "import matplotlib.pyplot; "),
    ],
)
def test_the_environments_backend_is_not_used(tmp_path, backend, first):
    code = (
        f"{first}from figures.accuracy import draw_accuracy_figure as draw, Accuracy\n"
        "from figures.style import save_figure; import sys; from pathlib import Path\n"
        "save_figure(draw([Accuracy('p', 's', 'CE', 1.0, None, None)]), Path(sys.argv[1]))"
    )
    environment = {**os.environ, "MPLBACKEND": backend}
    words = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    subprocess.run(words, cwd=ROOT, env=environment, check=True)
    Image.open(tmp_path / "a.png").verify()
