"""Objective, optimizer and learning rate of a run, from its settings."""

from __future__ import annotations

import torch
from torch import nn

from args import AUTO_GRAPHS, Settings
from objective import optimizers
from objective.objective import Decays, Objective
from objective.schedules import compute_learning_rate
from training.recording import GRAPHS
from utils.errors import UserError


def choose_graphs(settings: Settings, device: torch.device, device_name: str) -> str:
    """Resolve --graphs to on or off for a device.

    A run that began with it on keeps that word where there is no GPU, and its steps are ordinary
    there. Raises UserError where a new run asks for it and cannot have it; `device_name` says why.
    """
    able = device.type in GRAPHS
    if settings.graphs == "auto":
        return AUTO_GRAPHS if able else "off"
    asked = "graphs" in settings.model_fields_set and not settings.resume
    if settings.graphs == "on" and not able and asked:
        raise UserError(f"--graphs on is for NVIDIA GPUs, this run is on the {device_name}")
    return settings.graphs


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


def count_bytes(model: nn.Module) -> tuple[int, int]:
    """Count the bytes of a network's state_dict, and those of the parameters that are trained."""
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    return weights, sum(p.nbytes for p in model.parameters() if p.requires_grad)


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
