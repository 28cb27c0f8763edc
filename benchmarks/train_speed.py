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
from typing import Annotated, Any

from pydantic import Field

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from args import PRECISIONS, Settings
from input_pipeline import AUGMENTATIONS
from models import NETWORKS
from objective import LOSSES, OPTIMIZERS
from utils.cli import (
    LARGEST_INTEGER,
    Count,
    DeviceNumber,
    Natural,
    Parser,
    check_value,
    name_of,
    run_command,
)
from utils.errors import UserError
from utils.signals import StopSignal

NAMES = {"a": "conventional", "b": "train.py", "c": "ceiling", "d": "batches"}
# What --what_helps adds to a float32, contiguous, eager step, in this order: changes of the task.
Changes = dict[str, Any]
CPU_MEANS: dict[str, Changes] = {
    "memory": {},  # a property of the process
    "channels_last": {"layout": "channels_last"},
    "bf16": {"precision": "bf16"},
    "compile": {"compile": True},
}
GPU_MEANS: dict[str, Changes] = {
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
    "channels_last": {"layout": "channels_last"},
    "compile": {"compile": True, "graphs": False},
    "graphs": {"graphs": True},
}
STOPPED = "stopped; no results"
# Pause after a turn in seconds, in which workers fill their queue: else they disturb the next loop.
SETTLE = 0.3


AtLeastTwo = Annotated[int, Field(ge=2, le=LARGEST_INTEGER)]
AtLeastFour = Annotated[int, Field(ge=4, le=LARGEST_INTEGER)]


def build_parser() -> Parser:
    parser = Parser(prog="train_speed.py", description=__doc__)
    add_data_flags(parser.add_argument_group("data"))
    add_training_flags(parser.add_argument_group("training"))
    add_measuring_flags(parser.add_argument_group("what is measured"))
    return parser


def add_data_flags(group: Any) -> None:
    add = group.add_argument
    add(
        "--img_size",
        type=check_value(AtLeastFour),
        default=32,
        help="side in pixels (default: 32)",
    )
    add(
        "--num_images",
        type=check_value(AtLeastTwo),
        default=None,
        help="random images (default: 50,000 in a GPU's memory, else 2,048)",
    )
    add(
        "--num_classes",
        type=check_value(AtLeastTwo),
        default=None,
        help="of random images (default: 10)",
    )
    add(
        "--stream",
        action="store_true",
        help="read images from files: --data_dir or random JPEGs of 500×375 (default: in memory)",
    )
    add(
        "--data_dir",
        default=None,
        metavar="DIR",
        help="image tree as of train.py --dataset folder (default: random images)",
    )
    add(
        "--num_workers",
        type=check_value(Natural),
        default=None,
        help="(default: the cores, at most 8)",
    )
    add("--batch_size", type=check_value(AtLeastTwo), default=128, help="(default: 128)")
    add(
        "--augment",
        type=check_value(name_of(AUGMENTATIONS, "augmentation")),
        default="DA1",
        help="a mixing one not with (a) (default: DA1)",
    )


def add_training_flags(group: Any) -> None:
    add = group.add_argument
    add(
        "--model",
        type=check_value(name_of(NETWORKS, "model")),
        default="ResNet18",
        help="(default: ResNet18)",
    )
    add("--loss", type=check_value(name_of(LOSSES, "loss")), default="BCE", help="(default: BCE)")
    add(
        "--optimizer",
        type=check_value(name_of(OPTIMIZERS, "optimizer")),
        default="SGD",
        help="(default: SGD)",
    )
    add(
        "--precision",
        type=check_value(name_of(PRECISIONS, "precision")),
        default="auto",
        help="of (b) and (c) (default: auto)",
    )
    add("--compile", action="store_true", help="compile (b) and (c) (default: off)")
    add("--gpu_id", type=check_value(DeviceNumber), default=0, help="-1: CPU (default: 0)")


