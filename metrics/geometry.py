"""Lengths and angles of class means and classifier, and their distance from each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metrics.checks import Numbers, as_tensor, check_classes, check_features, check_weight
from metrics.class_means import ClassMeans, compute_class_means
from metrics.features import Features
from utils.world import ALONE, World


@torch.no_grad()
def compute_geometry(
    features: Features | Numbers,
    labels: Numbers,
    weight: Numbers,
    means: ClassMeans | None = None,
    world: World = ALONE,
) -> dict[str, float]:
    """Compute equinorm, equiangularity and self-duality (Papyan, Han, Donoho, PNAS 2020).

    All are 0 at collapse. The class means are taken minus their mean h̄: m_k, the columns of
    M [d, K]. The rows w_k of the classifier W [K, d] are not centred.
        equinorm_means, equinorm_classifier: the coefficient of variation std_k ‖v_k‖ / mean_k ‖v_k‖
            of the lengths of v = m and v = w. NaN if all are 0.
        equiangularity_means, equiangularity_classifier: the standard deviation of the cosines of
            all pairs v_j, v_k, j ≠ k.
        maximal_angle_means, maximal_angle_classifier: mean_{j≠k} |cos(v_j, v_k) + 1/(K−1)|, the
            distance of the cosines from those of a simplex ETF. This and the one before are NaN if
            a v_k is 0.
        self_duality: ‖W/‖W‖_F − Mᵀ/‖M‖_F‖_F, between 0 and 2; the paper shows its square. NaN if W
            or M is 0.
    Standard deviations are those of a population. A length that does not exceed the rounding of
    the features (`ClassMeans.resolution`) is 0.

    Arrays may be tensors, NumPy arrays or nested lists.

    Args:
        features: [N, d], any float dtype, or `HostFeatures`.
        labels: integer [N], from 0 to K−1, every class present.
        weight: [K, d], the classifier's, K ≥ 2.
        means: those of the features, if they were computed before.
        world: as for `metrics.neural_collapse.compute_neural_collapse`.

    Raises:
        ValueError: as `metrics.neural_collapse.compute_neural_collapse`.
    """
    features, labels = as_tensor(features, "features"), as_tensor(labels, "labels")
    weight = as_tensor(weight, "weight")
    check_features(features, labels, world)
    check_weight(weight, features)
    labels = check_classes(labels, len(weight), features.device, world)
    means = means or compute_class_means(features, labels, len(weight), world)
    weight, offsets = weight.to(features.device, torch.float64), means.offsets
    found = torch.stack(
        [
            *_measure_regularity(offsets, means.resolution),
            *_measure_regularity(weight, 0.0),
            torch.linalg.matrix_norm(_scale_to_unit(weight) - _scale_to_unit(offsets)),
        ]
    )
    names = [
        f"{measure}_{rows}"
        for rows in ("means", "classifier")
        for measure in ("equinorm", "equiangularity", "maximal_angle")
    ]
    return dict(zip([*names, "self_duality"], found.tolist(), strict=True))


def _measure_regularity(rows: Tensor, rounding: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compute equinorm, equiangularity and maximal angle of rows [K, d]."""
    lengths = torch.linalg.vector_norm(rows, dim=1)
    is_zero = lengths <= rounding
    lengths = lengths.masked_fill(is_zero, 0.0)
    units = rows / lengths.masked_fill(is_zero, math.nan)[:, None]
    others = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    cosines = (units @ units.T)[others]
    return (
        lengths.std(correction=0) / lengths.mean(),
        cosines.std(correction=0),
        (cosines + 1 / (len(rows) - 1)).abs().mean(),
    )


def _scale_to_unit(matrix: Tensor) -> Tensor:
    """Return a matrix divided by its Frobenius norm; NaN where it is 0."""
    return matrix / torch.linalg.matrix_norm(matrix)
