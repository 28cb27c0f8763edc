"""The exact minimum of the unconstrained-feature model for classes of one size, in closed form.

Problem (1) of the paper (Li, Xiao, Shen, ICML 2025): K classes, n samples each, features h ∈ R^d,
classifier rows w_k, biases b, logits z = W h − b,

    min over W, H, b of  (1/N) Σ_i L(z_i, y_i) + λ_W/2 ‖W‖²_F + λ_H/2 ‖H‖²_F + λ_b/2 ‖b‖²

with L the cross-entropy or the binary cross-entropy summed over classes. docs/theory.md derives
the formulas. They hold for balanced classes and d ≥ K features (d ≥ K − 1 in the regime "etf").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from theory.problem import check_choice, check_decays, check_positive
from theory.reduced import (
    compute_bias_slope,
    solve_binary_cross_entropy,
    solve_cross_entropy,
    solve_offset,
)

SOLVERS = {"CE": solve_cross_entropy, "BCE": solve_binary_cross_entropy}


@dataclass(frozen=True)
class BalancedMinimum:
    """The minimum of problem (1).

    Attributes:
        loss: "CE" or "BCE".
        num_classes: K.
        positive_score: w_y·h of every sample, the bias not subtracted.
        negative_score: w_j·h of every sample, j ≠ y.
        bias: every entry of b; None where any common value is a minimum (CE without bias decay:
            the bias keeps its initial mean).
        common_shift: s; a direction common to all classes lowers every score by it.
        loss_value: the minimum, regularisation included.
        data_loss: the same without regularisation.
        weight_norm_squared: ‖W‖²_F.
        regime: "etf" where s = 0 (classifier and class means are simplex ETFs); "shifted" where
            the rows of W share a mean and only the class means are a simplex ETF.
        bias_separates: negative_score < bias < positive_score; None where the bias is None.
        min_feature_dim: the smallest d that this minimum needs: K in the regime "shifted", else
            K − 1; 1 where the features of all classes have collapsed into one (κ ≥ 1).
    """

    loss: str
    num_classes: int
    positive_score: float
    negative_score: float
    bias: float | None
    common_shift: float
    loss_value: float
    data_loss: float
    weight_norm_squared: float
    regime: str
    bias_separates: bool | None
    min_feature_dim: int


def find_balanced_minimum(
    loss: str,
    num_classes: int,
    samples_per_class: float,
    weight_decay: float,
    feature_decay_rate: float,
    weight_decay_bias: float,
) -> BalancedMinimum:
    """Return the exact minimum of problem (1).

    Args:
        loss: "CE" or "BCE".
        num_classes: K ≥ 2.
        samples_per_class: n > 0, of the N = nK samples that share one regularised objective. For
            mini-batches of B samples it is B/K and may be fractional.
        weight_decay: λ_W > 0.
        feature_decay_rate: λ_H > 0.
        weight_decay_bias: λ_b ≥ 0.

    Raises:
        ValueError: a value is out of its range; the message names it.
    """
    check_choice("loss", loss, tuple(SOLVERS))
    _check_sizes(num_classes, samples_per_class)
    check_decays(samples_per_class, weight_decay, feature_decay_rate, weight_decay_bias)
    coupling = math.sqrt(samples_per_class * weight_decay * feature_decay_rate)
    cost = num_classes * coupling  # κ, the price of a unit of amplitude or of shift
    amplitude, bias, shift = SOLVERS[loss](num_classes, coupling, weight_decay_bias)
    positive, negative = amplitude - shift, -amplitude / (num_classes - 1) - shift
    data_loss = _evaluate_loss(loss, num_classes, positive, negative, bias or 0.0)
    bias_price = weight_decay_bias * num_classes * (bias or 0.0) ** 2 / 2
    return BalancedMinimum(
        loss=loss,
        num_classes=num_classes,
        positive_score=positive,
        negative_score=negative,
        bias=bias,
        common_shift=shift,
        loss_value=data_loss + (cost * (amplitude + abs(shift)) + bias_price),
        data_loss=data_loss,
        # λ_W ‖W‖² and λ_H ‖H‖² are equal at the minimum, and their half sum is κ(a + |s|).
        weight_norm_squared=cost * (amplitude + abs(shift)) / weight_decay,
        regime="shifted" if shift else "etf",
        bias_separates=None if bias is None else negative < bias < positive,
        min_feature_dim=_count_dimensions(num_classes, amplitude, shift),
    )


def solve_theorem2(
    num_classes: int,
    samples_per_class: float,
    weight_decay: float,
    feature_decay_rate: float,
    weight_decay_bias: float,
) -> float:
    """Return the bias that the paper's Theorem 2, equation (2), gives for BCE.

    The b that solves λ_b b = (K−1)/(K(1+exp(b + a/(K−1)))) − 1/(K(1+exp(a−b))) at the best
    amplitude a without a common shift. It is the minimum's only where |b| ≤ √(n λ_W λ_H)/λ_b, the
    regime "etf" of `predict`. Arguments and errors are those of `predict`.
    """
    _check_sizes(num_classes, samples_per_class)
    check_decays(samples_per_class, weight_decay, feature_decay_rate, weight_decay_bias)
    cost = num_classes * math.sqrt(samples_per_class * weight_decay * feature_decay_rate)
    return solve_offset(num_classes, cost, weight_decay_bias, shift_allowed=False)[1]


def is_separated_by_theorem2(num_classes: int, amplitude: float, weight_decay_bias: float) -> bool:
    """Return whether the b of equation (2) lies between the scores −a/(K−1) and a: condition (3).

    The two sides of (2) cross once: the left side rises in b, the right side falls. Therefore b < a
    if the left side is larger at a, and b > −a/(K−1) if it is smaller at −a/(K−1).

    Args:
        num_classes: K ≥ 2.
        amplitude: a.
        weight_decay_bias: λ_b ≥ 0.

    Raises:
        ValueError: a value is out of its range; the message names it.
    """
    _check_sizes(num_classes, 1)
    check_decays(1, 1, 1, weight_decay_bias)
    negative = -amplitude / (num_classes - 1)
    return bool(
        compute_bias_slope(amplitude, num_classes, amplitude, weight_decay_bias) > 0
        and compute_bias_slope(negative, num_classes, amplitude, weight_decay_bias) < 0
    )


def _count_dimensions(num_classes: int, amplitude: float, shift: float) -> int:
    """Count the dimensions that the class means span: K − 1 of the ETF, one of the shift."""
    etf = num_classes - 1 if amplitude > 0 else 0
    return max(1, etf + (1 if shift else 0))


def _evaluate_loss(
    loss: str, num_classes: int, positive_score: float, negative_score: float, bias: float
) -> float:
    """Return the loss of a sample that has these scores."""
    if loss == "CE":
        return math.log1p((num_classes - 1) * math.exp(negative_score - positive_score))
    own = _compute_softplus(bias - positive_score)
    return own + (num_classes - 1) * _compute_softplus(negative_score - bias)


def _compute_softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _check_sizes(num_classes: int, samples_per_class: float) -> None:
    if not num_classes >= 2 or num_classes % 1:
        raise ValueError(f"num_classes is {num_classes}: it must be a whole number from 2 on")
    check_positive("samples_per_class", samples_per_class)
