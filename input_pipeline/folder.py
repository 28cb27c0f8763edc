"""Folders of image files sorted into classes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from input_pipeline.decoding import (
    decode,
)
from input_pipeline.image_files import size_of
from input_pipeline.pixels import channel_stats
from input_pipeline.selection import Selection
from input_pipeline.splits import DataSet, FileSplit, TensorSplit
from utils.errors import UserError

IN_MEMORY_BYTES = 2 * 1024**3  # a folder whose decoded images take more is streamed
_STATS_IMAGES = 10_000  # at most so many images of a streamed set are measured
_EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
)


def load_folder(
    root: Path,
    img_size: int | None,
    selections: dict[str, Selection],
    num_workers: int,
    splits: Sequence[str],
    in_memory_bytes: int | None,
) -> DataSet:
    """Image files under `<root>/train/<class>` and `<root>/test/<class>` (or `val`)."""
    folders = split_folders(root)
    classes = common_classes(folders)
    listed = {s: list_files(folder, classes) for s, folder in folders.items()}
    for split, (paths, labels) in listed.items():
        kept = selections[split].numbers(labels, classes)
        listed[split] = [paths[i] for i in kept.tolist()], labels[kept]
    first = listed["train"][0][0]
    size, size_from = ((img_size, img_size), None) if img_size else (size_of(first), first)
    files = {s: FileSplit(*found, size, size_from) for s, found in listed.items()}

    # Both splits count, asked for or not, so that training and evaluation decide and measure alike.
    decoded_bytes = sum(len(split) for split in files.values()) * 3 * size[0] * size[1]
    if decoded_bytes <= (IN_MEMORY_BYTES if in_memory_bytes is None else in_memory_bytes):
        # The training images are measured even where only the test split is asked for.
        loaded = {s: _decode_all(files[s], num_workers) for s in dict.fromkeys(("train", *splits))}
        mean, std = channel_stats([loaded["train"].images])
    else:
        loaded = files
        mean, std = channel_stats(_spread_sample(files["train"], num_workers))
    train, test = (loaded[s] if s in splits else None for s in ("train", "test"))
    return DataSet("folder", classes, (3, *size), mean, std, train, test)


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of the two splits, by the split's name."""
    train = root / "train"
    if not train.is_dir():
        raise UserError(f"{train} is missing: a folder data set lies in train/<class>/* below it")
    for name in ("test", "val"):
        if (root / name).is_dir():
            return {"train": train, "test": root / name}
    raise UserError(f"{root} holds neither test/<class>/* nor val/<class>/*: add one of them")


def common_classes(folders: dict[str, Path]) -> list[str]:
    """Sorted class names, the same in both splits."""
    train, test = (_class_names(folders[split]) for split in ("train", "test"))
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


def _class_names(folder: Path) -> list[str]:
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} can't be read: {error.strerror}") from error
    return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def list_files(folder: Path, classes: list[str]) -> tuple[list[str], Tensor]:
    """Image files of all classes, class by class in sorted order, and their labels int64 [N]."""
    by_class = [_image_files(folder / name) for name in classes]
    for name, files in zip(classes, by_class, strict=True):
        if not files:
            extensions = ", ".join(sorted(_EXTENSIONS))
            raise UserError(
                f"{folder / name} holds no images ({extensions}): add some or remove it"
            )
    counts = torch.tensor([len(files) for files in by_class])
    labels = torch.arange(len(classes)).repeat_interleave(counts)
    return [path for files in by_class for path in files], labels


def _image_files(folder: Path) -> list[str]:
    """Paths of the image files at any depth below `folder`, sorted; hidden ones are ignored."""
    found = []
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        shown = (name for name in names if not name.startswith("."))
        images = (name for name in shown if os.path.splitext(name)[1].lower() in _EXTENSIONS)
        found += [os.path.join(parent, name) for name in images]
    return sorted(found)


def _spread_sample(split: FileSplit, num_workers: int) -> Iterator[Tensor]:
    """At most `_STATS_IMAGES` evenly spaced images, as uint8 [B, 3, H, W] batches."""
    count = min(len(split), _STATS_IMAGES)
    numbers = torch.arange(count) * len(split) // count
    return decode(split, numbers, num_workers)


def _decode_all(split: FileSplit, num_workers: int) -> TensorSplit:
    """Decode every file once; the order is kept."""
    # NumPy copies: torch's would wake all threads for a few kilobytes at a time.
    images = np.empty((len(split), 3, *split.image_size), dtype=np.uint8)
    filled = 0
    for batch in decode(split, torch.arange(len(split)), num_workers):
        images[filled : filled + len(batch)] = batch.numpy()
        filled += len(batch)
    return TensorSplit(torch.from_numpy(images), split.labels)
