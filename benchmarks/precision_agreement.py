"""Does a precision change what is learned? The same runs in two precisions, over several seeds.

    python benchmarks/precision_agreement.py [--precisions fp32 bf16] [--seeds 3] [-- train flags]

Prints mean ± sample standard deviation of accuracy, uniform accuracy, NC1 to NC3 and the scores
after the last epoch, evaluated in float32, and for each the difference of the means in units of
the larger standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from args import PRECISIONS
from reproduction.results import find_measure, format_mean, read_values
from utils.cli import LARGEST_INTEGER, Parser, add_device_flag, check_value, name_of, run_command
from utils.console import format_table

AtLeastTwo = Annotated[int, Field(ge=2, le=LARGEST_INTEGER)]
COMPARED = (
    "top1",
    "uniform_accuracy",
    "nc1",
    "nc2",
    "nc3",
    "positive_mean",
    "negative_mean",
    "bias_mean",
)
TASK = ["--model", "ResNet18", "--dataset", "digits", "--loss", "BCE", "--epochs", "15"]
TASK += ["--lr", "0.02"]
# What a run gets from this command, not from the task.
OWN = ("--precision", "--seed", "--gpu_id", "--epoch_save_step", "--save_dir", "--run_name")


def build_parser() -> Parser:
    parser = Parser(prog="precision_agreement.py", description=__doc__)
    parser.add_argument(
        "--precisions",
        nargs=2,
        type=check_value(name_of(PRECISIONS, "precision")),
        default=["fp32", "bf16"],
        metavar="NAME",
        help="two of train.py's (default: fp32 bf16)",
    )
    parser.add_argument(
        "--seeds", type=check_value(AtLeastTwo), default=3, metavar="N", help="(default: 3)"
    )
    add_device_flag(parser)
    parser.add_argument(
        "task",
        nargs="*",
        default=TASK,
        metavar="-- FLAG",
        help=f"flags of train.py, after -- (default: {' '.join(TASK)})",
    )
    return parser


def main() -> int:
    parser = build_parser()
    args = parser.parse_args()
    if len(set(args.precisions)) < 2:
        parser.error(f"--precisions {' '.join(args.precisions)}: there is nothing to compare")
    for word in args.task:
        if word.split("=")[0] in OWN:
            parser.error(f"{word} is this command's to set: leave it out after --")
    try:
        return run_command(
            "precision_agreement.py",
            lambda stop: compare(args),
            stopped="stopped; nothing was written",
        )
    except subprocess.CalledProcessError as error:  # its own line is above
        return 2 if error.returncode == 2 else 1


def compare(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as directory:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in args.precisions}
        # Seed by seed: a precision that is refused here is so after the first run.
        for seed, name in itertools.product(range(args.seeds), args.precisions):
            found[name].append(measure(Path(directory), name, seed, args.task, args.gpu_id))
    print(" ".join(args.task))
    print(format_table(["measure", *args.precisions, "difference / std"], format_rows(found)))
    return 0


def measure(
    directory: Path, precision: str, seed: int, task: list[str], gpu_id: int
) -> dict[str, float]:
    """Train and evaluate one run; return its measures by name."""
    name = f"{precision}_{seed}"
    place = ["--gpu_id", str(gpu_id)]
    flags = ["--precision", precision, "--seed", str(seed), "--epoch_save_step", "1000000"]
    flags += ["--save_dir", str(directory), "--run_name", name]
    for script, words in (
        ("train.py", [*task, *flags]),
        ("eval_nc.py", ["--load_path", str(directory / name)]),
    ):
        command = [sys.executable, str(ROOT / script), *words, *place]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"{precision}, seed {seed}: done", file=sys.stderr)
    return read_values(directory / name, COMPARED)[0]


def format_rows(found: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    rows = []
    for measure in COMPARED:
        samples = [[run[measure] for run in runs] for runs in found.values()]
        means = [statistics.fmean(values) for values in samples]
        stds = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in samples]
        entry, spread = find_measure(measure), max(stds)
        gap = f"{(means[1] - means[0]) / spread:+.2f}" if spread else "–"
        cells = [format_mean(entry, mean, std) for mean, std in zip(means, stds, strict=True)]
        rows.append([entry.heading, *cells, gap])
    return rows


if __name__ == "__main__":
    sys.exit(main())
