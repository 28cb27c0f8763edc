"""Properties of features: compactness within the classes and distinctiveness between them."""

from __future__ import annotations

import torch
from torch import Tensor

from metrics.checks import Numbers, split_rows
from metrics.class_means import ClassMeans, prepare_features
from metrics.features import Features
from utils.world import ALONE, World


@torch.no_grad()
def compute_feature_properties(
    features: Features | Numbers,
    labels: Numbers,
    num_classes: int | None = None,
    means: ClassMeans | None = None,
    world: World = ALONE,
) -> dict[str, float]:
    """Compute compactness and distinctiveness, after this project's own definitions.

    Features are centred on h̄, the mean of the class means, and scaled to unit length; one at h̄, to
    float64 rounding, counts as the zero vector. With ū_k the mean of class k's unit vectors:
        compactness: (1/K) Σ_k ‖ū_k‖², the mean cosine of all pairs of a class; 1 at collapse.
        distinctiveness: 1 − (1/(K(K−1))) Σ_{j≠k} ū_j·ū_k; 1 + 1/(K−1) at a simplex ETF.
    Arrays may be tensors, NumPy arrays or nested lists.

    Args:
        features: [N, d], any float dtype, or `HostFeatures`.
        labels: integer [N], every class from 0 to K−1 present.
        num_classes: K; by default the largest label + 1.
        means: those of the features, if they were computed before.
        world: as for `metrics.neural_collapse.compute_neural_collapse`.

    Raises:
        ValueError: as `metrics.neural_collapse.compute_neural_collapse`.
    """
    features, labels, means = prepare_features(features, labels, num_classes, means, world)
    num_classes = len(means.counts)
    unit_means = _average_unit_vectors(features, labels, means, world)
    own = unit_means.square().sum()
    # Σ_{j≠k} ū_j·ū_k without the K×K products: ‖Σ_k ū_k‖² − Σ_k ‖ū_k‖².
    others = unit_means.sum(dim=0).square().sum() - own
    return {
        "compactness": (own / num_classes).item(),
        "distinctiveness": (1 - others / (num_classes * (num_classes - 1))).item(),
    }


def _average_unit_vectors(
    features: Features, labels: Tensor, means: ClassMeans, world: World
) -> Tensor:
    """Return the mean [K, d] of each class's features − h̄ at unit length; one at h̄ is 0."""
    centre = means.reference + means.relative.mean(dim=0)
    sums = torch.zeros_like(means.relative)
    for rows in split_rows(features):
        centred = features[rows] - centre
        lengths = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
        lengths.masked_fill_(lengths <= means.rounding, torch.inf)
        sums.index_add_(0, labels[rows], centred.div_(lengths))
    return world.total(sums) / means.counts[:, None]
