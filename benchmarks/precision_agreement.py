"""The same runs in two precisions, over several seeds: do the results agree?

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
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from args import PRECISIONS
from benchmarks.flags import add_seeds, add_task, refuse_own
from metrics import MEASURES
from reproduction.readings import read_values
from reproduction.results import format_mean
from utils.cli import (
    MISTAKE,
    Parser,
    add_device_flag,
    check_value,
    list_device_flags,
    name_of,
    run_command,
)
from utils.console import format_table

PROGRAM = "precision_agreement.py"
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
TASK = "--model ResNet18 --dataset digits --loss BCE --epochs 15 --lr 0.02"
# This command sets these flags; the task must not.
OWN = ("--precision", "--seed", "--gpu_id", "--epoch_save_step", "--save_dir", "--run_name")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_flags(argv)
    return run_command(
        PROGRAM, lambda stop: compare_precisions(args), stopped="stopped; nothing was written"
    )


def build_parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument(
        "--precisions",
        nargs=2,
        type=check_value(name_of(PRECISIONS, "precision")),
        default=["fp32", "bf16"],
        metavar="NAME",
        help="two of train.py's (default: fp32 bf16)",
    )
    add_seeds(parser)
    add_device_flag(parser)
    add_task(parser, TASK)
    return parser


def parse_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags. Exits with status 2 and one line on a mistake."""
    parser = build_parser()
    args: argparse.Namespace = parser.parse_args(argv)
    if len(set(args.precisions)) < 2:
        parser.error(f"--precisions {' '.join(args.precisions)}: there is nothing to compare")
    refuse_own(parser, args, OWN)
    return args


def compare_precisions(args: argparse.Namespace) -> int:
    """Train and evaluate all runs, and print the table. Raises UserError."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in args.precisions}
    with tempfile.TemporaryDirectory() as directory:
        try:
            # Seed by seed: a precision that this machine refuses ends the command early.
            for seed, name in itertools.product(range(args.seeds), args.precisions):
                run = Path(directory) / f"{name}_{seed}"
                found[name].append(measure_run(run, name, seed, args.task, args.gpu_id))
        except subprocess.CalledProcessError as error:  # its own line is above
            return MISTAKE if error.returncode == MISTAKE else 1
    print(" ".join(args.task))
    print(format_table(["measure", *args.precisions, "difference / std"], format_rows(found)))
    return 0


def measure_run(
    run: Path, precision: str, seed: int, task: Sequence[str], gpu_id: int | None
) -> dict[str, float]:
    """Train and evaluate one run in the directory `run`; return its measures by name.

    Raises UserError for a damaged file, and CalledProcessError if a command fails.
    """
    flags = ["--precision", precision, "--seed", str(seed), "--epoch_save_step", "1000000"]
    flags += ["--save_dir", str(run.parent), "--run_name", run.name]
    run_script("train.py", [*task, *flags], gpu_id)
    run_script("eval_nc.py", ["--load_path", str(run)], gpu_id)
    print(f"{precision}, seed {seed}: done", file=sys.stderr)
    return read_values(run, COMPARED)[0]


def run_script(script: str, flags: Sequence[str], gpu_id: int | None) -> None:
    """Run a script without its output. Raises CalledProcessError if it fails."""
    command = [sys.executable, str(ROOT / script), *flags, *list_device_flags(gpu_id)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def format_rows(found: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """Return the rows of the table: the measures in each precision, and their difference."""
    rows = []
    for name in COMPARED:
        samples = [[run[name] for run in runs] for runs in found.values()]
        means = [statistics.fmean(values) for values in samples]
        deviations = [statistics.stdev(values) for values in samples]
        measure, spread = MEASURES[name], max(deviations)
        gap = f"{(means[1] - means[0]) / spread:+.2f}" if spread else "–"
        cells = [
            format_mean(measure, mean, deviation)
            for mean, deviation in zip(means, deviations, strict=True)
        ]
        rows.append([measure.heading, *cells, gap])
    return rows


if __name__ == "__main__":
    sys.exit(main())
