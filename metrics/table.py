"""nc_metrics.csv of a run: its rows, and whether each still holds or must be computed.

A row holds while its checkpoint and the settings of its evaluation are unchanged. nc_metrics.json
beside the CSV keeps a fingerprint of both for each row. A row without a fingerprint stays as it is
until its checkpoint is chosen, and is computed again then.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from input_pipeline import SPLITS
from metrics import EVALUATED, Measure
from utils.background import Background
from utils.console import list_some
from utils.errors import UserError
from utils.files import (
    format_csv,
    open_regular,
    read_json,
    remove_temporaries,
    write_csv,
    write_json,
    write_whole,
)
from utils.locks import Lock, Occupied

PATIENCE = 60  # seconds that one evaluation waits for another, which writes for a moment
DELIMITERS = ",;\t"  # the first is ours, the others are a spreadsheet's
FAULTS_NAMED = 3  # faults of one file that a message names; it counts the others
KEY_COLUMNS = ("epoch", "split")
Key = tuple[int, str]


class MetricsTable:
    """The rows of a run, kept on disk whole after every change.

    If a file differs from what this class writes, it is rewritten at once. No text is lost: if a
    part of a file cannot be read, the old file is kept as nc_metrics.csv.bad.

    Args:
        directory: the run.
        measures: the columns after epoch and split. The optional and the later ones may be empty,
            or missing in an older file.
        name: of its file.

    Attributes:
        rows: by key; an empty cell is None.
        notes: a line for each file that could not be read, or not in full.

    Raises UserError if a file cannot be opened or written.
    """

    def __init__(
        self, directory: Path, measures: Mapping[str, Measure], name: str = EVALUATED
    ) -> None:
        self._path, stem = directory / name, name.removesuffix(".csv")
        self._prints_path = directory / f"{stem}.json"
        self._columns = (*KEY_COLUMNS, *measures)
        self._optional = tuple(name for name, measure in measures.items() if measure.may_be_empty)
        self._later = tuple(name for name, measure in measures.items() if measure.later)
        self.rows: dict[Key, dict[str, Any]] = {}
        self.notes: list[str] = []
        self._fingerprints: dict[Key, str] = {}
        self._changed: set[Key] = set()
        self._lock = Lock(directory / f".{stem}.lock")
        with self._hold_lock():
            remove_temporaries(directory, name, self._prints_path.name)
            self._read()

    @property
    def keys(self) -> list[Key]:
        """The rows' keys by epoch, train before test."""
        return sorted(self.rows, key=lambda key: (key[0], key[1] != "train"))

    @property
    def current(self) -> dict[Key, dict[str, Any]]:
        """The rows in the order of `keys`, without those that `mark_changed` took out."""
        return {key: self.rows[key] for key in self.keys if key not in self._changed}

    def holds(self, key: Key, fingerprint: str) -> bool:
        """Return whether there is a row with this fingerprint."""
        return self._fingerprints.get(key) == fingerprint

    def lacks_later(self, key: Key) -> bool:
        """Return whether there is a row from before some measure existed."""
        row = self.rows.get(key)
        return row is not None and any(row[name] is None for name in self._later)

    def put(self, key: Key, fingerprint: str | None, values: Mapping[str, float | None]) -> None:
        """Add or replace a row, and write both files with it.

        A row of weights that no file holds has no fingerprint. Rows that another evaluation has
        written meanwhile stay: the files are read again first.
        """
        with self._hold_lock():
            self._read()
            self.rows[key] = {"epoch": key[0], "split": key[1], **values}
            if fingerprint is None:
                self._fingerprints.pop(key, None)
            else:
                self._fingerprints[key] = fingerprint
            self._changed.discard(key)
            self._write_rows()
            # The CSV is written first: a kill between the two leaves a row without a fingerprint,
            # which is computed again, and never an old row under a new fingerprint.
            self._write_fingerprints()

    def exclude(self, key: Key) -> None:
        """Take a row out of `current`, because its checkpoint is damaged now."""
        self._changed.add(key)

    def mark_changed(self, key: Key, fingerprint: str) -> None:
        """Take a row that has another fingerprint out of `current`.

        It stays in the file until `put` replaces it: nothing is lost if that fails.
        """
        if self._fingerprints.get(key, fingerprint) != fingerprint:
            self._changed.add(key)

    @contextlib.contextmanager
    def _hold_lock(self) -> Iterator[None]:
        try:
            self._lock.acquire(PATIENCE)
        except Occupied as error:
            raise UserError(f"another evaluation keeps {self._path}") from error
        try:
            yield
        finally:
            self._lock.release()

    def _read(self) -> None:
        """Read what can be read, and rewrite the files if they differ from it."""
        path = self._path
        if not path.exists():
            return
        with open_regular(path) as file:
            content = file.read()
        try:
            rows, doubtful, faults = read_rows(content, self._columns, self._optional)
        except ValueError as error:
            self._move_aside(str(error))
            return
        if faults:
            self._keep_copy(content, faults)
        stored = self._read_fingerprints()
        self.rows |= rows
        fingerprints = {key: text for key, text in self._fingerprints.items() if key not in rows}
        for key in rows:
            if name_key(key) in stored and key not in doubtful:
                fingerprints[key] = stored[name_key(key)]
        # At once: another thread, which asks whether a row is there, sees it before and after.
        self._fingerprints = fingerprints
        # The fingerprints are written first: a kill between the two leaves the damaged cell, and
        # never an empty one under a fingerprint that holds.
        if len(self._fingerprints) < len(stored):
            self._write_fingerprints()
        if self._format_rows() != content:
            self._write_rows()

    def _move_aside(self, reason: str) -> None:
        path = self._path
        aside = find_free_name(path)
        try:
            os.replace(path, aside)
        except OSError as error:
            raise UserError(f"cannot move {path} to {aside}: {error.strerror}") from error
        self.notes.append(f"{path} is damaged: {reason}; it is moved to {aside.name}")

    def _keep_copy(self, content: bytes, faults: list[str]) -> None:
        path = self._path
        aside = find_free_name(path)
        write_whole(aside, lambda file: file.write(content))
        self.notes.append(
            f"{path} is damaged: {list_some(faults, FAULTS_NAMED)}; "
            f"the other cells are kept, and the old file as {aside.name}"
        )

    def _read_fingerprints(self) -> dict[str, str]:
        path = self._prints_path
        if not path.exists():
            return {}
        try:
            stored = read_json(path)
            if not isinstance(stored, dict):
                raise UserError(f"{path} is damaged: not a JSON object")
        except UserError as error:
            self.notes.append(f"{error}; a row is computed again when its checkpoint is chosen")
            return {}
        return {name: text for name, text in stored.items() if isinstance(text, str)}

    def _write_fingerprints(self) -> None:
        known = [key for key in self.keys if key in self._fingerprints]
        content = {name_key(key): self._fingerprints[key] for key in known}
        write_json(self._prints_path, content)

    def _write_rows(self) -> None:
        write_csv(self._path, self._columns, [self.rows[key] for key in self.keys])

    def _format_rows(self) -> bytes:
        rows = [self.rows[key] for key in self.keys]
        return format_csv(self._columns, rows).encode()


