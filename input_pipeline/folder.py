"""Folders of image files sorted into classes."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from input_pipeline.image_files import read_size
from utils.errors import UserError

_EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
)


def list_folder(data_dir: Path, train: bool) -> tuple[list[str], Tensor, list[str]]:
    """List the image files under `train/<class>`, or those under `test/<class>` or `val/<class>`.

    Returns:
        N paths, class by class in sorted order, labels int64 [N], and the sorted class names.

    Raises:
        UserError: a folder is missing or holds no images, or the splits have other classes.
    """
    folders = _find_split_folders(data_dir)
    classes = _find_classes(folders)
    folder = folders["train" if train else "test"]
    by_class = [_list_class(folder / name) for name in classes]
    counts = torch.tensor([len(paths) for paths in by_class])
    labels = torch.arange(len(classes)).repeat_interleave(counts)
    return [path for paths in by_class for path in paths], labels, classes


def find_side(data_dir: Path) -> int:
    """Find the shorter side in pixels of the first training image; only its class is listed.

    Raises:
        UserError: as `list_folder`, or the image can't be decoded.
    """
    folders = _find_split_folders(data_dir)
    first_class = _find_classes(folders)[0]
    return min(read_size(_list_class(folders["train"] / first_class)[0]))


def _find_split_folders(root: Path) -> dict[str, Path]:
    """Find the folders of the two splits, by the split's name."""
    train = root / "train"
    if not train.is_dir():
        raise UserError(f"{train} is missing: a folder data set lies in train/<class>/* below it")
    for name in ("test", "val"):
        if (root / name).is_dir():
            return {"train": train, "test": root / name}
    raise UserError(f"{root} holds neither test/<class>/* nor val/<class>/*: add one of them")


def _find_classes(folders: dict[str, Path]) -> list[str]:
    """Find the sorted class names, which must be the same in both splits."""
    train, test = (_list_subfolders(folders[split]) for split in ("train", "test"))
    if len(train) < 2:
        raise UserError(
            f"{folders['train']} holds {len(train)} class folders: put the images of each class, "
            "at least 2 classes, into a folder of its own there"
        )
    if train == test:
        return train
    differing = sorted(set(train) ^ set(test))
    named = ", ".join(repr(name) for name in differing[:5])
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    raise UserError(
        f"{folders['train']} and {folders['test']} must hold the same classes, but only one of "
        f"them has {named}{more}: add or remove these folders"
    )


def _list_subfolders(folder: Path) -> list[str]:
    """List the names of the subfolders, sorted; hidden ones are ignored."""
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} can't be read: {error.strerror}") from error
    return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _list_class(folder: Path) -> list[str]:
    """List the image files at any depth below `folder`, sorted; hidden ones are ignored."""
    found: list[str] = []
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        visible = (name for name in names if not name.startswith("."))
        images = (name for name in visible if os.path.splitext(name)[1].lower() in _EXTENSIONS)
        found += [os.path.join(parent, name) for name in images]
    if not found:
        extensions = ", ".join(sorted(_EXTENSIONS))
        raise UserError(f"{folder} holds no images ({extensions}): add some or remove it")
    return sorted(found)
