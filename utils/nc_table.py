"""nc_metrics.csv of a run: which rows are there, which still hold, which are to be computed.

A row holds as long as its checkpoint has the content, and the evaluation the settings, that it was
computed from. A fingerprint of both is kept for each row in nc_metrics.json beside the CSV.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_csv, read_json, write_csv, write_json
from utils.rundir import BEST, METRICS

TABLE, FINGERPRINTS = "nc_metrics.csv", "nc_metrics.json"
Key = tuple[int, str]  # epoch, split


class MetricsTable:
    """The rows of a run, kept on disk whole after every change.

    Args:
        directory: the run.
        columns: of the CSV, beginning with epoch and split.
        optional: those of them that may be empty, or missing in a file written before they were.
    """

    def __init__(
        self, directory: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> None:
        self._directory, self._columns, self._optional = directory, columns, optional
        self.rows: dict[Key, dict[str, Any]] = {}
        self._fingerprints: dict[Key, str] = {}
        self._read()

    @property
    def keys(self) -> list[Key]:
        """By epoch, train before test."""
        return sorted(self.rows, key=lambda key: (key[0], key[1] != "train"))

    def holds(self, key: Key, fingerprint: str) -> bool:
        return key in self.rows and self._fingerprints.get(key) == fingerprint

    def put(self, key: Key, fingerprint: str, values: dict[str, float | None]) -> None:
        self.rows[key] = {"epoch": key[0], "split": key[1], **values}
        self._fingerprints[key] = fingerprint
        self._write()

    def drop(self, key: Key) -> None:
        """Forget a row whose checkpoint is not what it was."""
        if key in self.rows:
            del self.rows[key]
            self._write()

    def _read(self) -> None:
        """Take over rows that are whole; anything else is computed anew."""
        try:
            rows = read_csv(self._directory / TABLE)
            fingerprints = read_json(self._directory / FINGERPRINTS)
            for row in rows:
                key = int(row["epoch"]), row["split"]
                numbers = {name: self._number(row, name) for name in self._columns[2:]}
                self.rows[key] = {"epoch": key[0], "split": key[1], **numbers}
                self._fingerprints[key] = fingerprints.get(f"{key[0]} {key[1]}", "")
        except (UserError, KeyError, TypeError, ValueError, AttributeError):
            self.rows, self._fingerprints = {}, {}

    def _number(self, row: dict[str, str], name: str) -> float | None:
        if name in self._optional and not row.get(name):
            return None
        return float(row[name])

    def _write(self) -> None:
        """The CSV first: a kill between the two leaves a row without a fingerprint, which is
        computed again, and never an old row under a new fingerprint."""
        keys = self.keys
        write_csv(self._directory / TABLE, self._columns, [self.rows[key] for key in keys])
        fingerprints = {f"{key[0]} {key[1]}": self._fingerprints[key] for key in keys}
        write_json(self._directory / FINGERPRINTS, fingerprints)


def fingerprint(checkpoint: Path, *settings: Any) -> str:
    """A hash of a checkpoint's content and of what else a row depends on.

    A .pth is a zip archive that holds a CRC of each tensor, so its directory is enough; a file of
    another format is read whole.
    """
    digest = hashlib.sha256(repr(settings).encode())
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            entries = [(entry.filename, entry.file_size, entry.CRC) for entry in archive.infolist()]
        digest.update(repr(entries).encode())
    except (zipfile.BadZipFile, OSError):
        digest.update(checkpoint.read_bytes())
    return digest.hexdigest()


def checkpoints(directory: Path) -> dict[int, Path]:
    """The run's epoch_NNN.pth by epoch. Raises UserError if there is none."""
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
    """Those of `last`, `all`, `best` or a list such as 1,5,10-20, by epoch.

    A range takes the epochs of it that were saved; a single number must have been. Raises
    UserError for what is not there.
    """
    if selection == "best":
        return {best_epoch(directory): directory / BEST}
    found = checkpoints(directory)
    if selection == "all":
        return found
    if selection == "last":
        return dict([max(found.items())])
    chosen = {}
    for first, last in parse_epochs(selection):
        within = {epoch: path for epoch, path in found.items() if first <= epoch <= last}
        if not within:
            raise UserError(
                f"{directory} has no checkpoint of epoch {first if first == last else selection}; "
                f"there are {len(found)} from {min(found)} to {max(found)}"
            )
        chosen |= within
    return dict(sorted(chosen.items()))


def parse_epochs(text: str) -> list[tuple[int, int]]:
    """ "1,5,10-20" -> [(1, 1), (5, 5), (10, 20)]. Raises UserError."""
    spans = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"--checkpoints {text!r}: last, all, best, or epochs such as 1,5,10-20")
        spans.append((int(match[1]), int(match[2] or match[1])))
    return spans


def best_epoch(directory: Path) -> int:
    """The epoch that best_model.pth is of: the first of the best test top-1 in metrics.csv."""
    if not (directory / BEST).is_file():
        raise UserError(f"{directory / BEST} does not exist")
    try:
        rows = read_csv(directory / METRICS)
        best = max(rows, key=lambda row: float(row["test_top1"]))
        return int(best["epoch"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{directory / METRICS} does not tell which epoch was best") from error
