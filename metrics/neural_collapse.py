"""Neural collapse NC1–NC4 (Papyan, Han, Donoho, PNAS 2020; Li, Xiao, Shen, ICML 2025).

Everything is computed in float64 on the features' device, with memory bounded as in
metrics/class_means.py; no d×d matrix is formed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metrics.checks import (
    Numbers,
    as_tensor,
    check_classes,
    check_features,
    check_finite,
    check_weight,
    split_rows,
)
from metrics.class_means import ClassMeans, compute_class_means
from metrics.features import Features
from metrics.scores import ScoreStatistics
from utils.world import ALONE, World


@torch.no_grad()
def compute_neural_collapse(
    features: Features | Numbers,
    labels: Numbers,
    weight: Numbers,
    bias: Numbers | None = None,
    num_classes: int | None = None,
    means: ClassMeans | None = None,
    statistics: ScoreStatistics | None = None,
    world: World = ALONE,
) -> dict[str, float]:
    """Compute NC1, NC2 (of the classifier and of the class means), NC3 and NC4: 0 at collapse.

    Arrays may be tensors, NumPy arrays or nested lists.

    Args:
        features: [N, d], any float dtype, or `HostFeatures`.
        labels: integer [N], from 0 to K−1, every class present.
        weight: [K, d], the classifier's, K ≥ 2.
        bias: [K], **subtracted**: logits are W h − b. None is 0.
        num_classes: K, only checked against the weight's.
        means: those of the features, if they were computed before.
        statistics: get the decision scores W h, which NC4 needs anyway.
        world: the processes that share the samples; this one has N of them, or none. All get the
            results, or the error, of all samples.

    Returns:
        Five numbers by name. The formulas are those of Zhu et al. (NeurIPS 2021), with M [d, K]
        the class means minus their mean h̄:
        nc1: tr(Σ_W Σ_B⁺)/K ≥ 0, along the (at most K−1) independent directions of the class means.
            Σ_B⁺ is 0 in a direction in which the class means differ by no more than rounding
            (`ClassMeans`). There are such directions if d < K−1 or if two class means are equal.
            If all class means are equal, nc1 is infinite, or 0 if all features are equal too.
        nc2: ‖G/‖G‖_F − (I − 11ᵀ/K)/√(K−1)‖_F for G = W Wᵀ; W is not centred.
        nc2_h: the same for G = MᵀM.
        nc3: the same for G = W M.
            These three are NaN where G is 0: W is 0, or all class means are equal.
        nc4: the share of samples, in [0, 1], for which the classifier's class (the first of equal
            logits) is not the class of the nearest mean. If several class means are equally near,
            to float64 rounding, the classifier decides between them.

    Raises:
        ValueError: shapes do not match, labels are not integers from 0 to K−1, a class has no
            samples, K < 2, or values are not finite. The message names what is wrong.
    """
    features, labels = as_tensor(features, "features"), as_tensor(labels, "labels")
    check_features(features, labels, world)
    weight, bias = _check_classifier(features, as_tensor(weight, "weight"), bias, num_classes)
    labels = check_classes(labels, len(weight), features.device, world)
    means = means or compute_class_means(features, labels, len(weight), world)
    nc1, nc4 = _compute_nc1_and_nc4(features, labels, means, weight, bias, statistics, world)
    return {
        "nc1": nc1,
        "nc2": _measure_distance_to_simplex(weight @ weight.T),
        "nc2_h": _measure_distance_to_simplex(means.offsets @ means.offsets.T),
        "nc3": _measure_distance_to_simplex(weight @ means.offsets.T),
        "nc4": nc4,
    }


def _compute_nc1_and_nc4(
    features: Features,
    labels: Tensor,
    means: ClassMeans,
    weight: Tensor,
    bias: Tensor,
    statistics: ScoreStatistics | None,
    world: World,
) -> tuple[float, float]:
    """Compute NC1 and NC4 in one pass over the features, whose scores `statistics` get.

    With M = U S Vᵀ (`means.span` is U and S) and Σ_B = M Mᵀ/K,
    NC1 = (1/N) Σ_i ‖S⁻¹ Uᵀ (h_i − h̄_y)‖²: the K of the formula and that of Σ_B cancel. U and S are
    of M itself, not of its Gram matrix, whose condition number is the square. The distances to the
    class means differ between classes only within the span of M: projections are enough for them.
    """
    directions, scales = means.span
    if len(scales) == 0:
        if statistics is not None:
            statistics.add_features(features, labels, weight)
        return _compute_nc1_without_directions(features, labels, means, world), 0.0
    centres = means.relative @ directions
    sums = means.reference.new_zeros(2)
    whitened, wrong = sums.unbind()
    for rows in split_rows(features, len(weight)):
        part = features[rows]
        projections = (part - means.reference) @ directions
        deviations = projections - centres[labels[rows]]
        whitened += deviations.div_(scales).square_().sum()
        # From the features themselves: logits of features that are 0 stay equal.
        scores = part.double() @ weight.T
        predicted = (scores - bias).argmax(dim=1)
        if statistics is not None:
            statistics.add(scores, labels[rows])
        wrong += (~_is_nearest(predicted, projections, centres, means)).sum()
    whitened_sum, wrong_count = world.total(sums).tolist()
    return whitened_sum / means.num_samples, wrong_count / means.num_samples


def _compute_nc1_without_directions(
    features: Features, labels: Tensor, means: ClassMeans, world: World
) -> float:
    """Compute NC1 for equal class means: 0 if all features are equal too, else infinity."""
    # Two numbers, as `_compute_nc1_and_nc4` exchanges: processes on machines that round in another
    # way might disagree about which of the two functions is called, but not wait for each other.
    sums = means.reference.new_zeros(2)
    for rows in split_rows(features):
        deviations = (features[rows] - means.reference).sub_(means.relative[labels[rows]])
        sums[0] += deviations.square_().sum()
    scatter = world.total(sums)[0].item()
    return math.inf if math.sqrt(scatter / means.num_samples) > means.rounding else 0.0


def _is_nearest(classes: Tensor, points: Tensor, centres: Tensor, means: ClassMeans) -> Tensor:
    """Return whether no centre [K, R] is nearer to a point [n, R] than the one of its class [n].

    ‖p − c‖² − ‖p‖² = ‖c‖² − 2 p·c is compared, to the rounding that points and centres carry:
    `means.rounding` in each, times the length of the other.
    """
    squares = centres.square().sum(dim=1)
    distances = torch.addmm(squares, points, centres.T, alpha=-2)
    chosen = distances.gather(1, classes[:, None]).squeeze(1)
    lengths = torch.linalg.vector_norm(points, dim=1) + squares.max().sqrt()
    return chosen - distances.amin(dim=1) <= 4 * means.rounding * lengths


def _measure_distance_to_simplex(gram: Tensor) -> float:
    """Return ‖G/‖G‖_F − (I − 11ᵀ/K)/√(K−1)‖_F for G [K, K]; NaN where G is 0."""
    size = len(gram)
    simplex = (torch.eye(size).to(gram) - 1 / size) / math.sqrt(size - 1)
    return torch.linalg.matrix_norm(gram / torch.linalg.matrix_norm(gram) - simplex).item()


def _check_classifier(
    features: Features, weight: Tensor, bias: Numbers | None, num_classes: int | None
) -> tuple[Tensor, Tensor]:
    """Return weight and bias in float64 on the features' device, if they fit all arguments."""
    check_weight(weight, features)
    classes = len(weight)
    if num_classes not in (None, classes):
        raise ValueError(f"weight has {classes} classes, num_classes is {num_classes}")
    bias = torch.zeros(classes) if bias is None else as_tensor(bias, "bias")
    if bias.shape != (classes,):
        raise ValueError(f"bias must be [{classes}], not {list(bias.shape)}")
    check_finite("bias", bias[:, None])
    device = features.device
    return weight.to(device, torch.float64), bias.to(device, torch.float64)
