"""The demo: ResNet18 on scikit-learn's digits with CE and with BCE, same seed, side by side.

make demo
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from args import ModelName
from metrics import EVALUATED, MEASURES, SPLIT_NAMES
from rundir.names import METRICS
from utils.cli import (
    Count,
    Natural,
    Parser,
    PathText,
    add_device_flag,
    check_value,
    list_device_flags,
    run_command,
)
from utils.console import Console, escape, format_table
from utils.errors import UserError
from utils.files import read_csv

PROGRAM = "demo.py"
DEMO_LOSSES = ("CE", "BCE")
# Names of metrics.MEASURES.
LISTED = (
    "top1",
    "uniform_accuracy",
    "nc1",
    "nc2",
    "nc2_h",
    "nc3",
    "nc4",
    "compactness",
    "distinctiveness",
    "positive_mean",
    "negative_mean",
    "bias_mean",
)
ROOT = Path(__file__).resolve().parent


def build_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Train a network on scikit-learn's digits with CE and with BCE, compare them."
        "\nEarlier demo runs in --save_dir are replaced.",
    )
    add = parser.add_argument
    add(
        "--model",
        type=check_value(ModelName),
        default="ResNet18",
        metavar="NAME",
        help="the network (default: ResNet18)",
    )
    add("--epochs", type=check_value(Count), default=15, metavar="N", help="(default: 15)")
    add("--seed", type=check_value(Natural), default=0, metavar="N", help="of both (default: 0)")
    add_device_flag(parser)
    add(
        "--save_dir",
        type=check_value(PathText),
        default="./model_weights",
        metavar="DIR",
        help="where demo_CE and demo_BCE are made (default: ./model_weights)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    stopped = "stopped; the same command begins again"
    return run_command(PROGRAM, lambda stop: run_demo(args), stopped=stopped)


def run_demo(args: argparse.Namespace) -> int:
    """Train, measure, compare and draw; return the status of the first command that fails."""
    runs = {loss: Path(args.save_dir) / f"demo_{loss}" for loss in DEMO_LOSSES}
    for command in list_commands(args, runs):
        status = run_script(command)
        if status:
            return status
    console = Console()
    console.say("\n" + compare(runs))
    picture = Path(args.save_dir) / "demo.png"
    draw(runs, args, picture)
    pictures = {"\nLogits and the best single threshold": picture, **list_pictures(args, runs)}
    for title, path in pictures.items():
        console.say(f"{title}: {escape(str(path))}")
    return 0


def list_commands(args: argparse.Namespace, runs: Mapping[str, Path]) -> list[list[object]]:
    """Return the commands that train, measure and draw both runs."""
    directories, device = list(runs.values()), list_device_flags(args.gpu_id)
    _, scores, tsne = list_pictures(args, runs).values()
    samples = ["--checkpoints", "all", "--samples_per_class", 60]
    return [
        *(["train.py", *list_flags(loss, run, args)] for loss, run in runs.items()),
        ["eval_nc.py", *device, "--load_path", *directories],
        ["eval_scores.py", *directories, *device, "--by", "run", "--out", scores],
        ["eval_tsne.py", *directories, *device, *samples, "--out", tsne.parent],
    ]


def list_flags(loss: str, directory: Path, args: argparse.Namespace) -> list[object]:
    """Return the flags of train.py for one run."""
    flags = {
        "--model": args.model,
        "--dataset": "digits",
        "--optimizer": "SGD",
        "--loss": loss,
        # Small batches, 675 steps: with 180 of 128 images CE ended at 96 % on some processors.
        "--batch_size": 32,
        "--lr": 0.04,
        "--epochs": args.epochs,
        "--seed": args.seed,
        "--epoch_save_step": 3,
        "--save_dir": directory.parent,
        "--run_name": directory.name,
    }
    words = [word for flag in flags.items() for word in flag]
    return [*words, *list_device_flags(args.gpu_id), "--force"]


def list_pictures(args: argparse.Namespace, runs: Mapping[str, Path]) -> dict[str, Path]:
    """Return the pictures of the evaluations, by title."""
    save_dir = Path(args.save_dir)
    return {
        "Neural collapse over the epochs": next(iter(runs.values())) / "nc_curves_overlay.png",
        "Decision scores and biases": save_dir / "demo_scores.png",
        "t-SNE of the features over the epochs": save_dir / "demo_tsne" / "tsne.gif",
    }


def run_script(command: Sequence[object]) -> int:
    """Run a script with its flags, as a user would, and return its exit status."""
    script, *flags = [str(word) for word in command]
    Console().say("\n$ " + escape(shlex.join(["python", script, *flags])))
    return subprocess.run([sys.executable, str(ROOT / script), *flags]).returncode


def compare(runs: Mapping[str, Path]) -> str:
    """Format the aligned table of the runs, by name, after the last epoch.

    Raises UserError for a missing file.
    """
    columns = {name: list_cells(directory) for name, directory in runs.items()}
    titles = next(iter(columns.values())).keys()
    rows = [[title, *(column[title] for column in columns.values())] for title in titles]
    return format_table(["after the last epoch", *columns], rows)


def list_cells(directory: Path) -> dict[str, str]:
    """Return a run's cells by title.

    Raises UserError if a file, a row or a number is missing.
    """
    trained, evaluated = directory / METRICS, directory / EVALUATED
    history, rows = read_csv(trained), read_csv(evaluated)
    if not history or not rows:
        raise UserError(f"{directory} holds no evaluated epoch")
    last = str(rows[-1].get("epoch"))
    by_split = {row.get("split"): row for row in rows if row.get("epoch") == last}
    train_top1 = read_number(history[-1], "train_top1", trained)
    cells = {compose_title("top1", "train"): MEASURES["top1"].format(train_top1)}
    for name in LISTED:
        measure = MEASURES[name]
        row = by_split.get(measure.split, {"epoch": last, "split": measure.split})
        value = read_number(row, name, evaluated)
        cells[compose_title(name, measure.split)] = measure.format(value)
    cells["seconds"] = f"{sum(read_number(row, 'seconds', trained) for row in history):.1f}"
    cells["run directory"] = str(directory)
    return cells


def compose_title(name: str, split: str) -> str:
    """Return the title of a measure's row."""
    measure = MEASURES[name]
    return f"{measure.name} {measure.unit}".rstrip() + f" ({SPLIT_NAMES[split]})"


def read_number(row: Mapping[str, str], column: str, path: Path) -> float:
    """Return a cell's number. Raises UserError if the cell is missing, empty or no number."""
    text = row.get(column) or ""
    try:
        return float(text)
    except ValueError as error:
        where = ", ".join(row[key] for key in ("epoch", "split") if row.get(key))
        raise UserError(
            f"{path} has no {column} of epoch {where} (the cell is {text!r})"
        ) from error


def draw(runs: Mapping[str, Path], args: argparse.Namespace, picture: Path) -> None:
    """Draw the test logits of both runs after the last epoch, with their best threshold."""
    from figures.style import save_figure
    from figures.thresholds import draw_thresholds
    from rundir.rebuild import extract_epoch
    from utils.device import pick_device

    device, _ = pick_device(args.gpu_id)
    panels = [
        (name, extract_epoch(directory, args.epochs, device)) for name, directory in runs.items()
    ]
    save_figure(draw_thresholds(panels), picture)


if __name__ == "__main__":
    sys.exit(main())
