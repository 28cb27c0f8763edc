"""Images per second of train.py's loop beside a conventional loop and the ceiling, in one run.

    python benchmarks/train_speed.py [--model ResNet18] [--batch_size 128] [--gpu_id 0]
    python benchmarks/train_speed.py --stream --img_size 224 --model ResNet50 --batch_size 64
    python benchmarks/train_speed.py --what_helps

(a) is a conventional loop with a worker for each usable core, (a2) the same with two workers, (b)
train.py's, (c) its step alone, (d) its batches alone, and (e) its whole epoch with test and saving:
benchmarks/loops.py describes them. (e) writes its files to the temporary directory (TMPDIR).
--stream reads the images from files. --what_helps compares the step without and with each means
instead. On the CPU these are memory (freed memory is kept), channels_last, bf16 and compile. On a
GPU they are tf32, bf16, channels_last, graphs (the step is a CUDA graph) and compile.

Each loop runs in a process of its own with its own memory peak. The loops take turns (a, b, c,
a, …) of --steps steps. The table shows medians over the rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from args import PRECISIONS, ModelName
from benchmarks.bench import CPU_MEANS, GPU_MEANS, KINDS, list_default_kinds
from input_pipeline import AUGMENTATIONS
from objective import LOSSES, OPTIMIZERS
from utils.cli import (
    LARGEST_INTEGER,
    Count,
    Natural,
    Parser,
    PathText,
    add_device_flag,
    check_value,
    name_of,
    run_command,
)
from utils.errors import UserError
from utils.files import check_target

PROGRAM = "train_speed.py"
STOP_MESSAGE = "stopped; no results"

AtLeastTwo = Annotated[int, Field(ge=2, le=LARGEST_INTEGER)]
Side = Annotated[int, Field(ge=4, le=LARGEST_INTEGER)]


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(
        PROGRAM, lambda stop: run(args), stopped=STOP_MESSAGE, batch_size=args.batch_size
    )


def build_parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=__doc__)
    add_step_flags(parser)
    add_device_flag(parser)
    add_image_flags(parser)
    add_timing_flags(parser)
    return parser


def add_step_flags(parser: Parser) -> None:
    add_model(parser)
    add_number(parser, "--batch_size", AtLeastTwo, 128, "(default: 128)")
    add_name(parser, "--precision", PRECISIONS, "precision", "auto", "of b to e ")
    add_name(parser, "--loss", LOSSES, "loss", "BCE")
    add_name(parser, "--optimizer", OPTIMIZERS, "optimizer", "SGD")
    for flag, verb in (("--compile", "compile"), ("--graphs", "record as a CUDA graph")):
        parser.add_argument(flag, action="store_true", help=f"{verb} (b), (c), (e) (default: off)")


def add_image_flags(parser: Parser) -> None:
    add_number(parser, "--img_size", Side, 32, "side in pixels (default: 32)")
    add_number(
        parser,
        "--num_images",
        AtLeastTwo,
        None,
        "random images (default: 50,000 in a GPU's memory, else 2,048)",
    )
    add_number(parser, "--num_classes", AtLeastTwo, None, "of random images (default: 10)")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="read images from files: --data_dir or random JPEGs of 500×375 (default: in memory)",
    )
    parser.add_argument(
        "--data_dir",
        type=check_value(PathText),
        default=None,
        metavar="DIR",
        help="image tree as of train.py --dataset folder (default: random images)",
    )
    add_number(
        parser,
        "--num_workers",
        Natural,
        None,
        "of all but (a2) (default: the usable cores for (a), train.py's for the others)",
    )
    add_name(
        parser,
        "--augment",
        AUGMENTATIONS,
        "augmentation",
        "DA1",
        "DA2 not with (a), RRC with --stream ",
    )


def add_timing_flags(parser: Parser) -> None:
    add_number(
        parser,
        "--steps",
        Count,
        None,
        "timed steps per turn and epoch; (d): whole epochs (default: on a GPU an epoch, else 4)",
    )
    add_number(parser, "--rounds", Count, 5, "turns of each loop (default: 5)")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--loops",
        nargs="+",
        choices=list(KINDS),
        default=list_default_kinds(),
        help="(default: all; a2 where more than 2 cores are usable)",
    )
    chosen.add_argument(
        "--what_helps",
        nargs="*",
        choices=list(CPU_MEANS | GPU_MEANS),
        default=None,
        metavar="MEANS",
        help="the step without and with each means named, or all, one added to the other "
        "(default: off)",
    )
    parser.add_argument(
        "--json",
        type=check_value(PathText),
        default=None,
        metavar="FILE",
        help="also write the results (default: none)",
    )


def add_number(parser: Parser, flag: str, kind: object, default: int | None, text: str) -> None:
    parser.add_argument(flag, type=check_value(kind), default=default, metavar="N", help=text)


def add_model(parser: Parser) -> None:
    check = check_value(ModelName)
    words = "(default: ResNet18)"
    parser.add_argument("--model", type=check, default="ResNet18", metavar="NAME", help=words)


def add_name(
    parser: Parser, flag: str, names: Sequence[str] | dict, kind: str, default: str, words: str = ""
) -> None:
    parser.add_argument(
        flag,
        type=check_value(name_of(names, kind)),
        default=default,
        metavar="NAME",
        help=f"{words}(default: {default})",
    )


def run(args: argparse.Namespace) -> int:
    """Refuse mistakes, then time the loops. Raises UserError."""
    if args.json is not None:
        check_target("--json", Path(args.json))
    refuse_idle_flags(args)
    from benchmarks.train_report import compare_loops

    return compare_loops(args)


def refuse_idle_flags(args: argparse.Namespace) -> None:
    """Refuse a flag that would have no effect. Raises UserError."""
    if len(set(args.loops)) < len(args.loops):
        raise UserError("--loops names a loop twice")
    for name in ("compile", "graphs"):
        if getattr(args, name) and not {"b", "c", "e"} & set(args.loops):
            raise UserError(f"--{name} has no effect here: it belongs to (b), (c) and (e)")
    reasons = {
        "num_images": "--data_dir holds the images" if args.data_dir is not None else None,
        "num_classes": "--data_dir shows the classes" if args.data_dir is not None else None,
        "precision": "--what_helps sets it" if args.what_helps is not None else None,
        "compile": "--what_helps sets it" if args.what_helps is not None else None,
        "graphs": "--what_helps sets it" if args.what_helps is not None else None,
    }
    for name, reason in reasons.items():
        if reason and getattr(args, name) not in (None, "auto", False):
            raise UserError(f"--{name} has no effect here: {reason}")
    conventional = args.what_helps is None and {"a", "a2"} & set(args.loops)
    if AUGMENTATIONS[args.augment].mixes_labels and conventional:
        raise UserError(
            f"--augment {args.augment}: a conventional loop has no Mixup; add --loops b c d e"
        )
    if AUGMENTATIONS[args.augment].crops_files and not args.stream:
        raise UserError(f"--augment {args.augment} crops image files: add --stream")


if __name__ == "__main__":
    sys.exit(main())
