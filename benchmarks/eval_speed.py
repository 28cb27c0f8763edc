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

from args import PRECISIONS, Parser, _integer, _one_of, stored_run
from utils.signals import StopSignal

STOPPED = "stopped; no results"


def parser() -> Parser:
    made = Parser(prog="eval_speed.py", description=__doc__)
    add = made.add_argument
    add("--load_path", required=True, metavar="RUN", help="a run directory of train.py")
    add(
        "--precision",
        type=_one_of(PRECISIONS[1:]),
        default="fp32",
        help="of the network in eval_nc.py and the bare one (default: fp32)",
    )
    add("--rounds", type=_integer(1), default=5, help="turns of each (default: 5)")
    add("--batch_size", type=_integer(1), default=256, help="(default: 256)")
    add("--gpu_id", type=_integer(-1), default=0, help="-1: CPU (default: 0)")
    return made


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before torch is imported
    StopSignal(STOPPED).install()  # Ctrl-C during the imports is one line, too

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.loops import Images, conventional_transform
from benchmarks.train_speed import ratio
from metrics.extraction import extract
from metrics.measures import Evaluation, compute_measures
from rundir.checkpoints import select_checkpoints
from rundir.rebuild import ChosenRun, Rebuilder, rebuild_model
from rundir.weights import load_weights
from utils.console import table
from utils.device import pick_device, synchronise
from utils.errors import UserError
from utils.precision import autocast

SPLITS = ("train", "test")


def conventional(
    args: argparse.Namespace, run: ChosenRun, runs: Rebuilder, device: torch.device
) -> Callable[[], None]:
    data = runs.data(run)
    transform = conventional_transform(data, augmented=False)
    loaders = [
        torch.utils.data.DataLoader(
            Images(getattr(data, split), transform),
            batch_size=args.batch_size,
            num_workers=run.settings["num_workers"],
            pin_memory=device.type == "cuda",
        )
        for split in SPLITS
    ]
    model = rebuild_model(run.settings, data).to(device)
    checkpoint = last(run)

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


def as_eval_nc_does(
    args: argparse.Namespace, run: ChosenRun, runs: Rebuilder, device: torch.device
) -> Callable[[], None]:
    context = autocast(args.precision, device)
    loaders = [runs.batches(run, split) for split in SPLITS]

    def work() -> None:
        model = runs.loaded(run, last(run))
        for loader in loaders:
            weight, bias = model.fc.weight.detach(), model.fc.bias_vector().detach()
            extracted = extract(model, loader, context)
            compute_measures(Evaluation(extracted, weight, bias, runs.class_sizes(run)))

    return work


def bare_network(
    args: argparse.Namespace, run: ChosenRun, runs: Rebuilder, device: torch.device
) -> Callable[[], None]:
    context = autocast(args.precision, device)
    ready = [images for split in SPLITS for images, _ in runs.batches(run, split).batches(epoch=0)]
    model = runs.loaded(run, last(run)).eval()

    @torch.no_grad()
    def work() -> None:
        for images in ready:
            with context:
                model(images)

    return work


def last(run: ChosenRun) -> Path:
    return next(iter(run.chosen.values()))


WAYS = {
    "conventional": conventional,
    "eval_nc.py": as_eval_nc_does,
    "bare network": bare_network,
}


def seconds_of(ways: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict:
    """The seconds of each round by the way's name; a round before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, work in ways.items():
            begun = time.perf_counter()
            work()
            synchronise(device)
            if number:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def compare(args: argparse.Namespace) -> None:
    device, device_name = pick_device(args.gpu_id)
    directory = Path(args.load_path)
    run = ChosenRun(directory, *stored_run(directory), select_checkpoints(directory, "last"))
    runs = Rebuilder(device, SPLITS, batch_size=args.batch_size, precision=args.precision)
    ways = {name: build(args, run, runs, device) for name, build in WAYS.items()}
    seconds = seconds_of(ways, args.rounds, device)
    data = runs.data(run)
    count = len(data.train) + len(data.test)
    rows = [
        [name, f"{statistics.median(values):.3f}", f"{count / statistics.median(values):.0f}"]
        + [ratio(seconds[base], values) for base in ("conventional", "bare network")]
        for name, values in seconds.items()
    ]
    print(f"{run.settings['model']} on {run.settings['dataset']}, {count} images, {device_name}")
    print(f"eval_nc.py and bare network in {args.precision}, torch {torch.__version__}")
    print(table(["per checkpoint", "s", "images/s", "× conventional", "× bare"], rows))


def main() -> int:
    args = parser().parse_args()
    try:
        with StopSignal(STOPPED):
            compare(args)
    except UserError as error:
        print(f"eval_speed.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
