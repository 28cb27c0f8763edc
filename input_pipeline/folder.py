"""Folders of image files sorted into classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from input_pipeline.image_files import UndecodableError, read_size
from input_pipeline.listing import (
    SPLIT_FOLDERS,
    Identity,
    Listing,
    Walk,
    count_nested,
    decode_name,
    identify,
    is_directory,
    scan,
)
from input_pipeline.listing_cache import keep_listing, recall_listing
from input_pipeline.paths import Paths, join_names
from input_pipeline.states import read_clock
from utils.console import escape, list_some
from utils.errors import UserError

_NAMED = 5  # at most so many names stand in a message
_COUNTED = 20  # and at most so many classes, one by one, in a note


def list_folder(data_dir: Path, train: bool) -> tuple[Listing, Tensor, list[str]]:
    """List the image files under `train/<class>`, or those under `test/<class>` or `val/<class>`.

    test/ is the test set if its classes are those of train/, otherwise val/ is. Links to
    directories are followed. Each real directory counts once.

    Returns:
        N paths, class by class in sorted order, labels int64 [N], and the sorted class names, as
        `decode_name` gives them.

    Raises:
        UserError: a folder is missing, can't be read or holds no images, the splits have other
            classes, or a link leads to images of another class or split.
    """
    folders, classes, notes = _find_splits(data_dir)
    folder = folders["train" if train else "test"]
    enclosing = _find_enclosing(data_dir)
    found = recall_listing(folder, classes, enclosing)
    listing, sizes = found or _walk(folder, classes, enclosing)
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(sizes))
    if not train:
        listing = replace(listing, notes=(*listing.notes, *notes), split=folder.name)
    return listing, labels, [decode_name(name) for name in classes]


def _walk(
    folder: Path, classes: list[str], enclosing: Mapping[Identity, str]
) -> tuple[Listing, list[int]]:
    """List the image files of a split; return also how many each class has. Raises UserError."""
    begun = read_clock()
    walk = Walk(enclosing)
    texts, sizes = [], []
    for name in classes:
        listed = walk.list_class(folder / name)
        texts.append(join_names(listed, str(folder)))
        sizes.append(len(listed))
    paths = Paths(str(folder), b"".join(texts))
    walk.refuse_shared_files(paths, np.repeat(np.arange(len(sizes)), sizes).tolist())
    notes = (
        _describe_sizes(folder.name, [decode_name(name) for name in classes], sizes),
        *_describe_nested(folder, paths),
        *_describe_repeated(folder, walk.repeated),
    )
    listing = Listing(paths, folder, walk.directories, walk.links, notes)
    return keep_listing(listing, classes, sizes, walk, begun), sizes


def find_side(data_dir: Path) -> int:
    """Find the shorter side in pixels of the first training image that can be decoded.

    Only its class, the first one, is listed.

    Raises:
        UserError: as `list_folder`, or no image of the class can be decoded.
    """
    folders, classes, _ = _find_splits(data_dir)
    walk = Walk(_find_enclosing(data_dir))
    first = None
    for path in walk.list_class(folders["train"] / classes[0]):
        try:
            return min(read_size(path))
        except UndecodableError as error:
            first = first or error
    assert first is not None  # a class without images is refused
    raise first


def count_classes(data_dir: Path) -> int:
    """Count the class folders of a folder. Raises UserError as `list_folder`, but for images."""
    return len(_find_splits(data_dir)[1])


def find_endings(data_dir: Path) -> list[str]:
    """Find the endings of the names of the training images, in small letters, sorted.

    Only the first class is listed. Raises UserError as `list_folder`.
    """
    folders, classes, _ = _find_splits(data_dir)
    listed = Walk(_find_enclosing(data_dir)).list_class(folders["train"] / classes[0])
    return sorted({Path(path).suffix.lower() for path in listed})


def _find_splits(root: Path) -> tuple[dict[str, Path], list[str], tuple[str, ...]]:
    """Find the folders of the two splits, the class folders of both, and notes on the choice."""
    train = root / "train"
    if not train.is_dir():
        raise UserError(f"{train} is missing: a folder data set lies in train/<class>/* below it")
    classes = _list_subfolders(train)
    if len(classes) < 2:
        raise UserError(
            f"{train} holds {len(classes)} class folders: put the images of each class, "
            "at least 2 classes, into a folder of its own there"
        )
    candidates = [root / name for name in ("test", "val") if (root / name).is_dir()]
    fitting = [folder for folder in candidates if _list_subfolders(folder) == classes]
    if not fitting:
        raise UserError(_explain_no_test_set(root, classes, candidates))
    notes = tuple(
        f"{fitting[0].name}/ is the test set; {folder.name}/ is not used"
        + ("" if folder in fitting else f", since its class folders are not those of {train.name}/")
        for folder in candidates
        if folder != fitting[0]
    )
    return {"train": train, "test": fitting[0]}, classes, notes


def _explain_no_test_set(root: Path, classes: list[str], candidates: list[Path]) -> str:
    if not candidates:
        return f"{root} holds neither test/<class>/* nor val/<class>/*: add one of them"
    differing = "; ".join(_explain_difference(folder, classes) for folder in candidates)
    return f"{differing}: the test set needs the same class folders as {root / 'train'}"


def _explain_difference(folder: Path, classes: list[str]) -> str:
    found = _list_subfolders(folder)
    if not found:
        return f"{folder} holds no class folders"
    missing = [repr(name) for name in classes if name not in found]
    added = [repr(name) for name in found if name not in classes]
    reasons = []
    if missing:
        reasons.append(f"lacks {list_some(missing, _NAMED)}")
    if added:
        reasons.append(f"has {list_some(added, _NAMED)} besides")
    return f"{folder} {' and '.join(reasons)}"


def _list_subfolders(folder: Path) -> list[str]:
    """List the names of the subfolders, sorted."""
    return [entry.name for entry in scan(folder) if is_directory(entry)]


def _find_enclosing(root: Path) -> dict[Identity, str]:
    """Find the splits' folders and all directories around them, by their identity."""
    splits = [root / name for name in SPLIT_FOLDERS if (root / name).is_dir()]
    around = [parent for folder in splits for parent in Path(os.path.realpath(folder)).parents]
    return {identify(folder): str(folder) for folder in (*around, root, *splits)}


