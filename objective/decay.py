"""The decay terms of the regularised problem."""

from __future__ import annotations

from torch import Tensor


def compute_decay(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_decay: float,
    feature_decay_rate: float,
    weight_decay_bias: float,
) -> Tensor:
    """Return λ_W/2 ‖W‖² + λ_H/2 Σ_batch ‖h‖² + λ_b/2 ‖b‖², problem (1) of docs/theory.md.

    The features' term sums over the batch: a batch of B samples is the problem with B/K samples
    per class.

    Args:
        features: [B, d].
        weight: [K, d].
        bias: [K].
        weight_decay, feature_decay_rate, weight_decay_bias: λ_W, λ_H, λ_b.
    """
    terms = (
        weight_decay * weight.float().square().sum()
        + feature_decay_rate * features.float().square().sum()
        + weight_decay_bias * bias.float().square().sum()
    )
    return terms / 2
