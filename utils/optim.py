"""Optimizers and learning-rate schedules."""

import math
from collections.abc import Sequence

import torch
from torch import nn

MOMENTUM = 0.9


def build_optimizer(
    name: str,
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    bias_decay: float,
) -> torch.optim.Optimizer:
    """SGD with momentum 0.9 or AdamW over the model's trainable parameters.

    `weight_decay` applies to all of them but the classifier's bias (`model.fc.bias`), which has
    `bias_decay`. Fused: one kernel for all parameters instead of several per parameter.
    """
    bias = model.fc.bias
    others = [p for p in model.parameters() if p.requires_grad and p is not bias]
    groups = [{"params": others, "weight_decay": weight_decay}]
    if bias is not None:
        groups.append({"params": [bias], "weight_decay": bias_decay})
    if name == "SGD":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=MOMENTUM, fused=True)
    if name == "AdamW":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    raise ValueError(f"optimizer {name!r}: SGD or AdamW")


def learning_rate(
    epoch: int,
    *,
    base: float,
    epochs: int,
    schedule: str = "cosine",
    warmup: int = 0,
    minimum: float = 0.0,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
) -> float:
    """The learning rate of an epoch (1 … epochs), a pure function: a resumed run needs no state.

    The first `warmup` epochs rise linearly, base·e/(warmup + 1). Then `cosine` goes from base
    towards `minimum`, as torch's CosineAnnealingLR stepped per epoch; `step` multiplies by `gamma`
    after each of the `milestones` (numbers of finished epochs, warm-up included); `constant` stays
    at base.
    """
    if epoch <= warmup:
        return base * epoch / (warmup + 1)
    if schedule == "constant":
        return base
    if schedule == "step":
        return base * gamma ** sum(epoch > milestone for milestone in milestones)
    if schedule == "cosine":
        progress = (epoch - 1 - warmup) / (epochs - warmup)
        return minimum + (base - minimum) * (1 + math.cos(math.pi * progress)) / 2
    raise ValueError(f"schedule {schedule!r}: cosine, step or constant")


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value
