"""The exact minimum of the unconstrained-feature model: what scores, bias and loss to expect.

Problem (1) of the paper: K classes, n samples each, features h ∈ R^d, classifier rows w_k, biases
b, logits z = W h − b,

    min over W, H, b of  (1/N) Σ_i L(z_i, y_i) + λ_W/2 ‖W‖²_F + λ_H/2 ‖H‖²_F + λ_b/2 ‖b‖²

with L the cross-entropy or the binary cross-entropy summed over classes. docs/theory.md derives
what is computed here. It holds for balanced classes and d ≥ K features (d ≥ K − 1 in the regime
"etf").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.special import expit

PRECISION = 1e-14  # of the roots, relative and absolute


@dataclass(frozen=True)
class Prediction:
    """The minimum of problem (1).

    Attributes:
        loss: "CE" or "BCE".
        num_classes: K.
        positive_score: w_y·h of every sample, the bias not subtracted.
        negative_score: w_j·h of every sample, j ≠ y.
        bias: every entry of b; None where any common value is a minimum (CE without bias decay:
            it keeps the mean it was initialised with).
        common_shift: s, by which a direction common to all classes lowers every score.
        loss_value: the minimum, regularisation included.
        data_loss: the same without regularisation.
        weight_norm_squared: ‖W‖²_F.
        regime: "etf" where s = 0 (classifier and class means are simplex ETFs); "shifted" where the
            rows of W share a mean and only the class means are one.
        bias_separates: negative_score < bias < positive_score; None where the bias is.
        min_feature_dim: the d from which on this is the minimum: K in the regime "shifted", else
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


def predict(
    loss: str,
    num_classes: int,
    samples_per_class: float,
    weight_decay: float,
    feature_decay: float,
    bias_decay: float,
) -> Prediction:
    """The exact minimum of problem (1) for `loss` "CE" or "BCE".

    Args:
        num_classes: K ≥ 2.
        samples_per_class: n > 0, of the N = nK samples that share one regularised objective. For
            mini-batches of B samples it is B/K and may be fractional.
        weight_decay, feature_decay: λ_W, λ_H > 0.
        bias_decay: λ_b ≥ 0.

    Raises:
        ValueError: a value out of its range, by its name.
    """
    _check(loss, num_classes, samples_per_class, weight_decay, feature_decay, bias_decay)
    coupling = math.sqrt(samples_per_class * weight_decay * feature_decay)
    cost = num_classes * coupling  # κ, the price of a unit of amplitude or of shift
    if loss == "CE":
        amplitude, shift = _ce_amplitude(num_classes, cost), 0.0
        bias = 0.0 if bias_decay > 0 else None
    else:
        amplitude, offset = _bce_minimum(num_classes, cost, bias_decay, shift_allowed=True)
        bias = _clip(offset, coupling / bias_decay) if bias_decay > 0 else offset
        shift = offset - bias
    positive, negative = amplitude - shift, -amplitude / (num_classes - 1) - shift
    data_loss = _data_loss(loss, num_classes, positive, negative, bias or 0.0)
    decay = cost * (amplitude + abs(shift)) + bias_decay * num_classes * (bias or 0.0) ** 2 / 2
    regime = "shifted" if shift else "etf"
    return Prediction(
        loss=loss,
        num_classes=num_classes,
        positive_score=positive,
        negative_score=negative,
        bias=bias,
        common_shift=shift,
        loss_value=data_loss + decay,
        data_loss=data_loss,
        # λ_W ‖W‖² and λ_H ‖H‖² are equal at the minimum, and their half sum is κ(a + |s|).
        weight_norm_squared=cost * (amplitude + abs(shift)) / weight_decay,
        regime=regime,
        bias_separates=None if bias is None else negative < bias < positive,
        min_feature_dim=_dimensions(num_classes, amplitude, shift),
    )


def theorem2_bias(
    num_classes: int,
    samples_per_class: float,
    weight_decay: float,
    feature_decay: float,
    bias_decay: float,
) -> float:
    """The bias that the paper's Theorem 2, equation (2), gives for BCE.

    The b that solves λ_b b = (K−1)/(K(1+exp(b + a/(K−1)))) − 1/(K(1+exp(a−b))) at the best
    amplitude a without a common shift. It is the minimum's only where |b| ≤ √(n λ_W λ_H)/λ_b, the
    regime "etf" of `predict`. Takes and raises what `predict` does.
    """
    _check("BCE", num_classes, samples_per_class, weight_decay, feature_decay, bias_decay)
    cost = num_classes * math.sqrt(samples_per_class * weight_decay * feature_decay)
    return _bce_minimum(num_classes, cost, bias_decay, shift_allowed=False)[1]


