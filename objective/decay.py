"""The decay terms of the regularised problem."""

from __future__ import annotations

import torch
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
        weight_decay * _sum_squares(weight)
        + feature_decay_rate * _sum_squares(features)
        + weight_decay_bias * _sum_squares(bias)
    )
    return terms / 2


def _sum_squares(tensor: Tensor) -> Tensor:
    """Sum the squares in float32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).square().sum()
