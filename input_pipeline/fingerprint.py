"""The identity of samples: what they are called, how they are labelled, and what they contain."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from input_pipeline.listing import decode_name
from utils.errors import UserError
from utils.files import read_json, write_json

# The contents of files beyond these many bytes are a sample of them. Names and sizes are of all.
HASHED_BYTES = 2**30
# Below this cost, files are hashed again each time. Each counts as one page more than it has.
_CACHED_COST, _PAGE = 2**24, 2**12
_SETTLED = 2 * 10**9  # nanoseconds after which a change gives a file another time
_THREADS, _CHUNK = 8, 256  # threads that wait for files, and files that one takes at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


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
        return _hash(f"{self.listing} {self.contents}".encode()).hexdigest()


def describe_identity(
    fingerprints: Mapping[str, Fingerprint], test_split: str | None, image_files: bool
) -> dict[str, Any]:
    """List the facts that identify the samples, as config.json keeps them.

    Args:
        fingerprints: by split.
        test_split: the name of the folder that is the test set, if there is a choice.
        image_files: whether the source consists of image files.
    """
    facts: dict[str, Any] = {
        "fingerprints": {split: found.whole for split, found in fingerprints.items()},
        "listings": {split: found.listing for split, found in fingerprints.items()},
    }
    if test_split is not None:
        facts["test_split"] = test_split
    if image_files:
        facts["image_files"] = True
    return facts


def hash_tensors(images: Tensor, labels: Tensor) -> Fingerprint:
    """Hash images in memory, uint8 [N, C, H, W], and their labels, int64 [N], in their order."""
    listing = _hash(labels.numpy().astype("<i8").tobytes())
    contents = _hash(f"{list(images.shape)}".encode())
    contents.update(images.contiguous().numpy().reshape(-1).data)
    return Fingerprint(listing.hexdigest(), contents.hexdigest())


def hash_files(
    paths: Sequence[str], labels: Tensor, folder: Path, hashed_bytes: int = HASHED_BYTES
) -> Fingerprint:
    """Hash image files and their labels, int64 [N], in their order.

    Where the split lies and when its files were changed makes no difference. The hashes of large
    sets are kept in the user's cache directory. A file is hashed again if its path, size, inode or
    one of its times has changed.

    Args:
        paths: N files.
        labels: of the files.
        folder: to which the paths are relative in the listing.
        hashed_bytes: if the files have more, only some of them are read, chosen by their paths.

    Raises:
        UserError: a file can't be read.
    """
    names = [_name(path, folder) for path in paths]
    states = _map(os.stat, paths)
    sizes = [state.st_size for state in states]
    listing = _hash(b"")
    for name, size, label in zip(names, sizes, labels.tolist(), strict=True):
        listing.update(b"%s\0%d\0%d\0" % (name, size, label))
    chosen = _choose(names, sizes, hashed_bytes)
    digests = _hash_contents(
        folder, [names[i] for i in chosen], [paths[i] for i in chosen], [states[i] for i in chosen]
    )
    contents = _hash(b"")
    for number, digest in zip(chosen, digests, strict=True):
        contents.update(b"%s\0%s\0" % (names[number], digest.encode()))
    return Fingerprint(listing.hexdigest(), contents.hexdigest())


def _hash(content: bytes) -> Any:
    return hashlib.blake2b(content, digest_size=16)


def _name(path: str, folder: Path) -> bytes:
    """Return the path of a file in its folder, as bytes, with slashes on every system."""
    prefix = os.path.join(folder, "")
    name = path.removeprefix(prefix) if path.startswith(prefix) else os.path.relpath(path, folder)
    return os.fsencode(name.replace(os.sep, "/"))


def _map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Apply a function that waits for files to items, in threads. Raises UserError."""
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            results = pool.map(lambda chunk: [function(item) for item in chunk], chunks)
            return [result for chunk in results for result in chunk]
    except OSError as error:
        raise UserError(f"{error.filename} can't be read: {error.strerror}") from error


def _hash_file(path: str) -> str:
    with open(path, "rb") as file:
        return str(hashlib.file_digest(file, lambda: _hash(b"")).hexdigest())


def _choose(names: list[bytes], sizes: list[int], most: int) -> list[int]:
    """Choose the files whose contents count, by their number: all if they have `most` bytes."""
    if sum(sizes) <= most:
        return list(range(len(names)))
    chosen, total = [], 0
    for number in sorted(range(len(names)), key=lambda i: _hash(names[i]).digest()):
        if total + sizes[number] <= most:
            chosen.append(number)
            total += sizes[number]
    return sorted(chosen)


# --- Hashes that were computed before ---


def _hash_contents(
    folder: Path, names: list[bytes], paths: list[str], states: list[os.stat_result]
) -> list[str]:
    """Hash files, or take their hashes from the cache where they have not changed since."""
    if sum(state.st_size + _PAGE for state in states) < _CACHED_COST:
        return _map(_hash_file, paths)
    cache = _locate_cache(folder)
    known = _read_cache(cache)
    keys = [f"{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}" for s in states]
    texts = [decode_name(os.fsdecode(name)) for name in names]
    begun = time.time_ns()
    found = {text: known[text].rpartition(" ") for text in texts if text in known}
    stale = [i for i, text in enumerate(texts) if found.get(text, ("",))[0] != keys[i]]
    fresh = dict(zip(stale, _map(_hash_file, [paths[i] for i in stale]), strict=True))
    digests = [fresh[i] if i in fresh else found[text][2] for i, text in enumerate(texts)]
    # A file that is being changed may keep its time: it is hashed again the next time.
    settled = {
        texts[i]: f"{keys[i]} {digest}"
        for i, digest in fresh.items()
        if max(states[i].st_mtime_ns, states[i].st_ctime_ns) < begun - _SETTLED
    }
    if cache is not None and settled:
        with contextlib.suppress(OSError, UserError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            files = known | settled
            write_json(cache, {"files": files, "hash": _hash_entries(files)})
    return digests


def _locate_cache(folder: Path) -> Path | None:
    """Return where the hashes of the files of a folder are kept; None without a home."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():
        try:
            root = Path.home() / ".cache"
        except RuntimeError:
            return None
    return root / "bce-vs-ce" / f"{_hash(os.fsencode(os.path.abspath(folder))).hexdigest()}.json"


def _read_cache(path: Path | None) -> dict[str, Any]:
    """Read size, times, inode and hash by file. Return nothing if the cache is damaged."""
    try:
        content = read_json(path) if path is not None and path.is_file() else {}
    except (OSError, UserError, RecursionError):
        return {}
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        return {}
    files: dict[str, Any] = content["files"]
    return files if content.get("hash") == _hash_entries(files) else {}


def _hash_entries(files: dict[str, Any]) -> str:
    return str(_hash(json.dumps(files, sort_keys=True).encode()).hexdigest())
