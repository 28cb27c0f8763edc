"""Output for the user: streams that never fail, names made visible, lines, progress, tables.

tqdm is imported where it is used: `--help` does not wait for it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

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
        if stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _open_stream(stream, number))


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
                if written is None:
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
    """Printer of lines that also appends them to a log file. Progress is not logged."""

    def __init__(self, log: TextIO | None = None):
        self._log = log

    def say(self, line: str) -> None:
        """Print a line, or a text of lines, and log it; other control characters are escaped."""
        from tqdm import tqdm

        line = escape(line, keep="\n")
        tqdm.write(line)
        sys.stdout.flush()
        if self._log is not None:
            self._log.write(line + "\n")
            self._log.flush()


class Progress:
    """A bar with rate and time left on a terminal; elsewhere a plain line now and then.

    `is_due()` decides when to refresh. The caller reads numbers from the device only then: the
    display costs a few synchronisations a second at most.
    """

    def __init__(
        self, console: Console, title: str, total: int, start: int = 0, unit: str = "image"
    ):
        self._terminal = sys.stderr.isatty()
        self._console, self._title, self._total = console, title, total
        self._interval = 0.5 if self._terminal else 60.0
        self._last = self._begun = time.monotonic()
        self._start, self._unit = start, unit
        self._bar: Any = None
        if self._terminal:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                initial=start,
                desc=escape(title),
                unit=unit,
                leave=False,
                dynamic_ncols=True,
            )

    def is_due(self) -> bool:
        """Return whether the display is to be refreshed."""
        return time.monotonic() - self._last >= self._interval

    def skip(self, amount: int) -> None:
        """Count an amount as done without work: rate and time left are those of the rest."""
        self._start += amount
        if self._bar is not None:
            self._bar.initial += amount
            self._bar.update(amount)

    def show(self, done: float, note: str) -> None:
        """Refresh the display with the amount done and a note."""
        self._last = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(escape(note), refresh=False)
            self._bar.update(done - self._bar.n)
            return
        rate = (done - self._start) / max(self._last - self._begun, 1e-9)
        left = (self._total - done) / max(rate, 1e-9)
        self._console.say(
            f"{self._title}: {done}/{self._total} {self._unit}s, {rate:.3g} {self._unit}s/s, "
            f"{left:.0f} s left{', ' if note else ''}{note}"
        )

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


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
