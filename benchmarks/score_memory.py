"""Peak memory and time of the score distributions for N·K scores that would not fit.

python benchmarks/score_memory.py
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.flags import add_count
from utils.cli import Parser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(
        "score_memory.py", lambda stop: measure_distributions(args), stopped="stopped"
    )


def build_parser() -> Parser:
    parser = Parser(
        prog="score_memory.py",
        description="Measure memory and time of the score distributions for N K scores that would\n"
        "not fit. Linux only.",
    )
    for flag, symbol, default in (("samples", "N", 1_000_000), ("classes", "K", 1000)):
        add_count(parser, f"--{flag}", default, symbol)
    add_count(parser, "--dim", 64, "d")
    return parser


def measure_distributions(args: argparse.Namespace) -> int:
    """Print time, peak memory and the distributions' moments."""
    import torch

    from benchmarks.resident_memory import forget_peak, read_memory, read_peak
    from metrics.distributions import compute_score_distributions

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(args.classes, (args.samples,), generator=generator)
    weight = torch.randn(args.classes, args.dim, generator=generator)
    features = torch.randn(args.samples, args.dim, generator=generator).add_(1)
    compute_score_distributions(features[:1000], labels[:1000], weight)
    forget_peak()
    before, begun = read_memory(), time.monotonic()
    positive, negative = compute_score_distributions(features, labels, weight)
    seconds = time.monotonic() - begun
    grown = (read_peak() - before) / 2**20
    held = 8 * args.samples * args.classes / 2**30
    print(f"N = {args.samples:,}, K = {args.classes:,}, d = {args.dim}: {negative.count:,} scores")
    print(f"{seconds:.1f} s; peak {grown:.0f} MiB above the inputs; held they take {held:.1f} GiB")
    print(
        f"positive {positive.mean:.2f} ± {positive.std:.2f}, "
        f"negative {negative.mean:.2f} ± {negative.std:.2f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
