"""The user's cache: arrays of what was found out about files, whole and with a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import open_regular, remove, write_whole

_FORMAT = b"bce-vs-ce 1\n"  # a file of another format is not read


def compute_hash(content: bytes | memoryview = b"") -> Any:
    """Return a hash of 16 bytes, which may be updated."""
    return hashlib.blake2b(content, digest_size=16)


def locate(kind: str, folder: str | Path, part: bytes = b"") -> Path | None:
    """Return the file that holds what is known of a folder; None without a home.

    Args:
        kind: what is known, the ending of the file.
        folder: the data set's, or a split's.
        part: of what in the folder.
    """
    root, name = _find_root(), _name_folder(folder)
    if part:
        name += f"-{compute_hash(part).hexdigest()}"
    return root / f"{name}.{kind}" if root else None


def _find_root() -> Path | None:
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():
        try:
            root = Path.home() / ".cache"
        except RuntimeError:
            return None
    return root / "bce-vs-ce"


def _name_folder(folder: str | Path) -> str:
    return str(compute_hash(os.fsencode(os.path.abspath(folder))).hexdigest())


def store(path: Path | None, arrays: Mapping[str, np.ndarray]) -> bool:
    """Write arrays whole; return whether they are there. A cache that takes none is no error."""
    if path is None:
        return False
    body = io.BytesIO()
    np.savez(body, **arrays)  # type: ignore[arg-type]  # a keyword of its own is a bool
    content = body.getbuffer()
    with contextlib.suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: file.writelines([_FORMAT, _digest(content), content]))
        return True
    return False


def load(path: Path | None) -> dict[str, np.ndarray]:
    """Read arrays. Return none if there are none, or if they are damaged."""
    if path is None:
        return {}
    try:
        with open_regular(path) as file:
            content = memoryview(file.read())
    except (OSError, UserError):
        return {}
    start = len(_FORMAT) + 16
    head, body = content[:start], content[start:]
    if head != _FORMAT + _digest(body):
        return {}
    with np.load(io.BytesIO(body)) as stored:
        return dict(stored)


def forget(kinds: Iterable[str], folder: str | Path) -> None:
    """Remove what is known of a folder, of all its parts. Raises UserError."""
    root, name = _find_root(), _name_folder(folder)
    for kind in kinds:
        for found in root.glob(f"{name}*.{kind}") if root else ():
            remove(found)


def _digest(content: memoryview) -> bytes:
    digest: bytes = compute_hash(content).digest()
    return digest
