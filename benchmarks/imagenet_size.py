"""Time and memory of all measures at ImageNet's size, on synthetic features.

    python benchmarks/imagenet_size.py [--samples 50000 1281167] [--measures variability …]

Each number of samples has a process of its own, one after the other. It makes float32 features of
d = 2048 around K = 1000 class means, and the numbers that a pass of a network leaves beside them.
Then it calls each function of `metrics.MEASURES` once, as eval_nc.py does for a row. Memory is the
peak of the resident set above its size before the call, and in all, read from Linux's /proc.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metrics import MEASURES
from utils.cli import LARGEST_INTEGER, Count, Parser, check_value, name_of, run_command

TRAIN_SIZE = 1_281_167  # training images of ImageNet-1K; it has 50,000 for the test
SIZES = (50_000, 160_000, 640_000, TRAIN_SIZE)
GIB, MIB = 1 << 30, 1 << 20
# The class means come first: others take them.
MEANS = "class_means"
FUNCTIONS = {
    measure.function.split(":measure_")[1]: measure.function for measure in MEASURES.values()
}
GROUPS = (MEANS, *FUNCTIONS)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("imagenet_size.py", lambda stop: compare_sizes(args), stopped="stopped")


def build_parser() -> Parser:
    parser = Parser(
        prog="imagenet_size.py",
        description="Measure time and memory of all measures at ImageNet's size. Linux only.",
    )
    several = Annotated[int, Field(ge=2, le=LARGEST_INTEGER)]
    add = parser.add_argument
    samples = " ".join(map(str, SIZES))
    add(
        "--samples",
        type=check_value(Count),
        nargs="+",
        default=list(SIZES),
        metavar="N",
        help=f"numbers of samples (default: {samples})",
    )
    add("--dim", type=check_value(Count), default=2048, metavar="N", help="d (default: 2048)")
    add("--classes", type=check_value(several), default=1000, metavar="N", help="(default: 1000)")
    add("--threads", type=check_value(Count), default=2, metavar="N", help="(default: 2)")
    add(
        "--measures",
        type=check_value(name_of(GROUPS, "group of measures")),
        nargs="+",
        default=list(GROUPS),
        metavar="NAME",
        help="groups of measures (default: all)",
    )
    return parser


def compare_sizes(args: argparse.Namespace) -> int:
    """Print seconds and memory for each number of samples, and a line through the seconds."""
    from benchmarks.large_evaluation import fit_line, measure_apart

    names = [name for name in GROUPS if name in args.measures]
    print(f"d = {args.dim}, K = {args.classes}, float32, {args.threads} threads, seconds:")
    print(f"{'N':>10}" + "".join(f"{name:>20}" for name in (*names, "sum")))
    totals = []
    for count in args.samples:
        found = measure_apart((count, args.dim, args.classes), args.threads, names)
        totals.append(sum(found.seconds))
        seconds = "".join(f"{value:20.2f}" for value in (*found.seconds, totals[-1]))
        print(f"{count:10,}{seconds}")
        grown = "".join(f"{value / MIB:16.0f} MiB" for value in found.grown)
        print(f"{'':10}{grown}{found.peak / GIB:16.2f} GiB", flush=True)
    print("Below the seconds: memory above that before the call; the last is the peak in all.")
    if len(args.samples) > 2:
        start, slope, error = fit_line(args.samples, totals)
        print(f"sum = {start:.2f} s + {1e6 * slope:.2f} µs · N, within {100 * error:.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
