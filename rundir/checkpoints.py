"""The checkpoints of a run directory, and the choice among them. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from rundir.names import BEST, METRICS
from utils.errors import UserError
from utils.files import read_csv


def list_checkpoints(directory: Path) -> dict[int, Path]:
    """Return the run's epoch_NNN.pth by epoch. Raises UserError if there is none."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory")
    found = {}
    for path in directory.glob("epoch_*.pth"):
        match = re.fullmatch(r"epoch_(\d+)\.pth", path.name)
        if match and path.is_file():
            found[int(match[1])] = path
    if not found:
        raise UserError(f"{directory} holds no checkpoints (epoch_NNN.pth)")
    return dict(sorted(found.items()))


def select_checkpoints(directory: Path, selection: str) -> dict[int, Path]:
    """Return the checkpoints of `last`, `all`, `best` or a list such as 1,5,10-20, by epoch.

    A range takes those of its epochs that were saved. Raises UserError if a range has none, or if
    a single epoch was not saved.
    """
    if selection == "best":
        return {find_best_epoch(directory): directory / BEST}
    found = list_checkpoints(directory)
    if selection == "all":
        return found
    if selection == "last":
        return dict([max(found.items())])
    chosen: dict[int, Path] = {}
    for first, last in parse_epochs(selection):
        within = {epoch: path for epoch, path in found.items() if first <= epoch <= last}
        if not within:
            raise UserError(
                f"{directory} has no checkpoint of epoch {first if first == last else selection}; "
                f"there are {len(found)} from {min(found)} to {max(found)}"
            )
        chosen |= within
    return dict(sorted(chosen.items()))


def select_checkpoint(directory: Path, which: str) -> Path:
    """Return the file of `last`, `best` or an epoch's number. Raises UserError."""
    if which not in ("last", "best") and not re.fullmatch(r"\d+", which):
        raise UserError(f"--checkpoint {which!r}: last, best or the number of an epoch")
    return next(iter(select_checkpoints(directory, which).values()))


def parse_epochs(text: str) -> list[tuple[int, int]]:
    """Parse "1,5,10-20" -> [(1, 1), (5, 5), (10, 20)]. Raises UserError."""
    spans = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"--checkpoints {text!r}: last, all, best, or epochs such as 1,5,10-20")
        spans.append((int(match[1]), int(match[2] or match[1])))
    return spans


def find_best_epoch(directory: Path) -> int:
    """Return the epoch of best_model.pth: the first of the best test top-1 in metrics.csv.

    Raises UserError if metrics.csv does not show it.
    """
    if not (directory / BEST).is_file():
        raise UserError(f"{directory / BEST} does not exist")
    try:
        rows = read_csv(directory / METRICS)
        best = max(rows, key=lambda row: float(row["test_top1"]))
        return int(best["epoch"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{directory / METRICS} does not show which epoch was best") from error
