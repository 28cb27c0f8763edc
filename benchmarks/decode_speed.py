"""Images per second of one core that decodes JPEGs, at their own size and with --jpeg_draft.

python benchmarks/decode_speed.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.train_speed import Side, add_number
from utils.cli import Count, Parser, check_value, run_command

FILES = 64  # JPEGs of 500×375 pixels; they stay in the system's cache


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("decode_speed.py", lambda stop: compare_drafts(args), stopped="stopped")


def build_parser() -> Parser:
    parser = Parser(prog="decode_speed.py", description=__doc__)
    parser.add_argument(
        "--img_size",
        type=check_value(Side),
        nargs="+",
        default=[224, 64, 32],
        metavar="N",
        help="sides in pixels (default: 224 64 32)",
    )
    add_number(parser, "--rounds", Count, 9, "turns of each way (default: 9)")
    return parser


def compare_drafts(args: argparse.Namespace) -> int:
    """Time both ways in turns for each size and print the table."""
    import torch

    from benchmarks.images import write_photos
    from input_pipeline.splits import FileSplit
    from utils.console import format_table

    rows = []
    with tempfile.TemporaryDirectory() as root:
        write_photos(Path(root), FILES, 1)
        paths = sorted(map(str, Path(root, "train").rglob("*.jpg")))
        for side in args.img_size:
            labels, size = torch.zeros(len(paths), dtype=torch.int64), (side, side)
            ways = [FileSplit(paths, labels, size, jpeg_draft=draft) for draft in (False, True)]
            times = [[time_decoding(way) for way in ways] for _ in range(args.rounds + 1)][1:]
            whole, draft = (len(paths) / statistics.median(way) for way in zip(*times, strict=True))
            ratio = statistics.median(first / second for first, second in times)
            rows.append([str(side), f"{whole:.0f}", f"{draft:.0f}", f"{ratio:.2f}"])
    print(format_table(["img_size", "images/s", "with --jpeg_draft", "ratio"], rows))
    return 0


def time_decoding(split: Any) -> float:
    """Return the seconds in which this process decodes all files of a FileSplit."""
    begun = time.perf_counter()
    split.fetch(range(len(split)))
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
