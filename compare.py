"""Compare runs in one table: mean ± sample standard deviation over seeds.

python compare.py RUN [RUN …] --out table.csv
"""

from __future__ import annotations

import argparse
import itertools
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from input_pipeline import SPLITS
from metrics import MEASURES
from rundir.compared import RUN
from rundir.comparison import Comparison, compare
from rundir.comparison_text import (
    describe_comparison,
    explain_spread,
    format_blocks,
    format_cells,
    list_lines,
    list_rows,
    name_groups,
    sort_groups,
    write_markdown,
    write_tables,
)
from rundir.grouping import find_setting
from rundir.names import METRICS_COLUMNS
from utils.cli import Parser, PathText, check_value, name_of, run_command
from utils.console import escape
from utils.errors import UserError
from utils.files import check_target

PROGRAM = "compare.py"
ENDINGS = (".csv", ".md")
PICTURE = Path("compare.png")  # of --plot without --out
MOST_CURVES = 12  # in a picture; more cannot be told apart
LINE_WIDTH = 100  # characters, where there is no terminal


def build_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Compare runs in one table: a row for each group of runs that differ only in "
        "the seed.\nReads config.json, metrics.csv and nc_metrics.csv; needs no data set. More: "
        "docs/compare.md",
    )
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        type=check_value(PathText),
        metavar="RUN",
        help="run directories, or directories that hold runs, such as model_weights",
    )
    add(
        "--by",
        nargs="+",
        type=split_settings,
        metavar="SETTING",
        help="a row for each value of these alone; runs that differ in others are pooled. run: a "
        "row for each (default: all settings that differ, without the seed)",
    )
    add(
        "--split",
        type=check_value(name_of(SPLITS, "split")),
        default="test",
        metavar="NAME",
        help="of nc_metrics.csv: train or test (default: test)",
    )
    add(
        "--checkpoint",
        type=check_value(Annotated[str, AfterValidator(check_checkpoint)]),
        default="last",
        metavar="WHICH",
        help="last, best (first of the best test_top1) or the number of an epoch (default: last)",
    )
    add(
        "--sort",
        metavar="COLUMN",
        help="sort by a column's mean or a setting; accuracies fall, all else rises (default: by "
        "the settings)",
    )
    add(
        "--out",
        type=check_value(PathText),
        metavar="FILE",
        help=".csv: all columns in full precision, differences in FILE_differences.csv; .md: the "
        "printed table",
    )
    add(
        "--plot",
        action="store_true",
        help=f"also draw the rows over the epochs: FILE.png of --out, or {PICTURE}; the measures "
        "in FILE_nc.png (default: off)",
    )
    return parser


def split_settings(text: str) -> list[str]:
    """Return the settings that a user means, one or several joined by commas."""
    check = check_value(Annotated[str, AfterValidator(check_setting)])
    return [check(name.strip()) for name in text.split(",")]


def check_setting(text: str) -> str:
    """Return the setting that a user means. Raises UserError."""
    try:
        return find_setting(text, [RUN])
    except UserError as error:
        if Path(text).is_dir():
            raise UserError(f"{text!r} is no setting: name the runs before --by") from error
        raise


def check_checkpoint(text: str) -> str:
    """Return the choice of an epoch. Raises UserError."""
    if text not in ("last", "best") and not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise UserError(f"{text!r} is none of: last, best, the number of an epoch")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(PROGRAM, lambda stop: compare_runs(args), stopped="stopped")


def compare_runs(args: argparse.Namespace) -> int:
    """Read, group, print and write. Raises UserError."""
    out = Path(args.out) if args.out else None
    check_outputs(out, args.plot)
    by = None if args.by is None else list(dict.fromkeys(itertools.chain(*args.by)))
    comparison = compare(args.runs, by, args.split, args.checkpoint)
    if args.sort is not None:
        comparison = sort_groups(comparison, args.sort)
    lines = list_lines(comparison, apart=args.sort is not None)
    for note in comparison.notes:
        print(escape(f"note: {note}"), file=sys.stderr)
    width = shutil.get_terminal_size((LINE_WIDTH, 24)).columns
    header, cells = format_cells(comparison, lines, args.sort)
    print(escape(describe_comparison(comparison, args.checkpoint)) + "\n")
    print(format_blocks(header, cells, len(comparison.settings) + 1, width))
    print("\n".join(["", *explain_spread(comparison)]).rstrip())
    written = []
    if out is not None and out.suffix.lower() == ".csv":
        written = write_tables(out, comparison)
    elif out is not None:
        write_markdown(out, comparison, lines, args.checkpoint)
        written = [out]
    if args.plot:
        written += draw_pictures(comparison, out)
    for path in written:
        print(f"wrote {escape(str(path))}")
    return 0


def check_outputs(out: Path | None, plot: bool) -> None:
    """Refuse names of files that cannot be written. Raises UserError."""
    if out is not None:
        check_target("--out", out)
        if out.suffix.lower() not in ENDINGS:
            raise UserError(f"--out {str(out)!r}: the name must end in .csv or .md")
    for path in name_pictures(out) if plot else ():
        check_target("--plot", path)


def name_pictures(out: Path | None) -> tuple[Path, Path]:
    """Return the names of the pictures of metrics.csv and of nc_metrics.csv."""
    path = PICTURE if out is None else out.with_suffix(".png")
    return path, path.with_name(f"{path.stem}_nc.png")


def draw_pictures(comparison: Comparison, out: Path | None) -> list[Path]:
    """Draw the rows over the epochs; return the pictures. Raises UserError.

    That of nc_metrics.csv has the rows whose runs all have its split there.
    """
    from figures.curves import Curve
    from figures.nc_curves import draw_nc_curves
    from figures.style import save_figure
    from figures.training_curves import SPLIT, draw_training_curves

    if len(comparison.groups) > MOST_CURVES:
        raise UserError(
            f"--plot: {len(comparison.groups)} rows are too many for a picture, which shows up to "
            f"{MOST_CURVES}: name fewer runs, or pool them with --by"
        )
    training, measured = [], []
    for name, group in zip(name_groups(comparison), comparison.groups, strict=True):
        looks = group.get_shared("loss"), group.get_shared("optimizer")
        rows = [list_rows(run.history.rows, METRICS_COLUMNS, SPLIT) for run in group.runs]
        training.append(Curve(name, *looks, rows))
        rows = [list_rows(run.measures.rows, MEASURES, comparison.split) for run in group.runs]
        if all(rows):
            measured.append(Curve(name, *looks, rows))
    path, beside = name_pictures(out)
    save_figure(draw_training_curves(training), path)
    if not measured:
        return [path]
    save_figure(draw_nc_curves(measured), beside)
    return [path, beside]


if __name__ == "__main__":
    sys.exit(main())
