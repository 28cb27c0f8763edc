"""The identity of samples: what they are called, how they are labelled, and what they contain."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from input_pipeline.cache import compute_hash
from input_pipeline.paths import iterate_names, name_file, select_paths
from input_pipeline.states import (
    LOOKED_AT,
    SIZE,
    FileMemory,
    are_costly,
    keep_result,
    map_files,
    read_clock,
    read_states,
    recall_result,
)

# The contents of files beyond these many bytes are a sample of them. Names and sizes are of all.
HASHED_BYTES = 2**30
PRINT, _MEMORY = "print", "hashes"  # of what the cache keeps: fingerprints, and hashes of files


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of the samples of a split, 32 hexadecimal digits each.

    Attributes:
        listing: of the labels; for files also of their paths in the split's folder and their sizes.
        contents: of the images as the source returns them, or of the bytes of their files.
    """

    listing: str
    contents: str

    @property
    def whole(self) -> str:
        """The hash of both."""
        return compute_hash(f"{self.listing} {self.contents}".encode()).hexdigest()


def describe_identity(
    fingerprints: Mapping[str, Fingerprint],
    test_split: str | None,
    image_files: bool,
    skipped: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """List the facts that identify the samples, as config.json keeps them.

    Args:
        fingerprints: by split.
        test_split: the name of the folder that is the test set, if there is a choice.
        image_files: whether the source consists of image files.
        skipped: the files that were left out of each split, by their paths in its folder; None if
            none may be.
    """
    facts: dict[str, Any] = {
        "fingerprints": {split: found.whole for split, found in fingerprints.items()},
        "listings": {split: found.listing for split, found in fingerprints.items()},
    }
    if test_split is not None:
        facts["test_split"] = test_split
    if image_files:
        facts["image_files"] = True
    if skipped is not None:
        facts["skipped"] = {split: list(names) for split, names in skipped.items()}
    return facts


def hash_tensors(images: Tensor, labels: Tensor) -> Fingerprint:
    """Hash images in memory, uint8 [N, C, H, W], and their labels, int64 [N], in their order."""
    listing = compute_hash(labels.numpy().astype("<i8").tobytes())
    contents = compute_hash(f"{list(images.shape)}".encode())
    contents.update(images.contiguous().numpy().reshape(-1).data)
    return Fingerprint(listing.hexdigest(), contents.hexdigest())


def hash_files(
    paths: Sequence[str],
    labels: Tensor,
    folder: Path,
    *,
    key: bytes | None = None,
    hashed_bytes: int = HASHED_BYTES,
) -> Fingerprint:
    """Hash image files, their paths in `folder` and their labels, int64 [N], in their order.

    The contents count by the hashes of their bytes, which are kept in the user's cache for large
    sets.

    Args:
        paths: N files.
        labels: of the files.
        folder: to which the paths are relative in the listing.
        key: is the same only for the same samples in directories that have not changed. The
            fingerprint is then kept, too, and only some of the files are looked at again.
        hashed_bytes: if the files have more, only some of them are read, chosen by their paths.

    Raises:
        UserError: a file can't be read.
    """
    if key is not None:
        key = compute_hash(b"%s %d" % (key, hashed_bytes)).digest()
        kept = recall_result(PRINT, folder, key, paths)
        if kept is not None:
            return Fingerprint(*bytes(kept).decode().split())
    begun = read_clock()
    states = read_states(paths)
    listing, digests = _hash_listing(paths, labels, folder, states)
    chosen = _choose(digests, states[:, SIZE], hashed_bytes)
    found = Fingerprint(listing, _hash_contents(paths, folder, states, digests, chosen, begun))
    if key is not None:
        value = np.frombuffer(f"{found.listing} {found.contents}".encode(), dtype=np.uint8)
        looked_at = chosen[np.linspace(0, len(chosen) - 1, min(len(chosen), LOOKED_AT)).astype(int)]
        keep_result(PRINT, folder, key, value, looked_at, states, begun)
    return found


def _hash_listing(
    paths: Sequence[str], labels: Tensor, folder: Path, states: np.ndarray
) -> tuple[str, np.ndarray]:
    """Hash names, sizes and labels; also return the hash of each name, big-endian uint64 [N, 2]."""
    listing, digests = compute_hash(), bytearray()
    samples = zip(states[:, SIZE].tolist(), labels.tolist(), strict=True)
    for name, (size, label) in zip(iterate_names(paths, str(folder)), samples, strict=True):
        listing.update(b"%s\0%d\0%d\0" % (name, size, label))
        digests += compute_hash(name).digest()
    return listing.hexdigest(), np.frombuffer(digests, dtype=">u8").reshape(-1, 2)


def _choose(digests: np.ndarray, sizes: np.ndarray, most: int) -> np.ndarray:
    """Choose the files whose contents count, by their number: all if they have `most` bytes."""
    if int(sizes.sum()) <= most:
        return np.arange(len(sizes))
    chosen, total, listed = [], 0, sizes.tolist()
    for number in np.lexsort((digests[:, 1], digests[:, 0])).tolist():
        if total + listed[number] <= most:
            chosen.append(number)
            total += listed[number]
    return np.array(sorted(chosen), dtype=np.int64)


def _hash_contents(
    paths: Sequence[str],
    folder: Path,
    states: np.ndarray,
    digests: np.ndarray,
    chosen: np.ndarray,
    begun: int,
) -> str:
    """Hash the files `chosen`; those that have not changed since need not be read again."""
    keys, states = digests[chosen, 0].astype(np.uint64), states[chosen]
    memory = FileMemory(_MEMORY, folder) if are_costly(states) else None
    values, known = np.zeros((len(chosen), 2), np.uint64), np.zeros(len(chosen), bool)
    if memory is not None:
        values, known = memory.recall(keys, states)
    stale = np.flatnonzero(~known)
    hashes = map_files(_read_hashes, select_paths(paths, chosen[stale]))
    values[stale] = np.frombuffer(b"".join(hashes), dtype=np.uint64).reshape(-1, 2)
    if memory is not None:
        memory.add(keys[stale], states[stale], values[stale], begun)
    contents = compute_hash()
    for number, value in zip(chosen.tolist(), values, strict=True):
        name = name_file(paths[number], str(folder))
        contents.update(b"%s\0%s\0" % (name, value.tobytes().hex().encode()))
    return str(contents.hexdigest())


def _read_hashes(paths: Sequence[str]) -> bytes:
    return b"".join(map(_hash_file, paths))


def _hash_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return bytes(hashlib.file_digest(file, lambda: compute_hash(b"")).digest())
