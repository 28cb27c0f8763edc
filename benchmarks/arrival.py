"""Where trained runs have arrived: each class beside the exact minimum.

    python benchmarks/arrival.py RUN… [--out FILE]

Reads the last checkpoint of each run with --sep_decay, and prints, for each class, the scores, the
bias and the norms that it has on the training set; `free` is the exact minimum over features of
any sign, `relu` that over features that are not negative.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import Parser, PathText, check_value, run_command
from utils.console import format_table
from utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from theory.minimum import Prediction

PROGRAM = "arrival.py"
QUANTITIES = {
    "positive": "positive_scores",
    "negative": "negative_scores",
    "bias": "biases",
    "weight_norm": "weight_norms",
    "mean_norm": "feature_norms",
}


@dataclass(frozen=True)
class Arrived:
    """The last checkpoint of a run.

    Attributes:
        epoch: its number.
        prediction: the exact minimum over features of any sign.
        sizes: [K], training images of each class.
        weight: [K, d].
        means: [K, d], of the features of each class on the training set.
        bias: [K].
    """

    epoch: int
    prediction: Prediction
    sizes: np.ndarray
    weight: np.ndarray
    means: np.ndarray
    bias: np.ndarray


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(PROGRAM, lambda stop: compare(args), stopped="stopped")


def build_parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=__doc__)
    kind = check_value(PathText)
    parser.add_argument("runs", type=kind, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=kind, metavar="FILE", help="CSV (default: none)")
    return parser


def compare(args: argparse.Namespace) -> int:
    """Print and write the classes of all runs. Raises UserError."""
    from utils.files import write_csv

    rows = []
    for name in args.runs:
        own = list_classes(Path(name))
        rows += [{"run": Path(name).name, **row} for row in own]
        print(f"{Path(name).name}, measured | free | relu")
        print(format_table(["class", "images", *QUANTITIES], [_format(row) for row in own]) + "\n")
    if args.out:
        write_csv(Path(args.out), list(rows[0]), rows)
    return 0


def list_classes(directory: Path) -> list[dict[str, Any]]:
    """Return measured and predicted values of each class of a run. Raises UserError."""
    import numpy as np

    run = read_run(directory)
    scores = run.weight @ run.means.T
    own = np.diag(scores)
    problem, relu = run.prediction.problem, find_relu_minimum(run.prediction)
    level = run.bias.mean() if problem.bias_level_is_free else 0.0
    measured = {
        "positive": own,
        "negative": (scores.sum(axis=0) - own) / (len(own) - 1),
        "bias": run.bias - level,
        "weight_norm": np.linalg.norm(run.weight, axis=1),
        "mean_norm": np.linalg.norm(run.means, axis=1),
    }
    return [
        {"epoch": run.epoch, "class": k, "images": int(run.sizes[k])}
        | {
            column: value
            for name, attribute in QUANTITIES.items()
            for column, value in (
                (name, float(measured[name][k])),
                (f"{name}_free", float(getattr(run.prediction, attribute)[k])),
                (f"{name}_relu", None if relu is None else float(getattr(relu, attribute)[k])),
            )
        }
        for k in range(len(own))
    ]


def find_relu_minimum(prediction: Prediction) -> Prediction | None:
    """Return the minimum of the same problem over features h ≥ 0; None if it is not certified."""
    from theory.convex import UncertainError
    from theory.nonnegative import predict_nonnegative

    try:
        return predict_nonnegative(prediction.problem)
    except UncertainError:
        return None


def read_run(directory: Path) -> Arrived:
    """Read the last checkpoint of a run. Raises UserError if nothing is predicted for it."""
    import numpy as np
    import torch

    from rundir.checkpoints import select_checkpoints
    from rundir.rebuild import Rebuilder
    from rundir.trained import open_run

    run = open_run(directory)
    rebuilder = Rebuilder(torch.device("cpu"), ("train",))
    prediction = rebuilder.prediction(run)
    if prediction is None:
        raise UserError(f"{directory} is no run with --sep_decay for which there is a prediction")
    ((epoch, checkpoint),) = select_checkpoints(directory, "last").items()
    found = rebuilder.extract(run, checkpoint, "train")
    classifier: Any = rebuilder.load_model(run, checkpoint).fc
    assert isinstance(found.features, torch.Tensor)  # so few fit into any memory
    features, labels = found.features.double().numpy(), found.labels.numpy()
    sizes = np.array(rebuilder.class_sizes(run))
    return Arrived(
        int(epoch),
        prediction,
        sizes,
        classifier.weight.detach().double().numpy(),
        np.stack([features[labels == k].mean(axis=0) for k in range(len(sizes))]),
        classifier.bias_vector().detach().double().numpy(),
    )


def _format(row: dict[str, Any]) -> list[str]:
    cells = [str(row["class"]), str(row["images"])]
    for name in QUANTITIES:
        values = (row[name], row[f"{name}_free"], row[f"{name}_relu"])
        cells.append(" | ".join("-" if value is None else f"{value:.3f}" for value in values))
    return cells


if __name__ == "__main__":
    sys.exit(main())
