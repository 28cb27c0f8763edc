"""Any data source of the registry, loaded into a data set ready for training."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from input_pipeline import PIXELS, SOURCES, SPLITS, Channels, Source, find_resized_side
from input_pipeline.decoding import decode_some, decode_whole
from input_pipeline.fingerprint import (
    Fingerprint,
    describe_identity,
    hash_files,
    hash_tensors,
)
from input_pipeline.image_files import read_size
from input_pipeline.listing import Listing, refuse_shared
from input_pipeline.pixels import measure_channels, resize, resize_in_float
from input_pipeline.room import find_room
from input_pipeline.selection import Selection, space_evenly
from input_pipeline.splits import DataSet, FileSplit, Split, TensorSplit
from utils.errors import UserError
from utils.registry import find_name, load_function

# Mean and std of image files that take more bytes when decoded are measured on some of them. That
# does not depend on whether they are held in memory: the same set has the same values everywhere.
MEASURED_BYTES = 2 * 1024**3
_MEASURED_IMAGES = 10_000


def load_dataset(
    name: str,
    data_dir: str | Path,
    *,
    img_size: int | None = None,
    sample_size: int | None = None,
    imbalance_factor: float = 1.0,
    test_sample_size: int | None = None,
    num_workers: int = 0,
    splits: Sequence[str] = SPLITS,
    jpeg_draft: bool = False,
    margin: bool = False,
    streamed: Collection[str] = (),
    in_memory_bytes: int | None = None,
    pixels: int = PIXELS,
) -> DataSet:
    """Load a data set. Download an absent one first if torchvision knows where it is.

    Args:
        name: one of `SOURCES`.
        data_dir: the folder that holds the data set, or where its download is put.
        img_size: side in pixels that all images are resized to. None: the source's default.
        sample_size: use only the first so many training images of each class, in the set's order.
        imbalance_factor: above 1, cut the training set to a long tail, after `sample_size`, see
            `input_pipeline.longtail`. The test set stays as it is.
        test_sample_size: `sample_size` of the test set.
        num_workers: processes that decode image files. 0 decodes in this process.
        splits: which of "train" and "test" to return images for. Mean and std that have to be
            measured are those of the chosen training images in any case.
        jpeg_draft: decode large JPEGs at a part of their size, see `image_files.open_rgb`.
        margin: crop the centre of images resized to more than `img_size`, which is then needed, see
            `find_resized_side`.
        streamed: splits whose image files are never held in memory, because a loader crops them.
        in_memory_bytes: image files that take more when decoded are streamed, with the same pixels.
            None: `find_room()`.
        pixels: the number of the rules for pixels, see `input_pipeline.PIXELS`.

    Raises:
        UserError: an unknown name, a number out of range, absent, corrupt or inconsistent files,
            or a failed download.
    """
    name = find_name(name, SOURCES, "data set")
    _check_number("img_size", img_size)
    source = SOURCES[name]
    root = _check_root(source, data_dir)
    side = img_size or source.side
    selections = _build_selections(sample_size, imbalance_factor, test_sample_size)
    # Mean and std are measured on the training images even if only the test split is asked for.
    measures = source.mean is None or source.std is None
    needed = list(dict.fromkeys(("train", *splits)) if measures else splits)
    chosen = _choose_samples(source, root, selections, needed)
    files = _build_files(chosen, side, jpeg_draft, margin) if source.streams else {}
    samples = _decode_small(files, needed, streamed, in_memory_bytes, num_workers)
    if not files:
        samples = {split: _build_tensors(part, side, pixels) for split, part in chosen.items()}
    mean, std = _find_mean_and_std(source, samples, files, num_workers)
    classes, shape = chosen[needed[0]].classes, (3, *samples[needed[0]].image_size)
    train, test = (samples[s] if s in splits else None for s in SPLITS)
    data = DataSet(name, classes, shape, mean, std, train, test, image_files=source.streams)
    return _identify(data, chosen, splits)


def identify_dataset(
    name: str,
    data_dir: str | Path,
    *,
    sample_size: int | None = None,
    imbalance_factor: float = 1.0,
    test_sample_size: int | None = None,
    splits: Sequence[str] = SPLITS,
) -> dict[str, Any]:
    """Find the facts that identify a data set, without decoding an image.

    They are those of `DataSet.facts`, less the ones that follow from pixels: image_shape, mean and
    std. Arguments and errors are those of `load_dataset`.
    """
    name = find_name(name, SOURCES, "data set")
    source = SOURCES[name]
    selections = _build_selections(sample_size, imbalance_factor, test_sample_size)
    chosen = _choose_samples(source, _check_root(source, data_dir), selections, splits)
    classes = chosen[splits[0]].classes
    facts: dict[str, Any] = {"num_classes": len(classes), "classes": list(classes)}
    for split in splits:
        facts[f"{split}_size"] = len(chosen[split].labels)
    if "train" in splits:
        facts["class_sizes"] = chosen["train"].labels.bincount(minlength=len(classes)).tolist()
    fingerprints = {split: chosen[split].hash() for split in splits}
    return facts | describe_identity(fingerprints, _find_test_split(chosen), source.streams)


def count_samples(
    name: str,
    data_dir: str | Path,
    *,
    sample_size: int | None = None,
    imbalance_factor: float = 1.0,
    test_sample_size: int | None = None,
) -> tuple[int, int, int] | None:
    """Count the classes, training images and test images that `load_dataset` gives.

    Image files are listed. Of other sources nothing is read: their entry knows the sizes, and the
    classes count as equal. Arguments and errors are those of `load_dataset`.

    Returns:
        None for a source that would have to be read.
    """
    source = SOURCES[find_name(name, SOURCES, "data set")]
    selections = _build_selections(sample_size, imbalance_factor, test_sample_size)
    if source.streams:
        chosen = _choose_samples(source, _check_root(source, data_dir), selections, SPLITS)
        train, test = (chosen[split].labels for split in SPLITS)
        return len(chosen["train"].classes), len(train), len(test)
    if source.sizes is None or source.num_classes is None:
        return None
    classes = [str(number) for number in range(source.num_classes)]
    labels = (torch.arange(size) % source.num_classes for size in source.sizes)
    train, test = (selections[s].choose(y, classes) for s, y in zip(SPLITS, labels, strict=True))
    return source.num_classes, len(train), len(test)


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


@dataclass(frozen=True, eq=False)
class _Chosen:
    """The samples that were chosen of a split, as the source returns them.

    Attributes:
        images: uint8 [N, C, H, W], or the paths of N files.
        labels: int64 [N].
        classes: K names.
        listing: all files of the split; None for images in memory.
    """

    images: Any
    labels: Tensor
    classes: list[str]
    listing: Listing | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        return self.listing.notes if self.listing else ()

    def hash(self) -> Fingerprint:
        if self.listing is None:
            return hash_tensors(self.images, self.labels)
        return hash_files(self.images, self.labels, self.listing.folder)


def _identify(data: DataSet, chosen: Mapping[str, _Chosen], splits: Iterable[str]) -> DataSet:
    """Give a data set the fingerprints of `splits`, and what is known of its folders."""
    return replace(
        data,
        fingerprints={split: chosen[split].hash() for split in splits},
        test_split=_find_test_split(chosen),
        notes=tuple(note for part in chosen.values() for note in part.notes),
    )


def _find_test_split(chosen: Mapping[str, _Chosen]) -> str | None:
    """Find the name of the folder that is the test set, if the source has a choice."""
    listing = chosen["test"].listing if "test" in chosen else None
    return listing.split if listing is not None else None


def _build_selections(
    sample_size: int | None, imbalance_factor: float, test_sample_size: int | None
) -> dict[str, Selection]:
    """Build the rules that pick the samples of both splits. Raises UserError."""
    _check_number("sample_size", sample_size)
    _check_number("imbalance_factor", imbalance_factor)
    _check_number("test_sample_size", test_sample_size)
    return {
        "train": Selection("train", sample_size, imbalance_factor),
        "test": Selection("test", test_sample_size),
    }


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


def _choose_samples(
    source: Source, root: Path, selections: Mapping[str, Selection], needed: Iterable[str]
) -> dict[str, _Chosen]:
    """Read the splits `needed`, or list both splits of image files, and select their samples."""
    chosen: dict[str, _Chosen] = {}
    for split in selections if source.streams else needed:
        images, labels, classes = _read_samples(source, root, split)
        kept = selections[split].choose(labels, classes)
        if not source.streams:
            chosen[split] = _Chosen(images[kept], labels[kept], classes)
            continue
        listing = images if isinstance(images, Listing) else Listing(images, root)
        paths = [listing.paths[i] for i in kept.tolist()]
        chosen[split] = _Chosen(paths, labels[kept], classes, listing)
    listings = [part.listing for part in chosen.values() if part.listing is not None]
    if len(listings) == 2:
        refuse_shared(*listings)
    return chosen


def _build_tensors(chosen: _Chosen, side: int | None, pixels: int) -> TensorSplit:
    """Resize the chosen images in memory and give them three channels."""
    resized = (resize if pixels > 1 else resize_in_float)(chosen.images, side)
    return TensorSplit(resized.expand(-1, 3, -1, -1).contiguous(), chosen.labels)


def _build_files(
    chosen: Mapping[str, _Chosen], side: int | None, jpeg_draft: bool, margin: bool
) -> dict[str, FileSplit]:
    """Build the splits of the chosen image files; their size is the first's or `side`."""
    if margin and side is None:
        raise ValueError("images that keep their size have no margin")
    resized_side = find_resized_side(side) if margin and side else None
    first = chosen["train"].images[0]
    size, size_from = ((side, side), None) if side else (read_size(first), first)
    return {
        split: FileSplit(part.images, part.labels, size, size_from, jpeg_draft, resized_side)
        for split, part in chosen.items()
    }


