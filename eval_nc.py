"""Measure neural collapse, feature properties and scores of every checkpoint of one or more runs.

python eval_nc.py --load_path model_weights/<run>
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from args import PRECISIONS, Settings
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

PROGRAM = "eval_nc.py"
STOP_MESSAGE = "stopped; the rows computed so far are kept, the same command goes on from there"


def build_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Measure neural collapse, feature properties and scores of runs' checkpoints.\n"
        "Writes nc_metrics.csv and nc_curves.png into each run directory. More: docs/measures.md",
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
    StopSignal(STOP_MESSAGE).install()

import sys

import torch

from figures.nc_curves import Curve, draw_nc_curves
from figures.style import save_figure
from metrics import MEASURES, Measure
from metrics.extraction import Extracted, extract
from metrics.measures import Evaluation, compute_measures
from metrics.table import MetricsTable, compute_fingerprint
from rundir.archives import read_archive
from rundir.checkpoints import check_origin
from rundir.config import ChangedData
from rundir.foreign import explain_sign
from rundir.opening import open_chosen_runs
from rundir.prediction import PREDICTION_SETTINGS
from rundir.rebuild import Rebuilder
from rundir.trained import ChosenRun, refuse_idle_flag
from utils.console import Console, Progress, escape, format_count, format_table
from utils.device import pick_device

PICTURE, OVERLAY = "nc_curves.png", "nc_curves_overlay.png"


class CheckpointError(Exception):
    """One checkpoint cannot be evaluated; the others can."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_flags(argv)
    return run_command(
        PROGRAM,
        lambda stop: evaluate_runs(args),
        stopped=STOP_MESSAGE,
        batch_size=args.batch_size or 0,
    )


def evaluate_runs(args: argparse.Namespace) -> int:
    """Evaluate, draw and print; return 2 if a checkpoint could not be evaluated, else 0."""
    # Report all mistakes that can be found now, before the work begins.
    runs = open_chosen_runs(args.load_path, args.checkpoints, args)
    refuse_without_effect(args, runs)
    pictures = make_directory("--out", Path(args.out)) if args.out else runs[0].directory
    device, device_name = pick_device(args.gpu_id)
    console = Console()
    console.say(f"device {device_name}")
    splits = SPLITS if args.split == "both" else (args.split,)
    evaluator = Evaluator(args, device, splits, console)
    tables, failures = [], 0
    for run in runs:
        rows, failed = evaluator.evaluate(run)
        failures += failed
        tables.append(rows)
        if rows.current:
            failures += draw([build_curve(run, rows)], run.directory / PICTURE, console)
    curves = [
        build_curve(run, rows) for run, rows in zip(runs, tables, strict=True) if rows.current
    ]
    if len(curves) > 1:
        failures += draw(curves, pictures / OVERLAY, console)
    if any(rows.current for rows in tables):
        console.say("\n" + format_rows(runs, tables, splits))
    return MISTAKE if failures else 0


def refuse_without_effect(args: argparse.Namespace, runs: list[ChosenRun]) -> None:
    """Refuse a flag that does nothing for any of the runs. Raises UserError."""
    if len({run.directory.resolve() for run in runs}) < len(runs):
        raise UserError("--load_path names a run twice")
    if args.out and len(runs) == 1:
        raise UserError("--out has no effect here: it is for the picture of several runs")
    for flag in ("data_dir", "num_workers"):
        refuse_idle_flag(flag, getattr(args, flag), runs)


@dataclass
class Work:
    """What is to be done for a run.

    Attributes:
        missing: the splits to compute, by epoch.
        prints: the fingerprint of each sound checkpoint, by epoch.
        failed: checkpoints that could not be evaluated.
        unverified: checkpoints without checksums.
    """

    missing: dict[int, list[str]] = field(default_factory=dict)
    prints: dict[int, str] = field(default_factory=dict)
    failed: int = 0
    unverified: int = 0

    def describe(self) -> str:
        """Describe the checkpoints that failed or could not be verified."""
        failed = f", {format_count(self.failed, 'checkpoint')} failed" if self.failed else ""
        if not self.unverified:
            return failed
        return f"{failed}, {format_count(self.unverified, 'checkpoint')} unverified (no checksums)"


