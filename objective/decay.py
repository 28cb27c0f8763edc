"""The decay terms of the loss."""

from __future__ import annotations

from torch import Tensor


def regularisation(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_decay: float,
    feature_decay: float,
    bias_decay: float,
) -> Tensor:
    """λ_W/2 ‖W‖² + λ_H/2 Σ_batch ‖h‖² + λ_b/2 ‖b‖² of problem (1).

    For features [B, d], weight [K, d] and bias [K]. The features' term sums over the batch: a batch
    of B samples is the problem with B/K samples per class.
    """
    terms = (
        weight_decay * weight.float().square().sum()
        + feature_decay * features.float().square().sum()
        + bias_decay * bias.float().square().sum()
    )
    return terms / 2
