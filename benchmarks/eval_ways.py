"""The ways to evaluate a checkpoint that eval_speed.py times."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.loops import Images, build_conventional_transform
from benchmarks.ratios import format_ratio
from input_pipeline import SPLITS
from metrics.extraction import extract
from metrics.measures import Evaluation
from rundir.building import build_network
from rundir.checkpoints import select_checkpoints
from rundir.crew import measure_evaluation
from rundir.rebuild import Rebuilder
from rundir.trained import TrainedRun, open_run
from rundir.weights import load
from utils.console import format_table
from utils.device import pick_device, synchronise


@dataclass(frozen=True)
class Task:
    """The input of every way.

    Attributes:
        run: a trained run.
        checkpoint: its last one.
        rebuilder: builds its data, batches and network in the precision of --precision.
        device: where the network computes.
        batch_size: images per pass.
    """

    run: TrainedRun
    checkpoint: Path
    rebuilder: Rebuilder
    device: torch.device
    batch_size: int


Work = Callable[[], None]


def prepare_conventional(task: Task) -> Work:
    """Return a pass that gathers features and logits, as a newcomer would write it."""
    data = task.rebuilder.data(task.run)
    transform = build_conventional_transform(data, "none")
    loaders = [
        torch.utils.data.DataLoader(
            Images(getattr(data, split), transform),
            batch_size=task.batch_size,
            num_workers=task.run.settings.num_workers or 0,
            pin_memory=task.device.type == "cuda",
        )
        for split in SPLITS
    ]
    model = build_network(task.run.settings, data).to(task.device)

    def gather(loader: torch.utils.data.DataLoader) -> None:
        collected = []
        with torch.no_grad():
            for images, labels in loader:
                logits, features = model(images.to(task.device))
                collected.append((logits.cpu(), features.cpu(), labels))
        for parts in zip(*collected, strict=True):
            torch.cat(parts)

    def work() -> None:
        model.load_state_dict(load(task.checkpoint))
        model.eval()
        for loader in loaders:
            gather(loader)

    return work


def prepare_eval_nc(task: Task) -> Work:
    """Return the work of eval_nc.py for a checkpoint: load, extract and measure both splits."""
    run, rebuilder = task.run, task.rebuilder
    context = rebuilder.precision(run).autocast()
    loaders = [rebuilder.batches(run, split) for split in SPLITS]

    def work() -> None:
        model = rebuilder.load_model(run, task.checkpoint)
        classifier: Any = model.fc
        for loader in loaders:
            evaluation = Evaluation(
                extract(model, loader, context),
                classifier.weight.detach(),
                classifier.bias_vector().detach(),
                rebuilder.class_sizes(run),
                long_tailed=run.settings.imbalance_factor != 1,
                prediction=rebuilder.prediction(run),
            )
            measure_evaluation(evaluation)

    return work


def prepare_bare_network(task: Task) -> Work:
    """Return the forward passes of eval_nc.py on batches that are ready."""
    run, rebuilder = task.run, task.rebuilder
    context = rebuilder.precision(run).autocast()
    loaders = [rebuilder.batches(run, split) for split in SPLITS]
    ready = [images for loader in loaders for images, _ in loader.batches(epoch=0)]
    model = rebuilder.load_model(run, task.checkpoint).eval()

    @torch.no_grad()
    def work() -> None:
        for images in ready:
            with context:
                model(images)

    return work


WAYS: dict[str, Callable[[Task], Work]] = {
    "conventional": prepare_conventional,
    "eval_nc.py": prepare_eval_nc,
    "bare network": prepare_bare_network,
}


def compare_ways(args: argparse.Namespace) -> int:
    """Time the ways and print the table, for the flags of eval_speed.py. Raises UserError."""
    device, device_name = pick_device(args.gpu_id)
    directory = Path(args.load_path)
    run = open_run(directory)
    (checkpoint,) = select_checkpoints(directory, "last").values()
    rebuilder = Rebuilder(device, SPLITS, batch_size=args.batch_size, precision=args.precision)
    task = Task(run, checkpoint, rebuilder, device, args.batch_size)
    ways = {name: prepare(task) for name, prepare in WAYS.items()}
    seconds = measure_ways(ways, args.rounds, device)
    data = rebuilder.data(run)
    count = sum(len(getattr(data, split)) for split in SPLITS)
    rows = [
        [
            name,
            f"{statistics.median(values):.3f}",
            f"{count / statistics.median(values):.0f}",
            format_ratio(seconds["conventional"], values),
            format_ratio(seconds["bare network"], values),
        ]
        for name, values in seconds.items()
    ]
    print(f"{run.settings.model} on {run.settings.dataset}, {count} images, {device_name}")
    print(f"eval_nc.py and bare network in {args.precision}, torch {torch.__version__}")
    print(format_table(["per checkpoint", "s", "images/s", "× conventional", "× bare"], rows))
    return 0


def measure_ways(
    ways: dict[str, Work], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of each round by the way's name. An extra first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, work in ways.items():
            begun = time.perf_counter()
            work()
            synchronise(device)
            if number:
                seconds[name].append(time.perf_counter() - begun)
    return seconds