class RowWriter:
    """Puts rows into a table by a thread: the work goes on while the disk confirms a row.

    At most one row is on its way. The end of the `with` block waits for it, also where an error or
    a stop ends the block. An error of `MetricsTable.put` is raised by the next `put` or at the end.
    """

    def __init__(self, table: MetricsTable) -> None:
        self._table, self._thread = table, Background("rows")

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.close()
        if kind is None:
            self._thread.wait()

    def put(self, key: Key, fingerprint: str, values: Mapping[str, float | None]) -> None:
        """Add or replace a row once the one before is written."""
        self._thread.start(self._table.put, key, fingerprint, values)


def name_key(key: Key) -> str:
    """Return the name of a row in nc_metrics.json."""
    return f"{key[0]} {key[1]}"


def find_free_name(path: Path) -> Path:
    """Find a name: nc_metrics.csv -> nc_metrics.csv.bad, or .bad2, .bad3, … if that exists."""
    name = path.with_name(f"{path.name}.bad")
    count = 1
    while name.exists():
        count += 1
        name = path.with_name(f"{path.name}.bad{count}")
    return name


def read_rows(
    content: bytes, columns: tuple[str, ...], optional: tuple[str, ...]
) -> tuple[dict[Key, dict[str, Any]], set[Key], list[str]]:
    """Read the rows of a table, each independently of the others.

    Returns:
        The rows by key; the keys of rows with a cell that is missing or not a number (None in the
        row); and in words all that the bytes hold and the rows do not.

    Raises:
        ValueError: the bytes are no table with the columns epoch and split.
    """
    (_, header), *lines = split_lines(content)
    rows: dict[Key, dict[str, Any]] = {}
    doubtful: set[Key] = set()
    faults = [f"column {quote(name)} is unknown" for name in header if name not in ("", *columns)]
    for number, cells in lines:
        named = dict(zip(header, cells, strict=False))
        key = parse_key(named)
        if key is None or key in rows:
            what = f"epoch {quote(named.get('epoch', ''))}, {quote(named.get('split', ''))}"
            faults.append(f"line {number} is {'a second row' if key else 'a row'} of {what}")
            doubtful |= {key} if key else set()
            continue
        if len(cells) != len(header):  # a cell is lost or split: the others have moved
            faults.append(f"line {number} has {len(cells)} cells for {len(header)} columns")
            named = {}
        values = {name: parse_number(named.get(name, "")) for name in columns[len(KEY_COLUMNS) :]}
        rows[key] = {"epoch": key[0], "split": key[1], **values}
        empty = [name for name, value in values.items() if value is None]
        faults += [f"line {number}: {n} is {quote(named[n])}" for n in empty if named.get(n)]
        if any(named.get(name) or name not in optional for name in empty):
            doubtful.add(key)
    return rows, doubtful, faults


