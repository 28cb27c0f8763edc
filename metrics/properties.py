"""Properties of features: compactness within the classes and distinctiveness between them."""

from __future__ import annotations

import torch
from torch import Tensor

from metrics.checks import check_classes, check_features, split_rows
from metrics.class_means import ClassMeans, compute_class_means
from metrics.features import Features


@torch.no_grad()
def compute_feature_properties(
    features: Features, labels: Tensor, num_classes: int | None = None
) -> dict[str, float]:
    """Compute compactness and distinctiveness, after this project's own definitions.

    Features are centred on h̄, the mean of the class means, and scaled to unit length; one at h̄, to
    float64 rounding, counts as the zero vector. With ū_k the mean of class k's unit vectors:
        compactness: (1/K) Σ_k ‖ū_k‖², the mean cosine of all pairs of a class; 1 at collapse.
        distinctiveness: 1 − (1/(K(K−1))) Σ_{j≠k} ū_j·ū_k; 1 + 1/(K−1) at a simplex ETF.

    Args:
        features: [N, d], any float dtype, or `HostFeatures`.
        labels: integer [N], every class from 0 to K−1 present.
        num_classes: K; by default the largest label + 1.

    Raises:
        ValueError: as `metrics.neural_collapse.compute_neural_collapse`.
    """
    check_features(features, labels)
    if num_classes is None:
        num_classes = int(labels.max()) + 1
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; at least 2 are needed")
    labels = check_classes(labels, num_classes, features.device)
    means = compute_class_means(features, labels, num_classes)
    unit_means = _average_unit_vectors(features, labels, means)
    own = unit_means.square().sum()
    # Σ_{j≠k} ū_j·ū_k without the K×K products: ‖Σ_k ū_k‖² − Σ_k ‖ū_k‖².
    others = unit_means.sum(dim=0).square().sum() - own
    return {
        "compactness": (own / num_classes).item(),
        "distinctiveness": (1 - others / (num_classes * (num_classes - 1))).item(),
    }


def _average_unit_vectors(features: Features, labels: Tensor, means: ClassMeans) -> Tensor:
    """Return the mean [K, d] of each class's features − h̄ at unit length; one at h̄ is 0."""
    centre = means.reference + means.relative.mean(dim=0)
    sums = torch.zeros_like(means.relative)
    for rows in split_rows(features):
        centred = features[rows] - centre
        lengths = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
        lengths.masked_fill_(lengths <= means.rounding, torch.inf)
        sums.index_add_(0, labels[rows], centred.div_(lengths))
    return sums / means.counts[:, None]
