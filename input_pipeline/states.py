"""The states of files, which show whether one has changed, and what is known of the unchanged."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from input_pipeline import cache
from input_pipeline.paths import select_paths
from utils.errors import UserError

# So many files at most are looked at again in a folder whose directories have not changed.
LOOKED_AT = 10_000
# The columns of a state, uint64. The device's number, the last one, is another after a restart.
INODE, SIZE, MODIFIED, CHANGED, DEVICE = range(5)
_SETTLED = 2 * 10**9  # nanoseconds after which a change gives a file another time
_COSTLY, _PAGE = 2**24, 2**12  # bytes; each file counts as one page more than it has
_THREADS, _CHUNK = 8, 256  # threads that wait for files, and files that one takes at a time
_RECORD = np.dtype([("key", "u8"), ("state", "u8", (4,)), ("value", "u8", (2,))])

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_files(function: Callable[[Sequence[str]], Result], paths: Sequence[str]) -> list[Result]:
    """Apply a function that waits for files to pieces of `paths`, in threads. Raises UserError."""
    pieces = (paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK))
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(function, pieces))
    except OSError as error:
        raise UserError(f"{error.filename} can't be read: {error.strerror}") from error


def read_states(paths: Sequence[str]) -> np.ndarray:
    """Read the states of N files, uint64 [N, 5]. Raises UserError if one can't be read."""
    return np.concatenate([np.empty((0, 5), np.uint64), *map_files(_read_states, paths)])


def _read_states(paths: Iterable[str]) -> np.ndarray:
    return format_states(map(os.stat, paths))


def format_states(found: Iterable[os.stat_result]) -> np.ndarray:
    """Return the states of N files, uint64 [N, 5], from what the system says of them."""
    rows = [(s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_dev) for s in found]
    whole = [[number % 2**64 for number in row] for row in rows]  # times before 1970 are negative
    return np.array(whole, dtype=np.uint64).reshape(-1, 5)


def find_settled(states: np.ndarray, begun: int) -> np.ndarray:
    """Return which states, uint64 [N, 5], a later change will alter: bool [N].

    A file that is being changed may keep its time. `begun`, in nanoseconds, is when they were read.
    """
    times = states[:, [MODIFIED, CHANGED]].astype(np.int64)
    return np.asarray(times.max(1) < begun - _SETTLED)


def are_costly(states: np.ndarray) -> bool:
    """Return whether it pays to remember what was read of these files, uint64 [N, 5]."""
    return int(states[:, SIZE].sum()) + _PAGE * len(states) >= _COSTLY


class FileMemory:
    """What was found out about the contents of files: 16 bytes for each, until it changes.

    Args:
        kind: what was found out.
        folder: the files'.
    """

    def __init__(self, kind: str, folder: str | Path) -> None:
        self._path = cache.locate(kind, folder)
        stored = cache.load(self._path).get("records")
        self._records = np.empty(0, _RECORD) if stored is None else stored

    def recall(self, keys: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what is known of N files.

        Args:
            keys: uint64 [N], one for each name.
            states: uint64 [N, 5].

        Returns:
            uint64 [N, 2], and of which files it is known, bool [N].
        """
        if len(self._records) == 0:
            return np.zeros((len(keys), 2), np.uint64), np.zeros(len(keys), bool)
        at = np.searchsorted(self._records["key"], keys).clip(max=len(self._records) - 1)
        found = self._records[at]
        known = (found["key"] == keys) & (found["state"] == states[:, :DEVICE]).all(1)
        return found["value"], known

    def add(self, keys: np.ndarray, states: np.ndarray, values: np.ndarray, begun: int) -> None:
        """Remember the values, uint64 [N, 2], of files that have settled before `begun`."""
        settled = find_settled(states, begun)
        if not settled.any():
            return
        fresh = np.empty(int(settled.sum()), _RECORD)
        fresh["key"], fresh["value"] = keys[settled], values[settled]
        fresh["state"] = states[settled, :DEVICE]
        # Of two with one key the first is kept, the fresh one.
        joined = np.concatenate([fresh, self._records])
        self._records = joined[np.unique(joined["key"], return_index=True)[1]]
        cache.store(self._path, {"records": self._records})


def recall_result(
    kind: str, folder: str | Path, key: bytes, paths: Sequence[str]
) -> np.ndarray | None:
    """Return what `keep_result` has kept, if the files that are looked at have not changed."""
    stored = cache.load(cache.locate(kind, folder, key))
    if not stored:
        return None
    try:
        states = read_states(select_paths(paths, stored["numbers"]))
    except UserError:
        return None
    same = np.array_equal(states[:, :DEVICE], stored["states"])
    return stored["value"] if same else None


def keep_result(
    kind: str,
    folder: str | Path,
    key: bytes,
    value: np.ndarray,
    numbers: np.ndarray,
    states: np.ndarray,
    begun: int,
) -> None:
    """Keep what was found out about many files together, if all of them have settled.

    Args:
        kind, folder, key: what it is, and of which files: they lie in the same directories as long
            as the key is the same.
        value: an array.
        numbers: int64 [n], the files that `recall_result` looks at.
        states: uint64 [N, 5] of all files.
        begun: time in nanoseconds before the first state was read.
    """
    if find_settled(states, begun).all():
        kept = {"value": value, "numbers": numbers, "states": states[numbers, :DEVICE]}
        cache.store(cache.locate(kind, folder, key), kept)


def read_clock() -> int:
    """Return the time in nanoseconds, as files have it."""
    return time.time_ns()