def split_lines(content: bytes, keys: tuple[str, ...] = KEY_COLUMNS) -> list[tuple[int, list[str]]]:
    """Return number and cells of each line that is not empty; the header is the first.

    Each line is parsed alone, so that a stray quote ends with its line. Delimiter, decimal comma
    and byte order mark may be those of a spreadsheet. Raises ValueError if there is no header with
    the columns `keys`.
    """
    # A byte that is not UTF-8 damages its cell, not the others.
    lines = content.decode("utf-8-sig", errors="replace").splitlines()
    filled = [(i, line) for i, line in enumerate(lines, start=1) if line.strip(DELIMITERS + " ")]
    header = filled[0][1] if filled else ""
    for delimiter in DELIMITERS:
        if set(keys) <= set(split_line(header, delimiter)):
            return [(i, split_line(line, delimiter)) for i, line in filled]
    raise ValueError(f"it does not begin with a header that names {' and '.join(keys)}")


def split_line(line: str, delimiter: str) -> list[str]:
    """Return the cells of a line, decimal commas as points."""
    try:
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:  # a cell of more than 128 KB
        return [line]
    return cells if delimiter == "," else [cell.replace(",", ".") for cell in cells]


def parse_key(cells: Mapping[str, str]) -> Key | None:
    """Return epoch and split; None if they are no whole number ≥ 0 and train or test."""
    epoch = parse_number(cells.get("epoch", ""))
    if epoch is None or not epoch.is_integer() or epoch < 0 or cells.get("split") not in SPLITS:
        return None
    return int(epoch), cells["split"]


def quote(text: str) -> str:
    """Quote text from a file on one line, and cut it if it is long."""
    return repr(text if len(text) <= 20 else f"{text[:20]}…")


def parse_number(text: str) -> float | None:
    """Return a cell's number; None if it is not one."""
    if "_" in text:  # Python's own notation, which no table has
        return None
    try:
        return float(text)
    except ValueError:
        return None


def compute_fingerprint(content: bytes, *settings: Any) -> str:
    """Hash what stands for a checkpoint's content, and the settings that its rows depend on."""
    digest = hashlib.sha256(repr(settings).encode())
    digest.update(content)
    return digest.hexdigest()