def add_measuring_flags(group: Any) -> None:
    add = group.add_argument
    add(
        "--steps",
        type=check_value(Count),
        default=None,
        help="timed steps per turn, for (d) whole epochs (default: on a GPU an epoch, else 4)",
    )
    add("--rounds", type=check_value(Count), default=5, help="turns of each loop (default: 5)")
    chosen = group.add_mutually_exclusive_group()
    chosen.add_argument(
        "--loops", nargs="+", choices=list(NAMES), default=list(NAMES), help="(default: a b c d)"
    )
    chosen.add_argument(
        "--what_helps",
        nargs="*",
        choices=list(CPU_MEANS | GPU_MEANS),
        default=None,
        metavar="MEANS",
        help="the step without and with each means, one added to the other (default: off)",
    )
    add("--json", default=None, metavar="FILE", help="also write the results (default: none)")


if __name__ == "__main__":
    build_parser().parse_args()  # --help and mistakes are answered before torch is imported
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.loops import LOOPS, Task, get_train
from input_pipeline.load import load_dataset
from input_pipeline.splits import DataSet, TensorSplit
from models import build_model
from training.step import check_compiler
from utils.console import format_table
from utils.device import pick_device, synchronise
from utils.environment import name_processor
from utils.files import check_target, write_json
from utils.precision import AUTOCAST, choose_precision, set_determinism

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
EPOCH = 50_000  # images of CIFAR's training sets
PHOTO = (375, 500)  # height and width of the files of --stream: ImageNet's most frequent size


@dataclass(frozen=True)
class Bench:
    """What is measured; it goes to the processes that measure.

    Attributes:
        task: what the loops train, of `steps` per turn.
        rounds: turns of each loop.
        num_images, num_classes: of random images.
        stream: read them from files.
        data_dir: an image tree in their place, or None.
    """

    task: Task
    rounds: int
    num_images: int
    num_classes: int
    stream: bool
    data_dir: str | None

    @property
    def batch_size(self) -> int:
        return self.task.settings.batch_size


@dataclass
class Loop:
    """What a child process runs: a key of LOOPS, with changes of the task."""

    kind: str
    name: str
    changes: Changes = field(default_factory=dict)
    keep_memory: bool = True

    def apply(self, task: Task) -> Task:
        """Return the task with the changes: those of settings, and of its own attributes."""
        own = {key: value for key, value in self.changes.items() if hasattr(task, key)}
        settings = {key: value for key, value in self.changes.items() if key not in own}
        return replace(task, settings=task.settings.replace(**settings), **own)


def choose_loops(args: argparse.Namespace, device: torch.device) -> list[Loop]:
    """Return the loops that are asked for. Raises UserError."""
    if args.what_helps is not None:
        return list_means(args.model, args.precision, args.what_helps, device)
    return [Loop(k, f"({k}) {NAMES[k]}", keep_memory=k != "a") for k in args.loops]


def list_means(
    model: str, precision: str, named: Sequence[str], device: torch.device
) -> list[Loop]:
    """Return the step alone with one of the means after the other, each with all before it.

    On the CPU bf16 comes last where --precision auto does not choose it, as it is no gain there.
    Raises UserError for a means that has no effect.
    """
    changes = dict(GPU_MEANS if device.type == "cuda" else CPU_MEANS)
    if device.type == "cpu" and precision != "bf16":
        changes["bf16"] = changes.pop("bf16")
    if not NETWORKS[model].convolutional:
        del changes["channels_last"]
    asked = named or list(changes)
    without_effect = [name for name in asked if name not in changes]
    if "graphs" in asked and "compile" not in asked:
        without_effect.append("graphs without compile")
    if without_effect:
        known = ", ".join(changes)
        raise UserError(f"--what_helps {without_effect[0]} has no effect here: use some of {known}")
    settings: Changes = {"precision": "fp32", "compile": False, "layout": "contiguous_format"}
    found = [Loop("c", "float32", settings, keep_memory=False)]
    for name in (name for name in changes if name in asked):
        settings = settings | changes[name]
        kept = found[-1].keep_memory or name == "memory"
        found.append(Loop("c", f"+ {name}", settings, kept))
    return found