class Evaluator:
    """Evaluator of one run after another."""

    def __init__(
        self,
        args: argparse.Namespace,
        device: torch.device,
        splits: tuple[str, ...],
        console: Console,
    ) -> None:
        self._args, self._splits, self._console = args, splits, console
        self._warned: set[str] = set()
        self._rebuilder = Rebuilder(
            device,
            splits,
            batch_size=args.batch_size,
            data_dir=args.data_dir,
            num_workers=args.num_workers,
            precision=args.precision,
        )

    def evaluate(self, run: ChosenRun) -> tuple[MetricsTable, int]:
        """Return the run's table with the chosen rows, and how many checkpoints failed."""
        make_directory("--load_path", run.directory)  # a file's results have one of their own
        rows = MetricsTable(run.directory, MEASURES)
        for note in rows.notes:
            print_warning(note)
        work, absent = Work(), None
        try:
            facts = self._rebuilder.identify(run)
        except UserError as error:
            if isinstance(error, ChangedData) or not run.facts:  # no row may hold any more
                print_error(PROGRAM, error)
                for key in rows.rows:
                    rows.exclude(key)
                return rows, len(run.chosen)
            facts, absent = run.facts, error
        self._list_missing(run, rows, facts, work)
        if absent is not None and not work.missing:  # rows are shown also where the data is not
            print_warning(f"{run.directory}: the rows are not compared with the data set: {absent}")
        total = sum(len(splits) for splits in work.missing.values())
        kept = len(work.prints) * len(self._splits) - total
        if total:
            try:
                self._rebuilder.model(run)
            except UserError as error:  # one line for the run, e.g. without its data set
                print_error(PROGRAM, error)
                return rows, work.failed + len(work.missing)
        progress = Progress(self._console, run.name, total, unit="split")
        computed = 0
        for epoch, splits in work.missing.items():
            try:
                for split, values in self._measure(run, epoch, splits):
                    rows.put((epoch, split), work.prints[epoch], values)
                    computed += 1
            except CheckpointError as error:
                print_error(PROGRAM, error)
                work.failed += 1
            if progress.is_due():
                progress.show(computed, f"epoch {epoch}")
        progress.close()
        counts = f"{computed} evaluated, {kept} unchanged rows kept{work.describe()}"
        self._console.say(f"{escape(str(run.directory))}: {counts}")
        return rows, work.failed

    def _list_missing(
        self, run: ChosenRun, rows: MetricsTable, facts: dict[str, Any], work: Work
    ) -> None:
        """Fill `work` with what must be computed of a run on the data set of `facts`."""
        dependencies = self._list_dependencies(run, facts)
        for epoch, path in run.chosen.items():
            try:
                archive = read_archive(path)
                check_origin(path, archive.origin, run.id)
            except UserError as error:  # the rows of a file that is damaged now are not shown
                print_error(PROGRAM, error)
                work.failed += 1
                for split in SPLITS:
                    rows.exclude((epoch, split))
                continue
            work.unverified += not archive.verified
            fingerprint = compute_fingerprint(archive.content, *dependencies)
            work.prints[epoch] = fingerprint
            for key in [(epoch, split) for split in self._splits]:
                if self._args.force or not rows.holds(key, fingerprint):
                    rows.mark_changed(key, fingerprint)
                    work.missing.setdefault(epoch, []).append(key[1])

    def _list_dependencies(self, run: ChosenRun, facts: dict[str, Any]) -> tuple[Any, ...]:
        """List the values that a row depends on besides the checkpoint."""
        entries = Settings.entries()
        builders = ["model", "dataset", *Settings.names(builds="data")]
        settings = run.settings.values([*builders, *Settings.names(builds="model")])
        # A row from before a setting existed still holds.
        settings = {k: v for k, v in settings.items() if v != entries[k].before}
        del settings["data_dir"]  # the facts show whether the data set has changed
        decays = list({**run.settings.values(PREDICTION_SETTINGS), "loss": run.loss}.values())
        if run.bare is None:  # False stands where earlier versions had --bias_added
            return self._args.precision, False, settings, decays, run.facts
        return self._args.precision, run.bare, settings, decays, facts

    def _measure(
        self, run: ChosenRun, epoch: int, splits: Sequence[str]
    ) -> Iterator[tuple[str, dict[str, float | None]]]:
        """Yield each split and its measures under one checkpoint. Raises CheckpointError."""
        path = run.chosen[epoch]
        try:
            model = self._rebuilder.load_model(run, path)
        except UserError as error:
            raise CheckpointError(str(error)) from error
        classifier: Any = model.fc
        context = self._rebuilder.precision(run).autocast()
        for split in splits:
            extracted = extract(model, self._rebuilder.batches(run, split), context)
            self._check_sign(run, split, extracted, classifier)
            evaluation = Evaluation(
                extracted,
                classifier.weight.detach(),
                classifier.bias_vector().detach(),
                self._rebuilder.class_sizes(run),
                long_tailed=run.settings.imbalance_factor != 1,
                prediction=self._rebuilder.prediction(run),
            )
            try:
                yield split, compute_measures(evaluation)
            except ValueError as error:
                raise CheckpointError(f"{path}, {split} set: {error}") from error

    def _check_sign(
        self, run: ChosenRun, split: str, extracted: Extracted, classifier: Any
    ) -> None:
        """Warn once for a run of bare weights that the bias's other sign fits clearly better."""
        if run.bare is None or run.bare.documented or run.name in self._warned:
            return
        warning = explain_sign(run.bare, split, extracted, classifier)
        if warning is not None:
            self._warned.add(run.name)
            print_warning(f"{run.directory}: {warning}")


