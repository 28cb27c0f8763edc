"""Images per second of train.py's loop beside a conventional loop and the ceiling, in one run.

    python benchmarks/train_speed.py [--model ResNet18] [--batch_size 128] [--gpu_id 0]
    python benchmarks/train_speed.py --stream --img_size 224 --model ResNet50 --batch_size 64
    python benchmarks/train_speed.py --what_helps

(a) is a conventional loop, (b) train.py's, (c) its step alone and (d) its batches alone, as
benchmarks/loops.py describes them. --stream reads the images from files, --what_helps compares the
step without and with each means instead: on the CPU memory (freed memory is kept), channels_last,
bf16 and compile; on a GPU tf32, bf16, channels_last, compile and graphs (CUDA graphs).

Each loop runs in a process of its own, so that memory peaks are its own. They take turns (a, b, c,
a, …) of --steps steps, and medians over the rounds are reported.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from args import AUGMENTS, LOSSES, OPTIMIZERS, PRECISIONS, Parser, _integer, _model, _one_of
from utils.signals import StopSignal

NAMES = {"a": "conventional", "b": "train.py", "c": "ceiling", "d": "batches"}
# What --what_helps adds to a float32, contiguous, eager step, in this order: changed settings.
CPU_MEANS = {
    "memory": {},  # a property of the process
    "channels_last": {"layout": "channels_last"},
    "bf16": {"precision": "bf16"},
    "compile": {"compile": True},
}
GPU_MEANS = {
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
    "channels_last": {"layout": "channels_last"},
    "compile": {"compile": True, "graphs": False},
    "graphs": {"graphs": True},
}
STOPPED = "stopped; no results"
# Pause after a turn in seconds, in which workers fill their queue: else they disturb the next loop.
SETTLE = 0.3


def parser() -> Parser:
    made = Parser(prog="train_speed.py", description=__doc__)
    add = made.add_argument
    add("--model", type=_model, default="ResNet18", help="(default: ResNet18)")
    add("--img_size", type=_integer(4), default=32, help="side in pixels (default: 32)")
    add(
        "--num_images",
        type=_integer(2),
        default=None,
        help="random images (default: 50,000 in a GPU's memory, else 2,048)",
    )
    add("--num_classes", type=_integer(2), default=None, help="of random images (default: 10)")
    add(
        "--stream",
        action="store_true",
        help="read the images from files: random JPEGs of 500×375 pixels, written to a temporary "
        "directory, or those of --data_dir (default: random images in memory)",
    )
    add(
        "--data_dir",
        default=None,
        metavar="DIR",
        help="image tree as of train.py --dataset folder; (b) keeps a small one in memory unless "
        "--stream (default: random images)",
    )
    add("--num_workers", type=_integer(0), default=None, help="(default: the cores, at most 8)")
    add("--batch_size", type=_integer(2), default=128, help="(default: 128)")
    add(
        "--steps",
        type=_integer(1),
        default=None,
        help="timed steps per turn, for (d) whole epochs (default: on a GPU an epoch, else 4)",
    )
    add("--rounds", type=_integer(1), default=5, help="turns of each loop (default: 5)")
    add("--precision", type=_one_of(PRECISIONS), default="auto", help="of b, c (default: auto)")
    add("--loss", type=_one_of(LOSSES), default="BCE", help="(default: BCE)")
    add("--optimizer", type=_one_of(OPTIMIZERS), default="SGD", help="(default: SGD)")
    add(
        "--augment",
        type=_one_of(AUGMENTS),
        default="DA1",
        help="DA1+DA2 not with (a) (default: DA1)",
    )
    add("--compile", action="store_true", help="compile (b) and (c) (default: off)")
    add("--gpu_id", type=_integer(-1), default=0, help="-1: CPU (default: 0)")
    chosen = made.add_mutually_exclusive_group()
    chosen.add_argument(
        "--loops", nargs="+", choices=list(NAMES), default=list(NAMES), help="(default: a b c d)"
    )
    chosen.add_argument(
        "--what_helps",
        nargs="*",
        choices=list(CPU_MEANS | GPU_MEANS),
        default=None,
        metavar="MEANS",
        help="the step alone without and with each means, one added to the other: those named, or "
        "all that there are here (default: off)",
    )
    add("--json", default=None, metavar="FILE", help="also write the results (default: none)")
    return made


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before torch is imported
    StopSignal(STOPPED).install()  # Ctrl-C during the imports is one line, too

import argparse
import contextlib
import functools
import itertools
import multiprocessing
import os
import resource
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.loops import LOOPS
from input_pipeline.load import load_dataset
from input_pipeline.splits import DataSet, TensorSplit
from models import MODELS, build_model
from training.step import check_compiler
from utils.console import table
from utils.device import pick_device, synchronise
from utils.environment import processor
from utils.errors import UserError
from utils.files import check_target, write_json
from utils.precision import AUTOCAST, resolve_precision, set_determinism

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
EPOCH = 50_000  # images of CIFAR's training sets
PHOTO = (375, 500)  # height and width of the files of --stream: ImageNet's most frequent size


@dataclass
class Loop:
    """What a child process runs: a key of LOOPS with settings that differ from the command's."""

    kind: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    keep_memory: bool = True


