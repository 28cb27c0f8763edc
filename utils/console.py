"""Output for the user: streams that never fail, names made visible, lines, progress, tables.

tqdm is imported where it is used: `--help` does not wait for it.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import select
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

WIDTH = 100  # columns of a bar and of a line of a run's log, at most
LONG_COUNT = 100_000  # from here on a bar counts in thousands

# Characters that act on a terminal or cannot be encoded: controls (C0, DEL, C1), line separators,
# marks that turn the direction of text, and surrogates without a partner.
ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
WORDS = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def escape(text: str, keep: str = "") -> str:
    r"""Return text with every character visible that would act on a terminal.

    A byte that is no UTF-8 in the name of a file, which Python holds as a surrogate, becomes the
    byte again: "caf\udce9" -> "caf\\xe9". The text of an escape is for people; it is not undone.

    Args:
        text: a name or a line that has names in it.
        keep: characters to leave as they are.
    """
    return ACTING.sub(lambda found: _show(found[0]) if found[0] not in keep else found[0], text)


def _show(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that the system's encoding has no character for
        return f"\\x{code - 0xDC00:02x}"
    return WORDS.get(character) or (f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}")


def prepare_streams() -> None:
    """Make stdout and stderr never fail, for a command; a second call changes nothing.

    What cannot be encoded is replaced by its escape. A stream that is closed, full, or whose reader
    has left goes to the null device from then on: the work goes on, and so do the commands that it
    starts. Streams that are not the interpreter's own, such as a notebook's, stay as they are.
    """
    _fill_descriptors()
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if _is_console_of_windows(stream):
            stream.reconfigure(errors="backslashreplace")
        elif stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _open_stream(stream, number))


def _is_console_of_windows(stream: TextIO | None) -> bool:
    """Return whether a stream is a console of Windows, to which only Python's own class writes."""
    return os.name == "nt" and stream is not None and stream.isatty()


