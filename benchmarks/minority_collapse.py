"""Minority collapse over the ratio of class sizes: thresholds, curves and a picture.

    python benchmarks/minority_collapse.py --out results/minority-collapse

Half of the K classes have R times the samples of the other half, and a batch of 128 is regularised
as by --sep_decay. Writes thresholds.csv, curves.csv and minority_collapse.png, and prints the
thresholds. Marks in the picture are minima that L-BFGS found on the features themselves.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from figures import minority as figure
from figures.style import save_figure
from theory.losses import EXACT_LOSSES
from theory.minimiser import FeatureModel, minimise
from theory.minimum import Prediction
from theory.minority import TwoGroups, find_merging_ratio, find_vanishing_ratio
from utils.cli import Parser, PathText, check_value, run_command
from utils.console import escape, format_table
from utils.files import write_csv

BATCH = 128
CLASSES = (4, 10, 100)
DECAYS = (5e-4, 2e-3, 5e-3)
DRAWN_CLASSES, DRAWN_LOSSES = (10, 100), ("CE", "BCE")
POINTS = 60  # ratios of a curve, and two thirds as many near the thresholds
MARKED = (10, 5e-3)  # number of classes and decay that L-BFGS checks


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="minority_collapse.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=check_value(PathText), default=".", metavar="DIR", help="(default: .)"
    )
    flags = parser.parse_args(argv)
    return run_command(
        "minority_collapse.py", lambda stop: write(Path(flags.out)), stopped="stopped"
    )


def write(out: Path) -> int:
    """Compute, print and write everything."""
    out.mkdir(parents=True, exist_ok=True)
    thresholds = [
        list_thresholds(*each) for each in itertools.product(CLASSES, DECAYS, EXACT_LOSSES)
    ]
    columns = list(thresholds[0])
    print(
        format_table(
            columns,
            [[f"{row[c]:.6g}" if c != "loss" else row[c] for c in columns] for row in thresholds],
        )
    )
    write_csv(out / "thresholds.csv", columns, thresholds)
    paths = [
        follow(loss, classes, decay)
        for classes, decay, loss in itertools.product(DRAWN_CLASSES, DECAYS, DRAWN_LOSSES)
    ]
    curves = [
        {
            "loss": path.loss,
            "classes": path.classes,
            "decay": path.decay,
            "ratio": ratio,
            **{name: path.values[name][index] for name in figure.PANELS},
        }
        for path in paths
        for index, ratio in enumerate(path.ratios)
    ]
    write_csv(out / "curves.csv", list(curves[0]), curves)
    picture = out / "minority_collapse.png"
    save_figure(figure.draw_minority_collapse(paths), picture)
    print(f"wrote {escape(str(picture))}")
    return 0


def list_thresholds(classes: int, decay: float, loss: str) -> dict[str, Any]:
    """Return a row of the table: the ratios from which small rows are equal, and 0."""
    groups = TwoGroups(loss, BATCH, classes // 2, classes // 2, decay, decay)
    return {
        "classes": classes,
        "decay": decay,
        "loss": loss,
        "equal_from": find_merging_ratio(groups),
        "zero_from": find_vanishing_ratio(groups),
    }


def follow(loss: str, classes: int, decay: float) -> figure.Path:
    """Follow the minimum over the ratio."""
    groups = TwoGroups(loss, BATCH, classes // 2, classes // 2, decay, decay)
    merging, vanishing = find_merging_ratio(groups), find_vanishing_ratio(groups)
    assert vanishing is not None
    coarse = np.geomspace(1.001, 2.5 * vanishing, POINTS)
    near = merging * (1 - np.geomspace(1e-4, 0.3, POINTS // 3))
    between = merging + (vanishing - merging) * np.linspace(0.01, 0.99, POINTS // 3)
    ratios = sorted({*coarse, *near[near > 1], *between})
    points = [describe(groups.predict(ratio)) for ratio in ratios]
    found = []
    if (classes, decay) == MARKED:
        steps = (0.1, 0.4, 0.8, math.sqrt(vanishing / merging), 1.2 * vanishing / merging)
        found = [(step * merging, search(groups, step * merging)) for step in steps]
    values = {name: [point[name] for point in points] for name in figure.PANELS}
    return figure.Path(loss, classes, decay, ratios, values, merging, vanishing, found)


def describe(prediction: Prediction) -> dict[str, float]:
    """Return what the figure shows of a minimum."""
    gram, norms = prediction.weight_gram, prediction.weight_norms
    vanished = norms[-1] < 1e-5 * norms[0]
    return {
        "cosine": math.nan if vanished else float(gram.beside[-1] / gram.diagonal[-1]),
        "norm": float(norms[-1] / norms[0]),
        "positive_score": float(prediction.positive_scores[-1]),
        "bias": float(prediction.biases[-1] - prediction.biases[0]),
    }


def search(groups: TwoGroups, ratio: float) -> dict[str, float]:
    """Return the same of a minimum that L-BFGS finds on the features."""
    found = minimise(FeatureModel(groups.problem(ratio), groups.majority + groups.minority + 2))
    norms = np.linalg.norm(found.weight, axis=1)
    vanished = norms[-1] < 1e-3 * norms[0]
    cosine = found.weight[-1] @ found.weight[-2] / norms[-1] / norms[-2]
    last = found.labels == found.labels[-1]
    return {
        "cosine": math.nan if vanished else float(cosine),
        "norm": float(norms[-1] / norms[0]),
        "positive_score": float(found.positive_scores[last].mean()),
        "bias": float(found.bias[-1] - found.bias[0]),
    }


if __name__ == "__main__":
    sys.exit(main())
