"""Measure neural collapse, feature properties and scores of every checkpoint of one or more runs.

python eval_nc.py --load_path model_weights/<run>

torchrun --nproc_per_node=N eval_nc.py … divides the images among N processes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from args import PRECISIONS
from input_pipeline import SPLITS
from rundir.bare import add_bare_flags, parse_with_bare_flags
from utils.cli import (
    MISTAKE,
    Natural,
    Parser,
    PathText,
    add_evaluation_flags,
    check_value,
    make_directory,
    name_of,
    print_error,
    run_command,
)
from utils.errors import UserError
from utils.signals import StopSignal
from utils.world import hush_torch

PROGRAM = "eval_nc.py"
STOP_MESSAGE = "stopped; the rows computed so far are kept, the same command goes on from there"


def build_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Measure neural collapse, feature properties and scores of runs' checkpoints.\n"
        "Writes nc_metrics.csv and nc_curves.png into each run directory and, where classes\n"
        "differ in size, nc_classes.csv and nc_classes.png; with --ema nc_metrics_ema.csv, …\n"
        "More: docs/measures.md",
    )
    add = parser.add_argument_group("what to evaluate").add_argument
    add(
        "--load_path",
        type=check_value(PathText),
        nargs="+",
        required=True,
        metavar="RUN",
        help="run directories, or files or directories of weights; several also share a picture "
        "(required)",
    )
    add(
        "--split",
        type=check_value(name_of((*SPLITS, "both"), "split")),
        default="both",
        metavar="NAME",
        help="train (without augmentation), test or both (default: both)",
    )
    add(
        "--checkpoints",
        default="all",
        metavar="WHICH",
        help="all, last, best, epochs such as 1,5,10-20, or names of files (default: all)",
    )
    add(
        "--all_rows",
        action="store_true",
        help="print every row, not only those of the last and the best checkpoint (default: off)",
    )
    add("--force", action="store_true", help="compute again what has not changed (default: off)")
    add(
        "--out",
        type=check_value(PathText),
        metavar="DIR",
        help="where the picture of several runs goes (default: the first run's directory)",
    )
    how = parser.add_argument_group("how")
    add_evaluation_flags(how)
    how.add_argument(
        "--precision",
        type=check_value(name_of([name for name in PRECISIONS if name != "auto"], "precision")),
        default="fp32",
        metavar="NAME",
        help="of the network: fp32, tf32, bf16 or fp16; measures take float64 (default: fp32)",
    )
    how.add_argument(
        "--num_workers",
        type=check_value(Natural),
        metavar="N",
        help="processes that decode a folder's images (default: as in the run's config.json)",
    )
    add_bare_flags(parser)
    return parser


def parse_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags. Exits with status 2 and one line on a mistake."""
    return parse_with_bare_flags(build_parser(), argv)


if __name__ == "__main__":
    parse_flags()  # --help and a wrong flag are answered here, before torch is imported
    hush_torch()
    StopSignal(STOP_MESSAGE).install()

import sys

from matplotlib.figure import Figure

from figures.classes import draw_classes
from figures.curves import Curve
from figures.nc_curves import draw_nc_curves
from figures.style import save_figure
from metrics.report import Evaluated, format_rows
from metrics.table import MetricsTable
from rundir.checkpoints import add_best
from rundir.crew import Crew
from rundir.evaluator import Evaluator
from rundir.labels import describe_subject, group_runs, name_runs, shorten_names
from rundir.opening import open_chosen_runs
from rundir.rebuild import Rebuilder
from rundir.trained import ChosenRun, refuse_idle_flag
from utils.console import Console, escape
from utils.device import pick_device
from utils.world import join

# Of the weights, and of their averages (--ema).
PICTURES = {False: "nc_curves.png", True: "nc_curves_ema.png"}
CLASS_PICTURES = {False: "nc_classes.png", True: "nc_classes_ema.png"}
OVERLAYS = {False: "nc_curves_overlay.png", True: "nc_curves_overlay_ema.png"}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_flags(argv)
    return run_command(
        PROGRAM,
        lambda stop: evaluate_runs(args),
        stopped=STOP_MESSAGE,
        batch_size=args.batch_size or 0,
        divides=True,
    )


