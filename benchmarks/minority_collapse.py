"""Minority collapse over the ratio of class sizes: thresholds, curves and a picture.

    python benchmarks/minority_collapse.py --out results/minority-collapse

Half of the K classes have R times the samples of the other half, and a batch of 128 is regularised
as by --sep_decay. Writes thresholds.csv, curves.csv and minority_collapse.png, and prints the
thresholds. Marks in the picture are minima that L-BFGS found on the features themselves.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import Parser, PathText, check_value, make_directory, run_command
from utils.console import escape, format_table

LOSSES = ("CE", "BCE", "MSE")
CLASSES = (4, 10, 100)
DECAYS = (5e-4, 2e-3, 5e-3)
DRAWN_CLASSES, DRAWN_LOSSES = (10, 100), ("CE", "BCE")
POINTS = 60  # ratios of a curve, and two thirds as many near the thresholds
MARKED = 5e-3  # the decay at which L-BFGS checks


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
    from figures.minority import PANELS, draw_minority_collapse
    from figures.style import save_figure
    from reproduction.minority import follow, list_thresholds
    from utils.files import write_csv

    make_directory("--out", out)
    thresholds = [list_thresholds(*each) for each in itertools.product(CLASSES, DECAYS, LOSSES)]
    columns = list(thresholds[0])
    print(
        format_table(
            columns,
            [[f"{row[c]:.6g}" if c != "loss" else row[c] for c in columns] for row in thresholds],
        )
    )
    write_csv(out / "thresholds.csv", columns, thresholds)
    paths = [
        follow(loss, classes, decay, POINTS, search=decay == MARKED)
        for classes, decay, loss in itertools.product(DRAWN_CLASSES, DECAYS, DRAWN_LOSSES)
    ]
    curves = [
        {
            "loss": path.loss,
            "classes": path.classes,
            "decay": path.decay,
            "ratio": ratio,
            **{name: path.values[name][index] for name in PANELS},
        }
        for path in paths
        for index, ratio in enumerate(path.ratios)
    ]
    write_csv(out / "curves.csv", list(curves[0]), curves)
    picture = out / "minority_collapse.png"
    save_figure(draw_minority_collapse(paths), picture)
    print(f"wrote {escape(str(picture))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
