"""What the measures of collapse and of features are at a minimum, from its Gram matrices.

The definitions are those of metrics/neural_collapse.py and metrics/properties.py, for features that
coincide within each class.
"""

from __future__ import annotations

import math

import numpy as np

from theory.groups import Blocks

ROUNDING = 1e-7  # relative; smaller lengths and singular values are 0


def measure_distance_to_simplex(matrix: Blocks) -> float | None:
    """Return ‖G/‖G‖_F − (I − 11ᵀ/K)/√(K−1)‖_F; None where G is 0."""
    norm = matrix.norm()
    if norm == 0:
        return None
    num_classes, copies = matrix.copies.sum(), matrix.copies
    root = math.sqrt(num_classes - 1)
    within = np.where(copies > 1, matrix.within / norm - 1 / root, 0.0)
    simplex = np.diag(1 / copies) - 1 / num_classes
    return Blocks(copies, within, matrix.between / norm - simplex / root).norm()


def measure_collapse(
    scores: Blocks, weight_gram: Blocks, feature_gram: Blocks
) -> dict[str, float | None]:
    """Return NC1, NC2, NC2 of the class means, NC3, compactness and distinctiveness.

    Args:
        scores: Z = W [h_1 … h_K].
        weight_gram: W Wᵀ.
        feature_gram: [h_1 … h_K]ᵀ [h_1 … h_K].

    Returns:
        The values by name; None where class means coincide with their mean, so that there is none.
    """
    centred = feature_gram.centre().mirror().centre()
    largest = max(feature_gram.diagonal.max(), 0.0)
    if not centred.diagonal.max() > ROUNDING * largest:
        names = ("nc1", "nc2_h", "nc3", "compactness", "distinctiveness")
        return {"nc2": measure_distance_to_simplex(weight_gram), **dict.fromkeys(names)}
    return {
        "nc1": 0.0,
        "nc2": measure_distance_to_simplex(weight_gram),
        "nc2_h": measure_distance_to_simplex(centred),
        "nc3": measure_distance_to_simplex(scores.centre()),
        **_measure_directions(centred, largest),
    }


def _measure_directions(centred: Blocks, largest: float) -> dict[str, float | None]:
    """Return compactness and distinctiveness; None if a class mean is at the centre.

    It has no direction there, but every sample near it has one.
    """
    squares, copies = centred.diagonal, centred.copies
    if not (squares > ROUNDING * largest).all():
        return {"compactness": None, "distinctiveness": None}
    cosines = centred.scale(1 / np.sqrt(squares), 1 / np.sqrt(squares))
    num_classes = copies.sum()
    others = (copies[:, None] * cosines.between * copies).sum() - num_classes
    return {
        "compactness": 1.0,
        "distinctiveness": float(1 - others / (num_classes * (num_classes - 1))),
    }


def count_rank(scores: Blocks, roots: np.ndarray) -> int:
    """Count the dimensions that W and the features need: the rank of Z diag(√n_k), at least 1.

    Args:
        scores: Z.
        roots: √n of each group, [G].
    """
    between = np.linalg.svd(scores.orthonormal() * roots, compute_uv=False)
    within = np.abs(scores.within) * roots
    least = ROUNDING * max(between[0], within.max())
    if least == 0:
        return 1
    inside = ((scores.copies - 1) * (within > least)).sum()
    return max(1, int(inside) + int((between > least).sum()))
