"""The timing of the loops of train_speed.py, and the table."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision

from args import Settings, complete
from benchmarks.bench import Bench, Loop, list_loops, list_means
from benchmarks.images import get_training_images, load_images, write_photos
from benchmarks.matrix_rate import MatrixShare, compute_shares
from benchmarks.ratios import format_ratio
from benchmarks.turns import Timing, measure_loops
from input_pipeline.splits import Split, TensorSplit
from rundir.building import build_precision
from training.step import check_compiler
from utils.console import format_count, format_table
from utils.device import pick_device
from utils.environment import name_processor
from utils.errors import UserError
from utils.files import write_json
from utils.precision import set_determinism

EPOCH = 50_000  # images of CIFAR's training sets
SMALL_SET = 2048  # random images by default outside a GPU's memory
CLASSES = 10
OURS = ("b", "c", "e")  # the kinds that take train.py's steps

Reference = tuple[str, list[list[float] | None]]


def compare_loops(args: argparse.Namespace) -> int:
    """Time the loops that the flags of train_speed.py ask for. Raises UserError."""
    device, device_name = pick_device(args.gpu_id)
    if args.compile or args.what_helps == [] or "compile" in (args.what_helps or []):
        check_compiler(device)
    bench = build_bench(args, device)
    set_determinism(False)
    with tempfile.TemporaryDirectory() as root:
        bench = bench.replace_settings(save_dir=root)
        if args.stream and args.data_dir is None:
            photos = Path(root) / "photos"
            write_photos(photos, bench.num_images, bench.num_classes)
            bench = dataclasses.replace(bench, data_dir=str(photos))
        compare(args, bench, device, device_name)
    return 0


def build_bench(args: argparse.Namespace, device: torch.device) -> Bench:
    """Resolve the defaults that depend on the device; `steps` is 0 if it is not given.

    Raises UserError.
    """
    if args.graphs and device.type != "cuda":
        raise UserError("--graphs has no effect here: it is for NVIDIA GPUs")
    settings = Settings().replace(
        model=args.model,
        dataset="folder",
        loss=args.loss,
        optimizer=args.optimizer,
        batch_size=args.batch_size,
        img_size=args.img_size,
        augment=args.augment,
        compile=args.compile,
        gpu_id=args.gpu_id,
        num_workers=args.num_workers,
    )
    precision = build_precision(settings, args.precision, device)
    many = device.type == "cuda" and not args.stream
    return Bench(
        complete(settings.replace(precision=precision.name)),
        steps=args.steps or 0,
        num_images=args.num_images or (EPOCH if many else SMALL_SET),
        num_classes=args.num_classes or CLASSES,
        data_dir=args.data_dir,
        stream=args.stream,
        graphs=args.graphs,
    )


def compare(args: argparse.Namespace, bench: Bench, device: torch.device, device_name: str) -> None:
    """Time the loops, print the table and write the file of --json. Raises UserError."""
    data = load_images(bench)
    images = get_training_images(data)
    if len(images) < args.batch_size:
        raise UserError(f"{len(images)} images are less than a batch of {args.batch_size}")
    bench = dataclasses.replace(
        bench,
        num_images=len(images),
        num_classes=data.num_classes,
        steps=bench.steps or (len(images) // args.batch_size if device.type == "cuda" else 4),
    )
    if args.what_helps is None:
        loops = list_loops(bench, args.loops, args.num_workers)
    else:
        loops = list_means(bench, args.what_helps, on_gpu=device.type == "cuda")
    timings = measure_loops(loops, args.rounds)
    print_setting(args, bench, images, device_name)
    print_backends(loops, timings)
    print(format_report(timings, list_references(loops, timings)))
    shares = compute_shares(loops, timings, device)
    for name, share in shares.items():
        print(
            f"{name}: {share.flops / 1e9:.1f} GFLOP per step, {share.share:.0%} of the "
            f"{share.matrix_rate / 1e9:.0f} GFLOP/s that large products reach"
        )
    if args.json:
        write_results(args, bench, device_name, timings, shares)


def print_setting(args: argparse.Namespace, bench: Bench, images: Split, device_name: str) -> None:
    side = bench.settings.img_size
    print(f"{bench.settings.model}, {side}×{side}, batch {args.batch_size}, {device_name}")
    where = "in memory" if isinstance(images, TensorSplit) else "read from files"
    print(f"{len(images)} images {where}, torch {torch.__version__}")


def print_backends(loops: Sequence[Loop], timings: Mapping[str, Timing]) -> None:
    """Print how the conventional loops and ours compute."""
    for loop in loops:
        if not loop.bench.ours:
            workers = format_count(loop.bench.settings.num_workers or 0, "worker")
            print(f"({loop.kind}) in fp32, {workers}, {timings[loop.name].backend}")
    names = [loop.kind for loop in loops if loop.kind in OURS]
    if names and len(set(names)) == len(names):
        bench = next(loop.bench for loop in loops if loop.kind in OURS)
        means = ", compiled" * bench.settings.compile + ", recorded" * bench.graphs
        words = " ".join(f"({name})" for name in names)
        print(f"{words} in {bench.settings.precision}{means}")


def format_report(timings: Mapping[str, Timing], references: Sequence[Reference]) -> str:
    """Return the table.

    Args:
        timings: by the loops' names.
        references: columns of ratios: their titles, and for each loop the seconds to compare with.
    """
    compiled = any(timing.compile_seconds for timing in timings.values())
    header = ["loop", "images/s", "ms/step", f"{EPOCH:,} in s", *[name for name, _ in references]]
    header += ["peak MiB", "first step s", *["of it compiling"] * compiled]
    rows = [
        [
            name,
            f"{timing.images_per_second:.1f}",
            f"{timing.ms_per_step:.2f}",
            f"{EPOCH / timing.images_per_second:.1f}",
            *[format_ratio(base[number], timing.seconds) for _, base in references],
            f"{timing.peak_memory_mib:.0f}",
            f"{timing.first_step_seconds:.1f}",
            *[f"{timing.compile_seconds:.1f}"] * compiled,
        ]
        for number, (name, timing) in enumerate(timings.items())
    ]
    return format_table(header, rows)


def list_references(loops: Sequence[Loop], timings: Mapping[str, Timing]) -> list[Reference]:
    """Return the columns of ratios: to (a2), (a) and (c), or to the first and the row before."""
    seconds = [timing.seconds for timing in timings.values()]
    if len({loop.kind for loop in loops}) < len(loops):
        first: list[list[float] | None] = [seconds[0] for _ in loops]
        return [("× first", first), ("× the row before", [None, *seconds[:-1]])]
    by_kind = {loop.kind: values for loop, values in zip(loops, seconds, strict=True)}
    bases = [kind for kind in ("a2", "a", "c") if kind in by_kind]
    return [(f"× ({kind})", [by_kind[kind] for _ in loops]) for kind in bases]


def write_results(
    args: argparse.Namespace,
    bench: Bench,
    device_name: str,
    timings: Mapping[str, Timing],
    shares: Mapping[str, MatrixShare],
) -> None:
    """Write the file of --json: the flags as they were resolved, and the results."""
    settings: dict[str, Any] = dict(vars(args))
    settings |= bench.settings.values(["precision", "num_workers", "dataset", "seed"])
    settings |= {
        "num_images": bench.num_images,
        "num_classes": bench.num_classes,
        "steps": bench.steps,
        "device": device_name,
        "processor": name_processor(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    content = {
        "settings": settings,
        "loops": {name: timing.list_values() for name, timing in timings.items()},
        "matrix": {name: dataclasses.asdict(share) for name, share in shares.items()},
    }
    write_json(Path(args.json), content)
