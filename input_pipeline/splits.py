"""Samples of a split, in memory or in image files, and the data set they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from input_pipeline import Channels
from input_pipeline.cropping import Crop
from input_pipeline.fingerprint import Fingerprint, describe_identity
from input_pipeline.image_files import (
    crop_and_resize,
    crop_centre,
    fit_square,
    open_region,
    open_rgb,
    shrink,
)
from input_pipeline.paths import select_paths
from input_pipeline.pixel_store import StoredImages
from utils.errors import UserError


@dataclass(frozen=True, eq=False)
class TensorSplit:
    """Samples held in memory.

    Attributes:
        images: uint8 [N, 3, H, W].
        labels: int64 [N].
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        height, width = self.images.shape[-2:]
        return height, width

    def fetch(self, indices: Tensor) -> Tensor:
        """Gather uint8 [B, 3, H, W] of the samples `indices`, int64 [B] on the images' device."""
        return self.images[indices]

    def select(self, indices: Tensor) -> TensorSplit:
        """Keep the samples `indices`, int64 [B]."""
        return TensorSplit(self.images[indices], self.labels[indices])

    def to(self, device: torch.device | str) -> TensorSplit:
        """Move the samples to `device`."""
        return TensorSplit(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Samples in image files, decoded on demand.

    Attributes:
        paths: N image files.
        labels: int64 [N].
        image_size: (H, W) in pixels of every decoded image.
        size_from: the file whose size all others must share, or None where images of another
            size are resized and cropped (then H = W).
        jpeg_draft: whether JPEGs that are resized may be decoded at a part of their size, see
            `input_pipeline.image_files.open_rgb`.
        resized_side: pixels of the shorter side before the centre is cropped; None: those of
            `image_size`.
        crop: chooses the part that is resized instead, anew in each epoch; None: the centre.
        resize_first: whether `crop` chooses from the resized image in place of the file's.
        stored: resized images that need not be decoded. They change no pixel.
    """

    paths: Sequence[str]
    labels: Tensor
    image_size: tuple[int, int]
    size_from: str | None = None
    jpeg_draft: bool = False
    resized_side: int | None = None
    crop: Crop | None = None
    resize_first: bool = False
    stored: StoredImages | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def rules(self) -> dict[str, Any]:
        """What decides how a file is decoded."""
        return {k: v for k, v in vars(self).items() if k not in ("paths", "labels", "stored")}

    @property
    def shorter_side(self) -> int:
        """Pixels of the shorter side of resized images."""
        return self.resized_side or self.image_size[0]

    def fetch(self, indices: Iterable[int], epoch: int = 0) -> Tensor:
        """Decode the B samples `indices`, with the crops of an epoch if there are any.

        Returns:
            uint8 [B, 3, H, W] on the CPU.

        Raises:
            UserError: a file can't be decoded, or its size isn't that of `size_from`.
        """
        numbers = list(indices)
        images = np.empty((len(numbers), 3, *self.image_size), dtype=np.uint8)
        for image, number in zip(images, numbers, strict=True):
            image[:] = self._decode(number, epoch).transpose(2, 0, 1)
        return torch.from_numpy(images)

    def select(self, indices: Tensor) -> FileSplit:
        """Keep the samples `indices`, int64 [B]."""
        paths = select_paths(self.paths, indices.cpu().numpy())
        stored = self.stored.select(indices.cpu().numpy()) if self.stored else None
        return replace(self, paths=paths, labels=self.labels[indices], stored=stored)

    def to(self, device: torch.device | str) -> FileSplit:
        """Move the labels to `device`; the images remain files."""
        return replace(self, labels=self.labels.to(device))

    def _shrink(self, number: int) -> np.ndarray:
        """Return an image as crops see it that come after resizing, uint8 [H, W, 3]."""
        pixels = self.stored.read(number) if self.stored else None
        if pixels is None:
            draft_side = self.shorter_side if self.jpeg_draft else None
            image = open_rgb(self.paths[number], draft_side)
            pixels = shrink(image, self.shorter_side)
            pixels = np.array(image) if pixels is None else pixels
        return pixels

    def _decode(self, number: int, epoch: int) -> np.ndarray:
        """Decode one file to uint8 [H, W, 3]."""
        path, side, target = self.paths[number], self.image_size[0], self.shorter_side
        if self.crop is not None:
            choose = partial(self.crop.draw, epoch, number)
            if not self.resize_first:
                return open_region(path, side, choose, self.jpeg_draft)
            pixels = self._shrink(number)
            return crop_and_resize(pixels, choose(*pixels.shape[:2]), side)
        found = self.stored.read(number) if self.stored else None
        if found is not None:
            return crop_centre(found, side)
        resized = self.size_from is None
        image = open_rgb(path, target if self.jpeg_draft and resized else None)
        size = (image.height, image.width)
        if size == self.image_size and target == side:
            return np.asarray(image)
        if resized:
            return np.asarray(fit_square(image, side, target))
        (h0, w0), (h1, w1) = self.image_size, size
        raise UserError(
            f"images differ in size: {self.size_from} is {w0}×{h0} pixels, {path} is {w1}×{h1}; "
            "give --img_size to resize them all"
        )


Split = TensorSplit | FileSplit


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set ready for loaders.

    Attributes:
        name: one of `input_pipeline.SOURCES`.
        classes: K class names; labels are indices into it.
        image_shape: (3, H, W).
        mean, std: three numbers each, per channel, in units of the full range 0…1.
        train, test: the samples; None where the split was not asked for.
        fingerprints: of these splits as they were loaded, by name.
        image_files: whether the source consists of image files.
        test_split: the name of the folder that is the test set, if the source has a choice.
        skipped: the files that were left out of each split; None if none may be.
        notes: lines for a run's log: what was found where.
    """

    name: str
    classes: list[str]
    image_shape: tuple[int, int, int]
    mean: Channels
    std: Channels
    train: Split | None
    test: Split | None
    fingerprints: Mapping[str, Fingerprint] = field(default_factory=dict)
    image_files: bool = False
    test_split: str | None = None
    skipped: Mapping[str, Sequence[str]] | None = None
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """The number of classes K."""
        return len(self.classes)

    @property
    def side(self) -> int:
        """The shorter side of the images in pixels."""
        return min(self.image_shape[1:])

    @property
    def class_sizes(self) -> list[int] | None:
        """Training images of each class; None where that split was not asked for."""
        if self.train is None:
            return None
        sizes = torch.bincount(self.train.labels.cpu(), minlength=self.num_classes)
        return [int(size) for size in sizes]

    def facts(self) -> dict[str, Any]:
        """List the facts that config.json keeps and a resumed or evaluated run must find again."""
        facts: dict[str, Any] = {
            "num_classes": self.num_classes,
            "classes": list(self.classes),
            "image_shape": list(self.image_shape),
            "mean": list(self.mean),
            "std": list(self.std),
        }
        if self.train is not None:
            facts["train_size"] = len(self.train)
        if self.test is not None:
            facts["test_size"] = len(self.test)
        if self.train is not None:
            facts["class_sizes"] = self.class_sizes
        if self.fingerprints:
            facts |= describe_identity(
                self.fingerprints, self.test_split, self.image_files, self.skipped
            )
        return facts

    def normalised_as(self, facts: Mapping[str, Any]) -> DataSet:
        """Return the data set with the mean and std of a run's facts, if it has any.

        A run's images are normalised as in its training, even where the same files now give other
        pixels in the last digit. `rundir.config.check_data` comes first.
        """
        if "mean" not in facts and "std" not in facts:
            return self
        mean, std = facts.get("mean", self.mean), facts.get("std", self.std)
        return replace(self, mean=tuple(mean), std=tuple(std))
