"""The checkpoints of a run directory, and the choice among them. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from rundir.archives import Origin, hold_the_same, read_origin
from rundir.names import BEST, METRICS, name_checkpoint, name_ema, read_ema_epoch, read_epoch
from utils.errors import UserError
from utils.files import read_csv

EMA_TOP1 = "ema_test_top1"  # the column of metrics.csv that shows which average is best


def find_checkpoints(directory: Path, average: bool = False) -> dict[int, Path]:
    """Return the run's epoch_NNN.pth by epoch, if any; with `average` its ema_NNN.pth.

    Raises UserError if the directory cannot be read.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory")
    found: dict[int, Path] = {}
    for path in list_files(directory):
        epoch = read_ema_epoch(path.name) if average else read_epoch(path.name)
        if epoch is None:
            continue
        twin = found.setdefault(epoch, path)
        if twin != path:
            raise UserError(f"{twin} and {path.name} are both of epoch {epoch}: remove one")
    return dict(sorted(found.items()))


def list_files(directory: Path) -> list[Path]:
    """Return the files in a directory, sorted. Raises UserError if it cannot be read."""
    try:
        return sorted(path for path in directory.iterdir() if path.is_file())
    except OSError as error:
        raise UserError(f"cannot read {directory}: {error.strerror}") from error


def select_checkpoints(directory: Path, selection: str) -> dict[int, Path]:
    """Return the checkpoints of `last`, `all`, `best` or a list such as 1,5,10-20, by epoch.

    A range takes those of its epochs that were saved. `all` is best_model.pth where nothing else
    was kept. Raises UserError if a range has none, or if a single epoch was not saved.
    """
    found = {} if selection == "best" else find_checkpoints(directory)
    if selection == "best" or (selection == "all" and not found and (directory / BEST).is_file()):
        return {find_best_epoch(directory): directory / BEST}
    if not found:
        hint = ", give best for its best_model.pth" if (directory / BEST).is_file() else ""
        raise UserError(f"{directory} holds no checkpoints (epoch_NNN.pth){hint}")
    return pick_epochs(directory, found, selection)


def add_best(directory: Path, chosen: Mapping[int, Path]) -> dict[int, Path]:
    """Return chosen checkpoints, with best_model.pth if that of its epoch was not kept.

    Where it is absent, or does not show its epoch, they stay as they are.
    """
    try:
        found = {find_best_epoch(directory): directory / BEST, **chosen}
    except UserError:
        found = dict(chosen)
    return dict(sorted(found.items()))


def select_averages(directory: Path, selection: str) -> dict[int, Path]:
    """Return a run's averages (ema_NNN.pth) as `select_checkpoints` returns its checkpoints.

    `best` is the one of the best test top-1 of an average. Raises UserError.
    """
    found = find_checkpoints(directory, average=True)
    if not found:
        raise UserError(f"{directory} holds no averages of the weights (ema_NNN.pth)")
    if selection != "best":
        return pick_epochs(directory, found, selection)
    epoch = read_best_epoch(directory, EMA_TOP1)
    if epoch not in found:
        raise UserError(
            f"{directory}: {name_ema(epoch)}, of the best {EMA_TOP1}, is not there: it was not "
            "saved, or is removed"
        )
    return {epoch: found[epoch]}


def pick_epochs(directory: Path, found: dict[int, Path], selection: str) -> dict[int, Path]:
    """Pick `last`, `all` or a list such as 1,5,10-20 of checkpoints by epoch. Raises UserError."""
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


def check_single(which: str) -> None:
    """Refuse a choice that can mean several checkpoints. Raises UserError."""
    if which not in ("last", "best") and not re.fullmatch(r"\d+|[^,]*\.[a-z]+", which):
        raise UserError(f"--checkpoint {which!r}: last, best, the number of an epoch or a file")


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
    """Return the epoch whose weights best_model.pth holds.

    The file itself shows it; in a run of an earlier version metrics.csv does, by the first of the
    best test top-1. Raises UserError if neither shows it, or if they are not of one epoch.
    """
    best = directory / BEST
    if not best.is_file():
        raise UserError(f"{best} does not exist")
    origin = read_origin(best)
    if origin is not None:
        return origin.epoch
    epoch = read_best_epoch(directory, "test_top1")
    checkpoint = directory / name_checkpoint(epoch)
    if checkpoint.is_file() and not hold_the_same(checkpoint, best):
        raise UserError(
            f"{directory / METRICS} shows epoch {epoch} as best, but {BEST} holds other weights "
            f"than {checkpoint.name}: give --checkpoints {epoch}, or resume the run"
        )
    return epoch


def read_best_epoch(directory: Path, column: str) -> int:
    """Return the first epoch of the largest number in a column of metrics.csv. Raises UserError."""
    try:
        rows = read_csv(directory / METRICS)
        return int(max(rows, key=lambda row: float(row[column]))["epoch"])
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{directory / METRICS} does not show which epoch was best") from error


def check_origin(path: Path, origin: Origin | None, run_id: str) -> None:
    """Refuse a checkpoint of another run or epoch, or an average for weights. Raises UserError.

    Names such as epoch_NNN.pth show epoch and kind. A file of another program, or of an earlier
    version, does not show its origin.
    """
    if origin is None:
        return
    if run_id and origin.run != run_id:
        raise UserError(f"{path} is a checkpoint of another run")
    kind = "average" if origin.average else "weights"
    own, other = read_epoch(path.name), read_ema_epoch(path.name)
    own, other = (other, own) if origin.average else (own, other)
    if own not in (None, origin.epoch) or other is not None:
        raise UserError(f"{path} holds the {kind} of epoch {origin.epoch}")
    if path.name == BEST and origin.average:
        raise UserError(f"{path} holds an average, not the weights of the best epoch")
