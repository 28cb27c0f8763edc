"""Time and memory of the NC metrics, beside a per-sample loop and a plain float64 version.

    python benchmarks/nc_speed.py [--samples 50000] [--dim 512] [--classes 10] [--threads 2]
    python benchmarks/nc_speed.py --large [--gib 12]

Each line is measured in a process of its own, one after the other: seconds are the best of
`--repeats` calls; memory is the peak of the resident set above what it was before the first call
(the inputs), read from Linux's /proc. `--large` times one call each on features of d = 2048 and
K = 1000 that fill `--gib` GiB or are as many as ImageNet's 1,281,167, and on a sixteenth of them:
memory beyond the features does not grow with N.
"""

import argparse
import ctypes
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metrics.accuracy import uniform_accuracy
from metrics.neural_collapse import feature_properties, neural_collapse
from metrics.scores import score_statistics

LOOPED = 2000  # samples of the per-sample loop; its time is proportional to their number
IMAGENET = 1_281_167
GIB, MIB = 1 << 30, 1 << 20


def main() -> None:
    args = parse_args()
    if args.samples < LOOPED:
        sys.exit(f"--samples must be at least {LOOPED}")
    if args.large:
        compare_sizes(args)
    else:
        compare_methods(args)


def compare_methods(args: argparse.Namespace) -> None:
    size = (args.samples, args.dim, args.classes)
    print(f"N = {size[0]:,}, d = {size[1]}, K = {size[2]}, float32, {args.threads} threads")
    results = {name: measured(name, size, args.threads, args.repeats) for name in METHODS}
    for name in (name for name in METHODS if "loop" in name):
        results[name] = (results[name][0] * args.samples / LOOPED, results[name][1])
    ours = results["neural_collapse"][0]
    print(f"{'':34}{'seconds':>10}{'ratio':>10}{'peak MiB':>10}")
    for name, (seconds, peak) in results.items():
        print(f"{name:34}{seconds:10.3f}{seconds / ours:10.2f}{peak / MIB:10.0f}")
    print(f"ratio: to neural_collapse. The loops, Σ_W alone, are of {LOOPED} samples, scaled to N.")


def compare_sizes(args: argparse.Namespace) -> None:
    dim, classes = 2048, 1000
    largest = min(IMAGENET, int(args.gib * GIB) // (4 * dim))
    print(f"d = {dim}, K = {classes}, float32, {args.threads} threads")
    print(f"{'':22}{'N':>10}{'features GiB':>14}{'seconds':>10}{'peak MiB':>10}")
    for samples in (largest // 16, largest):
        for name in ("neural_collapse", "feature_properties", "score_statistics"):
            size = (samples, dim, classes)
            seconds, peak = measured(name, size, args.threads, repeats=1)
            gib = 4 * samples * dim / GIB
            print(f"{name:22}{samples:10,}{gib:14.2f}{seconds:10.1f}{peak / MIB:10.0f}", flush=True)


def measured(
    name: str, size: tuple[int, int, int], threads: int, repeats: int
) -> tuple[float, float]:
    """Seconds and peak bytes of a method of METHODS, in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (name, size, threads, repeats))


def measure(
    name: str, size: tuple[int, int, int], threads: int, repeats: int
) -> tuple[float, float]:
    torch.set_num_threads(threads)
    inputs = make_inputs(*size, with_logits="uniform" in name)
    METHODS[name](*warm_up_inputs())  # the libraries' own buffers and threads
    forget_peak()
    before = memory("VmRSS")
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        METHODS[name](*inputs)
        seconds.append(time.perf_counter() - start)
    return min(seconds), memory("VmHWM") - before


def make_inputs(samples: int, dim: int, classes: int, *, with_logits: bool) -> tuple:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % classes
    means = torch.randn(classes, dim, generator=generator)
    features = torch.randn(samples, dim, generator=generator)
    for first in range(0, samples, 4096):
        features[first : first + 4096] += means[labels[first : first + 4096]]
    bias = torch.randn(classes, generator=generator)
    logits = features @ means.T - bias if with_logits else None
    return features, labels, means, bias, logits


def warm_up_inputs() -> tuple:
    return make_inputs(1000, 16, 4, with_logits=True)


def torch_loop(features, labels, weight, bias, logits):
    """Σ_W as published code of this kind builds it: a d×d product in float32 for every sample."""
    within = torch.zeros(features.shape[1], features.shape[1])
    for i in range(min(LOOPED, len(features))):
        deviation = (features[i] - weight[labels[i]]).unsqueeze(1)
        within += deviation @ deviation.T
    return within / LOOPED


def numpy_loop(features, labels, weight, bias, logits):
    """The same with numpy in float64, the precision of our functions."""
    features, labels = features[:LOOPED].double().numpy(), labels.numpy()
    weight = weight.double().numpy()
    within = np.zeros((features.shape[1], features.shape[1]))
    for i in range(len(features)):
        deviation = features[i] - weight[labels[i]]
        within += np.outer(deviation, deviation)
    return within / len(features)


def plain_float64(features, labels, weight, bias, logits):
    """NC1–NC4 written down in float64 on all features at once, with projections on U of M."""
    features, weight = features.double(), weight.double()
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
    nc4 = (nearest != (features @ weight.T - bias).argmax(1)).double().mean()
    return nc1, distances, nc4


METHODS: dict[str, Callable] = {
    "neural_collapse": lambda h, y, w, b, z: neural_collapse(h, y, w, b),
    "feature_properties": lambda h, y, w, b, z: feature_properties(h, y),
    "uniform_accuracy": lambda h, y, w, b, z: uniform_accuracy(z, y),
    "all three, with uniform_accuracy": lambda h, y, w, b, z: (
        neural_collapse(h, y, w, b),
        feature_properties(h, y),
        uniform_accuracy(z, y),
    ),
    "score_statistics": lambda h, y, w, b, z: score_statistics(h, y, w),
    "NC1–NC4, plain float64": plain_float64,
    "per-sample loop, torch float32": torch_loop,
    "per-sample loop, numpy float64": numpy_loop,
}


def memory(field: str) -> int:
    """Bytes of this process: VmRSS, in memory now, or VmHWM, the most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def forget_peak() -> None:
    """Hand freed memory back, so that it counts when it is used again, and restart VmHWM."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000, help="N (default 50000)")
    parser.add_argument("--dim", type=int, default=512, help="d (default 512)")
    parser.add_argument("--classes", type=int, default=10, help="K (default 10)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--repeats", type=int, default=5, help="calls, best counts (default 5)")
    parser.add_argument("--large", action="store_true", help="memory at ImageNet's size")
    parser.add_argument("--gib", type=float, default=12, help="features of --large (default 12)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
