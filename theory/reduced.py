"""The minimum of problem (1) as a problem in three numbers: amplitude a, bias b and shift s.

At the minimum every sample has the scores a − s for its own class and −a/(K−1) − s for the others,
and every class has the bias b (docs/theory.md). Weights and features then cost κ (a + |s|) with
κ = K √(n λ_W λ_H); λ_b K b²/2 is the price of the bias.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import expit

PRECISION = 1e-14  # relative and absolute error of the roots


def solve_cross_entropy(
    num_classes: int, coupling: float, weight_decay_bias: float
) -> tuple[float, float | None, float]:
    """Return the minimising amplitude, bias and shift of CE.

    a = x (K−1)/K with x = −ln(κ/(K − κ(K−1))), and 0 from κ = 1 on. The shift is 0.

    Args:
        num_classes: K ≥ 2.
        coupling: √(n λ_W λ_H) > 0.
        weight_decay_bias: λ_b ≥ 0. The bias is None without it: any common value is a minimum.
    """
    cost = num_classes * coupling
    bias = 0.0 if weight_decay_bias > 0 else None
    if cost >= 1:
        return 0.0, bias, 0.0
    difference = -math.log(cost / (num_classes - cost * (num_classes - 1)))
    return difference * (num_classes - 1) / num_classes, bias, 0.0


def solve_binary_cross_entropy(
    num_classes: int, coupling: float, weight_decay_bias: float
) -> tuple[float, float | None, float]:
    """Return the minimising amplitude, bias and shift of BCE. Arguments as in CE's."""
    cost = num_classes * coupling
    amplitude, offset = solve_offset(num_classes, cost, weight_decay_bias, shift_allowed=True)
    bias = _clip(offset, coupling / weight_decay_bias) if weight_decay_bias > 0 else offset
    return amplitude, bias, offset - bias


def solve_offset(
    num_classes: int, cost: float, weight_decay_bias: float, *, shift_allowed: bool
) -> tuple[float, float]:
    """Return BCE's minimising amplitude a ≥ 0 and offset u = b + s.

    Apart from their price, b and s enter the objective only as u. The least price of a u is
    λ_b K b²/2 at b = u while that is cheaper than a shift. It rises by κ per unit from there. The
    rest is convex in (a, u). For each a, u is the root of the slope in u. The slope in a, taken
    along these u, rises in a.

    Args:
        num_classes: K ≥ 2.
        cost: κ > 0.
        weight_decay_bias: λ_b ≥ 0.
        shift_allowed: False for s = 0, the point of the paper's Theorem 2.
    """
    if cost >= 1:
        return 0.0, _solve_offset_at(0.0, num_classes, cost, weight_decay_bias, shift_allowed)

    def compute_slope(amplitude: float) -> float:
        offset = _solve_offset_at(amplitude, num_classes, cost, weight_decay_bias, shift_allowed)
        wrong = expit(offset - amplitude) + expit(-amplitude / (num_classes - 1) - offset)
        return cost - wrong

    upper = 1.0
    while compute_slope(upper) < 0:
        upper *= 2
    amplitude = brentq(compute_slope, 0.0, upper, xtol=PRECISION, rtol=4 * PRECISION)
    return amplitude, _solve_offset_at(
        amplitude, num_classes, cost, weight_decay_bias, shift_allowed
    )


def compute_bias_slope(
    bias: float, num_classes: int, amplitude: float, weight_decay_bias: float
) -> float:
    """Return K times left minus right of Theorem 2's equation (2): BCE's slope in b."""
    pull = expit(bias - amplitude) - (num_classes - 1) * expit(
        -amplitude / (num_classes - 1) - bias
    )
    return pull + weight_decay_bias * num_classes * bias


def _solve_offset_at(
    amplitude: float, num_classes: int, cost: float, weight_decay_bias: float, shift_allowed: bool
) -> float:
    """Return the best u for an amplitude: the root of a rising function of u."""

    def compute_slope(offset: float) -> float:
        pull = compute_bias_slope(offset, num_classes, amplitude, 0.0)
        price = weight_decay_bias * num_classes * offset
        return pull + (_clip(price, cost) if shift_allowed else price)

    low, high = -1.0, 1.0
    while compute_slope(low) > 0:
        low *= 2
    while compute_slope(high) < 0:
        high *= 2
    return brentq(compute_slope, low, high, xtol=PRECISION, rtol=4 * PRECISION)


def _clip(value: float, bound: float) -> float:
    return max(-bound, min(bound, value))
