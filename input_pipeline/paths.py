"""The paths of many files in two arrays: a million of them in a list are a million objects."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

_CHUNK = 65_536  # names that are cut out at a time


class Paths(Sequence[str]):
    """The paths of N files below one folder.

    1.28 million take 65 MB, and worker processes share them: a process that reads a list of str
    counts references in each, and so gets a copy of its own.

    Args:
        folder: that all are in.
        text: the paths in the folder, with slashes, each followed by a zero byte.
        starts, ends: int64 [N], where each path is in `text`. None: all in their order.
    """

    def __init__(
        self,
        folder: str,
        text: bytes,
        starts: np.ndarray | None = None,
        ends: np.ndarray | None = None,
    ) -> None:
        if starts is None or ends is None:
            ends = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == 0)
            starts = np.concatenate(([0], ends[:-1] + 1))[: len(ends)]
        self.folder, self.text = folder, text
        self._starts, self._ends = starts, ends
        self._prefix = os.path.join(folder, "")

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Paths: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(index)
        number = operator.index(index)
        return self._prefix + os.fsdecode(self.text[self._starts[number] : self._ends[number]])

    def __iter__(self) -> Iterator[str]:
        return (self._prefix + os.fsdecode(name) for name in self.names())

    def select(self, numbers: np.ndarray | slice) -> Paths:
        """Keep the files `numbers`, int64 [n]; their text is shared."""
        return Paths(self.folder, self.text, self._starts[numbers], self._ends[numbers])

    def names(self) -> Iterator[bytes]:
        """Iterate over the paths in the folder, with slashes."""
        text = self.text
        for first in range(0, len(self), _CHUNK):
            at = slice(first, first + _CHUNK)
            for start, end in zip(self._starts[at].tolist(), self._ends[at].tolist(), strict=True):
                yield text[start:end]


def join_names(paths: Iterable[str], folder: str) -> bytes:
    """Join the paths of files in a folder to the text of `Paths`."""
    start = len(os.path.join(folder, ""))
    names = (os.fsencode(path[start:].replace(os.sep, "/")) for path in paths)
    return b"".join(name + b"\0" for name in names)


def select_paths(paths: Sequence[str], numbers: np.ndarray) -> Sequence[str]:
    """Keep the files `numbers`, int64 [n]."""
    if isinstance(paths, Paths):
        return paths.select(numbers)
    return [paths[i] for i in numbers.tolist()]


def name_file(path: str, folder: str) -> bytes:
    """Return the path of a file in its folder, as bytes, with slashes on every system."""
    prefix = os.path.join(folder, "")
    name = path.removeprefix(prefix) if path.startswith(prefix) else os.path.relpath(path, folder)
    return os.fsencode(name.replace(os.sep, "/"))


def iterate_names(paths: Sequence[str], folder: str) -> Iterator[bytes]:
    """Iterate over what `name_file` returns for each path."""
    if isinstance(paths, Paths) and paths.folder == folder:
        return paths.names()
    return (name_file(path, folder) for path in paths)
