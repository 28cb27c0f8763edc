"""Neural collapse NC1–NC4 (paper, section 2) and the properties of features (section 3).

Everything is computed in float64 on the features' device. The features themselves are converted
chunk by chunk, so that memory beyond them is bounded by the chunks and by a few [K, d] matrices; no
d×d matrix is formed. A reference point near the features is subtracted before anything is summed:
features far from 0 lose no accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metrics.checks import check_features, check_finite, check_labels, check_weight, row_chunks

EPSILON = torch.finfo(torch.float64).eps


@torch.no_grad()
def neural_collapse(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    num_classes: int | None = None,
) -> dict[str, float]:
    """NC1, NC2 (of the classifier and of the class means), NC3 and NC4: 0 at collapse.

    Args:
        features: [N, d], any float dtype.
        labels: integer [N], from 0 to K−1, every class present.
        weight: [K, d], the classifier's, K ≥ 2.
        bias: [K], **subtracted**: logits are W h − b. None is 0.
        num_classes: K; only checked, for it is the weight's.

    Returns a dict of five numbers, after the paper's section 2, with M the class means centred on
    their mean h̄:
        nc1: tr(Σ_W Σ_B⁺)/K ≥ 0, along the (at most K−1) independent directions of the class means.
            A direction in which the class means differ by no more than rounding (`_ClassMeans`)
            counts as none: Σ_B⁺ is 0 there, as where d < K−1 or where two class means are equal.
            If all class means are equal it is infinite, or 0 if all features are equal too.
        nc2: ‖G/‖G‖_F − (I − 11ᵀ/K)/√(K−1)‖_F of G = W Wᵀ; W is not centred.
        nc2_h: the same of G = MᵀM.
        nc3: the same of G = W M.
            These three are NaN where G is 0: W is 0, or all class means are equal.
        nc4: the share of samples in [0, 1] whose class after the classifier (the first of equal
            logits) is not the one with the nearest class mean. Where several class means are
            equally near, to float64 rounding, the classifier's is taken.

    Raises ValueError that names what is wrong: shapes that do not match, labels that are not
    integers from 0 to K−1, a class without samples, K < 2, or values not finite.
    """
    check_features(features, labels)
    weight, bias = _checked_classifier(features, weight, bias, num_classes)
    labels = _checked_labels(labels, len(weight), features.device)
    means = _class_means(features, labels, len(weight))
    directions, scales = _between_class_directions(means)
    if len(scales) == 0:
        means.centred.zero_()
        nc1, nc4 = _nc1_without_directions(features, labels, means), 0.0
    else:
        nc1, nc4 = _nc1_and_nc4(features, labels, means, (directions, scales), weight, bias)
    return {
        "nc1": nc1,
        "nc2": _distance_to_simplex(weight @ weight.T),
        "nc2_h": _distance_to_simplex(means.centred @ means.centred.T),
        "nc3": _distance_to_simplex(weight @ means.centred.T),
        "nc4": nc4,
    }


@torch.no_grad()
def feature_properties(
    features: Tensor, labels: Tensor, num_classes: int | None = None
) -> dict[str, float]:
    """Compactness within the classes and distinctiveness between them.

    The project's own definitions (paper.md, section 3). Features are centred on h̄, the mean of the
    class means, and scaled to unit length; one at h̄, to float64 rounding, counts as the zero
    vector. With ū_k the mean of class k's unit vectors:
        compactness: (1/K) Σ_k ‖ū_k‖², the mean cosine of all pairs of a class; 1 at collapse.
        distinctiveness: 1 − (1/(K(K−1))) Σ_{j≠k} ū_j·ū_k; 1 + 1/(K−1) at a simplex ETF.

    features [N, d] of any float dtype; labels integer [N], every class from 0 to K−1 present;
    num_classes is K, by default the largest label + 1. Raises ValueError as `neural_collapse` does.
    """
    check_features(features, labels)
    if num_classes is None:
        num_classes = int(labels.max()) + 1
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; at least 2 are needed")
    labels = _checked_labels(labels, num_classes, features.device)
    unit_means = _mean_unit_vectors(features, labels, _class_means(features, labels, num_classes))
    own = unit_means.square().sum()
    # Σ_{j≠k} ū_j·ū_k without the K×K products: ‖Σ_k ū_k‖² − Σ_k ‖ū_k‖².
    others = unit_means.sum(dim=0).square().sum() - own
    return {
        "compactness": (own / num_classes).item(),
        "distinctiveness": (1 - others / (num_classes * (num_classes - 1))).item(),
    }


@dataclass
class _ClassMeans:
    """The class means of features [N, d], all float64.

    Attributes:
        reference: [d], a point near the features.
        relative: [K, d], the class means minus the reference.
        centred: [K, d], the class means minus their mean h̄: M of the paper, transposed.
        counts: [K], samples of each class.
        rounding: the singular value of M up to which it is float64 rounding of the sums:
            ε (max(d, K) + √N) √K · the features' root mean square length.
        resolution: the larger of that and of the spectral norm to expect of the rounding of the
            features to their own dtype, averaged over the samples of each class.
    """

    reference: Tensor
    relative: Tensor
    centred: Tensor
    counts: Tensor
    rounding: float
    resolution: float


def _class_means(features: Tensor, labels: Tensor, num_classes: int) -> _ClassMeans:
    counts = torch.bincount(labels, minlength=num_classes).double()
    # The mean of about 256 samples spread over all: any point among the features would do.
    reference = features[:: max(1, len(features) // 256)].double().mean(dim=0)
    sums = reference.new_zeros(num_classes, len(reference))
    squares = reference.new_zeros(())
    for rows in row_chunks(features):
        shifted = features[rows] - reference
        sums.index_add_(0, labels[rows], shifted)
        squares += torch.dot(shifted.flatten(), shifted.flatten())
    if not torch.isfinite(squares):
        check_finite("features", features)
        raise ValueError("features are too large: their squares overflow float64")
    relative = sums / counts[:, None]
    centred = relative - relative.mean(dim=0)
    length = math.sqrt(squares.item() / len(features) + reference.square().sum().item())
    rounding, resolution = _resolution(length, counts, features)
    return _ClassMeans(reference, relative, centred, counts, rounding, resolution)


def _resolution(length: float, counts: Tensor, features: Tensor) -> tuple[float, float]:
    """`rounding` and `resolution` of `_ClassMeans`, for features of root mean square `length`."""
    count, dim = features.shape
    num_classes = len(counts)
    rounding = EPSILON * (max(dim, num_classes) + math.sqrt(count)) * math.sqrt(num_classes)
    # An entry x is rounded by at most ε|x|/2, evenly: a standard deviation of ε|x|/√12. A d×K
    # matrix of independent entries of standard deviation σ has the norm σ(√d + √K).
    entry = torch.finfo(features.dtype).eps / math.sqrt(12 * dim)
    averaged = entry * counts.reciprocal().mean().sqrt().item()
    inputs = averaged * (math.sqrt(dim) + math.sqrt(num_classes))
    return length * rounding, length * max(rounding, inputs)


def _nc1_and_nc4(
    features: Tensor,
    labels: Tensor,
    means: _ClassMeans,
    span: tuple[Tensor, Tensor],
    weight: Tensor,
    bias: Tensor,
) -> tuple[float, float]:
    """NC1 and NC4 in one pass over the features.

    With M = U S Vᵀ (`span` is U and S) and Σ_B = M Mᵀ/K,
    NC1 = (1/N) Σ_i ‖S⁻¹ Uᵀ (h_i − h̄_y)‖²: the K of the formula and that of Σ_B cancel. U and S are
    of M itself, not of its Gram matrix, whose condition number is the square. The distances to
    class means differ between classes only within the span of M, so that they too need no more
    than projections.
    """
    directions, scales = span
    centres = means.relative @ directions
    whitened, wrong = means.reference.new_zeros(2).unbind()
    for rows in row_chunks(features, len(weight)):
        projections = (features[rows] - means.reference) @ directions
        deviations = projections - centres[labels[rows]]
        whitened += deviations.div_(scales).square_().sum()
        # Not of features minus the reference: equal logits, as of features that are 0, stay equal.
        predicted = (features[rows].double() @ weight.T).sub_(bias).argmax(dim=1)
        wrong += (~_is_nearest(predicted, projections, centres, means)).sum()
    return whitened.item() / len(features), wrong.item() / len(features)


def _nc1_without_directions(features: Tensor, labels: Tensor, means: _ClassMeans) -> float:
    """0 if all features are equal, to rounding, infinity otherwise."""
    scatter = means.reference.new_zeros(())
    for rows in row_chunks(features):
        deviations = (features[rows] - means.reference).sub_(means.relative[labels[rows]])
        scatter += deviations.square_().sum()
    return math.inf if math.sqrt(scatter.item() / len(features)) > means.rounding else 0.0


def _between_class_directions(means: _ClassMeans) -> tuple[Tensor, Tensor]:
    """The left singular vectors [d, R] of M and its singular values [R], R ≤ K−1 not rounding.

    M has at most K−1 directions, whatever the K-th singular value came out as.
    """
    _, scales, directions = torch.linalg.svd(means.centred, full_matrices=False)
    scales = scales[: len(means.centred) - 1]
    rank = int((scales > means.resolution).sum())
    return directions[:rank].T.contiguous(), scales[:rank]


def _is_nearest(classes: Tensor, points: Tensor, centres: Tensor, means: _ClassMeans) -> Tensor:
    """Whether no centre [K, R] is nearer to a point [n, R] than that of its class in `classes` [n].

    ‖p − c‖² − ‖p‖² = ‖c‖² − 2 p·c is compared, to the rounding that points and centres carry:
    `means.rounding` in each, times the length of the other.
    """
    squares = centres.square().sum(dim=1)
    distances = torch.addmm(squares, points, centres.T, alpha=-2)
    chosen = distances.gather(1, classes[:, None]).squeeze(1)
    lengths = torch.linalg.vector_norm(points, dim=1) + squares.max().sqrt()
    return chosen - distances.amin(dim=1) <= 4 * means.rounding * lengths


def _mean_unit_vectors(features: Tensor, labels: Tensor, means: _ClassMeans) -> Tensor:
    """The mean [K, d] of each class's features − h̄ scaled to unit length; one at h̄ counts as 0."""
    centre = means.reference + means.relative.mean(dim=0)
    sums = torch.zeros_like(means.relative)
    for rows in row_chunks(features):
        centred = features[rows] - centre
        lengths = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
        lengths.masked_fill_(lengths <= means.rounding, torch.inf)
        sums.index_add_(0, labels[rows], centred.div_(lengths))
    return sums / means.counts[:, None]