def draw_data(bench: Bench) -> DataSet:
    """Draw uint8 noise of the right shape: speed does not depend on what is in the images."""
    generator = np.random.default_rng(0)
    side = bench.task.settings.img_size or 32
    shape = (bench.num_images, 3, side, side)
    images = torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, bench.num_classes, bench.num_images))
    split = TensorSplit(images, labels)
    names = [str(number) for number in range(bench.num_classes)]
    return DataSet("folder", names, (3, side, side), MEAN, STD, split, split)


def write_photos(root: Path, count: int, num_classes: int) -> None:
    """Write a folder data set of JPEGs with the size, the detail, and so the bytes, of photos."""
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


def load_data(bench: Bench) -> DataSet:
    """Load or draw the images. Raises UserError."""
    if bench.data_dir is None:
        return draw_data(bench)
    return load_dataset(
        "folder",
        bench.data_dir,
        img_size=bench.task.settings.img_size,
        num_workers=bench.task.settings.num_workers or 0,
        in_memory_bytes=0 if bench.stream else None,
    )


def build_bench(args: argparse.Namespace, device: torch.device) -> Bench:
    """Resolve the flags. Raises UserError."""
    if args.compile or args.what_helps == [] or "compile" in (args.what_helps or []):
        check_compiler(device)
    network = NETWORKS[args.model]
    precision = choose_precision(
        args.precision,
        device,
        args.img_size,
        convolutional=network.convolutional,
        bf16_side=network.bf16_side,
        channels_last_side=network.channels_last_side,
    )
    workers = min(8, os.cpu_count() or 1) if args.num_workers is None else args.num_workers
    settings = Settings().replace(
        model=args.model,
        dataset="folder",
        loss=args.loss,
        optimizer=args.optimizer,
        batch_size=args.batch_size,
        img_size=args.img_size,
        augment=args.augment,
        num_workers=workers,
        precision=precision.name,
        compile=args.compile,
        weight_decay_bias=5e-4,
    )
    large = device.type == "cuda" and not args.stream
    return Bench(
        Task(settings, args.steps or 4),
        args.rounds,
        args.num_images or (EPOCH if large else 2048),
        args.num_classes or 10,
        args.stream,
        args.data_dir,
    )


def serve(loop: Loop, bench: Bench, gpu_id: int, start_method: str, pipe: Any) -> None:
    """Run in a child process: at each message take --steps steps and answer their mean time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    try:
        # A spawned process would spawn its workers, too, and each would import torch again.
        multiprocessing.set_start_method(start_method, force=True)
        set_determinism(False)
        device, _ = pick_device(gpu_id, loop.keep_memory)
        answer_turns(loop, bench, device, pipe)
    except UserError as error:
        pipe.send(("error", str(error)))
    except (BrokenPipeError, EOFError):
        pass  # the parent is gone


def answer_turns(loop: Loop, bench: Bench, device: torch.device, pipe: Any) -> None:
    data, task = load_data(bench), loop.apply(bench.task)
    steps = LOOPS[loop.kind](task, data, device)
    count, workers = task.steps, task.settings.num_workers or 0
    if loop.kind == "d":  # several batches are prepared at once
        epoch = len(get_train(data)) // bench.batch_size
        count = -(-count // epoch) * epoch
    # A queue that workers filled before the turn would be taken for their rate. On the CPU the
    # model is slower than they are, so that it is full at the turn's end, too.
    drained = 3 * workers if loop.kind == "d" or device.type == "cuda" else 0
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
    pipe.send(("memory", read_peak_memory(device)))
    steps.close()  # while Python still runs: DataLoader's threads must not outlive it


def read_peak_memory(device: torch.device) -> float:
    """Return the peak memory in MiB: of the GPU's tensors, or of a process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(bench: Bench, loops: Sequence[Loop], gpu_id: int) -> dict[str, dict[str, Any]]:
    """Return results by the loops' names. Raises UserError for what a child process refuses."""
    start_method = multiprocessing.get_start_method()
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    pipes: dict[str, Any] = {}
    children: dict[str, Any] = {}
    results: dict[str, dict[str, Any]] = {}
    try:
        for loop in loops:
            pipes[loop.name], theirs = context.Pipe()
            child = context.Process(target=serve, args=(loop, bench, gpu_id, start_method, theirs))
            child.start()
            children[loop.name] = child
            theirs.close()
            first_step, compiling = receive(pipes[loop.name])
            results[loop.name] = {
                "seconds": [],
                "first_step_seconds": first_step,
                "compile_seconds": compiling,
            }
        for _, loop in itertools.product(range(bench.rounds), loops):
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
        result |= {"ms_per_step": 1000 * median, "images_per_second": bench.batch_size / median}
    return results


