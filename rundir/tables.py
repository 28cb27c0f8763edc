"""The numbers of metrics.csv and nc_metrics.csv as they are, whoever wrote the columns.

Imports no torch. Nothing is changed on disk, in contrast to `metrics.table.MetricsTable`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from input_pipeline import SPLITS
from metrics import EVALUATED
from metrics.stored_rows import parse_number, quote, split_lines
from rundir.names import METRICS
from utils.errors import UserError
from utils.files import open_regular

Row = dict[str, float | None]  # by column; None is an empty cell


@dataclass
class Numbers:
    """A table of numbers.

    Attributes:
        columns: of the numbers, in the order of the file; "epoch" is one, "split" is none.
        rows: by their key: the epoch in metrics.csv, (epoch, split) in nc_metrics.csv.
        faults: a few words for each row that is skipped, and for a file that is no table.
    """

    columns: list[str] = field(default_factory=list)
    rows: dict[Hashable, Row] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def read_history(directory: Path) -> Numbers:
    """Read a run's metrics.csv by epoch. Raises UserError if the file cannot be read."""
    return read_numbers(directory / METRICS, ("epoch",))


def read_measures(directory: Path) -> Numbers:
    """Read a run's nc_metrics.csv by (epoch, split). Raises UserError if it cannot be read."""
    return read_numbers(directory / EVALUATED, ("epoch", "split"))


def read_numbers(path: Path, keys: tuple[str, ...]) -> Numbers:
    """Read a table. A row that is damaged, or a second row of a key, is skipped.

    Args:
        path: the file. Nothing is read if it does not exist.
        keys: the columns that tell the rows apart: ("epoch",) or ("epoch", "split").

    Raises:
        UserError: the file cannot be read.
    """
    found = Numbers()
    if not path.exists():
        return found
    try:
        with open_regular(path) as file:
            content = file.read()
        (_, header), *lines = split_lines(content, keys)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        found.faults.append(str(error))
        return found
    found.columns = [name for name in dict.fromkeys(header) if name not in ("", "split")]
    for number, cells in lines:
        try:
            key, row = _parse_row(header, cells, keys)
        except ValueError as error:
            found.faults.append(f"line {number} is skipped: {error}")
            continue
        if key in found.rows:
            found.faults.append(f"line {number} is skipped: it repeats an earlier row")
            continue
        found.rows[key] = row
    return found


def _parse_row(header: list[str], cells: list[str], keys: tuple[str, ...]) -> tuple[Hashable, Row]:
    """Return key and numbers of a row. Raises ValueError with what is wrong."""
    if len(cells) != len(header):
        raise ValueError(f"it has {len(cells)} cells for {len(header)} columns")
    named = dict(zip(header, cells, strict=True))
    split = named.pop("split", None)
    named.pop("", None)
    row = {name: parse_number(text) if text else None for name, text in named.items()}
    wrong = next((name for name, value in row.items() if value is None and named[name]), None)
    if wrong is not None:
        raise ValueError(f"its {wrong} is {quote(named[wrong])}")
    epoch = row["epoch"]
    if epoch is None or not epoch.is_integer() or epoch < 0:
        raise ValueError(f"its epoch is {quote(named['epoch'])}")
    if "split" not in keys:
        return int(epoch), row
    if split not in SPLITS:
        raise ValueError(f"its split is {quote(split or '')}")
    return (int(epoch), split), row


def choose_epoch(history: Mapping[Hashable, Row], checkpoint: str) -> int | None:
    """Choose an epoch of metrics.csv; None if there is none such.

    Args:
        history: its rows by epoch.
        checkpoint: "last"; "best", the first epoch of the best test_top1; or a number.
    """
    epochs = sorted(epoch for epoch in history if isinstance(epoch, int))
    if checkpoint == "last":
        return epochs[-1] if epochs else None
    if checkpoint != "best":
        return int(checkpoint) if int(checkpoint) in history else None
    scores = {epoch: history[epoch].get("test_top1") for epoch in epochs}
    known = {
        epoch: score for epoch, score in scores.items() if score is not None and score == score
    }
    return max(known, key=lambda epoch: known[epoch]) if known else None
