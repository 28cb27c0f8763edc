"""Time and memory of the NC metrics, beside a per-sample loop and a plain float64 version.

    python benchmarks/nc_speed.py [--samples 50000] [--dim 512] [--classes 10] [--threads 2]

Each line is measured in a process of its own, one after the other. Seconds are the best of
`--repeats` calls. Memory is the peak of the resident set above its size before the first call (the
inputs), read from Linux's /proc. imagenet_size.py measures larger features.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.cli import LARGEST_INTEGER, Count, Parser, check_value, run_command
from utils.errors import UserError

MIB = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("nc_speed.py", lambda stop: compare_methods(args), stopped="stopped")


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
    return parser


def add_number(parser: Parser, flag: str, kind: object, default: int, words: str) -> None:
    parser.add_argument(
        flag,
        type=check_value(kind),
        default=default,
        metavar="N",
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


if __name__ == "__main__":
    sys.exit(main())