def _fill_descriptors() -> None:
    """Open the null device as each standard stream that is closed.

    The next file that is opened would otherwise take its number, and what a library or a command
    that is started here prints would be written into that file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)


def _open_stream(stream: TextIO | None, number: int) -> TextIO:
    """Return a stream that never fails in place of `stream`, which is None if it was closed."""
    with contextlib.suppress(OSError, AttributeError):
        stream.flush()  # type: ignore[union-attr]
    raw: Any = _PatientFile(number, "w", closefd=False)
    return io.TextIOWrapper(
        raw,
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )


class _PatientFile(io.FileIO):
    """A standard stream whose writes never fail: what nobody can take is dropped."""

    def write(self, content: Any) -> int:
        """Write all of the content, or drop the rest if it cannot be written; return its length."""
        left = memoryview(content).cast("B")
        size = len(left)
        try:
            while left:
                # None: another program made the terminal or pipe non-blocking, and it is full.
                written = super().write(left)
                if written is None:  # never on Windows, whose select knows sockets only
                    select.select([], [self], [])
                left = left[written or 0 :]
        except OSError as error:
            self._give_up(error)
        return size

    def _give_up(self, error: OSError) -> None:
        """Let the descriptor lead to the null device, also for libraries and for children."""
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
        # A reader that leaves (| head) has seen enough. A full disk loses what was asked for.
        if self.fileno() == 1 and not isinstance(error, BrokenPipeError):
            reason = error.strerror or error
            print(f"warning: cannot write to stdout: {reason}; going on without", file=sys.stderr)


class Console:
    """Printer of lines that also appends them to a log file. Progress is not logged.

    Args:
        log: an open text file.
        width: columns at which longer lines are wrapped, at spaces, where they are shown, but not
            in the log; None leaves lines as they are.
        quiet: print nothing, as the processes of a job do but for the first.
    """

    def __init__(self, log: TextIO | None = None, width: int | None = None, quiet: bool = False):
        self._log, self._width, self.quiet = log, width, quiet

    def say(self, line: str) -> None:
        """Print a line, or a text of lines, and log it; other control characters are escaped."""
        if self.quiet:
            return
        from tqdm import tqdm

        line = escape(line, keep="\n")
        shown = line
        if self._width is not None:
            shown = "\n".join(_wrap(one, self._width) for one in line.split("\n"))
        tqdm.write(shown)
        sys.stdout.flush()
        self.record(line)

    def record(self, line: str) -> None:
        """Log a line that is not printed; control characters are escaped."""
        if self._log is not None:
            self._log.write(escape(line, keep="\n") + "\n")
            self._log.flush()


def _wrap(line: str, width: int) -> str:
    """Break a long line at spaces, the rest indented. An indented line, a command, stays whole."""
    if len(line) <= width or line.startswith(" "):
        return line
    return textwrap.fill(
        line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


class Progress:
    """A bar with rate and time left on a terminal or in a notebook; else a line now and then.

    `is_due()` decides when to refresh. The caller reads numbers from the device only then: the
    display costs a few synchronisations a second at most. The `with` block removes the bar.

    Args:
        console: prints the plain lines.
        title: of the work.
        total: the amount of work, in units.
        start: the amount that was done before.
        unit: noun for one unit.
        left: returns the seconds that the whole run still takes, given the amount done.
        quick: whether the work is often short: no bar is drawn before the first `show`.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        total: int,
        start: int = 0,
        unit: str = "image",
        *,
        left: Callable[[float], float] | None = None,
        quick: bool = False,
    ):
        self._console, self._title, self._total = console, title, total
        self._start, self._unit, self._left = start, unit, left
        self._done, self._text = start, ""
        self._live = not console.quiet and (in_notebook() or sys.stderr.isatty())
        self._interval = math.inf if console.quiet else 0.5 if self._live else 60.0
        self._last = self._begun = time.monotonic()
        self._bar: Any = None
        if self._live and not quick:
            self._draw(start, "")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_due(self) -> bool:
        """Return whether the display is to be refreshed."""
        return time.monotonic() - self._last >= self._interval

    def skip(self, amount: int) -> None:
        """Count an amount as done without work: rate and time left are those of the rest."""
        self._start += amount
        self._done += amount
        if self._bar is not None:
            self._draw(self._done, self._text)

    def advance(self, amount: int) -> None:
        """Count an amount as done, and refresh the display if it is due."""
        self._done += amount
        if self.is_due():
            self.show(self._done, "")

    def report(self, share: float, note: str) -> None:
        """Refresh the display, if it is due, with a share of the next unit done, in [0, 1]."""
        if self.is_due():
            self.show(round(self._done + share, 2), note)

    def show(self, done: float, note: str) -> None:
        """Refresh the display with the amount done and a note."""
        self._last = time.monotonic()
        text = ", ".join([*self._describe(done), *([note] if note else [])])
        if self._live:
            self._text = text
            self._draw(done, text)
            return
        self._console.say(f"{self._title}: {done}/{self._total} {self._unit}s, {text}")

    def _describe(self, done: float) -> Iterator[str]:
        rate = (done - self._start) / max(self._last - self._begun, 1e-9)
        yield f"{format_rate(rate)} {self._unit}s/s"
        yield f"{format_time((self._total - done) / rate if rate > 0 else math.inf)} left"
        if self._left is not None:
            yield f"run {format_time(self._left(done))} left"

    def _draw(self, done: float, text: str) -> None:
        if self._bar is None:
            self._bar = _build_bar(self._title, self._total)
        self._bar.n = done
        if not in_notebook():
            self._bar.ncols = _measure_terminal()
        self._bar.set_postfix_str(escape(text), refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def _build_bar(title: str, total: int) -> Any:
    """Build tqdm's bar: in a notebook a widget, if ipywidgets is installed."""
    if in_notebook():
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    return tqdm(
        total=total,
        desc=escape(title),
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
        unit_scale=total >= LONG_COUNT,
        leave=False,
        ncols=None if in_notebook() else _measure_terminal(),
    )


def in_notebook() -> bool:
    """Return whether this is the kernel of a notebook: its stderr is no terminal, but is live."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return "IPKernelApp" in getattr(get_shell(), "config", ())


def _measure_terminal() -> int:
    """Return how many columns a bar may take: those of the terminal, at most `WIDTH`."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    # Some terminals break a line that fills them.
    return min(WIDTH, columns - 1) if columns else WIDTH


def format_time(seconds: float) -> str:
    """Return a duration as 0:05, 12:05, 1:23:45 or, from 100 hours on, 4 d 04 h; "?" without end.

    Args:
        seconds: the duration; infinite if it is not known.
    """
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours // 24} d {hours % 24:02d} h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_rate(rate: float) -> str:
    """Return a number per second in three digits, or in all those before the point."""
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def format_count(number: int, noun: str) -> str:
    """Return "1 epoch" or "2 epochs"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def list_some(names: Sequence[object], most: int) -> str:
    """List the first `most` names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(map(str, names[:most]))}{more}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns, the first to the left and the others to the right; cells are escaped."""
    lines = [[escape(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def align(line: list[str]) -> str:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([align(lines[0]), rule, *[align(line) for line in lines[1:]]])


def format_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown. Cells may have markup; a bar in one does not end it."""
    shown = [[escape(cell).replace("|", r"\|") for cell in line] for line in (header, *rows)]
    lines = [shown[0], ["---"] * len(header), *shown[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
