"""Any data source of the registry, loaded into a data set ready for training."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from input_pipeline import PIXELS, SOURCES, SPLITS, Channels, Source, find_resized_side
from input_pipeline.cache import load, locate, store
from input_pipeline.decoding import decode_some, decode_whole
from input_pipeline.fingerprint import describe_identity
from input_pipeline.image_files import read_size
from input_pipeline.pixels import measure_channels, resize, resize_in_float
from input_pipeline.room import find_room
from input_pipeline.samples import (
    Chosen,
    Omission,
    build_selections,
    check_number,
    choose_samples,
    find_source,
    find_test_split,
    list_skipped,
    read_samples,
)
from input_pipeline.selection import space_evenly
from input_pipeline.splits import DataSet, FileSplit, Split, TensorSplit
from utils.console import Console
from utils.registry import find_name, load_function

# Mean and std of image files that take more bytes when decoded are measured on some of them. That
# does not depend on whether they are held in memory: the same set has the same values everywhere.
MEASURED_BYTES = 2 * 1024**3
_MEASURED_IMAGES = 10_000
# Maps splits and the folder of the data set to equal splits.
Keeper = Callable[[Mapping[str, FileSplit], Path], Mapping[str, FileSplit]]


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
    keep: Keeper | None = None,
    in_memory_bytes: int | None = None,
    pixels: int = PIXELS,
    skip_corrupt: bool = False,
    skipped: Mapping[str, Sequence[str]] | None = None,
    force_listing: bool = False,
    console: Console | None = None,
) -> DataSet:
    """Load a data set. Download an absent one first if torchvision knows where it is.

    Args:
        name, data_dir: one of `SOURCES`, and the folder that holds it or gets its download.
        img_size: side in pixels that all images are resized to. None: the source's default.
        sample_size, test_sample_size: use the first so many images of each class, in their order.
        imbalance_factor: above 1, cut the training set to a long tail, after `sample_size`, see
            `input_pipeline.longtail`. The test set stays as it is.
        num_workers: processes that decode image files. 0 decodes in this process.
        splits: which of "train" and "test" to return images for.
        jpeg_draft: decode large JPEGs at a part of their size, see `image_files.open_rgb`.
        margin: see `find_resized_side`; needs `img_size`.
        streamed: splits whose image files are never held in memory, because a loader crops them.
        keep: gives image files what is kept of them, see `resized.keep_resized`. None: nothing.
        in_memory_bytes: image files that take more are streamed. None: `find_room()`.
        pixels: the number of the rules for pixels, see `input_pipeline.PIXELS`.
        skip_corrupt: leave image files out that can't be decoded, before any selection.
        skipped: the files that a run has left out, by split. None: all files are checked.
        force_listing: read a folder anew, whatever is known of it.
        console: shows the progress of a check; None: nothing does.

    Raises:
        UserError: a wrong argument, absent, corrupt or inconsistent files, a failed download.
    """
    source, root = find_source(name, data_dir, force_listing)
    check_number("img_size", img_size)
    side = img_size or source.side
    needed = _list_needed(source, splits)
    selections = build_selections(sample_size, imbalance_factor, test_sample_size)
    omit = Omission(skip_corrupt, skipped, num_workers, console)
    chosen = choose_samples(source, root, selections, needed, omit)
    files = _build_files(chosen, side, jpeg_draft, margin) if source.streams else {}
    if keep is not None and files:
        files |= keep({split: files[split] for split in needed}, root)
    samples = _decode_small(files, needed, streamed, in_memory_bytes, num_workers)
    if not files:
        samples = {split: _build_tensors(part, side, pixels) for split, part in chosen.items()}
    channels = _find_mean_and_std(source, samples, files, chosen, num_workers)
    return _assemble(find_name(name, SOURCES, "data set"), splits, chosen, samples, channels)


def identify_dataset(
    name: str,
    data_dir: str | Path,
    *,
    sample_size: int | None = None,
    imbalance_factor: float = 1.0,
    test_sample_size: int | None = None,
    splits: Sequence[str] = SPLITS,
    skip_corrupt: bool = False,
    skipped: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Find the facts that identify a data set; no image is decoded where `skipped` is known.

    They are those of `DataSet.facts`, less the ones that follow from pixels: image_shape, mean and
    std. Arguments and errors are those of `load_dataset`.
    """
    source, root = find_source(name, data_dir)
    selections = build_selections(sample_size, imbalance_factor, test_sample_size)
    omit = Omission(skip_corrupt, skipped)
    chosen = choose_samples(source, root, selections, splits, omit)
    classes = chosen[splits[0]].classes
    facts: dict[str, Any] = {"num_classes": len(classes), "classes": list(classes)}
    for split in splits:
        facts[f"{split}_size"] = len(chosen[split].labels)
    if "train" in splits:
        facts["class_sizes"] = chosen["train"].labels.bincount(minlength=len(classes)).tolist()
    fingerprints = {split: chosen[split].fingerprint for split in splits}
    left_out = list_skipped(chosen)
    identity = describe_identity(fingerprints, find_test_split(chosen), source.streams, left_out)
    return facts | identity


