"""Rows of numbers in a CSV file, and the fingerprint of what each was computed from.

Each row is read independently of the others. A JSON file beside the CSV keeps the fingerprints: one
for each epoch and split, whose rows are a *group*. nc_metrics.csv has groups of one row, and
nc_classes.csv those of a row for each class.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from input_pipeline import SPLITS
from metrics import Measure
from utils.console import list_some
from utils.errors import UserError
from utils.files import format_csv, open_regular, read_json, write_csv, write_json, write_whole

DELIMITERS = ",;\t"  # the first is ours, the others are a spreadsheet's
FAULTS_NAMED = 3  # faults of one file that a message names; it counts the others
KEY_COLUMNS = ("epoch", "split")
CLASS_KEY_COLUMNS = (*KEY_COLUMNS, "class")
Key = tuple[int, str]  # of a group
RowKey = tuple[Any, ...]  # the group, and the class where a group has several rows


class StoredRows:
    """The rows of a table, and the files that hold them. The caller sees to it that one writes.

    If a file differs from what this class writes, it is rewritten when it is read. No text is lost:
    if a part of a file cannot be read, the old file is kept as NAME.bad.

    Args:
        directory: of the files.
        measures: the columns after the key's. Those that may be empty may be missing, too.
        name: of the CSV; the fingerprints stand in a JSON of the same name.
        key_columns: KEY_COLUMNS or CLASS_KEY_COLUMNS.
        on_doubt: called with the groups that no longer hold, because rows of theirs are damaged or
            lost, before the files show it.

    Attributes:
        rows: by key; an empty cell is None.
        fingerprints: by group.
        notes: a line for each file that could not be read, or not in full.

    Raises UserError if a file cannot be opened or written.
    """

    def __init__(
        self,
        directory: Path,
        measures: Mapping[str, Measure],
        name: str,
        key_columns: Sequence[str] = KEY_COLUMNS,
        on_doubt: Callable[[Collection[Key]], object] = lambda groups: None,
    ) -> None:
        self.path = directory / name
        self.prints_path = self.path.with_suffix(".json")
        self._key_columns, self._on_doubt = tuple(key_columns), on_doubt
        self._columns = (*key_columns, *measures)
        self._optional = tuple(name for name, measure in measures.items() if measure.may_be_empty)
        self.rows: dict[RowKey, dict[str, Any]] = {}
        self.fingerprints: dict[Key, str] = {}
        self.notes: list[str] = []
        self._seen: Any = None  # what tells the files that were read or written last from others

    def list_keys(self) -> list[RowKey]:
        """Return the rows' keys by epoch, train before test, and class."""
        return sorted(self.rows, key=lambda key: (key[0], key[1] != "train", *key[2:]))

    def list_group(self, group: Key) -> list[dict[str, Any]]:
        """Return the rows of a group, in the order of the classes."""
        if group in self.rows:
            return [self.rows[group]]
        found: list[dict[str, Any]] = []
        while (*group, len(found)) in self.rows:
            found.append(self.rows[*group, len(found)])
        return found

    def set_group(
        self, group: Key, fingerprint: str | None, rows: Sequence[Mapping[str, float | None]]
    ) -> None:
        """Replace the rows of a group, in memory alone."""
        for key in [key for key in self.rows if key[:2] == group]:
            del self.rows[key]
        for number, values in enumerate(rows):
            key = (*group, number)[: len(self._key_columns)]
            self.rows[key] = {**dict(zip(self._key_columns, key, strict=True)), **values}
        if fingerprint is None:
            self.fingerprints.pop(group, None)
        else:
            self.fingerprints[group] = fingerprint

    def read(self) -> None:
        """Read what can be read, and rewrite the files if they differ from it."""
        if self._identify_files() == self._seen:
            return
        content = self._read_content()
        try:
            found = (
                None
                if content is None
                else read_rows(content, self._columns, self._optional, self._key_columns)
            )
        except ValueError as error:
            self._move_aside(str(error))
            content = found = None
        rows, doubtful, faults = found or ({}, set(), [])
        if content is not None and faults:
            self._keep_copy(content, faults)
        stored = self._read_fingerprints()
        self.rows |= rows
        present = {key[:2] for key in rows}
        doubts = self._find_doubts(present, {key[:2] for key in doubtful}, stored)
        fingerprints = {g: text for g, text in self.fingerprints.items() if g not in present}
        for group in present - doubts:
            if name_key(group) in stored:
                fingerprints[group] = stored[name_key(group)]
        # At once: another thread, which asks whether a row is there, sees it before and after.
        self.fingerprints = fingerprints
        if doubts:
            self._on_doubt(doubts)
        # The fingerprints are written first: a kill between the two leaves the damaged cell, and
        # never an empty one under a fingerprint that holds.
        if len(self.fingerprints) < len(stored):
            self.write_fingerprints()
        if content is not None and self._format_rows() != content:
            self.write_rows()
        self._seen = self._identify_files()

    def write(self) -> None:
        """Write both files.

        The CSV is written first: a kill between the two leaves a row without a fingerprint, which
        is computed again, and never an old row under a new fingerprint.
        """
        self.write_rows()
        self.write_fingerprints()
        self._seen = self._identify_files()

    def write_rows(self) -> None:
        """Write the CSV."""
        write_csv(self.path, self._columns, [self.rows[key] for key in self.list_keys()])
        self._seen = None

    def write_fingerprints(self) -> None:
        """Write the fingerprints of the groups that have rows."""
        groups = dict.fromkeys(key[:2] for key in self.list_keys())
        known = [group for group in groups if group in self.fingerprints]
        write_json(self.prints_path, {name_key(g): self.fingerprints[g] for g in known})
        self._seen = None

    def _find_doubts(
        self, present: Collection[Key], doubtful: Collection[Key], stored: Mapping[str, str]
    ) -> set[Key]:
        """Return the groups with rows that are damaged, lost or of unknown origin."""
        doubts = set(doubtful) | {group for group in present if name_key(group) not in stored}
        if self._key_columns == KEY_COLUMNS:
            return doubts
        counts = dict.fromkeys(present, 0)
        for key in self.rows:
            if key[:2] in counts:
                counts[key[:2]] += 1
        for name, fingerprint in stored.items():
            group = parse_group(name)
            if group is not None and counts.get(group, 0) != count_rows(fingerprint):
                doubts.add(group)
        return doubts

    def _identify_files(self) -> Any:
        """Return what tells the files from others of their names: each write makes a new one."""
        found: list[Any] = []
        for path in (self.path, self.prints_path):
            try:
                stat = os.stat(path)
            except OSError:
                found.append(None)
                continue
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return found

    def _read_content(self) -> bytes | None:
        if not self.path.exists():
            return None
        with open_regular(self.path) as file:
            return file.read()

    def _move_aside(self, reason: str) -> None:
        path = self.path
        aside = find_free_name(path)
        try:
            os.replace(path, aside)
        except OSError as error:
            raise UserError(f"cannot move {path} to {aside}: {error.strerror}") from error
        self.notes.append(f"{path} is damaged: {reason}; it is moved to {aside.name}")

    def _keep_copy(self, content: bytes, faults: list[str]) -> None:
        path = self.path
        aside = find_free_name(path)
        write_whole(aside, lambda file: file.write(content))
        self.notes.append(
            f"{path} is damaged: {list_some(faults, FAULTS_NAMED)}; "
            f"the other cells are kept, and the old file as {aside.name}"
        )

    def _read_fingerprints(self) -> dict[str, str]:
        path = self.prints_path
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

    def _format_rows(self) -> bytes:
        rows = [self.rows[key] for key in self.list_keys()]
        return format_csv(self._columns, rows).encode()


