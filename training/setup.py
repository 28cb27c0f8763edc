"""Objective, optimizer and learning rate of a run, from its settings."""

from __future__ import annotations

import torch
from torch import nn

from args import Settings
from objective import optimizers
from objective.objective import Decays, Objective
from objective.schedules import compute_learning_rate


def build_objective(settings: Settings) -> Objective:
    """Build the loss, with the decay terms of --sep_decay."""
    if not settings.sep_decay:
        return Objective(settings.loss, settings.smoothing)
    weight_decay_bias = settings.weight_decay_bias or 0.0
    decays = Decays(settings.weight_decay, settings.feature_decay_rate, weight_decay_bias)
    return Objective(settings.loss, settings.smoothing, decays)


def build_optimizer(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer. It has no decay with --sep_decay: the objective decays then."""
    weight_decay, weight_decay_bias = settings.weight_decay, settings.weight_decay_bias or 0.0
    if settings.sep_decay:
        weight_decay = weight_decay_bias = 0.0
    return optimizers.build_optimizer(
        settings.optimizer, model, settings.scaled_lr, weight_decay, weight_decay_bias
    )


def set_epoch_rate(settings: Settings, optimizer: torch.optim.Optimizer, epoch: int) -> float:
    """Set and return the learning rate of an epoch (1 … epochs)."""
    rate = compute_learning_rate(
        epoch,
        base=settings.scaled_lr,
        epochs=settings.epochs,
        schedule=settings.schedule,
        warmup=settings.epochs_warmup,
        minimum=settings.min_lr,
        milestones=settings.step_milestones or (),
        gamma=settings.step_gamma,
    )
    optimizers.set_learning_rate(optimizer, rate)
    return rate
