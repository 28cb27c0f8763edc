"""Images per second of train.py's loop beside a conventional loop and the ceiling, in one run.

    python benchmarks/train_speed.py [--model ResNet18] [--batch_size 128] [--gpu_id 0]

(a) conventional: PIL images, torchvision transforms, DataLoader workers, float32, contiguous, and
    an .item() of loss and accuracy in every step, as a newcomer would write it;
(b) train.py: its own batches, step and meter, in the precision that --precision resolves to;
(c) ceiling: the step of (b) on one resident batch, with no data work and no metrics.

Each runs in a process of its own, so that memory peaks are its own. They take turns (a, b, c, a, …)
of --steps steps, and medians over the rounds are reported.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from args import AUGMENTS, LOSSES, OPTIMIZERS, PRECISIONS, Parser, _integer, _model, _one_of

LOOPS = {"a": "conventional", "b": "train.py", "c": "ceiling"}
WORKERS = 2  # of the conventional loop's DataLoader
# Pause after a turn in seconds, in which workers fill their queue: else they disturb the next loop.
# (a) then has up to four batches ready; that flatters it unless --steps is well above four.
SETTLE = 0.3


def parser() -> Parser:
    made = Parser(prog="train_speed.py", description=__doc__)
    add = made.add_argument
    add("--model", type=_model, default="ResNet18", help="(default: ResNet18)")
    add(
        "--data_dir",
        default=None,
        metavar="DIR",
        help="image tree as of train.py --dataset folder, streamed by (b) where it is large "
        "(default: random images in memory)",
    )
    add("--img_size", type=_integer(4), default=32, help="side in pixels (default: 32)")
    add("--num_images", type=_integer(2), default=2048, help="random images (default: 2048)")
    add("--num_classes", type=_integer(2), default=10, help="of random images (default: 10)")
    add("--batch_size", type=_integer(2), default=128, help="(default: 128)")
    add("--steps", type=_integer(1), default=4, help="timed steps per turn (default: 4)")
    add("--rounds", type=_integer(1), default=5, help="turns of each loop (default: 5)")
    add("--precision", type=_one_of(PRECISIONS), default="auto", help="of b, c (default: auto)")
    add("--loss", type=_one_of(LOSSES), default="BCE", help="(default: BCE)")
    add("--optimizer", type=_one_of(OPTIMIZERS), default="SGD", help="(default: SGD)")
    add("--augment", type=_one_of(AUGMENTS), default="DA1", help="of b; a: none, DA1")
    add("--compile", action="store_true", help="compile (b) and (c) (default: off)")
    add("--gpu_id", type=_integer(-1), default=0, help="-1: CPU (default: 0)")
    add("--loops", nargs="+", choices=list(LOOPS), default=list(LOOPS), help="(default: a b c)")
    add("--json", default=None, metavar="FILE", help="also write the results (default: none)")
    return made


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before torch is imported

import argparse
import itertools
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

import train
from models import build_model
from utils.console import table
from utils.datasets import DataSet, FileSplit, TensorSplit, load_dataset
from utils.device import keep_freed_memory, pick_device
from utils.errors import UserError
from utils.files import write_json
from utils.losses import LOSSES as LOSS_FUNCTIONS
from utils.meter import Meter
from utils.optim import build_optimizer
from utils.precision import AUTOCAST, memory_format, resolve_precision, set_determinism
from utils.rundir import processor
from utils.step import Step, check_compiler, synchronise

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Images(torch.utils.data.Dataset):
    """PIL images and labels, as torchvision's data sets give them."""

    def __init__(self, split: TensorSplit | FileSplit, transform: Callable) -> None:
        self.labels, self.transform = split.labels.tolist(), transform
        if isinstance(split, TensorSplit):
            self.paths = None
            self.arrays = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        else:
            self.paths = split.paths

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.paths is None:
            image = Image.fromarray(self.arrays[index])
        else:
            image = Image.open(self.paths[index]).convert("RGB")
        return self.transform(image), self.labels[index]