def chosen_loops(args: argparse.Namespace, device: torch.device) -> list[Loop]:
    if args.what_helps is not None:
        return means(args, device)
    return [Loop(k, f"({k}) {NAMES[k]}", keep_memory=k != "a") for k in args.loops]


def means(args: argparse.Namespace, device: torch.device) -> list[Loop]:
    """The step alone with one of the means asked for after the other, each with all before it.

    On the CPU bf16 comes last where --precision auto does not choose it, as it is no gain there.
    Raises UserError for a means that has no effect.
    """
    changes = dict(GPU_MEANS if device.type == "cuda" else CPU_MEANS)
    if device.type == "cpu" and args.precision != "bf16":
        changes["bf16"] = changes.pop("bf16")
    if not MODELS[args.model].convolutional:
        del changes["channels_last"]
    asked = args.what_helps or list(changes)
    without_effect = [name for name in asked if name not in changes]
    if "graphs" in asked and "compile" not in asked:
        without_effect.append("graphs without compile")
    if without_effect:
        known = ", ".join(changes)
        raise UserError(f"--what_helps {without_effect[0]} has no effect here: use some of {known}")
    settings = {"precision": "fp32", "compile": False, "layout": "contiguous_format"}
    found = [Loop("c", "float32", settings, keep_memory=False)]
    for name in (name for name in changes if name in asked):
        settings = {**settings, **changes[name]}
        kept = found[-1].keep_memory or name == "memory"
        found.append(Loop("c", f"+ {name}", settings, kept))
    return found


def random_data(args: argparse.Namespace) -> DataSet:
    """uint8 noise of the right shape: speed does not depend on what is in the images."""
    generator = np.random.default_rng(0)
    shape = (args.num_images, 3, args.img_size, args.img_size)
    images = torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, args.num_classes, args.num_images))
    split = TensorSplit(images, labels)
    names = [str(number) for number in range(args.num_classes)]
    return DataSet("folder", names, shape[1:], MEAN, STD, split, split)


def write_photos(root: Path, count: int, num_classes: int) -> None:
    """A folder data set of JPEGs with the size and the detail, and so the bytes, of photographs."""
    generator = np.random.default_rng(0)
    height, width = PHOTO
    for number in range(count):
        small = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        grain = generator.normal(0, 12, (height, width, 1))
        photo = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
        name = f"{number % num_classes:04d}"
        for split in ("train", "test") if number < num_classes else ("train",):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            photo.save(root / split / name / f"{number}.jpg", quality=90)


def load(args: argparse.Namespace) -> DataSet:
    if args.data_dir is None:
        return random_data(args)
    return load_dataset(
        "folder",
        args.data_dir,
        img_size=args.img_size,
        num_workers=args.num_workers,
        in_memory_bytes=0 if args.stream else None,
    )


def complete(args: argparse.Namespace, device: torch.device) -> argparse.Namespace:
    """Add what train.py's functions read besides; resolve the defaults. Raises UserError."""
    if args.compile or args.what_helps == [] or "compile" in (args.what_helps or []):
        check_compiler(device)
    args.precision = resolve_precision(args.precision, device, args.model, args.img_size)
    if args.num_workers is None:
        args.num_workers = min(8, os.cpu_count() or 1)
    on_gpu = device.type == "cuda"
    if args.num_images is None:
        args.num_images = EPOCH if on_gpu and not args.stream else 2048
    args.num_classes = args.num_classes or 10
    rest = {"dataset": "folder", "seed": 0, "smoothing": 0.0, "layout": None, "graphs": True}
    decays = {"weight_decay": 5e-4, "feature_decay_rate": 5e-4, "weight_decay_bias": 5e-4}
    return argparse.Namespace(**vars(args), **rest, **decays, sep_decay=False)


