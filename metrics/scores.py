"""Decision scores from features, and their statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metrics.checks import Numbers, as_tensor, check_score_inputs, split_rows
from metrics.features import Features
from utils.world import ALONE, World


@torch.no_grad()
def compute_decision_scores(
    features: Features | Numbers, labels: Numbers, weight: Numbers
) -> tuple[Tensor, Tensor]:
    """Compute the scores W h of every sample, split by its label (Li, Xiao, Shen, ICML 2025).

    The bias is not subtracted. The results take 8·N·K bytes, and memory beyond them is bounded by
    chunks. `compute_score_statistics` summarises the scores without holding them. Arrays may be
    tensors, NumPy arrays or nested lists.

    Args:
        features: [N, d], any float dtype, or `HostFeatures`.
        labels: integer [N].
        weight: [K, d], any float dtype.

    Returns:
        Float64 tensors on the features' device: positive [N], w_y·h, and negative [N, K−1], w_j·h
        for j ≠ y in the order of the classes.

    Raises:
        ValueError: shapes do not match, labels are not integers from 0 to K−1, or features or
            weight are not finite.
    """
    features, labels, weight = check_score_inputs(features, labels, weight)
    count, num_classes = len(features), len(weight)
    positive = weight.new_empty(count)
    negative = weight.new_empty(count, num_classes - 1)
    for rows in split_rows(features, num_classes):
        positive[rows], negative[rows] = _split_scores(features[rows], labels[rows], weight)
    return positive, negative


@torch.no_grad()
def compute_score_statistics(
    features: Features | Numbers, labels: Numbers, weight: Numbers, world: World = ALONE
) -> dict[str, float]:
    """Compute mean, population standard deviation, minimum and maximum of the decision scores.

    The arguments and the errors are those of `compute_decision_scores`; `world` is that of
    `metrics.neural_collapse.compute_neural_collapse`. The keys are positive_mean, positive_std,
    positive_min, positive_max, and the same with negative. Computed in float64, chunk by chunk: the
    N·K scores are never held.
    """
    features, labels, weight = check_score_inputs(features, labels, weight, world)
    statistics = ScoreStatistics()
    statistics.add_features(features, labels, weight)
    return statistics.describe(world)


def compute_bias_statistics(bias: Numbers) -> dict[str, float]:
    """Compute bias_mean, bias_std (population), bias_min and bias_max of the biases [K]."""
    bias = as_tensor(bias, "bias").double()
    return {
        "bias_mean": bias.mean().item(),
        "bias_std": bias.std(correction=0).item(),
        "bias_min": bias.min().item(),
        "bias_max": bias.max().item(),
    }


@dataclass
class ScoreSummary:
    """Running count, mean, sum of squared deviations, minimum and maximum of float64 values."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    min: float = math.inf
    max: float = -math.inf

    def add(self, values: Tensor) -> None:
        """Add the values of a tensor of any shape that is not empty.

        Each chunk is summed about its own mean and merged by the rule of Chan, Golub and LeVeque
        (1979). A mean far from 0 costs no accuracy, as it would in Σx² − (Σx)²/n.
        """
        mean = values.mean()
        squares = (values - mean).square_().sum().item()
        low, high = (bound.item() for bound in values.aminmax())
        self.merge(ScoreSummary(values.numel(), mean.item(), squares, low, high))

    def merge(self, other: ScoreSummary) -> None:
        """Add the values that another one summarises."""
        if other.count == 0:
            return
        total = self.count + other.count
        step = other.mean - self.mean
        self.squares += other.squares + step * step * self.count * other.count / total
        self.mean += step * other.count / total
        self.count = total
        self.min, self.max = min(self.min, other.min), max(self.max, other.max)

    def describe(self, name: str) -> dict[str, float]:
        """Return `name`_mean, _std (population), _min and _max of all values so far."""
        values = {"mean": self.mean, "std": math.sqrt(self.squares / self.count)}
        values |= {"min": self.min, "max": self.max}
        return {f"{name}_{key}": value for key, value in values.items()}


class ScoreStatistics:
    """Running statistics of positive and of negative scores."""

    def __init__(self) -> None:
        self._positive, self._negative = ScoreSummary(), ScoreSummary()

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Add scores W h, float64 [n, K], which are overwritten, of labels int64 [n]."""
        own, others = split_unordered(scores, labels)
        self._positive.add(own)
        self._negative.add(others)

    def add_features(self, features: Features, labels: Tensor, weight: Tensor) -> None:
        """Add the scores of features [N, d], labels int64 [N] and a float64 weight [K, d]."""
        for rows in split_rows(features, len(weight)):
            self.add(features[rows].double() @ weight.T, labels[rows])

    def merge(self, other: ScoreStatistics) -> None:
        """Add the scores that another one summarises."""
        self._positive.merge(other._positive)
        self._negative.merge(other._negative)

    def describe(self, world: World = ALONE) -> dict[str, float]:
        """Return what `compute_score_statistics` does, of all processes' scores so far."""
        first, *others = world.gather(self)
        for other in others:
            first.merge(other)
        return first._positive.describe("positive") | first._negative.describe("negative")


def compute_unordered_scores(
    features: Tensor, labels: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute float64 scores W h of checked inputs, and split them as `split_unordered` does."""
    return split_unordered(features.double() @ weight.T, labels)


def split_unordered(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Split scores [n, K], which are overwritten: each row's own class [n], the others [n, K−1].

    The others are in no particular order: the last class takes the place of the row's own, which
    is several times faster than to close the gap.
    """
    own = labels[:, None]
    positive = scores.gather(1, own).squeeze(1)
    return positive, scores.scatter_(1, own, scores[:, -1:].clone())[:, :-1]


def _split_scores(features: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Split float64 scores W h [n, K] into each row's own class [n] and the others [n, K−1]."""
    scores = features.double() @ weight.T
    own = labels[:, None]
    others = torch.ones_like(scores, dtype=torch.bool).scatter_(1, own, False)
    return scores.gather(1, own).squeeze(1), scores[others].view(len(scores), -1)