def conventional(args: argparse.Namespace, data: DataSet, device: torch.device) -> Iterator[None]:
    """Loop (a); yields after every step."""
    side = args.img_size
    steps: list[Any] = []
    if isinstance(data.train, FileSplit):
        steps += [transforms.Resize(side), transforms.CenterCrop(side)]
    if args.augment != "none":
        steps += [transforms.RandomCrop(side, padding=side // 8), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    loader = torch.utils.data.DataLoader(
        Images(data.train, transforms.Compose(steps)),
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        pin_memory=device.type == "cuda",
        persistent_workers=True,
    )
    model = networks(args, data).to(device)
    loss_function = LOSS_FUNCTIONS[args.loss]
    if args.optimizer == "SGD":
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=5e-4)
    model.train()
    total_loss, total_correct, seen = 0.0, 0, 0
    while True:
        for images, targets in loader:
            images, targets = images.to(device), targets.to(device)
            optimizer.zero_grad()
            logits, _ = model(images)
            loss = loss_function(logits, targets)
            loss.backward()
            optimizer.step()
            total_loss += loss.item() * len(targets)
            total_correct += (logits.argmax(1) == targets).sum().item()
            seen += len(targets)
            yield


def as_train_does(args: argparse.Namespace, data: DataSet, device: torch.device) -> Iterator[None]:
    """Loop (b): train.py's batches, step and meter; yields after every step."""
    model, step = prepared(args, data, device)
    batches, _ = train.build_loaders(args, data, device)
    full = len(data.train) // args.batch_size  # the last, smaller batch is no fair step
    meter = Meter(len(batches), device)
    model.train()
    for epoch in itertools.count(1):
        meter.reset()
        for number, (images, targets) in enumerate(batches.batches(epoch)):
            if number == full:
                break
            total, loss, logits = step(images, targets)
            meter.add(number, total, loss, logits, targets)
            yield


def ceiling(args: argparse.Namespace, data: DataSet, device: torch.device) -> Iterator[None]:
    """Loop (c): the step of (b) on its first batch again and again; yields after every step."""
    model, step = prepared(args, data, device)
    images, targets = next(iter(train.build_loaders(args, data, device)[0].batches(1)))
    model.train()
    while True:
        step(images, targets)
        yield


def networks(args: argparse.Namespace, data: DataSet) -> nn.Module:
    torch.manual_seed(0)
    return build_model(args.model, data.num_classes, data.image_shape)


def prepared(
    args: argparse.Namespace, data: DataSet, device: torch.device
) -> tuple[nn.Module, Step]:
    """Network and step as train.py makes them."""
    format_ = memory_format(device, args.model, args.precision)
    model = networks(args, data).to(device, memory_format=format_)
    optimizer = build_optimizer(args.optimizer, model, 1e-3, weight_decay=5e-4, bias_decay=5e-4)
    objective = train.build_objective(args)
    return model, Step(model, optimizer, objective, args.precision, device, args.compile)


def random_data(args: argparse.Namespace) -> DataSet:
    """uint8 noise of the right shape: speed does not depend on what is in the images."""
    generator = np.random.default_rng(0)
    shape = (args.num_images, 3, args.img_size, args.img_size)
    images = torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, args.num_classes, args.num_images))
    split = TensorSplit(images, labels)
    names = [str(number) for number in range(args.num_classes)]
    return DataSet("folder", names, shape[1:], MEAN, STD, split, split)


def load(args: argparse.Namespace) -> DataSet:
    if args.data_dir is None:
        data = random_data(args)
    else:
        data = load_dataset(
            "folder", args.data_dir, img_size=args.img_size, num_workers=args.num_workers
        )
    if len(data.train) < args.batch_size:
        raise UserError(f"{len(data.train)} images are less than a batch of {args.batch_size}")
    return data


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Add what train.py's functions read besides; resolve the precision. Raises UserError."""
    device, _ = pick_device(args.gpu_id)
    if args.compile:
        check_compiler(device)
    args.precision = resolve_precision(args.precision, device, args.model, args.img_size)
    rest = {"dataset": "folder", "seed": 0, "num_workers": WORKERS, "smoothing": 0.0}
    decays = {"weight_decay": 5e-4, "feature_decay_rate": 5e-4, "weight_decay_bias": 5e-4}
    return argparse.Namespace(**vars(args), **rest, **decays, sep_decay=False)


def serve(kind: str, args: argparse.Namespace, pipe: Any) -> None:
    """Child process: for each message from `pipe` run --steps steps and answer their seconds."""
    try:
        set_determinism(False)
        device, _ = pick_device(args.gpu_id)
        if kind != "a" and device.type == "cpu":
            keep_freed_memory()
        loop = {"a": conventional, "b": as_train_does, "c": ceiling}[kind](args, load(args), device)
        begun = time.perf_counter()
        next(loop)
        synchronise(device)
        pipe.send(("ready", time.perf_counter() - begun))
        next(loop)  # cuDNN's trials, allocator
        while pipe.recv() == "go":
            synchronise(device)
            begun = time.perf_counter()
            for _ in range(args.steps):
                next(loop)
            synchronise(device)
            pipe.send(("seconds", time.perf_counter() - begun))
        pipe.send(("memory", peak_memory(device)))
    except UserError as error:
        pipe.send(("error", str(error)))


