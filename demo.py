"""The demo: ResNet18 on scikit-learn's digits with CE and with BCE, same seed, side by side.

make demo
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from args import demo_parser
from rundir.names import METRICS
from utils.console import table
from utils.errors import UserError
from utils.files import read_csv

LOSSES = ("CE", "BCE")
EVALUATED = "nc_metrics.csv"
TRAINING_MEASURES = {
    "nc1": "NC1 (training set)",
    "nc2": "NC2, classifier",
    "nc2_h": "NC2, class means",
    "nc3": "NC3",
    "nc4": "NC4",
    "compactness": "compactness",
    "distinctiveness": "distinctiveness",
    "positive_mean": "positive score, mean",
    "negative_mean": "negative score, mean",
    "bias_mean": "bias, mean",
}
TSNE = ("--checkpoints", "all", "--samples_per_class", 60)
ROOT = Path(__file__).resolve().parent


def main(argv: list[str] | None = None) -> int:
    args = demo_parser().parse_args(argv)
    runs = {loss: Path(args.save_dir) / f"demo_{loss}" for loss in LOSSES}
    for loss, directory in runs.items():
        status = train(loss, directory, args)
        if status:
            return status
    for status in (command(*words) for words in evaluations(args, runs)):
        if status:
            return status
    try:
        print("\n" + comparison(runs))
        picture = Path(args.save_dir) / "demo.png"
        draw(runs, args, picture)
    except UserError as error:
        print(f"demo.py: error: {error}", file=sys.stderr)
        return 2
    print(f"\nWhat one threshold can separate: {picture}")
    for title, path in pictures(args, runs).items():
        print(f"{title}: {path}")
    return 0


def evaluations(args: argparse.Namespace, runs: dict[str, Path]) -> list[list[object]]:
    """The commands that measure and draw both runs."""
    directories, gpu = list(runs.values()), ["--gpu_id", args.gpu_id]
    _, scores, tsne = pictures(args, runs).values()
    return [
        ["eval_nc.py", *gpu, "--load_path", *directories],
        ["eval_scores.py", *directories, *gpu, "--by", "run", "--out", scores],
        ["eval_tsne.py", *directories, *gpu, *TSNE, "--out", tsne.parent],
    ]


def pictures(args: argparse.Namespace, runs: dict[str, Path]) -> dict[str, Path]:
    """What the evaluations draw, by title."""
    save_dir = Path(args.save_dir)
    return {
        "Neural collapse over the epochs": runs[LOSSES[0]] / "nc_curves_overlay.png",
        "Decision scores and biases": save_dir / "demo_scores.png",
        "t-SNE of the features over the epochs": save_dir / "demo_tsne" / "tsne.gif",
    }


def command(script: str, *flags: object) -> int:
    """Run a script as a user would; returns its exit status."""
    words = [str(flag) for flag in flags]
    print(f"\n$ python {script} " + " ".join(words), flush=True)
    return subprocess.run([sys.executable, str(ROOT / script), *words]).returncode


def train(loss: str, directory: Path, args: argparse.Namespace) -> int:
    return command(
        "train.py",
        *("--model", args.model, "--dataset", "digits", "--optimizer", "SGD", "--loss", loss),
        # Small batches, 675 steps: with 180 of 128 images CE ended at 96 % on some processors.
        *("--batch_size", 32, "--lr", 0.04, "--epochs", args.epochs, "--seed", args.seed),
        *("--epoch_save_step", 3),
        *("--gpu_id", args.gpu_id, "--save_dir", directory.parent),
        *("--run_name", directory.name, "--force"),
    )


def comparison(runs: dict[str, Path]) -> str:
    """The aligned table of finished and evaluated runs, by their names, after the last epoch.

    Accuracy on the test set, the rest on the training set. Raises UserError for a missing file.
    """
    columns = {name: column_of(directory) for name, directory in runs.items()}
    titles = next(iter(columns.values())).keys()
    rows = [[title, *(column[title] for column in columns.values())] for title in titles]
    return table(["after the last epoch", *columns], rows)


def column_of(directory: Path) -> dict[str, str]:
    """One run's cells by title. Raises UserError where a file, a row or a number is missing."""
    history = read_csv(directory / METRICS)
    evaluated = read_csv(directory / EVALUATED)
    if not history or not evaluated:
        raise UserError(f"{directory} holds no evaluated epoch")
    trained = partial(read_number, path=directory / METRICS)
    measured = partial(read_number, path=directory / EVALUATED)
    last = evaluated[-1].get("epoch")
    split = {row.get("split"): row for row in evaluated if row.get("epoch") == last}
    absent = {name: {"epoch": str(last), "split": name} for name in ("train", "test")}
    train, test = (split.get(name, row) for name, row in absent.items())
    values = {
        "training top-1 %": f"{trained(history[-1], 'train_top1'):.2f}",
        "test top-1 %": f"{measured(test, 'top1'):.2f}",
        "test uniform accuracy %": f"{measured(test, 'uniform_accuracy'):.2f}",
    }
    for key, title in TRAINING_MEASURES.items():
        values[title] = f"{measured(train, key):.4g}"
    values["seconds"] = f"{sum(trained(row, 'seconds') for row in history):.1f}"
    values["run directory"] = str(directory)
    return values


def read_number(row: Mapping[str, str], column: str, path: Path) -> float:
    """Raises UserError where the cell is missing, empty or not a number."""
    text = row.get(column) or ""
    try:
        return float(text)
    except ValueError as error:
        where = ", ".join(row[key] for key in ("epoch", "split") if row.get(key))
        raise UserError(
            f"{path} has no {column} of epoch {where} (the cell is {text!r})"
        ) from error


def draw(runs: dict[str, Path], args: argparse.Namespace, picture: Path) -> None:
    """Draw the test logits of both runs after the last epoch, with their best threshold."""
    from figures.style import save_figure
    from figures.thresholds import draw_thresholds
    from rundir.rebuild import extract_run
    from utils.device import pick_device

    device, _ = pick_device(args.gpu_id)
    panels = [
        (name, extract_run(directory, args.epochs, device)) for name, directory in runs.items()
    ]
    save_figure(draw_thresholds(panels), picture)


if __name__ == "__main__":
    sys.exit(main())
