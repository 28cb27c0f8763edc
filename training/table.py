"""The epochs of a run as a table, line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from utils.console import WIDTH, format_rate, format_time

HEADING_EVERY = 20  # rows; the end of a long log then shows what its columns are
GAP = "  "


@dataclass(frozen=True)
class Column:
    """A column of the table: its heading and how a value is written, in at most `width`."""

    heading: str
    width: int
    format: Callable[[float], str]


def _format_percent(value: float) -> str:
    return f"{value:.2f}"


def _format_loss(value: float) -> str:
    """Write a loss in at most 8 characters."""
    text = f"{value:.4g}"
    return text if len(text) <= 8 else f"{value:.2e}"


def _format_seconds(value: float) -> str:
    return f"{value:.1f}" if value < 99_999 else f"{value:.0f}"


# By the name of a row's value. A column whose value a run does not have is not shown.
COLUMNS = {
    "lr": Column("lr", 8, lambda value: f"{value:.2e}"),
    "train_loss": Column("train loss", 10, _format_loss),
    "train_top1": Column("top-1 %", 7, _format_percent),
    "test_loss": Column("test loss", 9, _format_loss),
    "test_top1": Column("top-1 %", 7, _format_percent),
    "test_uniform": Column("uniform %", 9, _format_percent),
    "ema_test_top1": Column("ema top-1 %", 11, _format_percent),
    "seconds": Column("seconds", 7, _format_seconds),
    "images_per_second": Column("images/s", 8, format_rate),
    "left": Column("left", 8, format_time),
}
# Left out, in this order, where a line would be too long: metrics.csv has them.
SPARE = ("seconds", "images_per_second")


class EpochTable:
    """The lines of a run's epochs, with a heading now and then; none is longer than `WIDTH`.

    Args:
        epochs: of the run.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._rows = 0

    def format(self, row: Mapping[str, Any], left: float) -> Iterator[str]:
        """Yield the lines of an epoch: a heading if it is time for one, and its values.

        Args:
            row: of metrics.csv.
            left: seconds that the run still takes.
        """
        values = {**row, "left": left}
        first = max(len("epoch"), 2 * len(str(self._epochs)) + 1)
        columns = _choose_columns(values, first)
        if self._rows % HEADING_EVERY == 0:
            headings = [column.heading.rjust(column.width) for column in columns.values()]
            yield GAP.join(["epoch".rjust(first), *headings])
        self._rows += 1
        cells = [c.format(values[name]).rjust(c.width) for name, c in columns.items()]
        yield GAP.join([f"{row['epoch']}/{self._epochs}".rjust(first), *cells])


def _choose_columns(values: Mapping[str, Any], first: int) -> dict[str, Column]:
    """Return the columns that have values and fit beside a first one of width `first`."""
    columns = {name: column for name, column in COLUMNS.items() if name in values}
    for name in SPARE:
        if first + sum(len(GAP) + column.width for column in columns.values()) > WIDTH:
            del columns[name]
    return columns
