"""The optimizers. All are fused: one kernel for all parameters instead of several for each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from objective import OPTIMIZERS
from utils.registry import load_function

Groups = list[dict[str, Any]]


def build_optimizer(
    name: str,
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    weight_decay_bias: float,
    **options: Any,
) -> torch.optim.Optimizer:
    """Build an optimizer over the trainable parameters of a model.

    Args:
        name: a key of `objective.OPTIMIZERS`.
        model: a network with a classifier `fc`.
        learning_rate: the rate of the first step.
        weight_decay: the decay of all parameters but the classifier's bias.
        weight_decay_bias: the decay of the classifier's bias.
        options: those that the optimizer's entry names, where they are not its defaults.
    """
    classifier: Any = model.fc
    bias = classifier.bias
    others = [p for p in model.parameters() if p.requires_grad and p is not bias]
    groups: Groups = [{"params": others, "weight_decay": weight_decay}]
    if bias is not None:
        groups.append({"params": [bias], "weight_decay": weight_decay_bias})
    build = load_function(OPTIMIZERS[name].function)
    optimizer: torch.optim.Optimizer = build(groups, learning_rate, **options)
    return optimizer


def build_sgd(groups: Groups, learning_rate: float, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Build SGD. The buffers of its momentum are there, as zeros, before the first step.

    torch's fused kernel would leave them uninitialised if float16 overflows in that step. From
    zeros the first step gives the same buffers as from none: the gradient. Without momentum there
    are none.
    """
    optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, fused=True)
    if momentum == 0:
        return optimizer
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def build_adamw(
    groups: Groups, learning_rate: float, betas: Sequence[float] = (0.9, 0.999)
) -> torch.optim.Optimizer:
    """Build AdamW; `betas` are the shares of the old means of gradients and of their squares."""
    first, second = betas
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(first, second), fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of all parameter groups, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def make_recordable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Put the learning rate into a tensor, which a recorded update reads anew at each replay.

    Fused kernels want it in float32 on their own device. All parameter groups share it. A rate that
    is such a tensor already stays where it is.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    if all(isinstance(rate, Tensor) and rate.device.type == device.type for rate in rates):
        return
    rate = torch.tensor(float(rates[0]), dtype=torch.float32, device=device)
    for group in optimizer.param_groups:
        group["lr"] = rate


@contextlib.contextmanager
def mark_capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let an update be recorded while the context lasts: AdamW refuses it without this mark.

    Its fused update is the same with and without. Outside of a recording the mark causes a warning.
    """
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    marks = [group["capturable"] for group in groups]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group, mark in zip(groups, marks, strict=True):
            group["capturable"] = mark