# --- Notes for the log ---


def _describe_sizes(split: str, names: list[str], sizes: list[int]) -> str:
    """Describe the images per class: of each class, or of the smallest and the largest."""
    if len(names) <= _COUNTED:
        each = (f"{escape(name)} {size:,}" for name, size in zip(names, sizes, strict=True))
        return f"{split}/: images per class: {', '.join(each)}"
    fewest, most = min(sizes), max(sizes)
    if fewest == most:
        return f"{split}/: images in each of {len(names):,} classes: {most:,}"
    few, many = names[sizes.index(fewest)], names[sizes.index(most)]
    return (
        f"{split}/: {fewest:,} ({escape(few)}) to {most:,} ({escape(many)}) images in each of "
        f"{len(names):,} classes"
    )


def _describe_nested(folder: Path, paths: Sequence[str]) -> list[str]:
    """Describe the subfolders of class folders whose images count as the class's."""
    nested = count_nested(folder, paths)
    if not nested:
        return []
    each = [f"<class>/{escape(name)} {count:,}" for name, count in nested.most_common()]
    return [f"{folder.name}/: images in nested folders count, too: {list_some(each, _NAMED)}"]


def _describe_repeated(folder: Path, repeated: list[str]) -> list[str]:
    """Describe the links to directories that their class has already."""
    if not repeated:
        return []
    links = [escape(link[len(str(folder)) + 1 :]) for link in repeated]
    return [f"{folder.name}/: links to what their class has already: {list_some(links, _NAMED)}"]
