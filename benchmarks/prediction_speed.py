"""Seconds that the exact minimum of a long tail takes, and the gap to which it is certified.

    OMP_NUM_THREADS=1 python benchmarks/prediction_speed.py [--num_classes 10 100 1000]

The sizes of the K classes of a batch of 128 all differ: they fall by a factor of 100 from the first
to the last. λ_W = λ_H = 5e-4, λ_b = 0.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.cli import Parser, check_value, run_command
from utils.console import format_table

PROGRAM = "prediction_speed.py"
FACTOR, BATCH, DECAY = 100.0, 128, 5e-4
LOSSES = ("CE", "BCE", "MSE")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument(
        "--num_classes",
        type=check_value(Annotated[int, Field(ge=2, le=10_000)]),
        nargs="+",
        default=[10, 100],
        metavar="K",
        help="(default: 10 100)",
    )
    counts = parser.parse_args(argv).num_classes
    return run_command(PROGRAM, lambda stop: measure(counts), stopped="stopped")


def measure(counts: Sequence[int]) -> int:
    """Print a row for each number of classes and loss."""
    from theory.minimum import predict
    from theory.problem import Problem, divide_batch

    rows = []
    for count in counts:
        shares = [FACTOR ** (-k / (count - 1)) for k in range(count)]
        for loss in LOSSES:
            problem = Problem(loss, divide_batch(BATCH, shares), DECAY, DECAY)
            start = time.perf_counter()
            gap = predict(problem).gap
            rows.append([str(count), loss, f"{time.perf_counter() - start:.2f}", f"{gap:.0e}"])
    print(format_table(["classes", "loss", "seconds", "gap"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
