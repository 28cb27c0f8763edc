"""Flags that several benchmarks have."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Annotated

from pydantic import Field

from utils.cli import LARGEST_INTEGER, Count, Parser, check_value


def add_count(parser: Parser, flag: str, default: int, words: str) -> None:
    """Add a flag for a number of at least 1; its help is `words` and the default."""
    parser.add_argument(
        flag,
        type=check_value(Count),
        default=default,
        metavar="N",
        help=f"{words} (default: {default})",
    )


def add_sample_sizes(parser: Parser, train: int, test: int) -> None:
    """Add --sample_size and --test_sample_size with these defaults."""
    add_count(parser, "--sample_size", train, "training images of each class")
    add_count(parser, "--test_sample_size", test, "test images of each class")


def add_seeds(parser: Parser) -> None:
    """Add --seeds: at least 2, because deviations over them are shown."""
    parser.add_argument(
        "--seeds",
        type=check_value(Annotated[int, Field(ge=2, le=LARGEST_INTEGER)]),
        default=3,
        metavar="N",
        help="(default: 3)",
    )


def add_task(parser: Parser, default: str) -> None:
    """Add the flags of train.py, after --."""
    parser.add_argument(
        "task",
        nargs="*",
        default=default.split(),
        metavar="-- FLAG",
        help=f"flags of train.py, after -- (default: {default})",
    )


def refuse_own(parser: Parser, args: argparse.Namespace, own: Collection[str]) -> None:
    """Exit with status 2 and one line if the task has a flag that the command sets itself."""
    for word in args.task:
        if word.split("=")[0] in own:
            parser.error(f"this command sets {word}: leave it out after --")