def print_warning(text: str) -> None:
    """Print a warning as one line on stderr."""
    print(f"{PROGRAM}: warning: {escape(text)}", file=sys.stderr)


def draw(curves: Sequence[Curve], path: Path, console: Console) -> int:
    """Write a picture; return 1 if it cannot be written, else 0."""
    try:
        save_figure(draw_nc_curves(curves), path)
    except UserError as error:
        print_error(PROGRAM, error)
        return 1
    console.say(f"wrote {escape(str(path))}")
    return 0


def build_curve(run: ChosenRun, rows: MetricsTable) -> Curve:
    """Return a run's rows for a picture."""
    return Curve(run.name, run.loss, run.optimizer, list(rows.current.values()))


def format_rows(
    runs: Sequence[ChosenRun], tables: Sequence[MetricsTable], splits: Sequence[str]
) -> str:
    """Format all chosen rows as one aligned table."""
    shown = list_shown([row for rows in tables for row in rows.current.values()])
    header = ["run", "epoch", "split", *(measure.heading for measure in shown.values())]
    lines = []
    for run, rows in zip(runs, tables, strict=True):
        current = rows.current
        for epoch, split in [(epoch, split) for epoch in run.chosen for split in splits]:
            if (epoch, split) in current:
                row = current[epoch, split]
                cells = [measure.format(row[name]) for name, measure in shown.items()]
                lines.append([run.name, str(epoch), split, *cells])
    return format_table(header, lines)


def list_shown(rows: Sequence[Mapping[str, Any]]) -> dict[str, Measure]:
    """Return the measures to print. An optional one needs a number in any row of its function."""
    filled = {
        measure.function
        for name, measure in MEASURES.items()
        if any(row[name] is not None for row in rows)
    }
    return {
        name: measure
        for name, measure in MEASURES.items()
        if measure.shown and (not measure.optional or measure.function in filled)
    }


if __name__ == "__main__":
    sys.exit(main())
