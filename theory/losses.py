"""The losses whose exact minimum is known, by name.

Both have the form L(z, y) = A(z) − z_y with a function A of the logits. The gradient of A is the
vector of predicted probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logsumexp

from theory.reduced import solve_binary_cross_entropy, solve_cross_entropy


@dataclass(frozen=True)
class ExactLoss:
    """A loss whose exact minimum is known.

    Attributes:
        evaluate: maps logits [N, K] to the sum of A over the samples and its gradient [N, K].
        evaluate_collapsed: maps K, the positive score, the negative score and the bias to the loss
            of a sample that has them.
        solve: maps K, √(n λ_W λ_H) and λ_b to the minimising amplitude, bias and shift. The bias is
            None if any common value is a minimum.
    """

    evaluate: Callable[[np.ndarray], tuple[float, np.ndarray]]
    evaluate_collapsed: Callable[[int, float, float, float], float]
    solve: Callable[[int, float, float], tuple[float, float | None, float]]


def evaluate_cross_entropy(logits: np.ndarray) -> tuple[float, np.ndarray]:
    """Return A(z) = ln Σ_k exp(z_k), summed over samples, and the softmax."""
    logs = logsumexp(logits, axis=1, keepdims=True)
    return logs.sum(), np.exp(logits - logs)


def evaluate_binary_cross_entropy(logits: np.ndarray) -> tuple[float, np.ndarray]:
    """Return A(z) = Σ_k ln(1 + exp(z_k)), summed over samples, and the sigmoids."""
    return np.logaddexp(0, logits).sum(), expit(logits)


def _evaluate_collapsed_cross_entropy(
    num_classes: int, positive_score: float, negative_score: float, bias: float
) -> float:
    return math.log1p((num_classes - 1) * math.exp(negative_score - positive_score))


def _evaluate_collapsed_binary_cross_entropy(
    num_classes: int, positive_score: float, negative_score: float, bias: float
) -> float:
    own = _compute_softplus(bias - positive_score)
    return own + (num_classes - 1) * _compute_softplus(negative_score - bias)


def _compute_softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


EXACT_LOSSES = {
    "CE": ExactLoss(evaluate_cross_entropy, _evaluate_collapsed_cross_entropy, solve_cross_entropy),
    "BCE": ExactLoss(
        evaluate_binary_cross_entropy,
        _evaluate_collapsed_binary_cross_entropy,
        solve_binary_cross_entropy,
    ),
}
