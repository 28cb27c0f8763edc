"""The NC metrics and other ways to compute them, and their time and memory, for nc_speed.py."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.resident_memory import forget_peak, read_memory, read_peak
from metrics.accuracy import compute_uniform_accuracy
from metrics.neural_collapse import compute_neural_collapse
from metrics.properties import compute_feature_properties
from metrics.scores import compute_score_statistics

LOOPED = 2000  # largest number of samples of a per-sample loop; its time is proportional to it


@dataclass(frozen=True)
class Inputs:
    """The input of a method, float32.

    Attributes:
        features: [N, d].
        labels: [N].
        weight: [K, d].
        bias: [K].
        logits: [N, K]; empty for the methods that do not need them.
    """

    features: Tensor
    labels: Tensor
    weight: Tensor
    bias: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Method:
    """A way to compute something.

    Attributes:
        function: maps inputs to the result.
        needs_logits: whether it reads them.
        is_loop: whether it computes the first `LOOPED` samples only.
    """

    function: Callable[[Inputs], Any]
    needs_logits: bool = False
    is_loop: bool = False


def measure_apart(
    name: str, size: tuple[int, int, int], threads: int, repeats: int
) -> tuple[float, float]:
    """Return the best seconds of several calls and the peak bytes, measured in a fresh process.

    Args:
        name: a key of `METHODS`.
        size: N, d and K of the inputs.
        threads: the threads of torch.
        repeats: the number of calls.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (name, size, threads, repeats))


def measure(
    name: str, size: tuple[int, int, int], threads: int, repeats: int
) -> tuple[float, float]:
    """Measure in this process; see `measure_apart`. Inputs do not count as memory."""
    torch.set_num_threads(threads)
    method = METHODS[name]
    inputs = make_inputs(size, with_logits=method.needs_logits)
    # The libraries allocate their own buffers and start their threads at the first call.
    method.function(make_inputs((1000, 16, 4), with_logits=True))
    forget_peak()
    before = read_memory()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        method.function(inputs)
        seconds.append(time.perf_counter() - start)
    return min(seconds), read_peak() - before


def make_inputs(size: tuple[int, int, int], *, with_logits: bool) -> Inputs:
    """Draw features around random class means, which are the classifier's weight, too."""
    samples, dim, classes = size
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % classes
    means = torch.randn(classes, dim, generator=generator)
    features = torch.randn(samples, dim, generator=generator)
    for first in range(0, samples, 4096):
        features[first : first + 4096] += means[labels[first : first + 4096]]
    bias = torch.randn(classes, generator=generator)
    logits = features @ means.T - bias if with_logits else torch.empty(0)
    return Inputs(features, labels, means, bias, logits)


def compute_ours(inputs: Inputs) -> dict[str, float]:
    """Compute NC1–NC4 with our function."""
    return compute_neural_collapse(inputs.features, inputs.labels, inputs.weight, inputs.bias)


def compute_properties(inputs: Inputs) -> dict[str, float]:
    """Compute compactness and distinctiveness with our function."""
    return compute_feature_properties(inputs.features, inputs.labels)


def compute_uniform(inputs: Inputs) -> tuple[float, float]:
    """Compute uniform accuracy with our function."""
    return compute_uniform_accuracy(inputs.logits, inputs.labels)


def compute_all(inputs: Inputs) -> None:
    """Compute NC1–NC4, the properties and uniform accuracy."""
    compute_ours(inputs)
    compute_properties(inputs)
    compute_uniform(inputs)


def compute_scores(inputs: Inputs) -> dict[str, float]:
    """Compute the score statistics with our function."""
    return compute_score_statistics(inputs.features, inputs.labels, inputs.weight)


def loop_in_torch(inputs: Inputs) -> Tensor:
    """Compute Σ_W as published code of this kind does: a d×d product in float32 per sample."""
    features, labels, weight = inputs.features[:LOOPED], inputs.labels, inputs.weight
    within = torch.zeros(features.shape[1], features.shape[1])
    for i in range(len(features)):
        deviation = (features[i] - weight[labels[i]]).unsqueeze(1)
        within += deviation @ deviation.T
    return within / len(features)


def loop_in_numpy(inputs: Inputs) -> np.ndarray:
    """Compute the same with numpy in float64, the precision of our functions."""
    features, labels = inputs.features[:LOOPED].double().numpy(), inputs.labels.numpy()
    weight = inputs.weight.double().numpy()
    within = np.zeros((features.shape[1], features.shape[1]))
    for i in range(len(features)):
        deviation = features[i] - weight[labels[i]]
        within += np.outer(deviation, deviation)
    return within / len(features)


def compute_plainly(inputs: Inputs) -> tuple[Tensor, list[Tensor], Tensor]:
    """Compute NC1–NC4 in float64 on all features at once, with projections on U of M."""
    features, weight, labels = inputs.features.double(), inputs.weight.double(), inputs.labels
    one_hot = torch.nn.functional.one_hot(labels, len(weight)).double()
    means = one_hot.T @ features / one_hot.sum(0)[:, None]
    centred = means - means.mean(0)
    _, scales, directions = torch.linalg.svd(centred, full_matrices=False)
    rank = len(weight) - 1
    whitened = (features - means[labels]) @ directions[:rank].T / scales[:rank]
    nc1 = whitened.square().sum() / len(features)
    target = torch.eye(len(weight)) - 1 / len(weight)
    grams = (weight @ weight.T, centred @ centred.T, weight @ centred.T)
    distances = [(g / g.norm() - target / target.norm()).norm() for g in grams]
    nearest = torch.cdist(features, means).argmin(1)
    nc4 = (nearest != (features @ weight.T - inputs.bias).argmax(1)).double().mean()
    return nc1, distances, nc4


METHODS = {
    "neural_collapse": Method(compute_ours),
    "feature_properties": Method(compute_properties),
    "uniform_accuracy": Method(compute_uniform, needs_logits=True),
    "all three, with uniform_accuracy": Method(compute_all, needs_logits=True),
    "score_statistics": Method(compute_scores),
    "NC1–NC4, plain float64": Method(compute_plainly),
    "per-sample loop, torch float32": Method(loop_in_torch, is_loop=True),
    "per-sample loop, numpy float64": Method(loop_in_numpy, is_loop=True),
}
