"""The division of batches: in parts, one after another, and in shares, one for each process."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from utils.cli import SMALLEST_BATCH


@dataclass(frozen=True)
class Division:
    """How a batch is divided.

    A batch is cut into `parts` that are computed one after another, and each part into shares that
    the processes of a job compute side by side. All are as equal as can be. A batch that is smaller
    than the others has fewer parts. Where there are too few samples, the last processes get none.

    Attributes:
        batch_size: samples of a whole batch, of all processes together.
        parts: of a whole batch.
        rank, ranks: the number of this process, and how many there are.
        smallest: samples that each share has at least, if it has any. Batch normalisation needs
            two, unless its statistics are those of all shares together.
    """

    batch_size: int
    parts: int = 1
    rank: int = 0
    ranks: int = 1
    smallest: int = 1

    def find_own(self, size: int) -> list[slice]:
        """Find this process's share of each part of a batch of `size` samples."""
        proportional = -(-size * self.parts // self.batch_size)  # rounded up
        parts = max(1, min(self.parts, proportional, size // SMALLEST_BATCH))
        return [self._find_share(part) for part in split_evenly(slice(0, size), parts)]

    def _find_share(self, part: slice) -> slice:
        sharers = max(1, min(self.ranks, (part.stop - part.start) // self.smallest))
        if self.rank >= sharers:
            return slice(part.stop, part.stop)
        return split_evenly(part, sharers)[self.rank]

    def count_own(self, size: int) -> int:
        """Count this process's samples of a batch of `size`."""
        return sum(share.stop - share.start for share in self.find_own(size))

    def split(
        self, images: Tensor, targets: Tensor, size: int
    ) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Yield this process's shares of the parts of a batch, and what part of it they are.

        Args:
            images, targets: this process's samples of the batch.
            size: samples of the batch in all processes.

        Yields:
            images and targets, and their number divided by `size`, in [0, 1].
        """
        counts = [share.stop - share.start for share in self.find_own(size)]
        if len(counts) == 1:
            yield images, targets, len(images) / size
            return
        for part in zip(images.split(counts), targets.split(counts), strict=True):
            yield *part, len(part[0]) / size


def split_evenly(positions: slice, number: int) -> list[slice]:
    """Split consecutive positions into `number` slices; the first ones may have one more."""
    size, more = divmod(positions.stop - positions.start, number)
    ends = [positions.start + size * k + min(k, more) for k in range(number + 1)]
    return [slice(*both) for both in itertools.pairwise(ends)]
