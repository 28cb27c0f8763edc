"""The rate of a training step as a share of the rate of large products."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
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
        matrix_rate: operations per second of large products in the same precision.
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
    """Return the FLOP/s of large products in the type of the layers.

    On a GPU this is a matrix product. On the CPU two libraries compute: MKL multiplies matrices in
    float32, oneDNN convolves. The faster one counts. MKL reaches half of oneDNN's rate on AMD's
    processors.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    dtype = AUTOCAST.get(precision, torch.float32)
    if device.type == "cuda":
        return _measure_matrices(8192, dtype, device)
    return max(_measure_matrices(1024, dtype, device), _measure_convolution(dtype))


def _measure_matrices(size: int, dtype: torch.dtype, device: torch.device) -> float:
    matrix = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / _time_best(lambda: matrix @ matrix, device)


def _measure_convolution(dtype: torch.dtype) -> float:
    """Return the FLOP/s of a 3×3 convolution on the CPU, without padding that it could skip."""
    batch, channels, side = 32, 128, 16
    layer = torch.nn.Conv2d(channels, channels, 3, bias=False).requires_grad_(False)
    layer.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(batch, channels, side + 2, side + 2, dtype=dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    operations = 2 * batch * side**2 * 9 * channels**2
    return operations / _time_best(lambda: layer(images), torch.device("cpu"))


def _time_best(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of 40 tries."""
    times = []
    for _ in range(40):
        synchronise(device)
        begun = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - begun)
    return min(times)
