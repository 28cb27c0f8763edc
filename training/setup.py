"""Objective, optimizer, step and learning rate of a run, from its settings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from args import AUTO_GRAPHS, Settings
from input_pipeline.division import Division
from models import find_network
from objective import OPTIMIZERS, optimizers
from objective.objective import Decays, Objective
from objective.schedules import compute_learning_rate
from rundir.config import read_config
from rundir.directory import Run
from training.averaging import Average
from training.recording import GRAPHS
from training.step import Step, build_step
from utils.cli import SMALLEST_BATCH
from utils.device import pick_device
from utils.errors import UserError
from utils.precision import Precision
from utils.registry import load_function
from utils.signals import Stopped
from utils.world import ALONE, World

# Images in a process's share from which on batch normalisation does well with its own statistics.
OWN_STATISTICS = 32


def choose_graphs(
    settings: Settings, device: torch.device, device_name: str, world: World = ALONE
) -> str:
    """Resolve --graphs to on or off for a device.

    A run that began with it on keeps that word where there is no GPU, and its steps are ordinary
    there. Raises UserError where a new run asks for it and cannot have it; `device_name` says why.
    """
    able = device.type in GRAPHS and world.size == 1
    if settings.graphs == "auto":
        return AUTO_GRAPHS if able else "off"
    asked = "graphs" in settings.model_fields_set and not settings.resume
    if settings.graphs == "on" and not able and asked:
        where = "in several processes" if world.size > 1 else f"on the {device_name}"
        raise UserError(f"--graphs on is for one NVIDIA GPU, this run is {where}")
    return settings.graphs


def check_processes(settings: Settings, world: World) -> None:
    """Refuse a batch too small for the processes, and --sync_bn for one. Raises UserError."""
    shares = world.size * settings.accumulate
    if settings.batch_size < SMALLEST_BATCH * shares:
        parts = f" with --accumulate {settings.accumulate}" if settings.accumulate > 1 else ""
        raise UserError(
            f"{world.size} processes{parts} need a --batch_size of at least "
            f"{SMALLEST_BATCH * shares}, not {settings.batch_size}: it is that of all together"
        )
    if world.size == 1 and settings.sync_bn is not None and not settings.resume:
        flag = "--sync_bn" if settings.sync_bn else "--no_sync_bn"
        raise UserError(f"{flag} has no effect here: it is for several processes (torchrun)")


def pick_run_device(settings: Settings, world: World) -> tuple[torch.device, str]:
    """Return the device of a process, and its name with how many processes there are.

    Raises UserError if the device cannot be used.
    """
    given = "gpu_id" in settings.model_fields_set
    device, name = pick_device(settings.gpu_id, given=given, local_rank=world.local_rank)
    return device, f"{world.size} processes, the first on {name}" if world.size > 1 else name


def decide_sync_bn(settings: Settings, run: Run, world: World) -> Settings:
    """Return the settings with --sync_bn as the run began, or decided for a new one."""
    if run.resumed:
        return settings.replace(sync_bn=read_config(run.directory).settings.sync_bn)
    if world.size == 1 or not find_network(settings.model).batch_norm:
        return settings
    return settings.replace(sync_bn=shares_statistics(settings, world))


def shares_statistics(settings: Settings, world: World) -> bool:
    """Return whether batch normalisation takes its statistics over all processes.

    A run that began in one process has nothing decided: it is as for a new run.
    """
    if settings.sync_bn is not None:
        return settings.sync_bn
    return settings.batch_size // (world.size * settings.accumulate) < OWN_STATISTICS


def describe_norm(settings: Settings, world: World) -> list[str]:
    """Describe in a line for the log over what batch normalisation takes its statistics, if any."""
    if world.size == 1 or not find_network(settings.model).batch_norm:
        return []
    shared = shares_statistics(settings, world)
    over = "the whole batch (--sync_bn)" if shared else "a process's share (--no_sync_bn)"
    return [f"batch normalisation takes its statistics over {over}"]


def find_smallest_share(settings: Settings, world: World) -> int:
    """Find how many images a process needs: with its own statistics, batch normalisation two."""
    return 1 if world.size == 1 or shares_statistics(settings, world) else SMALLEST_BATCH


def place_network(
    settings: Settings, model: nn.Module, precision: Precision, world: World
) -> nn.Module:
    """Bring a network to its device; in several processes with --sync_bn share its statistics."""
    model = precision.place(model)
    if world.size > 1 and shares_statistics(settings, world):
        model = load_function("training.shared_norm:share_statistics")(model, precision.device)
    return model


@contextlib.contextmanager
def share_run(run: Run, world: World) -> Iterator[None]:
    """Open a run's directory on the first process; the others learn which it is.

    All leave together: a process that leaves before the last files are written would have the
    launcher end the others. Raises UserError if the directory cannot be opened.
    """
    world.call_first(run.open)
    run.directory = world.broadcast(run.directory)
    try:
        yield
    except Stopped:
        run.close()
        world.wait()
        raise
    finally:
        run.close()


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
    options = settings.values(list(OPTIMIZERS[settings.optimizer].options))
    return optimizers.build_optimizer(
        settings.optimizer, model, settings.scaled_lr, weight_decay, weight_decay_bias, **options
    )


def build_average(
    settings: Settings, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Average | None:
    """Build the average of --ema, which follows the optimizer; None without it."""
    return None if settings.ema is None else Average(model, settings.ema, optimizer)


def build_run_step(
    settings: Settings,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    precision: Precision,
    average: Average | None,
    division: Division,
) -> Step:
    """Build the training step of a run, as `training.step.build_step` does."""
    return build_step(
        model,
        optimizer,
        scaler,
        build_objective(settings),
        precision,
        compiled=settings.compile,
        graphs=settings.graphs == "on",
        division=division,
        clip_grad_norm=settings.clip_grad_norm,
        average=average,
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
