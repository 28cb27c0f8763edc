"""Batches of one split: normalised images and targets on the device, the same for both kinds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from input_pipeline import AUGMENTATIONS
from input_pipeline.augmentation import (
    EpochPlan,
    augment_batch,
    build_crop,
    build_mixer,
    build_transforms,
    draw_plan,
    normalise,
    send_draws,
)
from input_pipeline.decoding import Request, build_decoding_loader, iterate_decoded
from input_pipeline.delivery import Carrier
from input_pipeline.splits import FileSplit, Split, TensorSplit
from utils.device import is_out_of_memory
from utils.errors import UserError
from utils.registry import find_name

# Images in memory are prepared for several batches at once, up to this many bytes in float32. With
# one small batch at a time, the host would take longer to start the work than the GPU to do it. On
# the CPU a piece stays in the cache.
PIECE_BYTES = {"cuda": 2**27, "cpu": 2**23}


class BatchLoader:
    """Yields (images, targets) of a split, batch by batch, on the device.

    A TensorSplit is moved to the device once and indexed there. A FileSplit is decoded by worker
    processes ahead of its use and crosses to the device as uint8. Augmentation and normalisation
    run on the device for both; crops that need the whole image file are made where it is decoded.
    Order and augmentation follow from (seed, epoch) alone. They do not
    depend on `num_workers`, the kind of split, or the step at which an epoch is resumed.

    Args:
        split: the samples.
        batch_size: samples per step, ≥ 1; the last batch of an epoch may be smaller.
        device: where batches are delivered.
        mean, std: per channel, in units of the full range 0…1.
        num_classes: K, the width of soft targets.
        shuffle: visit in a new random order each epoch, otherwise in the split's.
        augment: one of `input_pipeline.AUGMENTATIONS`.
        rotation: largest angle in degrees of augmentations that rotate; 0 for none.
        seed: ≥ 0, of the order and the augmentation.
        num_workers: processes that decode a FileSplit; 0 decodes in this one.
        drop_single: leave out a last batch of one sample, on which BatchNorm can't train.
        memory_format: of the images, as the network wants them.

    Raises:
        UserError: `augment` is unknown, `batch_size` is below 1, or a GPU's memory is too small.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device | str,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        shuffle: bool = False,
        augment: str = "none",
        rotation: float = 0.0,
        seed: int = 0,
        num_workers: int = 0,
        drop_single: bool = False,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        augment = find_name(augment, AUGMENTATIONS, "augmentation")
        if batch_size < 1:
            raise UserError(f"batch size {batch_size} is too small: use 1 or more")
        if AUGMENTATIONS[augment].crops_files and isinstance(split, TensorSplit):
            raise UserError(f"augmentation {augment} crops image files: these images are in memory")
        self.device = torch.device(device)
        self.split = _place(split, self.device)
        self.batch_size = batch_size
        # Built here once: a tensor built from Python numbers at every step would stall the GPU.
        self.mean = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self.std = torch.tensor(std, dtype=torch.float32, device=self.device)
        self.shuffle = shuffle
        self.transforms = build_transforms(augment)
        self.rotation = rotation
        self.memory_format = memory_format
        self.seed = seed
        self.mixer = build_mixer(augment, num_classes, seed)
        single = drop_single and len(split) % batch_size == 1
        self.num_samples = len(split) - int(single)
        # Images prepared at once: whole batches.
        height, width = split.image_size
        batch_bytes = batch_size * 3 * height * width * 4
        self._piece = batch_size * max(1, PIECE_BYTES[self.device.type] // batch_bytes)
        self._sampler = _OrderSampler(batch_size)
        self._files = None
        if isinstance(self.split, FileSplit):
            self._carrier = Carrier(self.device)
            # The split itself stays as it is: it is also the one that is measured.
            self._files = build_decoding_loader(
                dataclasses.replace(self.split, crop=build_crop(augment, seed)),
                self._sampler,
                num_workers=num_workers,
                pin_memory=self.device.type == "cuda",
                persistent=True,
            )

    def __len__(self) -> int:
        """Return the steps per epoch."""
        return -(-self.num_samples // self.batch_size)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the batches of one epoch from `start_step` on, as the whole epoch has them.

        Args:
            epoch: ≥ 0.
            start_step: steps of the epoch already done.

        Yields:
            images, float32 [B, 3, H, W], normalised, and targets, int64 [B] (float32 [B, K] where
            the augmentation mixes labels), both on the device.

        Raises:
            UserError: a file can't be decoded (its path is named), here or in a worker.
        """
        plan = draw_plan(
            len(self.split),
            seed=self.seed,
            epoch=epoch,
            shuffle=self.shuffle,
            transforms=self.transforms,
            image_side=self.split.image_size[0],
            rotation=self.rotation,
        )
        on_device = plan.to(self.device)
        order = plan.order if self._files else on_device.order
        labels = self.split.labels[on_device.order]
        step = start_step
        first = step * self.batch_size
        for images in self._fetch(order[: self.num_samples], first, epoch):
            at = slice(first, first + len(images))
            images = self._prepare(images, on_device, at)
            for batches in self._mix(images, labels[at], epoch, step):
                yield from self._cut(*batches)
            step += -(-len(images) // self.batch_size)
            first = at.stop

    def _fetch(self, order: Tensor, first: int, epoch: int) -> Iterator[Tensor]:
        """Iterate over the images of `order` [num_samples] from its entry `first` on.

        Yields:
            uint8 [n, 3, H, W] on the device, for one or for several batches. They may be
            overwritten once the next ones are asked for.
        """
        if isinstance(self.split, TensorSplit):
            for begin in range(first, len(order), self._piece):
                yield self.split.fetch(order[begin : begin + self._piece])
            return
        self._sampler.order, self._sampler.epoch = order[first:], epoch
        assert self._files is not None
        yield from self._carrier.carry(iterate_decoded(self._files))

    def _prepare(self, images: Tensor, plan: EpochPlan, at: slice) -> Tensor:
        """Augment and normalise the images of the epoch's positions `at`."""
        return normalise(augment_batch(images, plan, at), self.mean, self.std)

    def _mix(
        self, images: Tensor, labels: Tensor, epoch: int, step: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Mix the batches that begin at `step`, if the augmentation mixes.

        Yields:
            images and targets of whole batches; of a smaller last one apart, if they are mixed.
        """
        if self.mixer is None:
            yield images, labels
            return
        whole = len(images) // self.batch_size * self.batch_size
        height, width = images.shape[-2:]
        for at in (slice(0, whole), slice(whole, len(images))):
            size = min(self.batch_size, at.stop - at.start)
            if size == 0:
                continue
            shape = ((at.stop - at.start) // size, size)
            draws = self.mixer.draw(epoch, range(step, step + shape[0]), (height, width))
            mixed, targets = self.mixer.apply(
                images[at].unflatten(0, shape),
                labels[at].unflatten(0, shape),
                send_draws(draws, self.device),
            )
            yield mixed.flatten(0, 1), targets.flatten(0, 1)
            step += shape[0]

    def _cut(self, images: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Cut images and targets, laid out as the network wants them, into batches."""
        images = images.contiguous(memory_format=self.memory_format)
        return zip(images.split(self.batch_size), targets.split(self.batch_size), strict=True)


def _place(split: Split, device: torch.device) -> Split:
    """Move the samples to the device. Raises UserError if they do not fit there."""
    try:
        return split.to(device)
    except RuntimeError as error:
        if not (is_out_of_memory(error) and isinstance(split, TensorSplit)):
            raise
        size = split.images.nbytes / 2**30
        raise UserError(
            f"the {len(split):,} images of a split take {size:.2g} GiB, more than the memory that "
            "the device has left: use a smaller --img_size or --sample_size, another --gpu_id, or "
            "-1 for the CPU"
        ) from error


class _OrderSampler:
    """Cuts `order`, int64 [N] on the CPU, into batches of sample numbers for a DataLoader.

    Its owner sets `order` and `epoch`, so that one DataLoader and its workers serve all epochs.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.order = torch.empty(0, dtype=torch.int64)
        self.epoch = 0

    def __iter__(self) -> Iterator[Request]:
        for first in range(0, len(self.order), self.batch_size):
            yield self.order[first : first + self.batch_size].tolist(), self.epoch

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)