def peak_memory(device: torch.device) -> float:
    """Peak memory in MiB: of the GPU's tensors, or of the process where it computes on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run the loops in turns. Raises UserError for what a child process refuses."""
    context = multiprocessing.get_context("spawn")
    pipes, children, results = {}, {}, {}
    for kind in args.loops:
        pipes[kind], theirs = context.Pipe()
        children[kind] = context.Process(target=serve, args=(kind, args, theirs))
        children[kind].start()
        theirs.close()
        results[kind] = {"seconds": [], "first_step_seconds": receive(pipes[kind])}
    for _, kind in itertools.product(range(args.rounds), args.loops):
        pipes[kind].send("go")
        results[kind]["seconds"].append(receive(pipes[kind]) / args.steps)
        time.sleep(SETTLE)
    for kind, child in children.items():
        pipes[kind].send("stop")
        results[kind]["peak_memory_mib"] = receive(pipes[kind])
        child.join()
    for result in results.values():
        median = statistics.median(result["seconds"])
        result |= {"ms_per_step": 1000 * median, "images_per_second": args.batch_size / median}
    return results


def receive(pipe: Any) -> float:
    try:
        kind, value = pipe.recv()
    except EOFError:
        raise UserError("a measuring process died: its message is above") from None
    if kind == "error":
        raise UserError(value)
    return value


def matrix_share(args: argparse.Namespace, device: torch.device, seconds: float) -> dict[str, Any]:
    """Floating-point operations of one step over `seconds`, beside a large product's measured rate.

    The product is in the type the layers compute in; FLOPs are those of matrix products and
    convolutions.
    """
    model = build_model(args.model, args.num_classes, (3, args.img_size, args.img_size))
    with FlopCounterMode(display=False) as counter:
        logits, _ = model(torch.zeros(2, 3, args.img_size, args.img_size))
        logits.sum().backward()
    flops = counter.get_total_flops() / 2 * args.batch_size
    dtype = AUTOCAST.get(args.precision, torch.float32)
    size = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(size, size, device=device).to(dtype)
    times = []
    for _ in range(8):
        synchronise(device)
        begun = time.perf_counter()
        matrix @ matrix
        synchronise(device)
        times.append(time.perf_counter() - begun)
    rate = 2 * size**3 / min(times)
    return {"flops_per_step": flops, "matrix_rate": rate, "share": flops / seconds / rate}


def report(args: argparse.Namespace, results: dict[str, dict[str, Any]], share: dict) -> str:
    base = results.get("a", {}).get("seconds")
    top = results.get("c", {}).get("seconds")
    rows = []
    for kind, result in results.items():
        rows.append(
            [
                f"({kind}) {LOOPS[kind]}",
                f"{result['images_per_second']:.1f}",
                f"{result['ms_per_step']:.2f}",
                ratio(base, result["seconds"]),
                ratio(top, result["seconds"]),
                f"{result['peak_memory_mib']:.0f}",
                f"{result['first_step_seconds']:.1f}",
            ]
        )
    header = ["loop", "images/s", "ms/step", "× (a)", "× (c)", "peak MiB", "first step s"]
    text = table(header, rows)
    if share:
        text += (
            f"\n{share['flops_per_step'] / 1e9:.1f} GFLOP per step, matrix products run at "
            f"{share['matrix_rate'] / 1e9:.0f} GFLOP/s: the ceiling is at {share['share']:.0%}"
        )
    return text


def ratio(base: list[float] | None, seconds: list[float]) -> str:
    """The median over rounds of base/seconds: what disturbs the machine disturbs neighbours."""
    if base is None:
        return "-"
    return f"{statistics.median(b / s for b, s in zip(base, seconds, strict=True)):.3f}"


def main() -> int:
    args = parser().parse_args()
    try:
        args = complete(args)
        set_determinism(False)
        device, name = pick_device(args.gpu_id)
        results = measure(args)
        share = {}
        if "c" in results:
            share = matrix_share(args, device, results["c"]["ms_per_step"] / 1000)
        print(f"{args.model}, {args.img_size}×{args.img_size}, batch {args.batch_size}, {name}")
        print(f"(b) and (c) in {args.precision}, torch {torch.__version__}")
        print(report(args, results, share))
        if args.json:
            versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
            settings = {**vars(args), "device": name, "processor": processor(), **versions}
            write_json(Path(args.json), {"settings": settings, "loops": results, "matrix": share})
    except UserError as error:
        print(f"train_speed.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
