"""The choice of the samples of a split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from input_pipeline.longtail import compute_tail_sizes
from utils.errors import UserError


@dataclass(frozen=True)
class Selection:
    """The rule that picks the samples of a split: the first so many of each class.

    Attributes:
        split: "train" or "test".
        sample_size: images of each class. None: all.
        imbalance_factor: largest over smallest class of the long tail they are cut to. 1: no cut.
    """

    split: str
    sample_size: int | None
    imbalance_factor: float = 1.0

    def choose(self, labels: Tensor, classes: list[str]) -> Tensor:
        """Choose the samples of a split.

        Args:
            labels: int64 [N] of the whole split.
            classes: K class names.

        Returns:
            int64, ascending: the numbers of the chosen samples.

        Raises:
            UserError: a class has fewer samples than asked for, or a long tail has no effect.
        """
        counts = torch.bincount(labels, minlength=len(classes))
        return select_first(labels, self._cut_tail(self._limit(counts, classes)))

    def _limit(self, counts: Tensor, classes: list[str]) -> Tensor:
        """Compute the class sizes [K] that sample_size leaves from `counts` [K]."""
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

    def _cut_tail(self, counts: Tensor) -> Tensor:
        """Compute the class sizes [K] that the long tail leaves from `counts` [K]."""
        if self.imbalance_factor == 1:
            return counts
        profile = compute_tail_sizes(int(counts.max()), len(counts), self.imbalance_factor)
        sizes = torch.minimum(counts, torch.tensor(profile))
        if torch.equal(sizes, counts):
            raise UserError(
                f"--imbalance_factor {self.imbalance_factor:g} has no effect here: no class has "
                f"more images than the long tail of the largest, which has {counts.max()}"
            )
        return sizes


def select_first(labels: Tensor, limits: Tensor | int) -> Tensor:
    """Select the first samples of each class.

    Args:
        labels: int64 [N].
        limits: how many to take of each class, int64 [K], or one number for all classes. A class
            that has fewer gives all.

    Returns:
        int64, ascending: the numbers of the selected samples.
    """
    counts = torch.bincount(labels)
    limits = torch.full_like(counts, limits) if isinstance(limits, int) else limits
    by_class = labels.argsort(stable=True)
    sorted_labels = labels[by_class]
    firsts = counts.cumsum(0) - counts
    rank = torch.arange(len(labels)) - firsts[sorted_labels]
    return by_class[rank < limits[sorted_labels]].sort().values


def space_evenly(count: int, most: int) -> Tensor:
    """Choose `most` of `count` samples at equal distances, or all if there are not more.

    Returns:
        int64, ascending: the numbers of the samples.
    """
    chosen = min(count, most)
    return torch.arange(chosen) * count // chosen
