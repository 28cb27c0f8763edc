"""Minority collapse in trained networks: half of the digits are rare, and all are in one batch.

    python benchmarks/minority_runs.py write DIR [--large 140] [--small 2]
    python train.py --dataset folder --data_dir DIR --sep_decay --batch_size 710 …
    python benchmarks/minority_runs.py measure RUN… [--out FILE]

`write` makes a folder data set of scikit-learn's digits: the first `--large` images of the digits 0
to 4 and the first `--small` ones of 5 to 9 for training, and the last 30 of each for the test.
`measure` compares the last checkpoint of each run with the exact minimum of its problem, over free
features and over those of a ReLU, and prints the means over the small classes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import Count, Parser, PathText, check_value, run_command
from utils.console import format_table
from utils.errors import UserError

PROGRAM = "minority_runs.py"
TEST_IMAGES = 30  # of each digit


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(PROGRAM, lambda stop: args.act(args), stopped="stopped")


def build_parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=__doc__)
    actions = parser.add_subparsers(required=True, metavar="write|measure", parser_class=Parser)
    kind = check_value(PathText)
    writer = actions.add_parser("write")
    writer.set_defaults(act=write_digits)
    writer.add_argument("out", type=kind, metavar="DIR")
    for flag, count in (("--large", 140), ("--small", 2)):
        writer.add_argument(flag, type=check_value(Count), default=count, metavar="N")
    reader = actions.add_parser("measure")
    reader.set_defaults(act=measure_runs)
    reader.add_argument("runs", type=kind, nargs="+", metavar="RUN")
    reader.add_argument("--out", type=kind, metavar="FILE", help="CSV (default: none)")
    return parser


def write_digits(args: argparse.Namespace) -> int:
    """Write the folder data set. Raises UserError."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    from benchmarks.whole_folder import is_written, write_folder

    digits = load_digits()
    members = [np.flatnonzero(digits.target == digit) for digit in range(10)]
    most = min(map(len, members)) - TEST_IMAGES
    if max(args.large, args.small) > most:
        raise UserError(f"there are only {most} training images of each digit")
    facts = {"program": PROGRAM, "large": args.large, "small": args.small}
    if is_written(Path(args.out), facts):
        print(f"{args.out} is there already, written with the same flags")
        return 0

    def fill(folder: Path) -> None:
        for digit, numbers in enumerate(members):
            count = args.large if digit < 5 else args.small
            for split, chosen in (("train", numbers[:count]), ("test", numbers[-TEST_IMAGES:])):
                place = folder / split / str(digit)
                place.mkdir(parents=True)
                for number in chosen:
                    pixels = np.round(digits.images[number] * (255 / 16)).astype(np.uint8)
                    Image.fromarray(pixels).save(place / f"{number:04}.png")

    write_folder(Path(args.out), facts, fill)
    print(f"{args.out}: 5 digits with {args.large} training images each, 5 with {args.small}")
    return 0


def measure_runs(args: argparse.Namespace) -> int:
    """Print and write measured and predicted values of all runs. Raises UserError."""
    from utils.files import write_csv

    rows = [measure_run(Path(run)) for run in args.runs]
    columns = list(rows[0])
    cells = [
        [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row.values()]
        for row in rows
    ]
    print(format_table(columns, cells))
    if args.out:
        write_csv(Path(args.out), columns, rows)
    return 0


def measure_run(directory: Path) -> dict[str, Any]:
    """Return measured and predicted values of a run's last checkpoint. Raises UserError."""
    import numpy as np

    from benchmarks.arrival import find_relu_minimum, read_run
    from figures.minority import PANELS
    from reproduction.minority import describe_rows
    from theory.minority import TwoGroups, find_merging_ratio, find_vanishing_ratio

    run = read_run(directory)
    if len(set(run.sizes)) != 2:
        raise UserError(f"{directory} has no classes of two sizes")
    small = run.sizes == run.sizes.min()
    count, problem = int(small.sum()), run.prediction.problem
    groups = TwoGroups(problem, len(small) - count)
    order = np.argsort(small, kind="stable")  # the large classes first
    gram, scores = run.weight @ run.weight.T, np.einsum("kd,kd->k", run.weight, run.means)
    found = {"": describe_rows(gram[np.ix_(order, order)], scores[order], run.bias[order], count)}
    for name, minimum in (("free", run.prediction), ("relu", find_relu_minimum(run.prediction))):
        if minimum is not None:
            gram = minimum.weight_gram.expand(minimum.group_of)[np.ix_(order, order)]
            own = minimum.positive_scores[order], minimum.biases[order]
            found[f"_{name}"] = describe_rows(gram, *own, count)
    return {
        "loss": problem.loss,
        "decay": problem.weight_decay,
        "ratio": float(run.sizes.max() / run.sizes.min()),
        "equal_from": find_merging_ratio(groups),
        "zero_from": find_vanishing_ratio(groups),
        **{
            f"{name}{end}": found[end][name] if end in found else None
            for name in PANELS
            for end in ("", "_free", "_relu")
        },
    }


if __name__ == "__main__":
    sys.exit(main())
