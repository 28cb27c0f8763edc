"""Any data source of the registry, loaded into a data set ready for training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from input_pipeline import SOURCES, Channels, Source
from input_pipeline.decoding import decode_evenly, decode_whole
from input_pipeline.image_files import read_size
from input_pipeline.pixels import measure_channels, resize
from input_pipeline.selection import Selection
from input_pipeline.splits import DataSet, FileSplit, Split, TensorSplit
from utils.errors import UserError
from utils.registry import find_name, load_function

IN_MEMORY_BYTES = 2 * 1024**3  # image files that take more when decoded are streamed
_MEASURED_IMAGES = 10_000  # largest number of images of a streamed set that are measured


def load_dataset(
    name: str,
    data_dir: str | Path,
    *,
    img_size: int | None = None,
    sample_size: int | None = None,
    imbalance_factor: float = 1.0,
    test_sample_size: int | None = None,
    num_workers: int = 0,
    splits: Sequence[str] = ("train", "test"),
    in_memory_bytes: int | None = None,
) -> DataSet:
    """Load a data set. Download an absent one first if torchvision knows where it is.

    Args:
        name: one of `SOURCES`.
        data_dir: the folder that holds the data set, or where its download is put.
        img_size: side in pixels that all images are resized to. None: the source's default.
        sample_size: use only the first so many training images of each class, in the set's order.
        imbalance_factor: above 1, cut the training set to a long tail. With n the size of the
            largest class (after `sample_size`), class k keeps the first
            ⌊n · factor^(−k/(K−1))⌋ of its images, at least one, or all where it has fewer. Only
            classes of equal size follow the profile exactly. The test set stays as it is.
        test_sample_size: `sample_size` of the test set.
        num_workers: processes that decode image files. 0 decodes in this process.
        splits: which of "train" and "test" to return images for. Mean and std that have to be
            measured are those of the training images in any case: the same `sample_size` and
            `imbalance_factor` give the same values.
        in_memory_bytes: image files that take more when decoded are streamed. None: 2 GiB.

    Raises:
        UserError: an unknown name, a number out of range, absent, corrupt or inconsistent files,
            or a failed download.
    """
    name = find_name(name, SOURCES, "data set")
    _check_number("img_size", img_size)
    _check_number("sample_size", sample_size)
    _check_number("imbalance_factor", imbalance_factor)
    _check_number("test_sample_size", test_sample_size)
    source = SOURCES[name]
    root = _check_root(source, data_dir)
    side = img_size or source.side
    selections = {
        "train": Selection("train", sample_size, imbalance_factor),
        "test": Selection("test", test_sample_size),
    }
    # Mean and std are measured on the training images even if only the test split is asked for.
    measures = source.mean is None or source.std is None
    needed = list(dict.fromkeys(("train", *splits)) if measures else splits)
    samples: dict[str, Split]
    if source.streams:
        files, classes = _list_files(source, root, side, selections)
        samples = _decode_small(files, needed, in_memory_bytes, num_workers)
    else:
        samples, classes = _read_images(source, root, side, selections, needed)
    mean, std = _find_mean_and_std(source, samples, num_workers)
    shape = (3, *samples[needed[0]].image_size)
    train, test = (samples[s] if s in splits else None for s in ("train", "test"))
    return DataSet(name, classes, shape, mean, std, train, test)


def find_image_side(name: str, data_dir: str | Path, img_size: int | None) -> int:
    """Find the shorter side in pixels of the images that `load_dataset` gives, before it does.

    Images that keep their size have that of the first training image.

    Raises:
        UserError: as `load_dataset`, for a source that has no image or an unreadable one.
    """
    source = SOURCES[find_name(name, SOURCES, "data set")]
    side = img_size or source.side
    if side is not None:
        return side
    root = _check_root(source, data_dir)
    if source.side_finder is not None:
        found: int = load_function(source.side_finder)(root)
        return found
    images, _, _ = _read_samples(source, root, "train")
    return min(read_size(images[0]) if source.streams else images.shape[-2:])


def _check_number(flag: str, value: float | None) -> None:
    """Raise UserError for a number below 1, or NaN."""
    if value is not None and not value >= 1:
        raise UserError(f"--{flag} {value} is too small: use 1 or more")


def _check_root(source: Source, data_dir: str | Path) -> Path:
    """Return `data_dir` as a path. Raises UserError if the source needs it and it is a file."""
    root = Path(data_dir)
    if source.bundled_with is None and root.exists() and not root.is_dir():
        raise UserError(f"--data_dir {root} is not a directory")
    return root


def _read_samples(source: Source, root: Path, split: str) -> tuple[Any, Tensor, list[str]]:
    """Call a source's reader for one split.

    Returns:
        images (a tensor, or the paths of image files), labels and class names, see `Source`.

    Raises:
        UserError: from the reader.
        ValueError: the reader does not keep to what `Source` describes.
    """
    images, labels, classes = load_function(source.reader)(root, split == "train")
    if source.streams:
        fits = len(images) == len(labels)
    else:
        fits = images.dtype == torch.uint8 and images.shape[:1] == labels.shape
        fits = fits and images.dim() == 4 and images.shape[1] in (1, 3)
    known = source.num_classes
    fits = fits and labels.dtype == torch.int64 and (known is None or known == len(classes))
    if not fits or len(labels) == 0 or labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"{source.reader} returned samples that are not as Source describes them")
    return images, labels, classes


def _read_images(
    source: Source,
    root: Path,
    side: int | None,
    selections: dict[str, Selection],
    needed: Iterable[str],
) -> tuple[dict[str, Split], list[str]]:
    """Read the splits `needed` of an in-memory source; return them and the class names."""
    samples: dict[str, Split] = {}
    classes: list[str] = []
    for split in needed:
        images, labels, classes = _read_samples(source, root, split)
        kept = selections[split].choose(labels, classes)
        resized = resize(images[kept], side)
        samples[split] = TensorSplit(resized.expand(-1, 3, -1, -1).contiguous(), labels[kept])
    return samples, classes


def _list_files(
    source: Source, root: Path, side: int | None, selections: dict[str, Selection]
) -> tuple[dict[str, FileSplit], list[str]]:
    """List both splits of a source of image files; return them and the class names."""
    listed: dict[str, tuple[list[str], Tensor]] = {}
    classes: list[str] = []
    for split, selection in selections.items():
        paths, labels, classes = _read_samples(source, root, split)
        kept = selection.choose(labels, classes)
        listed[split] = [paths[i] for i in kept.tolist()], labels[kept]
    first = listed["train"][0][0]
    size, size_from = ((side, side), None) if side else (read_size(first), first)
    files = {s: FileSplit(paths, labels, size, size_from) for s, (paths, labels) in listed.items()}
    return files, classes


def _decode_small(
    files: dict[str, FileSplit],
    needed: Iterable[str],
    in_memory_bytes: int | None,
    num_workers: int,
) -> dict[str, Split]:
    """Decode the splits `needed` into memory, unless both splits take more than `in_memory_bytes`.

    Both splits count, needed or not: training and evaluation then decide and measure the same.
    """
    pixels = sum(len(split) * split.image_size[0] * split.image_size[1] for split in files.values())
    if 3 * pixels > (IN_MEMORY_BYTES if in_memory_bytes is None else in_memory_bytes):
        return dict(files)
    return {split: decode_whole(files[split], num_workers) for split in needed}


def _find_mean_and_std(
    source: Source, samples: dict[str, Split], num_workers: int
) -> tuple[Channels, Channels]:
    """Return mean and std of the entry, or measure them, on a sample of images in files."""
    if source.mean is not None and source.std is not None:
        return source.mean, source.std
    train = samples["train"]
    if isinstance(train, TensorSplit):
        return measure_channels([train.images])
    return measure_channels(decode_evenly(train, _MEASURED_IMAGES, num_workers))
