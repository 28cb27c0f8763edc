"""Time per checkpoint of eval_nc.py beside a conventional pass and the bare network, in one run.

    python benchmarks/eval_speed.py --load_path model_weights/<run> [--precision bf16] [--gpu_id 0]

Each is of the run's last checkpoint over its training and test images:

conventional: PIL images, torchvision transforms, DataLoader workers, float32, features and logits
    gathered on the CPU batch by batch, as a newcomer would write it; nothing is measured on them
    (and on the CPU it profits from the memory that this process keeps for the others);
eval_nc.py: loading the checkpoint, its own batches, extraction and all measures of both splits;
bare network: the forward passes of eval_nc.py on batches that are ready, outputs dropped.

They take turns, and medians over the rounds are reported.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from args import PRECISIONS
from utils.cli import Count, Parser, add_device_flag, check_value, name_of, run_command
from utils.signals import StopSignal

STOPPED = "stopped; no results"


def build_parser() -> Parser:
    parser = Parser(prog="eval_speed.py", description=__doc__)
    add = parser.add_argument
    add("--load_path", required=True, metavar="RUN", help="a run directory of train.py")
    add(
        "--precision",
        type=check_value(name_of(PRECISIONS[1:], "precision")),
        default="fp32",
        help="of the network in eval_nc.py and the bare one (default: fp32)",
    )
    add("--rounds", type=check_value(Count), default=5, help="turns of each (default: 5)")
    add("--batch_size", type=check_value(Count), default=256, help="(default: 256)")
    add_device_flag(parser)
    return parser


if __name__ == "__main__":
    build_parser().parse_args()  # --help and mistakes are answered before torch is imported
    StopSignal(STOPPED).install()  # Ctrl-C during the imports is one line, too

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.loops import Images, build_transform, get_train
from benchmarks.train_speed import format_ratio
from metrics.extraction import extract
from metrics.measures import Evaluation, compute_measures
from rundir.checkpoints import select_checkpoints
from rundir.rebuild import ChosenRun, Rebuilder, build_network, open_run
from rundir.weights import load_weights
from utils.console import format_table
from utils.device import pick_device, synchronise

SPLITS = ("train", "test")


def build_conventional(
    args: argparse.Namespace, run: ChosenRun, runs: Rebuilder, device: torch.device
) -> Callable[[], None]:
    data = runs.data(run)
    transform = build_transform(data, augmented=False)
    loaders: list[Any] = [
        torch.utils.data.DataLoader(
            Images(getattr(data, split), transform),
            batch_size=args.batch_size,
            num_workers=run.settings.num_workers or 0,
            pin_memory=device.type == "cuda",
        )
        for split in SPLITS
    ]
    model = build_network(run.settings, data).to(device)
    checkpoint = get_last(run)

    def work() -> None:
        load_weights(model, checkpoint, device)
        model.eval()
        for loader in loaders:
            collected = []
            with torch.no_grad():
                for images, labels in loader:
                    logits, features = model(images.to(device))
                    collected.append((logits.cpu(), features.cpu(), labels))
            for parts in zip(*collected, strict=True):
                torch.cat(parts)

    return work


def build_eval_nc(
    args: argparse.Namespace, run: ChosenRun, runs: Rebuilder, device: torch.device
) -> Callable[[], None]:
    context = runs.precision(run).autocast()
    loaders = [runs.batches(run, split) for split in SPLITS]

    def work() -> None:
        model = runs.load_model(run, get_last(run))
        for loader in loaders:
            classifier: Any = model.fc
            weight, bias = classifier.weight.detach(), classifier.bias_vector().detach()
            extracted = extract(model, loader, context)
            compute_measures(Evaluation(extracted, weight, bias, runs.class_sizes(run)))

    return work


def build_bare_network(
    args: argparse.Namespace, run: ChosenRun, runs: Rebuilder, device: torch.device
) -> Callable[[], None]:
    context = runs.precision(run).autocast()
    ready = [images for split in SPLITS for images, _ in runs.batches(run, split).batches(epoch=0)]
    model = runs.load_model(run, get_last(run)).eval()

    @torch.no_grad()
    def work() -> None:
        for images in ready:
            with context:
                model(images)

    return work


def get_last(run: ChosenRun) -> Path:
    return next(iter(run.chosen.values()))


WAYS = {
    "conventional": build_conventional,
    "eval_nc.py": build_eval_nc,
    "bare network": build_bare_network,
}


def measure(
    ways: dict[str, Callable[[], None]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of each round by the way's name; a round before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, work in ways.items():
            begun = time.perf_counter()
            work()
            synchronise(device)
            if number:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def compare(args: argparse.Namespace) -> int:
    """Measure and print. Raises UserError."""
    device, device_name = pick_device(args.gpu_id)
    directory = Path(args.load_path)
    found = open_run(directory)
    chosen = select_checkpoints(directory, "last")
    run = ChosenRun(directory, found.settings, found.facts, chosen)
    runs = Rebuilder(device, SPLITS, batch_size=args.batch_size, precision=args.precision)
    ways = {name: build(args, run, runs, device) for name, build in WAYS.items()}
    seconds = measure(ways, args.rounds, device)
    data = runs.data(run)
    count = len(get_train(data)) + (len(data.test) if data.test else 0)
    rows = [
        [name, f"{statistics.median(values):.3f}", f"{count / statistics.median(values):.0f}"]
        + [format_ratio(seconds[base], values) for base in ("conventional", "bare network")]
        for name, values in seconds.items()
    ]
    print(f"{run.settings.model} on {run.settings.dataset}, {count} images, {device_name}")
    print(f"eval_nc.py and bare network in {args.precision}, torch {torch.__version__}")
    print(format_table(["per checkpoint", "s", "images/s", "× conventional", "× bare"], rows))
    return 0


def main() -> int:
    args = build_parser().parse_args()
    return run_command("eval_speed.py", lambda stop: compare(args), stopped=STOPPED)


if __name__ == "__main__":
    sys.exit(main())
