"""Batches of one split: normalised images and targets on the device, the same for both kinds."""

from __future__ import annotations

import dataclasses
import itertools
import math
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
from input_pipeline.division import Division
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
    run on the device for both; crops that need the whole file are made where it is decoded. Order
    and augmentation follow from (seed, epoch), crops also from the sample. They do not depend on
    `num_workers`, the kind of split, or the step at which an epoch is resumed.

    In a job of several processes each gets its share of each batch: the same samples, changed in
    the same way, as a process alone would have there. One thing differs: samples of a FileSplit are
    mixed within a share, since a process decodes no other.

    Args:
        split: the samples.
        batch_size: samples per step of all processes, ≥ 1; the last batch of an epoch may be
            smaller.
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
        rank, ranks: the number of this process, and how many share the batches. All get equally
            many. The last one may be empty.
        parts, smallest: see `input_pipeline.division.Division`.

    Raises:
        UserError: `augment` is unknown or not for this split, `batch_size` is below 1, or a GPU's
            memory is too small.
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
        rank: int = 0,
        ranks: int = 1,
        parts: int = 1,
        smallest: int = 1,
    ) -> None:
        augment = _find_augmentation(augment, split)
        if batch_size < 1:
            raise UserError(f"batch size {batch_size} is too small: use 1 or more")
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
        self.division = Division(batch_size, parts, rank, ranks, smallest)
        in_memory = isinstance(self.split, TensorSplit)
        # Only where all samples are at hand can each be mixed with its partner in another share.
        self._mixes_all = ranks > 1 and self.mixer is not None and in_memory
        alone = Division(batch_size)
        self._cut = _Cut(self.num_samples, alone if self._mixes_all else self.division)
        # Steps whose images are prepared at once.
        height, width = split.image_size
        step_bytes = max(1, self._cut.sizes[0] if self._cut.sizes else 1) * 3 * height * width * 4
        self._steps = max(1, PIECE_BYTES[self.device.type] // step_bytes) if in_memory else 1
        self._sampler = _OrderSampler()
        self._files = None
        if isinstance(self.split, FileSplit):
            self._carrier = Carrier(self.device)
            # The split itself stays as it is: it is also measured.
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
        if self._cut.own is not None:
            plan = plan.select(self._cut.own)
        on_device = plan.to(self.device)
        order = plan.order if self._files else on_device.order
        labels = self.split.labels[on_device.order]
        starts = range(start_step, len(self), self._steps)
        pieces = [range(first, min(first + self._steps, len(self))) for first in starts]
        for steps, images in zip(pieces, self._fetch(order, pieces, epoch), strict=True):
            at = self._cut.locate(steps)
            images = self._prepare(images, on_device, at)
            for batch in self._mix(images, labels[at], epoch, steps):
                yield self._share(*batch) if self._mixes_all else batch

    def count_own(self) -> int:
        """Count the samples of an epoch that this process gets."""
        sizes = (self.find_size(step) for step in range(len(self)))
        return sum(map(self.division.count_own, sizes))

    def find_size(self, step: int) -> int:
        """Find how many samples the batch of a step has in all processes together."""
        return min(self.batch_size, self.num_samples - step * self.batch_size)

    def _fetch(self, order: Tensor, pieces: Sequence[range], epoch: int) -> Iterator[Tensor]:
        """Iterate over the images of each piece, a few steps.

        Args:
            order: int64 [n], the samples that this process visits in the epoch.
            pieces: the steps of each. Those of a FileSplit have one step.
            epoch: of which files are cropped.

        Yields:
            uint8 [B, 3, H, W] on the device. They may be overwritten once the next ones are asked
            for.
        """
        chosen = [order[self._cut.locate(steps)] for steps in pieces]
        if isinstance(self.split, TensorSplit):
            for numbers in chosen:
                yield self.split.fetch(numbers)
            return
        assert self._files is not None
        self._sampler.epoch = epoch
        self._sampler.batches = [numbers for numbers in chosen if len(numbers)]
        if self._sampler.batches:
            yield from self._carrier.carry(iterate_decoded(self._files))
        if len(self._sampler.batches) < len(chosen):  # the last batch has none for this process
            shape = (0, 3, *self.split.image_size)
            yield torch.empty(shape, dtype=torch.uint8, device=self.device)

    def _prepare(self, images: Tensor, plan: EpochPlan, at: slice) -> Tensor:
        """Augment and normalise the images of the process's positions `at` in the epoch."""
        return normalise(augment_batch(images, plan, at), self.mean, self.std)

    def _mix(
        self, images: Tensor, labels: Tensor, epoch: int, steps: range
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Cut images and labels of some steps into batches, and mix each if the augmentation mixes.

        Yields:
            images, laid out as the network wants them, and targets.
        """
        sizes = self._cut.sizes[steps.start : steps.stop]
        if self.mixer is None:
            yield from self._lay_out(images, labels, sizes)
            return
        first = 0
        # Batches of one size are mixed together: all but, perhaps, the last.
        last = len(sizes) if sizes[-1] == sizes[0] else len(sizes) - 1
        for group in (range(last), range(last, len(sizes))):
            if len(group) == 0:
                continue
            shape = len(group), sizes[group.start]
            at = slice(first, first + math.prod(shape))
            drawn = range(steps.start + group.start, steps.start + group.stop)
            draws = self.mixer.draw(epoch, drawn, self.split.image_size)
            mixed, targets = self.mixer.apply(
                images[at].unflatten(0, shape),
                labels[at].unflatten(0, shape),
                send_draws(draws, self.device),
            )
            own = [shape[1]] * shape[0]
            yield from self._lay_out(mixed.flatten(0, 1), targets.flatten(0, 1), own)
            first = at.stop

    def _lay_out(
        self, images: Tensor, targets: Tensor, sizes: list[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Cut images and targets into batches of these sizes, laid out as the network wants."""
        images = images.contiguous(memory_format=self.memory_format)
        return zip(images.split(sizes), targets.split(sizes), strict=True)

    def _share(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return this process's share of a whole batch."""
        shares = self.division.find_own(len(images))
        if len(shares) == 1:
            return images[shares[0]], targets[shares[0]]
        return torch.cat([images[s] for s in shares]), torch.cat([targets[s] for s in shares])


def _find_augmentation(name: str, split: Split) -> str:
    """Return the name as the registry spells it. Raises UserError if it is not for this split."""
    name = find_name(name, AUGMENTATIONS, "augmentation")
    if AUGMENTATIONS[name].crops_files and isinstance(split, TensorSplit):
        raise UserError(f"augmentation {name} crops image files: these images are in memory")
    return name


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
    """The batches of sample numbers of an epoch, int64 on the CPU, for a DataLoader.

    Its owner sets `batches` and `epoch`, so that one DataLoader and its workers serve all epochs.
    """

    def __init__(self) -> None:
        self.batches: list[Tensor] = []
        self.epoch = 0

    def __iter__(self) -> Iterator[Request]:
        return ((numbers.tolist(), self.epoch) for numbers in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Cut:
    """The batches of an epoch as one process gets them.

    Args:
        count: samples of the epoch in all processes.
        division: of each batch.

    Attributes:
        sizes: the samples of this process in each batch.
        own: int64 [n], where these stand in the epoch; None for all samples in their order.
    """

    def __init__(self, count: int, division: Division) -> None:
        starts = range(0, count, division.batch_size)
        sizes = [min(division.batch_size, count - first) for first in starts]
        shares = {size: division.find_own(size) for size in set(sizes)}
        counts = {size: division.count_own(size) for size in shares}
        self.sizes = [counts[size] for size in sizes]
        self._ends = [0, *itertools.accumulate(self.sizes)]
        self.own: Tensor | None = None
        if division.ranks > 1:
            patterns = {
                size: torch.cat([torch.arange(share.start, share.stop) for share in parts])
                for size, parts in shares.items()
            }
            own = [first + patterns[size] for first, size in zip(starts, sizes, strict=True)]
            self.own = torch.cat([torch.empty(0, dtype=torch.int64), *own])

    def locate(self, steps: range) -> slice:
        """Locate the samples of consecutive steps among those of this process."""
        return slice(self._ends[steps.start], self._ends[steps.stop])
