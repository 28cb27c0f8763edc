"""The optimizers."""

from __future__ import annotations

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


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value