def evaluate_runs(args: argparse.Namespace) -> int:
    """Evaluate, draw and print; return 2 if a checkpoint could not be evaluated, else 0.

    In a job of several processes the first one does so, and the others share the images with it.
    """
    world = join(gpus=args.gpu_id != -1)
    # Report all mistakes that can be found now, before the work begins.
    runs = world.call_first(lambda: open_runs(args))
    device, device_name = world.check(lambda: pick_device(args.gpu_id, local_rank=world.local_rank))
    splits = SPLITS if args.split == "both" else (args.split,)
    rebuilder = Rebuilder(
        device,
        splits,
        batch_size=args.batch_size,
        data_dir=args.data_dir,
        num_workers=args.num_workers,
        precision=args.precision,
        world=world,
    )
    if not world.is_first:
        Crew(rebuilder).follow()
        return 0
    console = Console()
    several = f", the first of {world.size} processes" if world.size > 1 else ""
    console.say(f"device {device_name}{several}")
    evaluator = Evaluator(PROGRAM, rebuilder, splits, args.precision, console, force=args.force)
    tables, failures = [], 0
    for run in runs:
        rows, failed = evaluator.evaluate(run)
        failures += failed
        tables.append(rows)
        if rows.current:
            figure = draw_nc_curves(build_curves([run], [rows]))
            failures += write_picture(figure, run.directory / PICTURES[args.ema], console)
            failures += draw_last_classes(run, rows, console)
    evaluator.finish()
    evaluated = [i for i, rows in enumerate(tables) if rows.current]
    pictures = Path(args.out) if args.out else runs[0].directory
    runs, tables = [runs[i] for i in evaluated], [tables[i] for i in evaluated]
    if len(runs) > 1:
        figure = draw_nc_curves(build_curves(runs, tables))
        failures += write_picture(figure, pictures / OVERLAYS[args.ema], console)
    if runs:
        shown = list_evaluated(runs, tables, args.checkpoints)
        console.say("\n" + format_rows(shown, splits, all_rows=args.all_rows))
    return MISTAKE if failures else 0


def open_runs(args: argparse.Namespace) -> list[ChosenRun]:
    """Open the runs and choose their checkpoints. Raises UserError for all that can be refused."""
    runs = open_chosen_runs(args.load_path, args.checkpoints, args)
    refuse_without_effect(args, runs)
    if args.checkpoints == "all" and not args.ema:
        for run in runs:
            run.chosen = run.chosen if run.bare else add_best(run.directory, run.chosen)
    if args.out:
        make_directory("--out", Path(args.out))
    return runs


def refuse_without_effect(args: argparse.Namespace, runs: list[ChosenRun]) -> None:
    """Refuse a flag that does nothing for any of the runs. Raises UserError."""
    if len({run.directory.resolve() for run in runs}) < len(runs):
        raise UserError("--load_path names a run twice")
    if args.out and len(runs) == 1:
        raise UserError("--out has no effect here: it is for the picture of several runs")
    for flag in ("data_dir", "num_workers"):
        refuse_idle_flag(flag, getattr(args, flag), runs)


def draw_last_classes(run: ChosenRun, rows: MetricsTable, console: Console) -> int:
    """Draw the classes at the last epoch that has rows of them, if any.

    Returns 1 if the picture cannot be written, else 0.
    """
    found = {key: rows.list_classes(key) for key in rows.current}
    epochs = [epoch for (epoch, _), classes in found.items() if classes]
    if not epochs:
        return 0
    splits = {split: found[epochs[-1], split] for split in SPLITS if found.get((epochs[-1], split))}
    known = [describe_subject([run]), run.loss, run.optimizer] if run.is_documented else []
    heading = ", ".join([run.name, *map(str, known), f"epoch {epochs[-1]}"])
    path = run.directory / CLASS_PICTURES[run.average]
    return write_picture(draw_classes(splits, heading), path, console)


def write_picture(figure: Figure, path: Path, console: Console) -> int:
    """Write a picture; return 1 if it cannot be written, else 0."""
    try:
        save_figure(figure, path)
    except UserError as error:
        print_error(PROGRAM, error)
        return 1
    console.say(f"wrote {escape(str(path))}")
    return 0


def build_curves(runs: Sequence[ChosenRun], tables: Sequence[MetricsTable]) -> list[Curve]:
    """Return the curves of a picture: one for the runs that differ only in the seed."""
    rows = [table.current for table in tables]
    curves = []
    for label, members in group_runs(runs, rows):
        first = runs[members[0]]
        own = [list(rows[i].values()) for i in members]
        curves.append(Curve(label, first.loss, first.optimizer, own))
    return curves


def list_evaluated(
    runs: Sequence[ChosenRun], tables: Sequence[MetricsTable], selection: str
) -> list[Evaluated]:
    """Return the rows of runs for the table, under short names.

    With all checkpoints chosen these are also the rows of checkpoints that are there no more.
    """
    evaluated = []
    names = zip(shorten_names(runs), name_runs(runs), strict=True)
    for run, table, (label, name) in zip(runs, tables, names, strict=True):
        rows = table.current
        removed = {epoch for epoch, _ in rows} if selection == "all" else set()
        epochs = sorted(removed.union(run.chosen))
        evaluated.append(Evaluated(label, epochs, rows, name if name != label else ""))
    return evaluated


if __name__ == "__main__":
    sys.exit(main())
