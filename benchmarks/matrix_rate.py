"""The rate of a training step as a share of the rate of a large matrix product."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench import Bench, Loop
from benchmarks.turns import Timing
from models import build_model
from utils.device import synchronise
from utils.precision import AUTOCAST


@dataclass(frozen=True)
class MatrixShare:
    """The rate that a loop of the step alone reaches.

    Attributes:
        flops: floating-point operations per step.
        matrix_rate: operations per second of a large matrix product in the same precision.
        share: the loop's rate over `matrix_rate`.
    """

    flops: float
    matrix_rate: float
    share: float


def compute_shares(
    loops: Sequence[Loop], timings: Mapping[str, Timing], device: torch.device
) -> dict[str, MatrixShare]:
    """Return the share of the device's matrix rate that each loop of the step alone reaches."""
    flops = count_operations(loops[0].bench)
    shares = {}
    for loop in loops:
        if loop.kind == "c":
            rate = measure_matrix_rate(loop.bench.settings.precision, device)
            reached = flops / timings[loop.name].ms_per_step * 1000
            shares[loop.name] = MatrixShare(flops, rate, reached / rate)
    return shares


def count_operations(bench: Bench) -> float:
    """Count the floating-point operations of a step's matrix products and convolutions.

    Forward and backward.
    """
    model = build_model(bench.settings.model, bench.num_classes, bench.image_shape)
    with FlopCounterMode(display=False) as counter:
        logits, _ = model(torch.zeros(2, *bench.image_shape))
        logits.sum().backward()
    return counter.get_total_flops() / 2 * bench.settings.batch_size


@functools.cache
def measure_matrix_rate(precision: str, device: torch.device) -> float:
    """Return the FLOP/s of a large matrix product in the type of the layers."""
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