def name_key(group: Key) -> str:
    """Return the name of a group in the JSON."""
    return f"{group[0]} {group[1]}"


def parse_group(name: str) -> Key | None:
    """Return the group of a name in the JSON; None if it is no such name."""
    epoch, _, split = name.partition(" ")
    key = parse_key({"epoch": epoch, "split": split})
    return None if key is None else (key[0], key[1])


def count_rows(fingerprint: str) -> int:
    """Return the number of rows with which the fingerprint of a group of several begins."""
    number = parse_number(fingerprint.partition(" ")[0])
    return int(number) if number is not None and number.is_integer() else 0


def find_free_name(path: Path) -> Path:
    """Find a name: nc_metrics.csv -> nc_metrics.csv.bad, or .bad2, .bad3, … if that exists."""
    name = path.with_name(f"{path.name}.bad")
    count = 1
    while name.exists():
        count += 1
        name = path.with_name(f"{path.name}.bad{count}")
    return name


def read_rows(
    content: bytes,
    columns: tuple[str, ...],
    optional: tuple[str, ...],
    key_columns: tuple[str, ...] = KEY_COLUMNS,
) -> tuple[dict[RowKey, dict[str, Any]], set[RowKey], list[str]]:
    """Read the rows of a table, each independently of the others.

    Returns:
        The rows by key; the keys of rows with a cell that is missing or not a number (None in the
        row); and in words all that the bytes hold and the rows do not.

    Raises:
        ValueError: the bytes are no table with the columns of the key.
    """
    (_, header), *lines = split_lines(content, key_columns)
    rows: dict[RowKey, dict[str, Any]] = {}
    doubtful: set[RowKey] = set()
    faults = [f"column {quote(name)} is unknown" for name in header if name not in ("", *columns)]
    for number, cells in lines:
        named = dict(zip(header, cells, strict=False))
        key = parse_key(named, key_columns)
        if key is None or key in rows:
            what = f"epoch {', '.join(quote(named.get(name, '')) for name in key_columns)}"
            faults.append(f"line {number} is {'a second row' if key else 'a row'} of {what}")
            doubtful |= {key} if key else set()
            continue
        if len(cells) != len(header):  # a cell is lost or split: the others have moved
            faults.append(f"line {number} has {len(cells)} cells for {len(header)} columns")
            named = {}
        values = {name: parse_number(named.get(name, "")) for name in columns[len(key_columns) :]}
        rows[key] = {**dict(zip(key_columns, key, strict=True)), **values}
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


def parse_key(cells: Mapping[str, str], key_columns: Sequence[str] = KEY_COLUMNS) -> RowKey | None:
    """Return epoch and split, and the class if the key has one; None if a part of it is none.

    Epoch and class are whole numbers ≥ 0, and the split is train or test.
    """
    key: list[Any] = []
    for name in key_columns:
        if name == "split":
            key.append(cells.get(name) if cells.get(name) in SPLITS else None)
            continue
        number = parse_number(cells.get(name, ""))
        is_whole = number is not None and number.is_integer() and number >= 0
        key.append(int(number or 0) if is_whole else None)
    return None if None in key else tuple(key)


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