def _decode_small(
    files: dict[str, FileSplit],
    needed: Iterable[str],
    streamed: Collection[str],
    in_memory_bytes: int | None,
    num_workers: int,
) -> dict[str, Split]:
    """Decode the splits `needed` into memory, unless both splits take more than `in_memory_bytes`.

    Both splits count, needed or not: training and evaluation then decide the same. Those of
    `streamed` stay files and don't count.
    """
    room = find_room() if in_memory_bytes is None else in_memory_bytes
    held = {split: part for split, part in files.items() if split not in streamed}
    if _count_bytes(held) > room:
        return dict(files)
    decoded = {s: decode_whole(held[s], num_workers) for s in needed if s in held}
    return {**files, **decoded}


def _count_bytes(files: Mapping[str, FileSplit]) -> int:
    """Count the bytes that all splits take when they are decoded."""
    return sum(3 * len(split) * math.prod(split.image_size) for split in files.values())


def _find_mean_and_std(
    source: Source, samples: Mapping[str, Split], files: Mapping[str, FileSplit], num_workers: int
) -> tuple[Channels, Channels]:
    """Return mean and std of the entry, or measure them on the training images.

    Args:
        source: the entry.
        samples: the splits, in memory or not.
        files: both splits, if they are image files: where these take much, some are measured.
        num_workers: processes that decode.
    """
    if source.mean is not None and source.std is not None:
        return source.mean, source.std
    train = samples["train"]
    many = _count_bytes(files) > MEASURED_BYTES
    if isinstance(train, TensorSplit) and not many:
        return measure_channels([train.images])
    numbers = space_evenly(len(train), _MEASURED_IMAGES if many else len(train))
    if isinstance(train, TensorSplit):
        return measure_channels([train.fetch(numbers)])
    return measure_channels(decode_some(train, numbers, num_workers))
