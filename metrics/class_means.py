"""The class means of features in float64, and how far they can be trusted.

The features are converted chunk by chunk, so that memory beyond them is bounded by the chunks and
by a few [K, d] matrices. A reference point near the features is subtracted before anything is
summed: features far from 0 lose no accuracy. Where several processes share the samples, it is the
same for all, and they exchange these sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from metrics.checks import (
    Numbers,
    as_tensor,
    check_classes,
    check_features,
    check_finite,
    count_classes,
    split_rows,
)
from metrics.features import Features
from metrics.sums import add_up, average_rows
from utils.world import ALONE, World

EPSILON = torch.finfo(torch.float64).eps
# Up to this many classes the SVD of a GPU's class means is computed on the CPU. cuSOLVER launches
# many small kernels for it and waits between them, while a [512, d] matrix takes LAPACK well below
# a second. The bound follows from this and was not measured.
HOST_SVD_CLASSES = 512


@dataclass
class ClassMeans:
    """The class means of features [N, d], all float64.

    Attributes:
        reference: [d], a point near the features.
        relative: [K, d], the class means minus the reference.
        centred: [K, d], the class means minus their mean h̄: the transpose of the matrix M.
        counts: [K], samples of each class, on all processes.
        rounding: the singular value of M up to which it is float64 rounding of the sums:
            ε (max(d, K) + √N) √K · the features' root mean square length.
        resolution: the same for all rounding: the larger of `rounding` and of the spectral norm to
            expect from rounding the features to their own dtype. That rounding is averaged over the
            samples of each class.
    """

    reference: Tensor
    relative: Tensor
    centred: Tensor
    counts: Tensor
    rounding: float
    resolution: float

    @cached_property
    def num_samples(self) -> int:
        """N, the samples of all classes, on all processes."""
        return int(self.counts.sum())

    @cached_property
    def span(self) -> tuple[Tensor, Tensor]:
        """The left singular vectors [d, R] of M and its R singular values above `resolution`.

        M has at most K−1 directions: the K-th singular value is rounding, whatever it is.
        """
        matrix = self.centred.cpu() if len(self.centred) <= HOST_SVD_CLASSES else self.centred
        _, scales, directions = torch.linalg.svd(matrix, full_matrices=False)
        scales = scales[: len(matrix) - 1]
        rank = int((scales > self.resolution).sum())
        device = self.centred.device
        return directions[:rank].T.contiguous().to(device), scales[:rank].to(device)

    @property
    def offsets(self) -> Tensor:
        """`centred` [K, d], or zeros if all class means are equal, to rounding: if R is 0."""
        return self.centred if len(self.span[1]) else torch.zeros_like(self.centred)


def prepare_features(
    features: Features | Numbers,
    labels: Numbers,
    num_classes: int | None,
    means: ClassMeans | None,
    world: World = ALONE,
) -> tuple[Features, Tensor, ClassMeans]:
    """Return features [N, d], labels as int64 [N] on their device, and the class means.

    Args:
        features, labels: what a public function got, see `as_tensor`.
        num_classes: K; None: the largest label + 1.
        means: those of the features, if they were computed before.
        world: the processes that share the samples; this one has N of them.

    Raises ValueError if they are not sound, or a class from 0 to K−1 has no sample.
    """
    features, labels = as_tensor(features, "features"), as_tensor(labels, "labels")
    check_features(features, labels, world)
    num_classes = count_classes(labels, num_classes, world)
    labels = check_classes(labels, num_classes, features.device, world)
    means = means or compute_class_means(features, labels, num_classes, world)
    return features, labels, means


def compute_class_means(
    features: Features, labels: Tensor, num_classes: int, world: World = ALONE
) -> ClassMeans:
    """Compute the class means of features [N, d] of any float dtype.

    labels is int64 [N] on the features' device, with every class from 0 to K−1 (`check_classes`).
    Both are the samples of this process; the means are those of all processes of `world`.
    Raises ValueError if the features are not finite, or so large that their squares overflow.
    """
    counts = torch.bincount(labels, minlength=num_classes).double()
    # This is the mean of about 256 samples a process. Any point among the features would do.
    reference = average_rows(features[:: max(1, len(features) // 256)].double(), world)
    sums = reference.new_zeros(num_classes, len(reference))
    squares = reference.new_zeros(())
    for rows in split_rows(features):
        shifted = features[rows] - reference
        sums.index_add_(0, labels[rows], shifted)
        squares += torch.dot(shifted.flatten(), shifted.flatten())
    counts, sums, squares = add_up(world, counts, sums, squares)
    if not torch.isfinite(squares):
        world.check(partial(check_finite, "features", features, world))
        raise ValueError("features are too large: their squares overflow float64")
    relative = sums / counts[:, None]
    centred = relative - relative.mean(dim=0)
    count = int(counts.sum())
    length = math.sqrt(squares.item() / count + reference.square().sum().item())
    rounding, resolution = _estimate_resolution(length, count, counts, features)
    return ClassMeans(reference, relative, centred, counts, rounding, resolution)


def _estimate_resolution(
    length: float, count: int, counts: Tensor, features: Features
) -> tuple[float, float]:
    """Estimate `rounding` and `resolution` of `ClassMeans` for N features of RMS `length`."""
    dim, num_classes = features.shape[1], len(counts)
    rounding = EPSILON * (max(dim, num_classes) + math.sqrt(count)) * math.sqrt(num_classes)
    # An entry x is rounded by at most ε|x|/2, evenly: a standard deviation of ε|x|/√12. A d×K
    # matrix of independent entries of standard deviation σ has the norm σ(√d + √K).
    entry = torch.finfo(features.dtype).eps / math.sqrt(12 * dim)
    averaged = entry * counts.reciprocal().mean().sqrt().item()
    inputs = averaged * (math.sqrt(dim) + math.sqrt(num_classes))
    return length * rounding, length * max(rounding, inputs)
