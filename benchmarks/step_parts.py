"""The parts of a training step on the CPU, for step_profile.py."""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch.profiler import ProfilerActivity

from args import Settings
from benchmarks.bench import Bench
from benchmarks.images import load_images
from benchmarks.loops import run_step_alone
from benchmarks.matrix_rate import measure_matrix_rate
from rundir.building import build_precision
from utils.console import format_table
from utils.device import pick_device
from utils.errors import UserError

PASSES = {
    "forward_training": "convolutions, forward",
    "backward_data": "convolutions, gradient of the data",
    "backward_weights": "convolutions, gradient of the weights",
}
REORDER = "weights and maps into oneDNN's order"
# torch's operations by the part of the step that they are; those of convolutions without the time
# that oneDNN reports.
AROUND = "around the convolutions"
OPERATIONS = {
    "aten::convolution_backward": AROUND,
    "aten::mkldnn_convolution": AROUND,
    "aten::native_batch_norm": "normalisation, forward",
    "aten::native_batch_norm_backward": "normalisation, backward",
    "aten::clamp_min_": "ReLU, forward",
    "aten::threshold_backward": "ReLU, backward",
    "aten::add_": "sums",
    "aten::add": "sums",
    "aten::cat": "concatenation",
    "aten::copy_": "copies and casts",
    "aten::_fused_sgd_": "optimizer",
}
OTHER = "other operations and Python"


@dataclass
class Parts:
    """Milliseconds and floating-point operations of the parts of a step, by name."""

    milliseconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    operations: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def print_parts(args: argparse.Namespace) -> int:
    """Profile the step of the flags of step_profile.py and print the table. Raises UserError."""
    device, device_name = pick_device(-1)
    settings = Settings().replace(
        model=args.model, dataset="folder", batch_size=args.batch_size, img_size=args.img_size
    )
    precision = build_precision(settings, args.precision, device).name
    bench = Bench(settings.replace(precision=precision), 1, args.batch_size, 10)
    steps = run_step_alone(bench, load_images(bench), device)
    for _ in range(3):
        next(steps)
    wall, parts = measure_parts(lambda: next(steps), args.repeats)
    rate = measure_matrix_rate(precision, device)
    side = args.img_size
    print(f"{args.model}, {side}×{side}, batch {args.batch_size}, {precision}, {device_name}")
    print(f"torch {torch.__version__}; large products reach {rate / 1e9:.0f} GFLOP/s")
    print(format_parts(wall, parts, rate))
    return 0


def measure_parts(step: Callable[[], object], repeats: int) -> tuple[float, Parts]:
    """Return the milliseconds of a step, and of its parts: medians over `repeats` steps.

    Raises UserError if oneDNN reports nothing.
    """
    walls, all_parts = [], []
    for _ in range(repeats):
        begun = time.perf_counter()
        step()
        walls.append(1000 * (time.perf_counter() - begun))
        all_parts.append(profile_step(step))
    names = sorted({name for parts in all_parts for name in parts.milliseconds})
    medians = {n: statistics.median(p.milliseconds[n] for p in all_parts) for n in names}
    return statistics.median(walls), Parts(medians, all_parts[0].operations)


def profile_step(step: Callable[[], object]) -> Parts:
    """Take one step under oneDNN's report and one under torch's profiler; return the parts.

    Raises UserError if oneDNN reports nothing.
    """
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        parts = read_report(record_output(step))
    convolutions = sum(parts.milliseconds.values())
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    for event in profiler.key_averages():
        if event.key in OPERATIONS:
            parts.milliseconds[OPERATIONS[event.key]] += event.self_cpu_time_total / 1000
    parts.milliseconds[AROUND] -= convolutions
    return parts


def record_output(work: Callable[[], object]) -> str:
    """Return what libraries print to the standard output of the process while `work` runs."""
    sys.stdout.flush()
    libc = ctypes.CDLL(None)
    kept = os.dup(1)
    with tempfile.TemporaryFile("w+") as output:
        os.dup2(output.fileno(), 1)
        try:
            work()
        finally:
            libc.fflush(None)
            os.dup2(kept, 1)
            os.close(kept)
        output.seek(0)
        return output.read()


def read_report(text: str) -> Parts:
    """Add up what oneDNN reports: lines of onednn_verbose,…,exec,cpu,PRIMITIVE,…,SHAPE,MS.

    Raises UserError if no convolution is reported.
    """
    parts = Parts()
    for line in text.splitlines():
        words = line.split(",")
        if "exec" not in words:
            continue
        _, primitive, _, direction = words[words.index("exec") + 1 :][:4]
        shape, milliseconds = words[-2], float(words[-1])
        if primitive == "reorder":
            parts.milliseconds[REORDER] += milliseconds
        elif primitive == "convolution":
            sizes = {key: int(size) for key, size in re.findall(r"([a-z]+)(\d+)", shape)}
            name = f"{PASSES[direction]}, {sizes['oh']}×{sizes['ow']}"
            parts.milliseconds[name] += milliseconds
            parts.operations[name] += count_operations(sizes)
    if not parts.operations:
        raise UserError("oneDNN reports no convolution: the network or this torch has none")
    return parts


def count_operations(sizes: Mapping[str, int]) -> int:
    """Count the floating-point operations of a convolution by oneDNN's names of its sizes."""
    return 2 * math.prod(sizes[name] for name in ("mb", "ic", "oc", "oh", "ow", "kh", "kw"))


def format_parts(wall: float, parts: Parts, rate: float) -> str:
    """Return the table.

    Args:
        wall: milliseconds of a step.
        parts: of it.
        rate: FLOP/s of large products.
    """
    rest = wall - sum(parts.milliseconds.values())
    convolutions = [name for name in parts.milliseconds if name in parts.operations]
    convolutions.sort(key=find_place)
    others = [name for name in parts.milliseconds if name not in parts.operations]
    others.sort(key=lambda name: -parts.milliseconds[name])
    rows = []
    for name in [*convolutions, *others]:
        rows.append(
            format_part(name, parts.milliseconds[name], wall, parts.operations.get(name, 0), rate)
        )
    rows.append(format_part(OTHER, rest, wall, 0, rate))
    rows.append(format_part("step", wall, wall, sum(parts.operations.values()), rate))
    return format_table(["part", "ms", "share", "GFLOP/s", "of large products"], rows)


def find_place(name: str) -> tuple[int, int]:
    """Return the place of a part's row among the convolutions: by direction, large maps first."""
    direction, _, sides = name.rpartition(", ")
    return list(PASSES.values()).index(direction), -int(sides.split("×")[0])


def format_part(
    name: str, milliseconds: float, wall: float, operations: int, rate: float
) -> list[str]:
    """Return a row: a part's time, its share of the step, and its rate if it has operations."""
    row = [name, f"{milliseconds:.1f}", f"{milliseconds / wall:.1%}"]
    if not operations:
        return [*row, "-", "-"]
    reached = operations / milliseconds * 1000
    return [*row, f"{reached / 1e9:.0f}", f"{reached / rate:.0%}"]
