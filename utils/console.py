"""Output for the user: lines that are also logged, a progress bar, aligned tables."""

import os
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from tqdm import tqdm


class Console:
    """Printer of lines that also appends them to a log file. Progress is not logged."""

    def __init__(self, log: TextIO | None = None):
        self._log = log

    def say(self, line: str) -> None:
        """Print a line and log it."""
        try:
            tqdm.write(line)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader left (| head): the work goes on without it
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
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
        self._bar = None
        if self._terminal:
            self._bar = tqdm(
                total=total, initial=start, desc=title, unit=unit, leave=False, dynamic_ncols=True
            )

    def is_due(self) -> bool:
        """Return whether the display is to be refreshed."""
        return time.monotonic() - self._last >= self._interval

    def show(self, done: float, note: str) -> None:
        """Refresh the display with the amount done and a note."""
        self._last = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
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


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns, the first to the left and the others to the right."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def align(line: list[str]) -> str:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([align(lines[0]), rule, *[align(line) for line in lines[1:]]])
