"""Time and memory of the NC metrics, beside a per-sample loop and a plain float64 version.

    python benchmarks/nc_speed.py [--samples 50000] [--dim 512] [--classes 10] [--threads 2]
    python benchmarks/nc_speed.py --large [--gib 12]

Each line is measured in a process of its own, one after the other. Seconds are the best of
`--repeats` calls. Memory is the peak of the resident set above its size before the first call (the
inputs), read from Linux's /proc. `--large` times one call each on features of d = 2048 and K = 1000
that fill `--gib` GiB, at most ImageNet's 1,281,167. It also times a sixteenth of them: memory
beyond the features does not grow with N.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.cli import LARGEST_INTEGER, Count, Parser, Positive, check_value, run_command
from utils.errors import UserError

IMAGENET_SIZE = 1_281_167  # training images of ImageNet-1K
GIB, MIB = 1 << 30, 1 << 20
LARGE_DIM, LARGE_CLASSES = 2048, 1000


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    compare = compare_sizes if args.large else compare_methods
    return run_command("nc_speed.py", lambda stop: compare(args), stopped="stopped")


def build_parser() -> Parser:
    parser = Parser(
        prog="nc_speed.py",
        description="Measure time and memory of the NC metrics beside a per-sample loop and a\n"
        "plain float64 version. Linux only.",
    )
    classes = Annotated[int, Field(ge=2, le=LARGEST_INTEGER)]
    add_number(parser, "--samples", Count, 50_000, "N")
    add_number(parser, "--dim", Count, 512, "d")
    add_number(parser, "--classes", classes, 10, "K")
    add_number(parser, "--threads", Count, 2, "CPU threads")
    add_number(parser, "--repeats", Count, 5, "calls, the best counts")
    parser.add_argument(
        "--large", action="store_true", help="memory at ImageNet's size (default: off)"
    )
    add_number(parser, "--gib", Positive, 12, "features of --large in GiB")
    return parser


def add_number(parser: Parser, flag: str, kind: object, default: float, words: str) -> None:
    parser.add_argument(
        flag,
        type=check_value(kind),
        default=default,
        metavar="X" if kind is Positive else "N",
        help=f"{words} (default: {default})",
    )


def compare_methods(args: argparse.Namespace) -> int:
    """Print seconds and memory of each method, and its time beside ours."""
    from benchmarks.nc_methods import LOOPED, METHODS, measure_apart

    if args.samples < args.classes:
        raise UserError(
            f"--samples {args.samples}: every one of the {args.classes} classes needs one"
        )
    size = (args.samples, args.dim, args.classes)
    looped = min(LOOPED, args.samples)
    print(f"N = {size[0]:,}, d = {size[1]}, K = {size[2]}, float32, {args.threads} threads")
    results = {name: measure_apart(name, size, args.threads, args.repeats) for name in METHODS}
    for name in (name for name, method in METHODS.items() if method.is_loop):
        results[name] = (results[name][0] * args.samples / looped, results[name][1])
    ours = results["neural_collapse"][0]
    print(f"{'':34}{'seconds':>10}{'ratio':>10}{'peak MiB':>10}")
    for name, (seconds, peak) in results.items():
        print(f"{name:34}{seconds:10.3f}{seconds / ours:10.2f}{peak / MIB:10.0f}")
    print(f"ratio: to neural_collapse. The loops, Σ_W alone, are of {looped} samples, scaled to N.")
    return 0


def compare_sizes(args: argparse.Namespace) -> int:
    """Print seconds and memory at ImageNet's size and at a sixteenth of it."""
    from benchmarks.nc_methods import measure_apart

    largest = min(IMAGENET_SIZE, int(args.gib * GIB) // (4 * LARGE_DIM))
    print(f"d = {LARGE_DIM}, K = {LARGE_CLASSES}, float32, {args.threads} threads")
    print(f"{'':22}{'N':>10}{'features GiB':>14}{'seconds':>10}{'peak MiB':>10}")
    for samples in (largest // 16, largest):
        for name in ("neural_collapse", "feature_properties", "score_statistics"):
            size = (samples, LARGE_DIM, LARGE_CLASSES)
            seconds, peak = measure_apart(name, size, args.threads, repeats=1)
            gib = 4 * samples * LARGE_DIM / GIB
            print(f"{name:22}{samples:10,}{gib:14.2f}{seconds:10.1f}{peak / MIB:10.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
