"""The samples of a data set as its source returns them: read, without the corrupt, selected."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from input_pipeline import SOURCES, Source
from input_pipeline.cache import forget
from input_pipeline.corrupt import (
    CORRUPT,
    describe_left_out,
    find_corrupt,
    find_kept,
    find_named,
    list_names,
)
from input_pipeline.fingerprint import PRINT, Fingerprint, hash_files, hash_tensors
from input_pipeline.listing import SPLIT_FOLDERS, Listing, refuse_shared
from input_pipeline.listing_cache import LISTING
from input_pipeline.paths import select_paths
from input_pipeline.selection import Selection
from utils.console import Console
from utils.errors import UserError
from utils.registry import find_name, load_function


@dataclass(frozen=True)
class Omission:
    """The rule by which image files are left out; arguments of `load_dataset`."""

    skip_corrupt: bool = False
    skipped: Mapping[str, Sequence[str]] | None = None
    num_workers: int = 0
    console: Console | None = None

    def find(self, split: str, listing: Listing) -> np.ndarray:
        """Find the files of a split to leave out, by their number, int64 [n]."""
        if self.skipped is not None:
            return find_named(listing, self.skipped.get(split, ()))
        return find_corrupt(listing, self.num_workers, self.console)


NOTHING = Omission()


@dataclass(frozen=True, eq=False)
class Chosen:
    """The samples that were chosen of a split, as the source returns them.

    Attributes:
        images: uint8 [N, C, H, W], or the paths of N files.
        labels: int64 [N].
        classes: K names.
        listing: all files of the split; None for images in memory.
        numbers: int64 [N], those of the chosen files in the listing.
        skipped: the files that were left out before; None if none may be.
    """

    images: Any
    labels: Tensor
    classes: list[str]
    listing: Listing | None = None
    numbers: Tensor | None = None
    skipped: list[str] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        if self.listing is None:
            return ()
        return (*self.listing.notes, *describe_left_out(self.listing, self.skipped or ()))

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        if self.listing is None:
            return hash_tensors(self.images, self.labels)
        key = self.listing.key
        if key is not None and self.numbers is not None:
            key += self.numbers.numpy().tobytes()
        return hash_files(self.images, self.labels, self.listing.folder, key=key)


def find_test_split(chosen: Mapping[str, Chosen]) -> str | None:
    """Find the name of the folder that is the test set, if the source has a choice."""
    listing = chosen["test"].listing if "test" in chosen else None
    return listing.split if listing is not None else None


def list_skipped(chosen: Mapping[str, Chosen]) -> dict[str, list[str]] | None:
    """List the files that were left out of each split; None if none may be."""
    found = {split: part.skipped for split, part in chosen.items() if part.skipped is not None}
    return found or None


def build_selections(
    sample_size: int | None, imbalance_factor: float, test_sample_size: int | None
) -> dict[str, Selection]:
    """Build the rules that pick the samples of both splits. Raises UserError."""
    check_number("sample_size", sample_size)
    check_number("imbalance_factor", imbalance_factor)
    check_number("test_sample_size", test_sample_size)
    return {
        "train": Selection("train", sample_size, imbalance_factor),
        "test": Selection("test", test_sample_size),
    }


def check_number(flag: str, value: float | None) -> None:
    """Raise UserError for a number below 1, or NaN."""
    if value is not None and not value >= 1:
        raise UserError(f"--{flag} {value} is too small: use 1 or more")


def find_source(
    name: str, data_dir: str | Path, force_listing: bool = False
) -> tuple[Source, Path]:
    """Return a source and its folder; forget what is known of the folder if it is to be read anew.

    Raises UserError for an unknown name, or if the source needs a folder and it is a file.
    """
    source, root = SOURCES[find_name(name, SOURCES, "data set")], Path(data_dir)
    if source.bundled_with is None and root.exists() and not root.is_dir():
        raise UserError(f"--data_dir {root} is not a directory")
    for folder in SPLIT_FOLDERS if force_listing else ():
        forget((LISTING, PRINT, CORRUPT), root / folder)
    return source, root


def read_samples(source: Source, root: Path, split: str) -> tuple[Any, Tensor, list[str]]:
    """Call a source's reader for one split.

    Returns:
        images (a tensor, or a Listing of image files), labels and class names, see `Source`.

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
    if source.streams and not isinstance(images, Listing):
        images = Listing(images, root)
    return images, labels, classes


def choose_samples(
    source: Source,
    root: Path,
    selections: Mapping[str, Selection],
    needed: Iterable[str],
    omit: Omission = NOTHING,
) -> dict[str, Chosen]:
    """Read the splits `needed`, or list both splits of image files, and select their samples.

    Raises UserError.
    """
    read = {
        split: read_samples(source, root, split)
        for split in (selections if source.streams else needed)
    }
    if not source.streams:
        return {split: _choose_tensors(*part, selections[split]) for split, part in read.items()}
    listings = [part[0] for part in read.values()]
    refuse_shared(*listings)
    return {split: _choose_files(*part, selections[split], omit) for split, part in read.items()}


def _choose_tensors(
    images: Tensor, labels: Tensor, classes: list[str], selection: Selection
) -> Chosen:
    """Select the samples of a split in memory."""
    kept = selection.choose(labels, classes)
    return Chosen(images[kept], labels[kept], classes)


def _choose_files(
    listing: Listing, labels: Tensor, classes: list[str], selection: Selection, omit: Omission
) -> Chosen:
    """Leave files of a split out, then select its samples among the others."""
    skipped, good = None, torch.arange(len(labels))
    if omit.skip_corrupt:
        left_out = omit.find(selection.split, listing)
        skipped = list_names(listing, left_out)
        good = find_kept(listing, labels, classes, left_out)
    kept = good[selection.choose(labels[good], classes)]
    paths = select_paths(listing.paths, kept.numpy())
    return Chosen(paths, labels[kept], classes, listing, kept, skipped)
