"""nc_metrics.csv of a run: its rows, and whether each still holds or must be computed.

A row holds while its checkpoint and the settings of its evaluation are unchanged. nc_metrics.json
beside the CSV keeps a fingerprint of both for each row. A row without a fingerprint stays as it is
until its checkpoint is chosen, and is computed again then. nc_classes.csv, with a row for each
class, belongs to it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metrics import CLASS_MEASURES, EVALUATED, Measure, name_class_table
from metrics.stored_rows import CLASS_KEY_COLUMNS, Key, StoredRows
from utils.background import Background
from utils.errors import UserError
from utils.files import remove_temporaries
from utils.locks import Lock, Occupied

PATIENCE = 60  # seconds that one evaluation waits for another, which writes for a moment
Values = Mapping[str, float | None]


class MetricsTable:
    """The rows of a run, kept on disk whole after every change.

    Args:
        directory: the run.
        measures: the columns after epoch and split. The optional and the later ones may be empty,
            or missing in an older file.
        name: of its file.

    Raises UserError if a file cannot be opened or written.
    """

    def __init__(
        self, directory: Path, measures: Mapping[str, Measure], name: str = EVALUATED
    ) -> None:
        self._stored = StoredRows(directory, measures, name)
        self._classes = StoredRows(
            directory, CLASS_MEASURES, name_class_table(name), CLASS_KEY_COLUMNS, self._forget
        )
        self._later = tuple(name for name, measure in measures.items() if measure.later)
        self._changed: set[Key] = set()
        self._lock = Lock(directory / f".{name.removesuffix('.csv')}.lock")
        with self._hold_lock():
            for stored in (self._stored, self._classes):
                remove_temporaries(directory, stored.path.name, stored.prints_path.name)
                stored.read()

    @property
    def rows(self) -> dict[Any, dict[str, Any]]:
        """The rows by key; an empty cell is None."""
        return self._stored.rows

    @property
    def notes(self) -> list[str]:
        """A line for each file that could not be read, or not in full."""
        return self._stored.notes + self._classes.notes

    @property
    def keys(self) -> list[Key]:
        """The rows' keys by epoch, train before test."""
        return [(key[0], key[1]) for key in self._stored.list_keys()]

    @property
    def current(self) -> dict[Key, dict[str, Any]]:
        """The rows in the order of `keys`, without those that `mark_changed` took out."""
        return {key: self.rows[key] for key in self.keys if key not in self._changed}

    def list_classes(self, key: Key) -> list[dict[str, Any]]:
        """Return the rows of the classes that belong to a row, in the order of the classes.

        None belong to a row of an earlier version, or of classes of one size.
        """
        own = self._stored.fingerprints.get(key)
        theirs = self._classes.fingerprints.get(key)
        if own is not None and theirs is not None and theirs.partition(" ")[2] != own:
            return []  # an earlier version has replaced the row alone
        return self._classes.list_group(key) if (own is None) == (theirs is None) else []

    def holds(self, key: Key, fingerprint: str) -> bool:
        """Return whether there is a row with this fingerprint."""
        return self._stored.fingerprints.get(key) == fingerprint

    def lacks_later(self, key: Key, has_classes: bool = False) -> bool:
        """Return whether there is a row from before some measure existed.

        `has_classes` shows whether rows of the classes belong to it, too.
        """
        row = self.rows.get(key)
        lacks = row is not None and any(row[name] is None for name in self._later)
        return lacks or (row is not None and has_classes and not self.list_classes(key))

    def put(
        self, key: Key, fingerprint: str | None, values: Values, classes: Sequence[Values] = ()
    ) -> None:
        """Add or replace a row and those of its classes, and write the files with them.

        A row of weights that no file holds has no fingerprint. Rows that another evaluation has
        written meanwhile stay: the files are read again first.
        """
        with self._hold_lock():
            self._stored.read()
            self._classes.read()
            if classes:  # first: a row then never stands without its classes
                marked = None if fingerprint is None else f"{len(classes)} {fingerprint}"
                self._classes.set_group(key, marked, classes)
                self._classes.write()
            self._stored.set_group(key, fingerprint, [values])
            self._changed.discard(key)
            self._stored.write()

    def differs(self, cells: Values, keys: Collection[Key]) -> bool:
        """Return whether any of these rows has other values in the columns of `cells`."""
        return any(self.rows[key][name] != value for key in keys for name, value in cells.items())

    def replace_cells(self, cells: Values, classes: Sequence[Values], keys: Collection[Key]) -> int:
        """Write other values into some columns of rows that hold, and of their classes.

        Args:
            cells: the values, the same for all rows.
            classes: those of the classes, in their order.
            keys: of the rows.

        Returns:
            The number of rows that changed.
        """
        with self._hold_lock():
            self._stored.read()
            self._classes.read()
            changed = {key for key in keys if _update(self.rows[key], cells)}
            for key in keys:
                own = self.list_classes(key)
                pairs = zip(own, classes, strict=False) if len(own) == len(classes) else ()
                if any([_update(row, values) for row, values in pairs]):
                    changed.add(key)
            if changed:
                self._stored.write()
                if self._classes.rows:
                    self._classes.write()
        return len(changed)

    def exclude(self, key: Key) -> None:
        """Take a row out of `current`, because its checkpoint is damaged now."""
        self._changed.add(key)

    def mark_changed(self, key: Key, fingerprint: str) -> None:
        """Take a row that has another fingerprint out of `current`.

        It stays in the file until `put` replaces it: nothing is lost if that fails.
        """
        if self._stored.fingerprints.get(key, fingerprint) != fingerprint:
            self._changed.add(key)

    def _forget(self, keys: Collection[Key]) -> None:
        """Let rows be computed again, because those of their classes are damaged or lost."""
        fingerprints = self._stored.fingerprints
        self._stored.fingerprints = {k: v for k, v in fingerprints.items() if k not in keys}
        if len(self._stored.fingerprints) < len(fingerprints):
            self._stored.write_fingerprints()

    @contextlib.contextmanager
    def _hold_lock(self) -> Iterator[None]:
        try:
            self._lock.acquire(PATIENCE)
        except Occupied as error:
            raise UserError(f"another evaluation keeps {self._stored.path}") from error
        try:
            yield
        finally:
            self._lock.release()


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

    def put(
        self, key: Key, fingerprint: str, values: Values, classes: Sequence[Values] = ()
    ) -> None:
        """Add or replace a row once the one before is written."""
        self._thread.start(self._table.put, key, fingerprint, values, classes)


def _update(row: dict[str, Any], cells: Values) -> bool:
    """Put values into a row; return whether one was another."""
    changed = any(row[name] != value for name, value in cells.items())
    row |= cells
    return changed


def compute_fingerprint(content: bytes, *settings: Any) -> str:
    """Hash what stands for a checkpoint's content, and the settings that its rows depend on."""
    digest = hashlib.sha256(repr(settings).encode())
    digest.update(content)
    return digest.hexdigest()
