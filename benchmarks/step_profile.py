"""Where the time of a training step on the CPU goes.

    python benchmarks/step_profile.py --model ResNet18 --precision fp32 [--img_size 32]

The step is loop (c) of train_speed.py. oneDNN reports the time of its convolutions: forward,
gradient of the data, gradient of the weights, by the side of the map that a convolution computes in
its forward pass. (Their operations include those on the padding, which oneDNN skips. Small maps can
therefore seem faster than large products.) torch's profiler reports the other operations. Times are
medians over --repeats steps.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from args import PRECISIONS
from benchmarks.train_speed import AtLeastTwo, Side, add_model, add_name, add_number
from utils.cli import Count, Parser, run_command

PROGRAM = "step_profile.py"
STOP_MESSAGE = "stopped; no results"


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(
        PROGRAM, lambda stop: profile(args), stopped=STOP_MESSAGE, batch_size=args.batch_size
    )


def build_parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=__doc__)
    add_model(parser)
    add_number(parser, "--batch_size", AtLeastTwo, 128, "(default: 128)")
    add_number(parser, "--img_size", Side, 32, "side in pixels (default: 32)")
    add_name(parser, "--precision", PRECISIONS, "precision", "auto")
    add_number(parser, "--repeats", Count, 5, "profiled steps (default: 5)")
    return parser


def profile(args: argparse.Namespace) -> int:
    """Profile the step and print the table. Raises UserError."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's lines on a machine without GPU
    from benchmarks.step_parts import print_parts

    return print_parts(args)


if __name__ == "__main__":
    sys.exit(main())