def theorem2_separates(num_classes: int, amplitude: float, bias_decay: float) -> bool:
    """Condition (3): whether the b of equation (2) lies between the scores −a/(K−1) and a.

    The two sides of (2) cross once, its left rising and its right falling in b; so b < a where the
    left is above the right at a, and b > −a/(K−1) where it is below it there.
    """
    _check("BCE", num_classes, 1, 1, 1, bias_decay)
    negative = -amplitude / (num_classes - 1)
    return bool(
        _bias_slope(amplitude, num_classes, amplitude, bias_decay) > 0
        and _bias_slope(negative, num_classes, amplitude, bias_decay) < 0
    )


def _bias_slope(bias: float, num_classes: int, amplitude: float, bias_decay: float) -> float:
    """K times left minus right of equation (2): the objective's slope in b."""
    pull = expit(bias - amplitude) - (num_classes - 1) * expit(
        -amplitude / (num_classes - 1) - bias
    )
    return pull + bias_decay * num_classes * bias


def _ce_amplitude(num_classes: int, cost: float) -> float:
    """a = x (K−1)/K with x = −ln(κ/(K − κ(K−1))); 0 from κ = 1 on."""
    if cost >= 1:
        return 0.0
    difference = -math.log(cost / (num_classes - cost * (num_classes - 1)))
    return difference * (num_classes - 1) / num_classes


def _bce_minimum(
    num_classes: int, cost: float, bias_decay: float, *, shift_allowed: bool
) -> tuple[float, float]:
    """The minimising amplitude a ≥ 0 and offset u = b + s.

    The objective depends on b and s through u but for their price, whose least for a given u is
    λ_b K b²/2 at b = u while that is cheaper than a shift, and rises by κ per unit from there.
    What is left is convex in (a, u): u solves its own slope for each a, and the slope in a, taken
    along these u, rises in a.
    """
    if cost >= 1:
        return 0.0, _offset(0.0, num_classes, cost, bias_decay, shift_allowed)

    def slope(amplitude: float) -> float:
        offset = _offset(amplitude, num_classes, cost, bias_decay, shift_allowed)
        wrong = expit(offset - amplitude) + expit(-amplitude / (num_classes - 1) - offset)
        return cost - wrong

    upper = 1.0
    while slope(upper) < 0:
        upper *= 2
    amplitude = brentq(slope, 0.0, upper, xtol=PRECISION, rtol=4 * PRECISION)
    return amplitude, _offset(amplitude, num_classes, cost, bias_decay, shift_allowed)


def _offset(
    amplitude: float, num_classes: int, cost: float, bias_decay: float, shift_allowed: bool
) -> float:
    """The best u for an amplitude: the root of a rising function of u."""

    def slope(offset: float) -> float:
        pull = _bias_slope(offset, num_classes, amplitude, 0.0)
        price = bias_decay * num_classes * offset
        return pull + (_clip(price, cost) if shift_allowed else price)

    low, high = -1.0, 1.0
    while slope(low) > 0:
        low *= 2
    while slope(high) < 0:
        high *= 2
    return brentq(slope, low, high, xtol=PRECISION, rtol=4 * PRECISION)


def _dimensions(num_classes: int, amplitude: float, shift: float) -> int:
    """How many the class means span: K − 1 of the ETF, one of the common direction."""
    etf = num_classes - 1 if amplitude > 0 else 0
    return max(1, etf + (1 if shift else 0))


def _data_loss(loss: str, num_classes: int, positive: float, negative: float, bias: float) -> float:
    if loss == "CE":
        return math.log1p((num_classes - 1) * math.exp(negative - positive))
    return _softplus(bias - positive) + (num_classes - 1) * _softplus(negative - bias)


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _clip(value: float, bound: float) -> float:
    return max(-bound, min(bound, value))


def _check(
    loss: str,
    num_classes: int,
    samples_per_class: float,
    weight_decay: float,
    feature_decay: float,
    bias_decay: float,
) -> None:
    if loss not in ("CE", "BCE"):
        raise ValueError(f"loss is {loss!r}: the theory is of CE and BCE")
    if not num_classes >= 2 or num_classes % 1:
        raise ValueError(f"num_classes is {num_classes}: it must be a whole number from 2 on")
    positives = {
        "samples_per_class": samples_per_class,
        "weight_decay": weight_decay,
        "feature_decay": feature_decay,
    }
    for name, value in positives.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}: it must be above 0 and finite")
    if not 1e-200 < samples_per_class * weight_decay * feature_decay < 1e200:
        raise ValueError(
            "samples_per_class · weight_decay · feature_decay is out of float64's comfortable range"
        )
    if not 0 <= bias_decay < math.inf:
        raise ValueError(f"bias_decay is {bias_decay}: it must be at least 0 and finite")
