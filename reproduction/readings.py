"""What a report reads from the tables of a run: a measure at the end, over the epochs, or the epoch
at which it arrives.

The names of readings stand in the entries of `reproduction.EXPERIMENTS`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metrics import EVALUATED, MEASURES, Measure
from reproduction import BELOW, OVER_EPOCHS, WITHIN
from rundir.names import METRICS
from utils.errors import UserError
from utils.files import read_csv

# Measures that training computes and eval_nc.py does not.
TRAINED = {"test_loss": Measure("", "test loss", split="test", history="test_loss")}
Rows = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Reading:
    """A number that a report reads from the tables of a run.

    Attributes:
        column: of the tables.
        kind: "" for the last epoch, or one of `OVER_EPOCHS`, `BELOW` and `WITHIN`.
        limit: of an arrival: the value, or the distance in percent of the prediction.
    """

    column: str
    kind: str = ""
    limit: float = 0.0

    @property
    def measure(self) -> Measure:
        """The entry of the measure."""
        return MEASURES.get(self.column) or TRAINED[self.column]

    @property
    def is_arrival(self) -> bool:
        """Whether it is an epoch."""
        return self.kind in (BELOW, WITHIN)

    @property
    def predicted(self) -> str | None:
        """The measure that is its exact prediction."""
        return None if self.kind else self.measure.predicted

    @property
    def compares_losses(self) -> bool:
        """Whether one loss can be held against another. They bring scores to other levels."""
        return self.is_arrival or not (self.measure.quantity or self.column in TRAINED)

    @property
    def title(self) -> str:
        """The heading of its column."""
        title = self.measure.heading
        if self.kind == BELOW:
            return f"epochs until {title} < {self.limit:g}"
        if self.kind == WITHIN:
            return f"epochs until {title} stays within {self.limit:g} %"
        return f"{title}{self.kind}"

    def format(self, value: float, sign: str = "") -> str:
        """Return a value as tables show it."""
        if not self.is_arrival:
            return self.measure.format(value, sign)
        return f"{value:{sign}.1f}".removesuffix(".0")


def find_reading(name: str) -> Reading:
    """Return the reading of a name, such as "nc2", "nc2 over epochs" or "nc2 below 0.2"."""
    for kind in (BELOW, WITHIN):
        column, found, limit = name.partition(kind)
        if found:
            return Reading(column, kind, float(limit.removesuffix(" %")))
    column = name.removesuffix(OVER_EPOCHS)
    return Reading(column, OVER_EPOCHS if column != name else "")


def read_values(directory: Path, names: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Return a run's readings and their exact predictions, where there are any.

    An arrival is infinite if it did not take place. Raises UserError for a damaged file.
    """
    history = read_csv(directory / METRICS)
    evaluated = read_csv(directory / EVALUATED) if (directory / EVALUATED).exists() else []
    values, predicted = {}, {}
    for name in names:
        reading = find_reading(name)
        rows = [row for row in evaluated if row.get("split") == reading.measure.split]
        number = _read_value(reading, directory, history, rows)
        if number is not None:
            values[name] = number
        if reading.predicted and rows:
            exact = read_number(rows[-1], reading.predicted, directory / EVALUATED)
            if exact is not None:
                predicted[name] = exact
    return values, predicted


def _read_value(reading: Reading, directory: Path, history: Rows, rows: Rows) -> float | None:
    measure, path = reading.measure, directory / EVALUATED
    if not reading.kind and measure.history:
        # metrics.csv has the last epoch, even if it was not evaluated
        return read_number(history[-1], measure.history, directory / METRICS)
    cells = [(row, read_number(row, reading.column, path)) for row in rows]
    if reading.kind == WITHIN:
        return _find_lasting_arrival(reading, cells, path)
    numbers = [(int(row["epoch"]), number) for row, number in cells if number is not None]
    if reading.kind == BELOW:
        below = (epoch for epoch, number in numbers if number < reading.limit)
        return min(below, default=math.inf) if numbers else None
    if reading.kind == OVER_EPOCHS:
        return statistics.fmean(number for _, number in numbers) if numbers else None
    return cells[-1][1] if cells else None


def _find_lasting_arrival(
    reading: Reading, cells: Sequence[tuple[Mapping[str, str], float | None]], path: Path
) -> float | None:
    """Return the first epoch from which on a measure stays near its prediction, to the last one.

    A measure that crosses its prediction has not arrived there. None without a prediction, or with
    one of 0, from which no distance is relative.
    """
    arrived = math.inf
    for row, number in reversed(cells):
        exact = read_number(row, reading.measure.predicted or "", path)
        if number is None or not exact:
            return None
        if abs(number - exact) > reading.limit / 100 * abs(exact):
            break
        arrived = int(row["epoch"])
    return arrived if cells else None


def read_number(row: Mapping[str, str], column: str, path: Path) -> float | None:
    """Return a cell's number; None where it is empty or the file has no such column.

    Raises a UserError that names `path` if the cell is damaged.
    """
    text = row.get(column)
    if not text:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {column} is {text!r}") from error
