"""Peak memory and time of the score distributions for N·K scores that would not fit.

python benchmarks/score_memory.py
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.nc_speed import forget_peak, memory
from metrics.distributions import score_distributions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000, help="N (default: 1000000)")
    parser.add_argument("--classes", type=int, default=1000, help="K (default: 1000)")
    parser.add_argument("--dim", type=int, default=64, help="d (default: 64)")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(args.classes, (args.samples,), generator=generator)
    weight = torch.randn(args.classes, args.dim, generator=generator)
    features = torch.randn(args.samples, args.dim, generator=generator).add_(1)
    score_distributions(features[:1000], labels[:1000], weight)
    forget_peak()
    before, begun = memory("VmRSS"), time.monotonic()
    positive, negative = score_distributions(features, labels, weight)
    seconds = time.monotonic() - begun
    grown = (memory("VmHWM") - before) / 2**20
    held = 8 * args.samples * args.classes / 2**30
    print(f"N = {args.samples:,}, K = {args.classes:,}, d = {args.dim}: {negative.count:,} scores")
    print(f"{seconds:.1f} s; peak {grown:.0f} MiB above the inputs; held they take {held:.1f} GiB")
    print(
        f"positive {positive.mean:.2f} ± {positive.std:.2f}, negative {negative.mean:.2f} "
        f"± {negative.std:.2f}"
    )


if __name__ == "__main__":
    main()