def ask(pipe: Any, message: str) -> float:
    with contextlib.suppress(BrokenPipeError):  # receive() reports it
        pipe.send(message)
    seconds: float = receive(pipe)
    return seconds


def receive(pipe: Any) -> Any:
    try:
        kind, value = pipe.recv()
    except (EOFError, ConnectionError):
        raise UserError("a measuring process died: its message is above") from None
    if kind == "error":
        raise UserError(value)
    return value


def count_flops(bench: Bench) -> float:
    """Count the operations of matrix products and convolutions in a step, both passes."""
    settings = bench.task.settings
    shape = (3, settings.img_size or 32, settings.img_size or 32)
    model = build_model(settings.model, bench.num_classes, shape)
    with FlopCounterMode(display=False) as counter:
        logits, _ = model(torch.zeros(2, *shape))
        logits.sum().backward()
    return counter.get_total_flops() / 2 * bench.batch_size


@functools.cache
def measure_matrix_rate(precision: str, device: torch.device) -> float:
    """Return the FLOP/s that a large matrix product reaches in the type the layers compute in."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    size = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(size, size, device=device).to(AUTOCAST.get(precision, torch.float32))
    times = []
    for _ in range(40):
        synchronise(device)
        begun = time.perf_counter()
        torch.mm(matrix, matrix)
        synchronise(device)
        times.append(time.perf_counter() - begun)
    return 2 * size**3 / min(times)


def compute_matrix_shares(
    bench: Bench, loops: Sequence[Loop], results: dict[str, dict[str, Any]], device: torch.device
) -> dict[str, dict[str, float]]:
    """Compute what each loop of the step alone, by name, reaches of the device's matrix rate."""
    flops = count_flops(bench)
    shares = {}
    for loop in loops:
        if loop.kind == "c":
            rate = measure_matrix_rate(loop.apply(bench.task).settings.precision, device)
            reached = flops / results[loop.name]["ms_per_step"] * 1000
            shares[loop.name] = {"flops": flops, "matrix_rate": rate, "share": reached / rate}
    return shares


Column = tuple[str, Sequence[list[float] | None]]


def format_results(results: dict[str, dict[str, Any]], against: Sequence[Column]) -> str:
    """Format the table; `against` holds columns of ratios: titles and the seconds compared to."""
    header = ["loop", "images/s", "ms/step", f"{EPOCH:,} in s", *[name for name, _ in against]]
    header += ["peak MiB", "first step s", "of it compiling"]
    rows = [
        [
            name,
            f"{result['images_per_second']:.1f}",
            f"{result['ms_per_step']:.2f}",
            f"{EPOCH / result['images_per_second']:.1f}",
            *[format_ratio(base[number], result["seconds"]) for _, base in against],
            f"{result['peak_memory_mib']:.0f}",
            f"{result['first_step_seconds']:.1f}",
            f"{result['compile_seconds']:.1f}",
        ]
        for number, (name, result) in enumerate(results.items())
    ]
    return format_table(header, rows)


