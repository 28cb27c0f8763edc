"""The losses, each averaged over samples: CE, BCE and MSE, for hard and soft targets.

All take logits [B, K] and targets, either class indices int64 [B] or probabilities [B, K] (from
Mixup or CutMix), and a label smoothing s: targets t become (1 - s) t + s/K. All compute in float32
or better and return a scalar.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return −Σ_k t_k log softmax(z)_k, averaged over samples."""
    return F.cross_entropy(_to_float32(logits), targets, label_smoothing=smoothing)


def binary_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return Σ_k t_k softplus(−z_k) + (1 − t_k) softplus(z_k), averaged over samples.

    The loss is **summed over classes**, as in the paper.

    softplus(x) is written −logsigmoid(−x). It is exact for |z| up to the largest float, while
    log(1 + exp(z)) overflows from z = 89 on. It also keeps the small gradients that σ(z) − t rounds
    off.
    """
    logits = _to_float32(logits)
    targets = soften_targets(targets, logits, smoothing)
    losses = -targets * F.logsigmoid(logits) - (1 - targets) * F.logsigmoid(-logits)
    return losses.sum(dim=1).mean()


def mean_squared_error(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return ½ Σ_k (z_k − t_k)², summed over classes as BCE is, averaged over samples."""
    logits = _to_float32(logits)
    targets = soften_targets(targets, logits, smoothing)
    return 0.5 * (logits - targets).square().sum(dim=1).mean()


def soften_targets(targets: Tensor, logits: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return targets as smoothed probabilities [B, K] in the type of the logits."""
    num_classes = logits.shape[1]
    if targets.ndim == 1:
        targets = F.one_hot(targets, num_classes)
    return targets.to(logits.dtype) * (1 - smoothing) + smoothing / num_classes


def _to_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
