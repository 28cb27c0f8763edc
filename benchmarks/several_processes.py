"""One training step in several processes on one machine, and in one process with as many threads.

    python benchmarks/several_processes.py --model ResNet18 --processes 2

Three ways take turns, each in processes of its own: one process; several processes as torchrun
starts them; and the same processes that keep their gradients to themselves. What the second takes
longer than the third is communication. Images are random and in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.world import read_rank, read_size

WAYS = ("one process", "several", "several, apart")
WARM_UP, CLASSES = 3, 10


def main() -> None:
    args = parse_flags()
    if args.way is not None:
        measure_here(args)
        return
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    size = 0.0
    for _ in range(args.turns):
        for way in WAYS:
            found = measure_way(args, way)
            seconds[way].append(found["seconds"])
            size = found["gradient_bytes"]
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    print(
        f"{args.model}, {args.img_size} pixels, global batch {args.batch_size}, "
        f"{args.processes} processes of 1 thread or 1 of {args.processes}, "
        f"gradients {size / 2**20:.1f} MiB, {args.turns} turns"
    )
    for way in WAYS:
        ratio = statistics.median(
            one / own for one, own in zip(seconds[WAYS[0]], seconds[way], strict=True)
        )
        rate = args.batch_size / medians[way]
        print(f"{way:15} {1000 * medians[way]:8.1f} ms  {rate:8.1f} images/s  × {ratio:.3f}")
    share = statistics.median(
        1 - apart / both for both, apart in zip(seconds[WAYS[1]], seconds[WAYS[2]], strict=True)
    )
    print(f"communication {100 * share:.1f} % of the step of several")


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ResNet18")
    parser.add_argument("--img_size", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--no_sync_bn", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_way(args: argparse.Namespace, way: str) -> dict[str, float]:
    """Measure a way in processes of its own; return what the first one prints."""
    start = [sys.executable]
    threads = args.processes
    if way != WAYS[0]:
        start += ["-m", "torch.distributed.run", "--standalone"]
        start += [f"--nproc_per_node={args.processes}"]
        threads = 1
    command = [*start, str(Path(__file__).resolve()), *sys.argv[1:], "--way", way]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure_here(args: argparse.Namespace) -> None:
    """Time steps in this process; the first of several prints the median."""
    import torch

    from args import complete, parse_settings
    from input_pipeline.loader import BatchLoader
    from input_pipeline.splits import TensorSplit
    from models import build_model
    from rundir.building import build_precision
    from training.setup import build_optimizer, build_run_step, place_network
    from utils.device import pick_device
    from utils.world import ALONE, join, leave

    words = ["--model", args.model, "--img_size", str(args.img_size), "--gpu_id", "-1"]
    words += ["--batch_size", str(args.batch_size), "--precision", args.precision]
    settings = complete(parse_settings([*words, *(["--no_sync_bn"] * args.no_sync_bn)]))
    device, _ = pick_device(-1)
    precision = build_precision(settings, settings.precision, device)
    joined = join(gpus=False)
    world = ALONE if args.way == WAYS[2] else joined
    # Apart, a process computes its share as if it were the whole batch.
    batch = args.batch_size if args.way != WAYS[2] else args.batch_size // read_size()
    shape = (3, args.img_size, args.img_size)
    images = torch.randint(0, 256, (batch * (args.steps + WARM_UP), *shape), dtype=torch.uint8)
    split = TensorSplit(images, torch.arange(len(images)) % CLASSES)
    batches = BatchLoader(
        split,
        batch_size=batch,
        device=device,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        num_classes=CLASSES,
        memory_format=precision.memory_format,
        rank=world.rank,
        ranks=world.size,
    )
    model = precision.place(build_model(args.model, CLASSES, shape))
    model = place_network(settings, model, precision, world)
    optimizer = build_optimizer(settings, model)
    scaler = precision.build_scaler()
    step = build_run_step(settings, model, optimizer, scaler, precision, None, batches.division)
    model.train()
    times = []
    for own, targets in batches.batches(0):
        joined.wait()
        begun = time.perf_counter()
        step(own, targets, batch)
        joined.wait()
        times.append(time.perf_counter() - begun)
    if read_rank() == 0:
        size = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        found = {"seconds": statistics.median(times[WARM_UP:]), "gradient_bytes": size}
        print(json.dumps(found))
    leave()


if __name__ == "__main__":
    main()