def serve(loop: Loop, args: argparse.Namespace, start_method: str, pipe: Any) -> None:
    """Child process: at each message from `pipe` run --steps steps and answer their mean time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    try:
        # A spawned process would spawn its workers, too, and each import torch anew.
        multiprocessing.set_start_method(start_method, force=True)
        set_determinism(False)
        device, _ = pick_device(args.gpu_id, loop.keep_memory)
        args = argparse.Namespace(**{**vars(args), **loop.settings})
        data = load(args)
        steps = LOOPS[loop.kind](args, data, device)
        count = args.steps
        if loop.kind == "d":  # several batches are prepared at once
            epoch = len(data.train) // args.batch_size
            count = -(-count // epoch) * epoch
        # A queue that workers filled before the turn would be taken for their rate. On the CPU the
        # model is slower than they are, so that it is full at the turn's end, too.
        drained = 3 * args.num_workers if loop.kind == "d" or device.type == "cuda" else 0
        begun = time.perf_counter()
        compiling = next(steps)
        synchronise(device)
        pipe.send(("ready", (time.perf_counter() - begun, compiling)))
        next(steps)  # cuDNN's trials, allocator
        while pipe.recv() == "go":
            for _ in range(drained):
                next(steps)
            synchronise(device)
            begun = time.perf_counter()
            for _ in range(count):
                next(steps)
            synchronise(device)
            pipe.send(("seconds", (time.perf_counter() - begun) / count))
        pipe.send(("memory", peak_memory(device)))
        steps.close()  # while Python still runs: DataLoader's threads must not outlive it
    except UserError as error:
        pipe.send(("error", str(error)))
    except (BrokenPipeError, EOFError):
        pass  # the parent is gone


def peak_memory(device: torch.device) -> float:
    """Peak memory in MiB: of the GPU's tensors, or of the process where it computes on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(args: argparse.Namespace, loops: list[Loop]) -> dict[str, dict[str, Any]]:
    """Results by the loops' names. Raises UserError for what a child process refuses."""
    start_method = multiprocessing.get_start_method()
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    pipes, children, results = {}, {}, {}
    try:
        for loop in loops:
            pipes[loop.name], theirs = context.Pipe()
            child = context.Process(target=serve, args=(loop, args, start_method, theirs))
            child.start()
            children[loop.name] = child
            theirs.close()
            first_step, compiling = receive(pipes[loop.name])
            results[loop.name] = {
                "seconds": [],
                "first_step_seconds": first_step,
                "compile_seconds": compiling,
            }
        for _, loop in itertools.product(range(args.rounds), loops):
            results[loop.name]["seconds"].append(ask(pipes[loop.name], "go"))
            time.sleep(SETTLE)
        for name, child in children.items():
            results[name]["peak_memory_mib"] = ask(pipes[name], "stop")
            child.join()
    finally:
        for child in children.values():
            child.kill()  # those that still run after a mistake or Ctrl-C; their workers notice
    for result in results.values():
        median = statistics.median(result["seconds"])
        result |= {"ms_per_step": 1000 * median, "images_per_second": args.batch_size / median}
    return results


def ask(pipe: Any, message: str) -> float:
    with contextlib.suppress(BrokenPipeError):  # receive() tells it
        pipe.send(message)
    return receive(pipe)


def receive(pipe: Any) -> Any:
    try:
        kind, value = pipe.recv()
    except (EOFError, ConnectionError):
        raise UserError("a measuring process died: its message is above") from None
    if kind == "error":
        raise UserError(value)
    return value


def flops_per_step(args: argparse.Namespace) -> float:
    """Floating-point operations of matrix products and convolutions, forward and backward."""
    model = build_model(args.model, args.num_classes, (3, args.img_size, args.img_size))
    with FlopCounterMode(display=False) as counter:
        logits, _ = model(torch.zeros(2, 3, args.img_size, args.img_size))
        logits.sum().backward()
    return counter.get_total_flops() / 2 * args.batch_size


@functools.cache
def matrix_rate(precision: str, device: torch.device) -> float:
    """FLOP/s that a large matrix product reaches in the type the layers compute in."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    size = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(size, size, device=device).to(AUTOCAST.get(precision, torch.float32))
    times = []
    for _ in range(40):
        synchronise(device)
        begun = time.perf_counter()
        matrix @ matrix
        synchronise(device)
        times.append(time.perf_counter() - begun)
    return 2 * size**3 / min(times)


def matrix_shares(
    args: argparse.Namespace,
    loops: list[Loop],
    results: dict[str, dict[str, Any]],
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """For each loop of the step alone, by name, what it reaches of the device's matrix rate."""
    flops = flops_per_step(args)
    shares = {}
    for loop in loops:
        if loop.kind == "c":
            rate = matrix_rate(loop.settings.get("precision", args.precision), device)
            reached = flops / results[loop.name]["ms_per_step"] * 1000
            shares[loop.name] = {"flops": flops, "matrix_rate": rate, "share": reached / rate}
    return shares


