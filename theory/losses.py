"""The losses whose exact minimum is known, by name.

All have the form L(z, t) = A(z) − t·z plus a number that depends on the targets t alone, with a
convex function A of the logits. So their gradient in the logits is ∇A(z) − t.

For the samples of one group of classes all logits but one repeat (see theory/groups.py). The
functions of groups take the logits of G groups of samples: `own` [G], of a sample's own class, and
`others` [G, G], where column h holds the logits of a sample of group h for the other classes of
each group. `copies` [G, G] says how many classes share each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy.special import expit, logsumexp

Pair: TypeAlias = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class ExactLoss:
    """A loss whose exact minimum is known.

    Attributes:
        evaluate: maps logits [N, K] to A of each sample, [N], and its gradient [N, K].
        evaluate_groups: maps (own, others, copies) to A of each group's samples [G], and its
            gradients in `own` and in `others`; those of copies are added up.
        curve_groups: maps (own, others, copies, direction of own, direction of others) to the
            Hessian of A times the direction, as a pair like the gradients.
        adds_squares: whether the loss also contains ½ ‖t‖².
    """

    evaluate: Callable[[np.ndarray], Pair]
    evaluate_groups: Callable[
        [np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]
    ]
    curve_groups: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], Pair]
    adds_squares: bool = False


def evaluate_cross_entropy(logits: np.ndarray) -> Pair:
    """Return A(z) = ln Σ_k exp(z_k) of each sample, and the softmax."""
    logs = logsumexp(logits, axis=1, keepdims=True)
    return logs[:, 0], np.exp(logits - logs)


def evaluate_binary_cross_entropy(logits: np.ndarray) -> Pair:
    """Return A(z) = Σ_k ln(1 + exp(z_k)) of each sample, and the sigmoids."""
    return np.logaddexp(0, logits).sum(axis=1), expit(logits)


def evaluate_squared_error(logits: np.ndarray) -> Pair:
    """Return A(z) = ½ Σ_k z_k² of each sample, and the logits."""
    return (logits**2).sum(axis=1) / 2, logits


def _evaluate_ce_groups(
    own: np.ndarray, others: np.ndarray, copies: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    largest = np.maximum(own, others.max(axis=0))
    own_share = np.exp(own - largest)
    other_shares = copies * np.exp(others - largest)
    total = own_share + other_shares.sum(axis=0)
    return largest + np.log(total), own_share / total, other_shares / total


def _curve_ce_groups(
    own: np.ndarray,
    others: np.ndarray,
    copies: np.ndarray,
    to_own: np.ndarray,
    to_others: np.ndarray,
) -> Pair:
    _, own_share, other_shares = _evaluate_ce_groups(own, others, copies)
    mean = own_share * to_own + (other_shares * to_others).sum(axis=0)
    return own_share * (to_own - mean), other_shares * (to_others - mean)


def _evaluate_bce_groups(
    own: np.ndarray, others: np.ndarray, copies: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = np.logaddexp(0, own) + (copies * np.logaddexp(0, others)).sum(axis=0)
    return values, expit(own), copies * expit(others)


def _curve_bce_groups(
    own: np.ndarray,
    others: np.ndarray,
    copies: np.ndarray,
    to_own: np.ndarray,
    to_others: np.ndarray,
) -> Pair:
    return (
        expit(own) * expit(-own) * to_own,
        copies * expit(others) * expit(-others) * to_others,
    )


def _evaluate_mse_groups(
    own: np.ndarray, others: np.ndarray, copies: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = (own**2 + (copies * others**2).sum(axis=0)) / 2
    return values, own, copies * others


def _curve_mse_groups(
    own: np.ndarray,
    others: np.ndarray,
    copies: np.ndarray,
    to_own: np.ndarray,
    to_others: np.ndarray,
) -> Pair:
    return to_own, copies * to_others


EXACT_LOSSES = {
    "CE": ExactLoss(evaluate_cross_entropy, _evaluate_ce_groups, _curve_ce_groups),
    "BCE": ExactLoss(evaluate_binary_cross_entropy, _evaluate_bce_groups, _curve_bce_groups),
    "MSE": ExactLoss(
        evaluate_squared_error, _evaluate_mse_groups, _curve_mse_groups, adds_squares=True
    ),
}
