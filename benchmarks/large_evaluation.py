"""All measures of synthetic features, their time and memory, for imagenet_size.py."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.imagenet_size import FUNCTIONS, MEANS
from benchmarks.resident_memory import forget_peak, read_memory, read_peak
from metrics.extraction import Extracted
from metrics.features import Features, allocate_features
from metrics.measures import Evaluation
from utils.device import pick_device
from utils.registry import load_function

ROWS = 4096  # drawn at once


@dataclass(frozen=True)
class Found:
    """What the calls took.

    Attributes:
        seconds: of each.
        grown: bytes of each at its peak, above those before it.
        peak: bytes of the process at the highest peak, with the features.
    """

    seconds: list[float]
    grown: list[int]
    peak: int


def measure_apart(size: tuple[int, int, int], threads: int, names: Sequence[str]) -> Found:
    """Measure groups of measures at a size N, d, K, in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (size, threads, names))


def measure(size: tuple[int, int, int], threads: int, names: Sequence[str]) -> Found:
    """Measure in this process; see `measure_apart`."""
    pick_device(-1)  # freed memory is kept, as in eval_nc.py
    torch.set_num_threads(threads)
    # The libraries allocate their own buffers and start their threads at the first call.
    small = make_evaluation((200, 16, 4))
    for name in names:
        _find_call(name)(small)
    evaluation = make_evaluation(size)
    seconds: list[float] = []
    grown: list[int] = []
    peak = 0
    for name in names:
        forget_peak()
        before, start = read_memory(), time.perf_counter()
        _find_call(name)(evaluation)
        seconds.append(time.perf_counter() - start)
        grown.append(read_peak() - before)
        peak = max(peak, read_peak())
    return Found(seconds, grown, peak)


def _find_call(name: str) -> Callable[[Evaluation], object]:
    if name == MEANS:
        return lambda evaluation: evaluation.class_means
    function: Callable[[Evaluation], object] = load_function(FUNCTIONS[name])
    return function


def make_evaluation(size: tuple[int, int, int]) -> Evaluation:
    """Draw features around random class means, which are the classifier's weight, too.

    What a network's logits leave is drawn as well: its values do not change what the measures take.
    """
    count, dim, classes = size
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(classes, dim, generator=generator)
    labels = torch.arange(count) % classes
    features = allocate_features(count, dim, torch.device("cpu"))
    _fill(features, labels, weight, generator)
    positives, negatives = torch.randn(2, count, generator=generator)
    nll, confidences = torch.rand(2, count, generator=generator, dtype=torch.float64)
    hits = positives > negatives
    correct = torch.bincount(labels[hits], minlength=classes)
    parts = (positives, negatives, 0.5, 0.8, correct, nll, confidences, hits)
    extracted = Extracted(features, labels, *parts)
    return Evaluation(extracted, weight, torch.zeros(classes), [count / classes] * classes)


def _fill(features: Features, labels: Tensor, means: Tensor, generator: torch.Generator) -> None:
    assert isinstance(features, Tensor)
    for first in range(0, len(labels), ROWS):
        rows = slice(first, first + ROWS)
        features[rows].normal_(generator=generator).add_(means[labels[rows]])


def fit_line(counts: Sequence[int], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Fit seconds = a + b N by least squares of relative errors; return a, b and the largest."""
    x, y = np.array(counts, dtype=float), np.array(seconds)
    slope, start = np.polyfit(x, y, 1, w=1 / y)
    return start, slope, float(np.abs((start + slope * x) / y - 1).max())
