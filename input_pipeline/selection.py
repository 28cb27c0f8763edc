"""Which samples of a split are used."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from input_pipeline.longtail import long_tailed_sizes
from utils.errors import UserError


@dataclass(frozen=True)
class Selection:
    """Which samples of a split are used: the first so many of each class.

    Attributes:
        split: "train" or "test".
        sample_size: of each class; None takes all.
        imbalance_factor: of the long tail made of these; 1 leaves them.
    """

    split: str
    sample_size: int | None
    imbalance_factor: float = 1.0

    def numbers(self, labels: Tensor, classes: list[str]) -> Tensor:
        """The samples, int64 and ascending, of a split of these labels. Raises UserError."""
        counts = torch.bincount(labels, minlength=len(classes))
        return first_per_class(labels, self._tail(self._equal(counts, classes)))

    def _equal(self, counts: Tensor, classes: list[str]) -> Tensor:
        """The class sizes [K] that sample_size leaves of `counts` [K]."""
        if self.sample_size is None:
            return counts
        fewest = int(counts.argmin())
        if self.sample_size > counts[fewest]:
            flag = {"train": "--sample_size", "test": "--test_sample_size"}[self.split]
            raise UserError(
                f"{flag} {self.sample_size} is more than the {counts[fewest]} {self.split} images "
                f"of class {classes[fewest]!r}: use at most {counts[fewest]}"
            )
        return torch.full_like(counts, self.sample_size)

    def _tail(self, counts: Tensor) -> Tensor:
        """The class sizes [K] that the long tail leaves of `counts` [K]."""
        if self.imbalance_factor == 1:
            return counts
        profile = long_tailed_sizes(int(counts.max()), len(counts), self.imbalance_factor)
        sizes = torch.minimum(counts, torch.tensor(profile))
        if torch.equal(sizes, counts):
            raise UserError(
                f"--imbalance_factor {self.imbalance_factor:g} has no effect here: no class has "
                f"more images than the long tail of the largest, which has {counts.max()}"
            )
        return sizes


def first_per_class(labels: Tensor, limits: Tensor | int) -> Tensor:
    """Numbers, int64 and ascending, of the first samples of each class of labels [N].

    `limits` are how many of each class [K], or one number for all; all samples of a class that has
    fewer.
    """
    counts = torch.bincount(labels)
    limits = torch.full_like(counts, limits) if isinstance(limits, int) else limits
    by_class = labels.argsort(stable=True)
    sorted_labels = labels[by_class]
    firsts = counts.cumsum(0) - counts
    rank = torch.arange(len(labels)) - firsts[sorted_labels]
    return by_class[rank < limits[sorted_labels]].sort().values