def report(
    results: dict[str, dict[str, Any]], against: list[tuple[str, list[float | None]]]
) -> str:
    """The table; `against` names columns of ratios and gives the seconds that they compare to."""
    header = ["loop", "images/s", "ms/step", f"{EPOCH:,} in s", *[name for name, _ in against]]
    header += ["peak MiB", "first step s", "of it compiling"]
    rows = [
        [
            name,
            f"{result['images_per_second']:.1f}",
            f"{result['ms_per_step']:.2f}",
            f"{EPOCH / result['images_per_second']:.1f}",
            *[ratio(base[number], result["seconds"]) for _, base in against],
            f"{result['peak_memory_mib']:.0f}",
            f"{result['first_step_seconds']:.1f}",
            f"{result['compile_seconds']:.1f}",
        ]
        for number, (name, result) in enumerate(results.items())
    ]
    return table(header, rows)


def references(
    loops: list[Loop], results: dict[str, dict[str, Any]]
) -> list[tuple[str, list[list[float] | None]]]:
    """The columns of ratios: to (a) and (c), or to the first row and the one before."""
    seconds = [result["seconds"] for result in results.values()]
    if len({loop.kind for loop in loops}) < len(loops):
        return [
            ("× first", [seconds[0]] * len(loops)),
            ("× the row before", [None, *seconds[:-1]]),
        ]
    by_kind = {loop.kind: values for loop, values in zip(loops, seconds, strict=True)}
    return [(f"× ({kind})", [by_kind.get(kind)] * len(loops)) for kind in ("a", "c")]


def ratio(base: list[float] | None, seconds: list[float]) -> str:
    """The median over rounds of base/seconds: what disturbs the machine disturbs neighbours."""
    if base is None:
        return "-"
    return f"{statistics.median(b / s for b, s in zip(base, seconds, strict=True)):.3f}"


def refuse_without_effect(args: argparse.Namespace) -> None:
    """A flag that would do nothing is a mistake. Raises UserError."""
    given = {
        "num_images": args.data_dir is not None and args.num_images is not None,
        "num_classes": args.data_dir is not None and args.num_classes is not None,
        "precision": args.what_helps is not None and args.precision != "auto",
        "compile": args.what_helps is not None and args.compile,
    }
    if len(set(args.loops)) < len(args.loops):
        raise UserError("--loops names a loop twice")
    if args.compile and not {"b", "c"} & set(args.loops):
        raise UserError("--compile has no effect here: it is of (b) and (c)")
    for flag, without_effect in given.items():
        if without_effect:
            reason = "--data_dir tells it" if flag.startswith("num") else "--what_helps sets it"
            raise UserError(f"--{flag} has no effect here: {reason}")
    if args.augment == "DA1+DA2" and "a" in args.loops and args.what_helps is None:
        raise UserError("--augment DA1+DA2: the conventional loop has no Mixup; add --loops b c d")


def run(args: argparse.Namespace) -> None:
    if args.json is not None:
        check_target("--json", Path(args.json))
    refuse_without_effect(args)
    device, device_name = pick_device(args.gpu_id)
    args = complete(args, device)
    set_determinism(False)
    if args.stream and args.data_dir is None:
        with tempfile.TemporaryDirectory() as root:
            write_photos(Path(root), args.num_images, args.num_classes)
            args.data_dir = root
            return compare(args, device, device_name)
    return compare(args, device, device_name)


def compare(args: argparse.Namespace, device: torch.device, device_name: str) -> None:
    data = load(args)
    if len(data.train) < args.batch_size:
        raise UserError(f"{len(data.train)} images are less than a batch of {args.batch_size}")
    args.num_classes = data.num_classes
    if args.steps is None:
        args.steps = len(data.train) // args.batch_size if device.type == "cuda" else 4
    loops = chosen_loops(args, device)
    results = measure(args, loops)
    print(f"{args.model}, {args.img_size}×{args.img_size}, batch {args.batch_size}, {device_name}")
    where = "read from files" if not isinstance(data.train, TensorSplit) else "in memory"
    print(f"{len(data.train)} images {where}, torch {torch.__version__}")
    if args.what_helps is None and {"b", "c"} & set(args.loops):
        print(f"(b) and (c) in {args.precision}{', compiled' * args.compile}")
    print(report(results, references(loops, results)))
    shares = matrix_shares(args, loops, results, device)
    for name, share in shares.items():
        print(
            f"{name}: {share['flops'] / 1e9:.1f} GFLOP per step, {share['share']:.0%} of the "
            f"{share['matrix_rate'] / 1e9:.0f} GFLOP/s that a matrix product reaches"
        )
    if args.json:
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        settings = {**vars(args), "device": device_name, "processor": processor(), **versions}
        write_json(Path(args.json), {"settings": settings, "loops": results, "matrix": shares})


def main() -> int:
    args = parser().parse_args()
    try:
        with StopSignal(STOPPED):
            run(args)
    except UserError as error:
        print(f"train_speed.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