def _distance_to_simplex(gram: Tensor) -> float:
    """‖G/‖G‖_F − (I − 11ᵀ/K)/√(K−1)‖_F for G [K, K]; NaN where G is 0."""
    size = len(gram)
    simplex = (torch.eye(size).to(gram) - 1 / size) / math.sqrt(size - 1)
    return torch.linalg.matrix_norm(gram / torch.linalg.matrix_norm(gram) - simplex).item()


def _checked_classifier(
    features: Tensor, weight: Tensor, bias: Tensor | None, num_classes: int | None
) -> tuple[Tensor, Tensor]:
    """Weight and bias in float64 on the features' device, if they fit features and num_classes."""
    check_weight(weight, features)
    classes = len(weight)
    if num_classes not in (None, classes):
        raise ValueError(f"weight has {classes} classes, num_classes is {num_classes}")
    bias = torch.zeros(classes) if bias is None else bias
    if bias.shape != (classes,):
        raise ValueError(f"bias must be [{classes}], not {list(bias.shape)}")
    check_finite("bias", bias[:, None])
    double = {"device": features.device, "dtype": torch.float64}
    return weight.to(**double), bias.to(**double)


def _checked_labels(labels: Tensor, num_classes: int, device: torch.device) -> Tensor:
    """Labels as int64 on the device, if they are in range and leave no class empty."""
    check_labels(labels, num_classes)
    labels = labels.to(device, torch.int64)
    counts = torch.bincount(labels, minlength=num_classes)
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        some = ", ".join(map(str, empty[:5])) + (", …" if len(empty) > 5 else "")
        raise ValueError(f"labels: no samples of class {some} (of {num_classes} classes)")
    return labels
