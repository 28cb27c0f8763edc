"""Image files that can't be decoded: found once, and then left out of a data set."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import PIL
import torch
from torch import Tensor

from input_pipeline.cache import compute_hash
from input_pipeline.decoding import decode_some
from input_pipeline.image_files import UndecodableError, open_rgb
from input_pipeline.listing import Listing
from input_pipeline.paths import iterate_names, name_file
from input_pipeline.states import (
    LOOKED_AT,
    FileMemory,
    are_costly,
    keep_result,
    read_clock,
    read_states,
    recall_result,
)
from utils.console import Console, Progress, escape, list_some
from utils.errors import UserError

# What the cache keeps: the corrupt files of a split, and which files were checked. Another version
# of the decoder checks again.
CORRUPT, _MEMORY = (f"pillow-{PIL.__version__}.{kind}" for kind in ("corrupt", "checked"))
_KEEP_INTERVAL = 60.0  # seconds of a check that a kill loses
NAMED = 5  # at most so many names stand in a note


@dataclass(frozen=True)
class Check:
    """A check of files, in the place of a FileSplit that is decoded.

    Attributes:
        paths: the files.
    """

    paths: Sequence[str]

    def fetch(self, indices: Sequence[int], epoch: int = 0) -> Tensor:
        """Decode the files `indices`; return for each whether that fails: uint8 [B], 0 or 1.

        Raises UserError for a file that can't be read, or whose values have no known range.
        """
        return torch.tensor([is_corrupt(self.paths[i]) for i in indices], dtype=torch.uint8)

    def to(self, device: torch.device | str) -> Check:
        """Return the same: there is nothing on a device."""
        return self


def is_corrupt(path: str) -> bool:
    """Return whether a file can't be decoded as an image. Raises UserError as `open_rgb`."""
    try:
        open_rgb(path)
    except UndecodableError:
        return True
    return False


def find_corrupt(listing: Listing, num_workers: int, console: Console | None) -> np.ndarray:
    """Find the files of a split that can't be decoded, by their number, int64 [n].

    Each file is decoded once. The user's cache keeps what was found until the file changes.

    Args:
        listing: all files of the split.
        num_workers: processes that decode.
        console: shows the progress; None: nothing does.

    Raises:
        UserError: as `Check.fetch`.
    """
    kept = None
    if listing.key is not None:
        kept = recall_result(CORRUPT, listing.folder, listing.key, listing.paths)
    if kept is not None:
        return kept
    survey = _Survey(listing)
    watch = _watch(console, f"checking {listing.folder.name}/", len(survey.left))
    with survey, watch as advance:
        for flags in decode_some(Check(listing.paths), survey.left, num_workers):
            survey.note(flags.numpy())
            advance(len(flags))
    return survey.conclude()


@contextlib.contextmanager
def _watch(console: Console | None, title: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show the progress of a check, if there is a console, to the function that is returned."""
    if console is None:
        yield lambda amount: None
        return
    with Progress(console, title, total, unit="file", quick=True) as progress:
        yield progress.advance


class _Survey:
    """A survey of a split's files, some of which were checked before. Its end saves what it found.

    Attributes:
        left: the numbers of the files to check, int64 [n].
    """

    def __init__(self, listing: Listing) -> None:
        self._listing, self._begun = listing, read_clock()
        self._states = read_states(listing.paths)
        names = iterate_names(listing.paths, str(listing.folder))
        digests = b"".join(compute_hash(name).digest()[:8] for name in names)
        self._keys = np.frombuffer(digests, dtype=np.uint64)
        self._memory = FileMemory(_MEMORY, listing.folder) if are_costly(self._states) else None
        known = np.zeros(len(listing), dtype=bool)
        self._corrupt = known.copy()
        if self._memory is not None:
            values, known = self._memory.recall(self._keys, self._states)
            self._corrupt = known & (values[:, 0] == 1)
        self.left = torch.from_numpy(np.flatnonzero(~known))
        self._done, self._saved, self._last = 0, 0, time.monotonic()

    def __enter__(self) -> _Survey:
        return self

    def __exit__(self, *_: object) -> None:
        self.save()

    def note(self, flags: np.ndarray) -> None:
        """Note whether the next files are corrupt, [n]; save what was found if that is due."""
        self._corrupt[self.left[self._done : self._done + len(flags)].numpy()] = flags
        self._done += len(flags)
        if time.monotonic() - self._last > _KEEP_INTERVAL:
            self.save()

    def save(self) -> None:
        """Keep what was found since the last time in the cache."""
        fresh = self.left[self._saved : self._done].numpy()
        self._saved, self._last = self._done, time.monotonic()
        if self._memory is not None and len(fresh):
            values = np.zeros((len(fresh), 2), dtype=np.uint64)
            values[:, 0] = self._corrupt[fresh]
            self._memory.add(self._keys[fresh], self._states[fresh], values, self._begun)

    def conclude(self) -> np.ndarray:
        """Return the numbers of the corrupt files, int64 [n]; keep them with the listing."""
        corrupt, count, key = np.flatnonzero(self._corrupt), len(self._corrupt), self._listing.key
        if key is not None:
            spaced = np.linspace(0, count - 1, min(count, LOOKED_AT)).astype(np.int64)
            looked_at = np.union1d(spaced, corrupt)
            folder, states = self._listing.folder, self._states
            keep_result(CORRUPT, folder, key, corrupt, looked_at, states, self._begun)
        return corrupt


def find_named(listing: Listing, names: Sequence[str]) -> np.ndarray:
    """Find the files of a split by the names of `list_names`, by their number, int64 [n].

    A name that no file has is passed by: that file was removed.
    """
    wanted = set(map(os.fsencode, names))
    listed = iterate_names(listing.paths, str(listing.folder)) if wanted else ()
    return np.array([i for i, name in enumerate(listed) if name in wanted], dtype=np.int64)


def list_names(listing: Listing, numbers: np.ndarray) -> list[str]:
    """List the paths in the split's folder of some of its files."""
    folder = str(listing.folder)
    return [os.fsdecode(name_file(listing.paths[i], folder)) for i in numbers.tolist()]


def find_kept(listing: Listing, labels: Tensor, classes: list[str], left_out: np.ndarray) -> Tensor:
    """Return the numbers of the files that are not left out, int64 [n].

    Args:
        listing: all files of the split.
        labels: int64 [N] of these.
        classes: K names.
        left_out: int64, the numbers of the files that can't be decoded.

    Raises:
        UserError: a class has no other files.
    """
    good = torch.ones(len(labels), dtype=torch.bool)
    good[torch.from_numpy(left_out)] = False
    counts = labels[good].bincount(minlength=len(classes))
    lost = int(counts.argmin())
    if counts[lost] == 0:
        raise UserError(
            f"none of the {int((labels == lost).sum()):,} images of class {classes[lost]!r} in "
            f"{listing.folder} can be decoded: replace them or remove the class"
        )
    return good.nonzero().flatten()


def describe_left_out(listing: Listing, names: Sequence[str]) -> tuple[str, ...]:
    """Describe in a line for the log which files were left out."""
    if not names:
        return ()
    count = f"{len(names):,} of {len(listing):,} files"
    each = list_some([escape(name) for name in names], NAMED)
    return (f"{listing.folder.name}/: skipped {count}, which can't be decoded: {each}",)
