"""Time per checkpoint of eval_nc.py beside a conventional pass and the bare network, in one run.

    python benchmarks/eval_speed.py --load_path model_weights/<run> [--precision bf16] [--gpu_id 0]

Each evaluates the run's last checkpoint on its training and test images:

conventional: PIL images, torchvision transforms, DataLoader workers, float32, features and logits
    gathered on the CPU batch by batch, as a newcomer would write it. It computes no measures. (On
    the CPU it profits from the memory that this process keeps for the others.)
eval_nc.py: loading the checkpoint, its own batches, extraction and all measures of both splits.
bare network: the forward passes of eval_nc.py on batches that are ready, outputs dropped.

They take turns. The table shows medians over the rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from args import PRECISIONS
from benchmarks.flags import add_count
from utils.cli import Parser, PathText, add_device_flag, check_value, name_of, run_command

PROGRAM = "eval_speed.py"
STOP_MESSAGE = "stopped; no results"


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(
        PROGRAM, lambda stop: compare(args), stopped=STOP_MESSAGE, batch_size=args.batch_size
    )


def build_parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument(
        "--load_path",
        type=check_value(PathText),
        required=True,
        metavar="RUN",
        help="a run directory of train.py (required)",
    )
    parser.add_argument(
        "--precision",
        type=check_value(name_of([name for name in PRECISIONS if name != "auto"], "precision")),
        default="fp32",
        metavar="NAME",
        help="of the network in eval_nc.py and the bare one (default: fp32)",
    )
    add_count(parser, "--rounds", 5, "turns of each")
    add_count(parser, "--batch_size", 256, "images per pass")
    add_device_flag(parser)
    return parser


def compare(args: argparse.Namespace) -> int:
    """Time the ways and print the table. Raises UserError."""
    from benchmarks.eval_ways import compare_ways

    return compare_ways(args)


if __name__ == "__main__":
    sys.exit(main())
