"""The optimizers. All are fused: one kernel for all parameters instead of several for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from objective import OPTIMIZERS
from utils.registry import load_function

MOMENTUM = 0.9

Groups = list[dict[str, Any]]


def build_optimizer(
    name: str,
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    weight_decay_bias: float,
) -> torch.optim.Optimizer:
    """Build an optimizer over the trainable parameters of a model.

    Args:
        name: a key of `objective.OPTIMIZERS`.
        model: a network with a classifier `fc`.
        learning_rate: the rate of the first step.
        weight_decay: the decay of all parameters but the classifier's bias.
        weight_decay_bias: the decay of the classifier's bias.
    """
    classifier: Any = model.fc
    bias = classifier.bias
    others = [p for p in model.parameters() if p.requires_grad and p is not bias]
    groups: Groups = [{"params": others, "weight_decay": weight_decay}]
    if bias is not None:
        groups.append({"params": [bias], "weight_decay": weight_decay_bias})
    optimizer: torch.optim.Optimizer = load_function(OPTIMIZERS[name].function)(
        groups, learning_rate
    )
    return optimizer


def build_sgd(groups: Groups, learning_rate: float) -> torch.optim.Optimizer:
    """Build SGD with momentum 0.9. Its buffers are there, as zeros, before the first step.

    torch's fused kernel would leave them uninitialised if float16 overflows in that step. From
    zeros the first step gives the same buffers as from none: the gradient.
    """
    optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=MOMENTUM, fused=True)
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def build_adamw(groups: Groups, learning_rate: float) -> torch.optim.Optimizer:
    """Build AdamW with torch's defaults."""
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = value
