"""The resized images of a data set, kept on disk so that each file is decoded once."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from input_pipeline import PIXELS
from input_pipeline.cache import compute_hash
from input_pipeline.decoding import build_decoding_loader, iterate_decoded
from input_pipeline.image_files import open_rgb, shrink
from input_pipeline.paths import iterate_names
from input_pipeline.pixel_store import PixelStore, pack
from input_pipeline.selection import space_evenly
from input_pipeline.splits import FileSplit
from input_pipeline.states import MODIFIED, SIZE, read_states
from utils.console import Console, Progress, format_count
from utils.errors import UserError
from utils.files import format_bytes
from utils.locks import Lock, Occupied

# Seconds between two commits, of which each writes the whole index: the first ones, and at most.
FIRST_COMMIT, COMMIT_SECONDS = 2.0, 60.0
_CHUNK = 32  # files that a worker decodes at a time
_MEASURED = 256  # files whose sizes show how much the others will take
_NAME = 40  # characters of a data set's name in the name of its store


def keep_resized(
    splits: Mapping[str, FileSplit],
    root: Path,
    *,
    cache_dir: Path,
    num_workers: int,
    fill: bool,
    console: Console | None = None,
) -> dict[str, FileSplit]:
    """Let splits read their images from the store of their data set, as far as it has them.

    The pixels are those that the splits have without it. A file that has another size or time than
    when it was stored counts as a new one.

    Args:
        splits: with images that are resized to one side.
        root: the data set's directory.
        cache_dir: the directory of all stores.
        num_workers: processes that decode. 0 decodes in this one.
        fill: whether to store the images that are not there yet. Other processes that want the same
            wait, and find them.
        console: shows what is done; None: nothing does.

    Raises:
        UserError: a file can't be decoded, or the store can't be written or is too large.
    """
    (side,) = {part.shorter_side for part in splits.values()}
    place = _locate(cache_dir, root, side)
    keys = {name: _make_keys(part.paths, root, side) for name, part in splits.items()}
    if fill:
        paths = [path for part in splits.values() for path in part.paths]
        wanted = np.concatenate(list(keys.values()))
        _Filler(place, _Resizer(paths, side), wanted, num_workers, console).fill()
    store = PixelStore(place)
    return {
        name: replace(part, stored=store.open_images(keys[name])) for name, part in splits.items()
    }


def _locate(cache_dir: Path, root: Path, side: int) -> Path:
    """Return the directory of the store of a data set: one for each place and side."""
    path = os.path.abspath(root)
    digest = hashlib.blake2b(os.fsencode(path), digest_size=4).hexdigest()
    return cache_dir / f"{os.path.basename(path)[:_NAME]}-{digest}-{side}px"


def _make_keys(paths: Sequence[str], root: Path, side: int) -> np.ndarray:
    """Return what identifies files, as they are now, and the pixels made of them: S16 [N]."""
    states = read_states(paths)
    facts = states[:, [SIZE, MODIFIED]].tolist()
    names = iterate_names(paths, str(root))
    texts = (
        b"%d %d %d %d %s" % (PIXELS, side, *both, name)
        for name, both in zip(names, facts, strict=True)
    )
    digests = b"".join(compute_hash(text).digest() for text in texts)
    return np.frombuffer(digests, "S16")


@dataclass(frozen=True)
class _Resizer:
    """Decodes and resizes files for a store; the workers call it in place of a FileSplit."""

    paths: Sequence[str]
    side: int

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, _: object) -> _Resizer:
        return self

    def fetch(self, numbers: Iterable[int], epoch: int = 0) -> Tensor:
        """Return the images of these files as `pack` lays them out, uint8 [bytes]."""
        packed = pack([shrink(open_rgb(self.paths[number]), self.side) for number in numbers])
        return torch.from_numpy(packed.view(np.uint8))


def _find_missing(store: PixelStore, keys: np.ndarray) -> np.ndarray:
    return np.flatnonzero(store.find(keys)["key"] == b"")


@dataclass(frozen=True, eq=False)
class _Filler:
    """Stores the images that are not there yet.

    Attributes:
        place: the store's directory.
        resizer: makes the images.
        keys: of the images, S16 [N].
        num_workers: processes that decode.
        console: shows what is done; None: nothing does.
    """

    place: Path
    resizer: _Resizer
    keys: np.ndarray
    num_workers: int
    console: Console | None

    def fill(self) -> None:
        """Store what is missing, or wait until another process has. Raises UserError."""
        if not len(_find_missing(PixelStore(self.place), self.keys)):
            return
        try:
            self.place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--cache_dir: cannot make {self.place}: {error.strerror}") from error
        with self._hold():
            store = PixelStore(self.place)
            missing = _find_missing(store, self.keys)  # another process may have stored some
            if len(missing):
                self._check_room(missing)
                self._append(store, missing)

    def _say(self, line: str) -> None:
        if self.console is not None:
            self.console.say(line)

    @contextlib.contextmanager
    def _hold(self) -> Iterator[None]:
        """Hold the store's lock."""
        lock = Lock(self.place / "lock")
        try:
            lock.acquire()
        except Occupied:
            self._say(f"waiting for another process, which stores resized images in {self.place}")
            lock.acquire(math.inf)
        try:
            yield
        finally:
            lock.release()

    def _check_room(self, missing: np.ndarray) -> None:
        """Raise UserError if the disk has too little room, judged by some of the images."""
        chosen = missing[space_evenly(len(missing), _MEASURED).numpy()].tolist()
        measured = sum(self.resizer.fetch([number]).nbytes for number in chosen)
        needed = measured * len(missing) / len(chosen)
        free = shutil.disk_usage(self.place).free
        what = f"{format_count(len(missing), 'image')} resized to {self.resizer.side} pixels"
        if needed > free:
            raise UserError(
                f"--cache_dir: {what} need about {format_bytes(needed)}, but {self.place} has "
                f"{format_bytes(free)}: use another directory, or none"
            )
        self._say(f"storing {what} in {self.place}, about {format_bytes(needed)}")

    def _append(self, store: PixelStore, missing: np.ndarray) -> None:
        """Decode the missing images and write them; what is written is committed now and then."""
        chunks = [missing[first : first + _CHUNK] for first in range(0, len(missing), _CHUNK)]
        requests = [(chunk.tolist(), 0) for chunk in chunks]
        loader = build_decoding_loader(self.resizer, requests, num_workers=self.num_workers)
        committed, interval = time.monotonic(), min(FIRST_COMMIT, COMMIT_SECONDS)
        with store.append() as writer, self._watch(len(missing)) as progress:
            for chunk, packed in zip(chunks, iterate_decoded(loader), strict=True):
                writer.write(self.keys[chunk], packed.numpy().view(np.uint64))
                if progress is not None:
                    progress.advance(len(chunk))
                if time.monotonic() - committed >= interval:
                    writer.commit()
                    committed, interval = time.monotonic(), min(2 * interval, COMMIT_SECONDS)

    def _watch(self, total: int) -> contextlib.AbstractContextManager[Progress | None]:
        if self.console is None:
            return contextlib.nullcontext()
        return Progress(self.console, "resizing", total, quick=True)
