"""Resized images on disk, as raw pixels: one process adds some, any number read.

A store is a directory of two files. `pixels` holds the images one after another and only grows.
`index` has a row for each image, with a checksum. It is replaced as a whole once the pixels of its
rows are on the disk, so that a kill at any moment leaves a store that lacks some images at most.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils.errors import UserError
from utils.files import open_regular, write_whole

# key: 16 bytes that identify the file and the pixels made of it. A height of 0: nothing is stored.
ROW = np.dtype(
    [("key", "S16"), ("offset", "<u8"), ("height", "<u4"), ("width", "<u4"), ("sum", "<u8")]
)
PIXELS, INDEX = "pixels", "index"
_WORD = 8  # bytes; each image begins at a multiple, and its checksum is a sum of such words
_DIGEST = 16  # bytes of the index's own checksum


class StoredImages:
    """Images of a store by the numbers of a split's samples.

    Args:
        path: of the pixels.
        rows: N rows; those with a height of 0 are of images that the store doesn't have.
    """

    def __init__(self, path: Path, rows: np.ndarray) -> None:
        self._path, self._rows = path, rows
        self._file: Any = None
        self._opener = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_opener": 0}

    def select(self, numbers: np.ndarray) -> StoredImages:
        """Keep the images `numbers`, int64 [B]."""
        return StoredImages(self._path, self._rows[numbers])

    def read(self, number: int) -> np.ndarray | None:
        """Read an image, uint8 [H, W, 3]; None where the store doesn't have it.

        Raises UserError if it is damaged.
        """
        row = self._rows[number]
        if row["height"] == 0:
            return None
        words = np.empty(count_words(row), np.uint64)
        file = self._open()
        file.seek(int(row["offset"]))
        try:
            read = file.readinto(words)
        except OSError as error:
            raise UserError(f"cannot read {self._path}: {error.strerror}") from error
        if read != words.nbytes or add_up(words) != row["sum"]:
            raise UserError(
                f"{self._path} is damaged: remove its directory, which will be filled again"
            )
        shape = int(row["height"]), int(row["width"]), 3
        return words.view(np.uint8)[: shape[0] * shape[1] * 3].reshape(shape)

    def _open(self) -> Any:
        # A worker process must not share the position in the file with the one it was forked from.
        if self._file is None or self._opener != os.getpid():
            # Unbuffered: images are larger than a buffer.
            opened: Any = open_regular(self._path)
            self._file, self._opener = opened.detach(), os.getpid()
        return self._file


def count_words(row: np.void) -> int:
    """Count the words that the pixels of a row take."""
    return -(-int(row["height"]) * int(row["width"]) * 3 // _WORD)


def add_up(words: np.ndarray) -> int:
    """Return the checksum of an image: the sum of its words, uint64 [n], modulo 2^64."""
    return int(words.sum(dtype=np.uint64))


def pack(images: Sequence[np.ndarray | None]) -> np.ndarray:
    """Lay images, uint8 [H, W, 3] or None, out as uint64 words: heights, widths, then pixels."""
    shapes = [(0, 0) if image is None else image.shape[:2] for image in images]
    parts = [np.array(shapes, "<u4").T.ravel().view(np.uint64)]
    for image in images:
        if image is not None:
            flat = np.ascontiguousarray(image).reshape(-1)
            parts.append(np.pad(flat, (0, -len(flat) % _WORD)).view(np.uint64))
    return np.concatenate(parts)


class PixelStore:
    """The store of a directory, which need not exist."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._pixels, self._index = directory / PIXELS, directory / INDEX
        self._rows = self._read_rows()

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return the rows of these keys, S16 [N]; of those that are absent, rows of zeros."""
        known = self._rows
        found = np.zeros(len(keys), ROW)
        if len(known):
            places = np.minimum(np.searchsorted(known["key"], keys), len(known) - 1)
            fits = known["key"][places] == keys
            found[fits] = known[places[fits]]
        return found

    def open_images(self, keys: np.ndarray) -> StoredImages:
        """Return the images of these keys, S16 [N], as far as they are stored."""
        return StoredImages(self._pixels, self.find(keys))

    def _read_rows(self) -> np.ndarray:
        """Read the index, sorted by keys; nothing if it is absent or damaged."""
        none = np.zeros(0, ROW)
        try:
            content = self._index.read_bytes()
            size = self._pixels.stat().st_size
        except OSError:
            return none
        digest, body = content[:_DIGEST], content[_DIGEST:]
        if digest != _hash(body) or len(body) % ROW.itemsize:
            return none
        rows = np.frombuffer(body, ROW)
        return rows[_find_ends(rows) <= size]

    # --- Writing. The caller holds the store's lock. ---

    @contextlib.contextmanager
    def append(self) -> Iterator[Appender]:
        """Yield a writer at the end of the store; what it got is committed when the block ends.

        Raises:
            UserError: the disk is full, or can't be written.
        """
        self._rows = self._read_rows()
        try:
            if not len(self._rows):
                # A new file: others may still read from one whose index is lost.
                self._pixels.unlink(missing_ok=True)
                self._pixels.touch()
            with open(self._pixels, "r+b", buffering=0) as file:
                # What was written after the last commit has no row.
                file.truncate(int(_find_ends(self._rows).max(initial=0)))
                file.seek(0, os.SEEK_END)
                appender = Appender(self, file)
                try:
                    yield appender
                finally:
                    appender.commit()
        except OSError as error:
            raise UserError(
                f"cannot write {self._pixels}: {error.strerror}; what is there stays"
            ) from error

    def add_rows(self, rows: np.ndarray) -> None:
        """Replace the index by one with more rows, whose pixels are on the disk."""
        merged = np.concatenate([self._rows, rows])
        merged = merged[np.argsort(merged["key"], kind="stable")]
        body = merged.tobytes()
        write_whole(self._index, lambda file: file.write(_hash(body) + body))
        self._rows = merged


class Appender:
    """Writes images to the end of a store's file."""

    def __init__(self, store: PixelStore, file: BinaryIO) -> None:
        self._store, self._file = store, file
        self._end = file.tell()
        self._rows: list[np.ndarray] = []

    def write(self, keys: np.ndarray, packed: np.ndarray) -> None:
        """Write the images of these keys, S16 [n], laid out by `pack`. Raises OSError."""
        rows = np.zeros(len(keys), ROW)
        rows["key"] = keys
        rows["height"], rows["width"] = packed[: len(keys)].view("<u4").reshape(2, -1)
        first = len(keys)
        for row in rows:
            words = packed[first : first + count_words(row)]
            row["offset"] = self._end + _WORD * (first - len(keys))
            row["sum"] = add_up(words)
            first += len(words)
        left = packed[len(keys) :].view(np.uint8).data
        while left:
            left = left[self._file.write(left) :]
        self._end += packed.nbytes - _WORD * len(keys)
        self._rows.append(rows)

    def commit(self) -> None:
        """Put what was written on the disk, then the rows of it into the index."""
        if not self._rows:
            return
        os.fsync(self._file.fileno())
        self._store.add_rows(np.concatenate(self._rows))
        self._rows.clear()


def _find_ends(rows: np.ndarray) -> np.ndarray:
    """Return the offsets, int64 [n], at which the pixels of rows end."""
    values = 3 * rows["height"].astype(np.int64) * rows["width"]
    return rows["offset"].astype(np.int64) + -(-values // _WORD) * _WORD


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()