def count_samples(
    name: str,
    data_dir: str | Path,
    *,
    sample_size: int | None = None,
    imbalance_factor: float = 1.0,
    test_sample_size: int | None = None,
) -> tuple[int, int, int] | None:
    """Count the classes, training images and test images that `load_dataset` gives.

    Image files are listed, with those that --skip_corrupt leaves out. Of other sources nothing is
    read: their entry knows the sizes, and the classes count as equal. Arguments and errors are
    those of `load_dataset`.

    Returns:
        None for a source that would have to be read.
    """
    source, root = find_source(name, data_dir)
    selections = build_selections(sample_size, imbalance_factor, test_sample_size)
    if source.streams:
        chosen = choose_samples(source, root, selections, SPLITS)
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
    source, root = find_source(name, data_dir)
    side = img_size or source.side
    if side is not None:
        return side
    if source.side_finder is not None:
        found: int = load_function(source.side_finder)(root)
        return found
    images = read_samples(source, root, "train")[0]
    return min(read_size(images[0]) if source.streams else images.shape[-2:])


def _list_needed(source: Source, splits: Sequence[str]) -> list[str]:
    """List the splits to read: mean and std are measured on the training images in any case."""
    measures = source.mean is None or source.std is None
    return list(dict.fromkeys(("train", *splits)) if measures else splits)


def _assemble(
    name: str,
    splits: Sequence[str],
    chosen: Mapping[str, Chosen],
    samples: Mapping[str, Split],
    channels: tuple[Channels, Channels],
) -> DataSet:
    """Build the data set of `splits`, with their fingerprints and what is known of their folders.

    `chosen` and `samples` may have more splits; `channels` are mean and std.
    """
    first = next(iter(samples))
    train, test = (samples[split] if split in splits else None for split in SPLITS)
    mean, std = channels
    return DataSet(
        name,
        chosen[first].classes,
        (3, *samples[first].image_size),
        mean,
        std,
        train,
        test,
        fingerprints={split: chosen[split].fingerprint for split in splits},
        image_files=SOURCES[name].streams,
        test_split=find_test_split(chosen),
        skipped=list_skipped(chosen),
        notes=tuple(note for part in chosen.values() for note in part.notes),
    )


def _build_tensors(chosen: Chosen, side: int | None, pixels: int) -> TensorSplit:
    """Resize the chosen images in memory and give them three channels."""
    resized = (resize if pixels > 1 else resize_in_float)(chosen.images, side)
    return TensorSplit(resized.expand(-1, 3, -1, -1).contiguous(), chosen.labels)


def _build_files(
    chosen: Mapping[str, Chosen], side: int | None, jpeg_draft: bool, margin: bool
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
    `streamed` stay files and don't count. Without files
    there is nothing to decode.
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
    source: Source,
    samples: Mapping[str, Split],
    files: Mapping[str, FileSplit],
    chosen: Mapping[str, Chosen],
    num_workers: int,
) -> tuple[Channels, Channels]:
    """Return mean and std of the entry, or measure them on the training images.

    Args:
        source: the entry.
        samples: the splits, in memory or not.
        files: both splits, if they are image files: where these take much, some are measured.
        chosen: the samples as the source returns them.
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
    part = chosen["train"]
    assert part.listing is not None
    key = repr((part.fingerprint, train.rules, len(numbers), PIXELS, PIL.__version__)).encode()
    place = locate("channels", part.listing.folder, key)
    known = load(place)
    if not known:
        mean, std = measure_channels(decode_some(train, numbers, num_workers))
        known = {"mean": np.array(mean), "std": np.array(std)}
        store(place, known)
    (m0, m1, m2), (s0, s1, s2) = known["mean"].tolist(), known["std"].tolist()
    return (m0, m1, m2), (s0, s1, s2)
