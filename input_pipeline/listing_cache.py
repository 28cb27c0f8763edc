"""The listing of a large folder, kept in the user's cache until one of its directories changes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline import cache
from input_pipeline.listing import EXTENSIONS, SYSTEM_FOLDERS, Identity, Listing, Walk, identify
from input_pipeline.paths import Paths
from input_pipeline.states import DEVICE, INODE, LOOKED_AT, find_settled, format_states, map_files
from utils.errors import UserError

LISTING = "listing"  # the kind of the cache's file
# What a listing depends on besides the folder.
_RULES = json.dumps([sorted(EXTENSIONS), sorted(SYSTEM_FOLDERS)])


def recall_listing(
    folder: Path, classes: list[str], enclosing: Mapping[Identity, str]
) -> tuple[Listing, list[int]] | None:
    """Return the listing of a split and the sizes of its classes, as a walk would find them.

    Args:
        folder: the split's.
        classes: the names of the class folders, sorted.
        enclosing: as for `Walk`.

    Returns:
        None if nothing is kept, or if a directory or a link to one has changed since.
    """
    stored = cache.load(cache.locate(LISTING, folder))
    if not stored:
        return None
    facts = json.loads(bytes(stored["facts"]))
    if (facts["classes"], facts["rules"]) != (classes, _RULES):
        return None
    entered = [os.path.join(folder, name) for name in facts["directories"]]
    try:
        found = [one for piece in map_files(_read, entered) for one in piece]
    except UserError:
        return None
    # Of a link that repeats a directory the identity is that of the first path, which stays.
    directories: dict[Identity, str] = {}
    for path, one in zip(entered, found, strict=True):
        directories.setdefault(identify(path, one), path)
    changed = not np.array_equal(_number_devices(format_states(found)), stored["states"])
    if changed or directories.keys() & enclosing.keys():
        return None
    paths = Paths(str(folder), stored["text"].tobytes())
    notes = tuple(facts["notes"])
    listing = Listing(paths, folder, directories, notes=notes, key=_compute_key(stored))
    return listing, facts["sizes"]


def keep_listing(
    listing: Listing, classes: Sequence[str], sizes: Sequence[int], walk: Walk, begun: int
) -> Listing:
    """Keep the listing of a split, and return it with its key.

    It gets none where a later start could not notice a change: in a folder with links to single
    files, one that changes now, or one whose file system numbers nothing. A small folder is listed
    again each time.

    Args:
        listing: its paths are `Paths`.
        classes, sizes: the names of the class folders and their numbers of files.
        walk: the one that listed them.
        begun: time in nanoseconds before the walk.
    """
    states = format_states(walk.states.values())
    small = len(listing) <= LOOKED_AT
    if (
        small
        or listing.links
        or not states[:, INODE].all()
        or not find_settled(states, begun).all()
    ):
        return listing
    assert isinstance(listing.paths, Paths)
    start = len(os.path.join(listing.folder, ""))
    facts: dict[str, Any] = {
        "classes": list(classes),
        "rules": _RULES,
        "sizes": list(sizes),
        "directories": [path[start:] for path in walk.states],
        "notes": listing.notes,
    }
    arrays = {
        "facts": np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8),
        "states": _number_devices(states),
        "text": np.frombuffer(listing.paths.text, dtype=np.uint8),
    }
    # Without the cache the next start has no key, and would find nothing under this one.
    kept = cache.store(cache.locate(LISTING, listing.folder), arrays)
    return replace(listing, key=_compute_key(arrays)) if kept else listing


def _read(paths: Sequence[str]) -> list[os.stat_result]:
    return [os.stat(path) for path in paths]


def _number_devices(states: np.ndarray) -> np.ndarray:
    """Replace the devices' numbers by 0, 1, … in the order of their names in the listing.

    A network file system gets another number each time it is mounted, and on each machine.
    """
    _, first, inverse = np.unique(states[:, DEVICE], return_index=True, return_inverse=True)
    numbered = states.copy()
    numbered[:, DEVICE] = first[inverse]
    return numbered


def _compute_key(arrays: Mapping[str, np.ndarray]) -> bytes:
    key = cache.compute_hash()
    for name in ("facts", "states", "text"):
        key.update(np.ascontiguousarray(arrays[name]).data)
    return bytes(key.digest())
