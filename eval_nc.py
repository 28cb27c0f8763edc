"""Measure neural collapse, feature properties and scores of every checkpoint of one or more runs.

python eval_nc.py --load_path model_weights/<run>
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

import contextlib
import sys

import torch

from figures.nc_curves import Curve, draw_nc_curves
from figures.style import save_figure
from metrics import MEASURES
from metrics.extraction import Extracted, extract
from metrics.measures import Evaluation, compute_measures
from metrics.report import format_rows
from metrics.table import MetricsTable, RowWriter, compute_fingerprint
from rundir.archives import Archive
from rundir.config import ChangedData
from rundir.foreign import explain_sign
from rundir.opening import open_chosen_runs
from rundir.prediction import PREDICTION_SETTINGS
from rundir.reading import Reader, Reading, read_ahead
from rundir.rebuild import Rebuilder
from rundir.trained import ChosenRun, refuse_idle_flag
from utils.console import Console, Progress, escape, format_count
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
        console.say("\n" + format_rows([(run.name, run.chosen) for run in runs], tables, splits))
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
    """What was done for a run.

    Attributes:
        missing: checkpoints of which a row had to be computed.
        computed, kept: rows that were computed, and that still held.
        failed: checkpoints that could not be evaluated.
        unverified: checkpoints without checksums.
        blocked: whether the run's network or data could not be built.
    """

    missing: int = 0
    computed: int = 0
    kept: int = 0
    failed: int = 0
    unverified: int = 0
    blocked: bool = False

    def describe(self) -> str:
        """Describe the rows, and the checkpoints that failed or could not be verified."""
        words = f"{self.computed} evaluated, {self.kept} unchanged rows kept"
        failed, unverified = (format_count(n, "checkpoint") for n in (self.failed, self.unverified))
        words += f", {failed} failed" if self.failed else ""
        return words + (f", {unverified} unverified (no checksums)" if self.unverified else "")


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
        absent = None
        try:
            facts = self._rebuilder.identify(run)
        except UserError as error:
            if isinstance(error, ChangedData) or not run.facts:  # no row may hold any more
                print_error(PROGRAM, error)
                for key in rows.rows:
                    rows.exclude(key)
                return rows, len(run.chosen)
            facts, absent = run.facts, error
        work = self._evaluate_chosen(run, rows, facts)
        if absent is not None and not work.missing:  # rows are shown also where the data is not
            print_warning(f"{run.directory}: the rows are not compared with the data set: {absent}")
        if not work.blocked:
            self._console.say(f"{escape(str(run.directory))}: {work.describe()}")
        return rows, work.failed

    def _evaluate_chosen(self, run: ChosenRun, rows: MetricsTable, facts: dict[str, Any]) -> Work:
        """Compute the missing rows of a run on the data set of `facts`.

        Meanwhile a thread reads the next checkpoint, and another writes the last row.
        """
        dependencies = self._list_dependencies(run, facts)

        def compute_print(archive: Archive) -> str:
            return compute_fingerprint(archive.content, *dependencies)

        def list_missing(epoch: int, fingerprint: str) -> list[str]:
            forced = self._args.force
            return [s for s in self._splits if forced or not rows.holds((epoch, s), fingerprint)]

        reader = Reader(run.id, compute_print, list_missing)
        readings = read_ahead(lambda item: reader.read(*item), run.chosen.items())
        work, splits = Work(), len(self._splits)
        progress = Progress(self._console, run.name, len(run.chosen) * splits, unit="split")
        with RowWriter(rows) as writer, contextlib.closing(readings):
            for count, reading in enumerate(readings, start=1):
                self._record(reading, rows, work)
                idle = reading.fault is not None or not reading.missing
                if idle or not self._can_build(run, work):
                    progress.skip(splits)
                    continue
                self._compute_rows(run, reading, writer, work)
                progress.skip(splits - len(reading.missing))
                if progress.is_due():
                    progress.show(count * splits, f"epoch {reading.epoch}")
        progress.close()
        return work

    def _compute_rows(
        self, run: ChosenRun, reading: Reading, writer: RowWriter, work: Work
    ) -> None:
        try:
            for split, values in self._measure(run, reading):
                writer.put((reading.epoch, split), reading.fingerprint, values)
                work.computed += 1
        except CheckpointError as error:
            print_error(PROGRAM, error)
            work.failed += 1

    def _record(self, reading: Reading, rows: MetricsTable, work: Work) -> None:
        """Count a checkpoint that was read, print its fault, and take out rows that changed."""
        if reading.fault is not None:
            print_error(PROGRAM, reading.fault)
            work.failed += 1
        if not reading.fingerprint:  # the rows of a file that is damaged now are not shown
            for split in SPLITS:
                rows.exclude((reading.epoch, split))
            return
        work.unverified += not reading.verified
        work.kept += len(self._splits) - len(reading.missing)
        work.missing += bool(reading.missing)
        for split in reading.missing:
            rows.mark_changed((reading.epoch, split), reading.fingerprint)

    def _can_build(self, run: ChosenRun, work: Work) -> bool:
        """Return whether the run's network can be built; if not, one line for the run says why."""
        if not work.blocked:
            try:
                self._rebuilder.model(run)
                return True
            except UserError as error:  # e.g. without its data set
                print_error(PROGRAM, error)
                work.blocked = True
        work.failed += 1
        return False

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
        self, run: ChosenRun, reading: Reading
    ) -> Iterator[tuple[str, dict[str, float | None]]]:
        """Yield each missing split and its measures. Raises CheckpointError."""
        try:
            model = self._rebuilder.fill_model(run, reading.path, reading.content)
        except UserError as error:
            raise CheckpointError(str(error)) from error
        reading.content = None  # the model has a copy
        for split in reading.missing:
            evaluation = self._evaluate_split(run, split, model)
            try:
                values = compute_measures(evaluation)
            except ValueError as error:
                raise CheckpointError(f"{reading.path}, {split} set: {error}") from error
            del evaluation  # its features leave room for those of the next split
            yield split, values

    def _evaluate_split(self, run: ChosenRun, split: str, model: torch.nn.Module) -> Evaluation:
        """Pass a split through a network."""
        classifier: Any = model.fc
        context = self._rebuilder.precision(run).autocast()
        extracted = extract(model, self._rebuilder.batches(run, split), context)
        self._check_sign(run, split, extracted, classifier)
        return Evaluation(
            extracted,
            classifier.weight.detach(),
            classifier.bias_vector().detach(),
            self._rebuilder.class_sizes(run),
            long_tailed=run.settings.imbalance_factor != 1,
            prediction=self._rebuilder.prediction(run),
        )

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


if __name__ == "__main__":
    sys.exit(main())