def list_references(loops: Sequence[Loop], results: dict[str, dict[str, Any]]) -> list[Column]:
    """Return the columns of ratios: to (a) and (c), or to the first row and the one before."""
    seconds = [result["seconds"] for result in results.values()]
    if len({loop.kind for loop in loops}) < len(loops):
        return [
            ("× first", [seconds[0]] * len(loops)),
            ("× the row before", [None, *seconds[:-1]]),
        ]
    by_kind = {loop.kind: values for loop, values in zip(loops, seconds, strict=True)}
    return [(f"× ({kind})", [by_kind.get(kind)] * len(loops)) for kind in ("a", "c")]


def format_ratio(base: list[float] | None, seconds: list[float]) -> str:
    """Format the median over rounds of base/seconds: a disturbance hits neighbours alike."""
    if base is None:
        return "-"
    return f"{statistics.median(b / s for b, s in zip(base, seconds, strict=True)):.3f}"


def refuse_idle_flags(args: argparse.Namespace) -> None:
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
            reason = "--data_dir decides it" if flag.startswith("num") else "--what_helps sets it"
            raise UserError(f"--{flag} has no effect here: {reason}")
    mixes = AUGMENTATIONS[args.augment].mixes_labels
    if mixes and "a" in args.loops and args.what_helps is None:
        raise UserError(
            f"--augment {args.augment}: the conventional loop does not mix; add --loops b c d"
        )


def run(args: argparse.Namespace) -> int:
    """Measure and print. Raises UserError."""
    if args.json is not None:
        check_target("--json", Path(args.json))
    refuse_idle_flags(args)
    device, device_name = pick_device(args.gpu_id)
    bench = build_bench(args, device)
    set_determinism(False)
    if bench.stream and bench.data_dir is None:
        with tempfile.TemporaryDirectory() as root:
            write_photos(Path(root), bench.num_images, bench.num_classes)
            compare(args, replace(bench, data_dir=root), device, device_name)
    else:
        compare(args, bench, device, device_name)
    return 0


def compare(args: argparse.Namespace, bench: Bench, device: torch.device, device_name: str) -> None:
    data = load_data(bench)
    images = len(get_train(data))
    if images < bench.batch_size:
        raise UserError(f"{images} images are less than a batch of {bench.batch_size}")
    steps = args.steps or (images // bench.batch_size if device.type == "cuda" else 4)
    bench = replace(bench, num_classes=data.num_classes, task=replace(bench.task, steps=steps))
    settings = bench.task.settings
    args.precision = settings.precision
    loops = choose_loops(args, device)
    results = measure(bench, loops, args.gpu_id)
    side = settings.img_size
    print(f"{settings.model}, {side}×{side}, batch {bench.batch_size}, {device_name}")
    where = "in memory" if isinstance(data.train, TensorSplit) else "read from files"
    print(f"{images} images {where}, torch {torch.__version__}")
    if args.what_helps is None and {"b", "c"} & set(args.loops):
        print(f"(b) and (c) in {settings.precision}{', compiled' * settings.compile}")
    print(format_results(results, list_references(loops, results)))
    shares = compute_matrix_shares(bench, loops, results, device)
    for name, share in shares.items():
        print(
            f"{name}: {share['flops'] / 1e9:.1f} GFLOP per step, {share['share']:.0%} of the "
            f"{share['matrix_rate'] / 1e9:.0f} GFLOP/s that a matrix product reaches"
        )
    if args.json:
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        machine = {"device": device_name, "processor": name_processor()} | versions
        described = asdict(bench)
        described["task"]["settings"] = settings.values()
        content = {"settings": described | machine, "loops": results, "matrix": shares}
        write_json(Path(args.json), content)


def main() -> int:
    args = build_parser().parse_args()
    return run_command("train_speed.py", lambda stop: run(args), stopped=STOPPED)


if __name__ == "__main__":
    sys.exit(main())
