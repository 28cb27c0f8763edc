"""Decision scores from features, and their statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metrics.checks import (
    check_scored,
    row_chunks,
)


@torch.no_grad()
def decision_scores(features: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The scores W h of every sample (paper, section 1; no bias), split by the sample's label.

    features [N, d], labels integer [N], weight [K, d], any float dtype. Returns float64 tensors on
    the features' device: positive [N], w_y·h, and negative [N, K−1], w_j·h for j ≠ y in the order
    of the classes. Beyond what it returns (8·N·K bytes) memory is bounded by chunks;
    `score_statistics` summarises them without holding them.

    Raises ValueError for shapes that do not match, labels that are not integers from 0 to K−1, or
    features or weight not finite.
    """
    labels, weight = check_scored(features, labels, weight)
    count, num_classes = len(features), len(weight)
    positive = weight.new_empty(count)
    negative = weight.new_empty(count, num_classes - 1)
    for rows in row_chunks(features, num_classes):
        positive[rows], negative[rows] = _split_scores(features[rows], labels[rows], weight)
    return positive, negative


@torch.no_grad()
def score_statistics(features: Tensor, labels: Tensor, weight: Tensor) -> dict[str, float]:
    """Mean, population standard deviation, minimum and maximum of the `decision_scores`.

    Takes and raises what `decision_scores` does. Keys: positive_mean, positive_std, positive_min,
    positive_max, and the same with negative. Computed in float64, chunk by chunk: the N·K scores
    are never held.
    """
    labels, weight = check_scored(features, labels, weight)
    positive, negative = ScoreSummary(), ScoreSummary()
    for rows in row_chunks(features, len(weight)):
        own, others = unordered_scores(features[rows], labels[rows], weight)
        positive.add(own)
        negative.add(others)
    return positive.statistics("positive") | negative.statistics("negative")


@dataclass
class ScoreSummary:
    """Running count, mean, sum of squared deviations, minimum and maximum of float64 values."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    min: float = math.inf
    max: float = -math.inf

    def add(self, values: Tensor) -> None:
        """Take in more values (a tensor of any shape, not empty).

        Each chunk is summed about its own mean and merged by the rule of Chan, Golub and LeVeque
        (1979): a mean far from 0 costs no accuracy, as it would in Σx² − (Σx)²/n.
        """
        mean = values.mean()
        squares = (values - mean).square_().sum().item()
        low, high = (bound.item() for bound in values.aminmax())
        total = self.count + values.numel()
        step = mean.item() - self.mean
        self.squares += squares + step * step * self.count * values.numel() / total
        self.mean += step * values.numel() / total
        self.count = total
        self.min, self.max = min(self.min, low), max(self.max, high)

    def statistics(self, name: str) -> dict[str, float]:
        """`name`_mean, _std (population), _min and _max of all values so far."""
        values = {"mean": self.mean, "std": math.sqrt(self.squares / self.count)}
        values |= {"min": self.min, "max": self.max}
        return {f"{name}_{key}": value for key, value in values.items()}


def unordered_scores(features: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 scores W h [n, K] of checked inputs: each row's own class [n], the others [n, K−1].

    The others in no particular order: the last class takes the place of the row's own, which is
    several times faster than to close the gap.
    """
    scores = features.double() @ weight.T
    own = labels[:, None]
    positive = scores.gather(1, own).squeeze(1)
    return positive, scores.scatter_(1, own, scores[:, -1:].clone())[:, :-1]


def _split_scores(features: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of float64 scores W h [n, K]: each row's own class [n] and the others [n, K−1]."""
    scores = features.double() @ weight.T
    own = labels[:, None]
    others = torch.ones_like(scores, dtype=torch.bool).scatter_(1, own, False)
    return scores.gather(1, own).squeeze(1), scores[others].view(len(scores), -1)
