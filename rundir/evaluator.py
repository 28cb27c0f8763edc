"""The evaluation of runs: rows of nc_metrics.csv for their checkpoints."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from args import Settings
from input_pipeline import SPLITS
from metrics import EVALUATED, EVALUATED_EMA, MEASURES, SPLIT_NAMES
from metrics.classes import describe_classes, differ
from metrics.measures import describe_prediction
from metrics.table import MetricsTable, RowWriter, compute_fingerprint
from rundir.archives import Archive
from rundir.config import ChangedData
from rundir.crew import Crew, MeasuredSplit
from rundir.prediction import predict_trained
from rundir.reading import Reader, Reading, read_ahead
from rundir.rebuild import Rebuilder, find_feature_dim
from rundir.trained import ChosenRun, TrainedRun
from utils.cli import make_directory, print_error
from utils.console import Console, Progress, escape, format_count
from utils.errors import UserError

# The fingerprints of rows contain these settings: they were what a prediction depends on. It is now
# renewed without an evaluation, and the list stays so that the rows hold.
PRINTED_SETTINGS = [
    "loss",
    "sep_decay",
    "smoothing",
    "augment",
    "batch_size",
    "weight_decay",
    "feature_decay_rate",
    "weight_decay_bias",
]


class CheckpointError(Exception):
    """One checkpoint cannot be evaluated; the others can."""


@dataclass
class Work:
    """What was done for a run.

    Attributes:
        missing: checkpoints of which a row had to be computed.
        computed, kept: rows that were computed, and that still held.
        older: rows that held and lack measures that came later.
        renewed: rows whose exact prediction has changed, chosen or not.
        failed: checkpoints that could not be evaluated.
        unverified: checkpoints without checksums.
        blocked: whether the run's network or data could not be built.
    """

    missing: int = 0
    computed: int = 0
    kept: int = 0
    older: int = 0
    renewed: int = 0
    failed: int = 0
    unverified: int = 0
    blocked: bool = False

    def describe(self) -> str:
        """Describe the rows, and the checkpoints that failed or could not be verified."""
        words = f"{self.computed} evaluated, {self.kept} unchanged rows kept"
        failed, unverified = (format_count(n, "checkpoint") for n in (self.failed, self.unverified))
        if self.older:
            words += f" ({self.older} from before some measures existed; --force computes them)"
        if self.renewed:
            words += f", {format_count(self.renewed, 'row')} with a new exact prediction"
        words += f", {failed} failed" if self.failed else ""
        return words + (f", {unverified} unverified (no checksums)" if self.unverified else "")


class Evaluator:
    """Evaluator of one run after another, in the first process of a job. The others are its crew.

    Args:
        program: what its messages begin with.
        rebuilder: builds the runs' networks and loads `splits` of their data.
        splits: the splits to evaluate.
        precision: that of the networks.
        console: for progress and results.
        force: whether rows that still hold are computed again.
    """

    def __init__(
        self,
        program: str,
        rebuilder: Rebuilder,
        splits: Sequence[str],
        precision: str,
        console: Console,
        *,
        force: bool = False,
    ) -> None:
        self._program, self._rebuilder, self._splits = program, rebuilder, tuple(splits)
        self._precision, self._console, self._force = precision, console, force
        self._crew = Crew(rebuilder)
        self._warned: set[str] = set()

    def evaluate(self, run: ChosenRun) -> tuple[MetricsTable, int]:
        """Return the run's table with the chosen rows, and how many checkpoints failed."""
        make_directory("--load_path", run.directory)  # a file's results have one of their own
        name = EVALUATED_EMA if run.average else EVALUATED
        rows = MetricsTable(run.directory, MEASURES, name)
        for note in rows.notes:
            self._print_warning(note)
        absent = None
        try:
            facts = self._rebuilder.identify(run)
        except UserError as error:
            if isinstance(error, ChangedData) or not run.facts:  # no row may hold any more
                print_error(self._program, error)
                for key in rows.rows:
                    rows.exclude(key)
                return rows, len(run.chosen)
            facts, absent = run.facts, error
        sizes = facts.get("class_sizes") or run.facts.get("class_sizes") or []
        if not sizes and absent is None and run.facts and "fingerprints" not in run.facts:
            sizes = self._rebuilder.class_sizes(run)  # an earlier version's: its data is loaded
        work = self._evaluate_chosen(run, rows, facts, differ(sizes))
        if absent is not None and not work.missing:  # rows are shown also where the data is not
            self._print_warning(
                f"{run.directory}: the rows are not compared with the data set: {absent}"
            )
        work.renewed = self._renew_predictions(run, rows, sizes)
        if not work.blocked:
            self._console.say(f"{escape(str(run.directory))}: {work.describe()}")
        return rows, work.failed

    def finish(self) -> None:
        """Let the other processes go."""
        self._crew.dismiss()

    def _evaluate_chosen(
        self, run: ChosenRun, rows: MetricsTable, facts: dict[str, Any], has_classes: bool
    ) -> Work:
        """Compute the missing rows of a run on the data set of `facts`.

        `has_classes` shows whether rows of the classes belong to them.

        Meanwhile a thread reads the next checkpoint, and another writes the last row.
        """
        dependencies = list_dependencies(run, facts, self._precision)

        def compute_print(archive: Archive) -> str:
            return compute_fingerprint(archive.content, *dependencies)

        def list_missing(epoch: int, fingerprint: str) -> list[str]:
            forced = self._force
            return [s for s in self._splits if forced or not rows.holds((epoch, s), fingerprint)]

        reader = Reader(run.id, compute_print, list_missing)
        readings = read_ahead(lambda item: reader.read(*item), run.chosen.items())
        work, splits = Work(), len(self._splits)
        progress = Progress(self._console, run.name, len(run.chosen) * splits, unit="split")
        with progress, RowWriter(rows) as writer, contextlib.closing(readings):
            for reading in readings:
                self._record(reading, rows, work, has_classes)
                idle = reading.fault is not None or not reading.missing
                if idle or not self._can_build(run, work):
                    progress.skip(splits)
                    continue
                progress.skip(splits - len(reading.missing))
                self._compute_rows(run, reading, writer, work, progress)
        return work

    def _compute_rows(
        self, run: ChosenRun, reading: Reading, writer: RowWriter, work: Work, progress: Progress
    ) -> None:
        left = len(reading.missing)
        try:
            for split, found in self._measure(run, reading, progress):
                left -= 1
                progress.advance(1)
                key = reading.epoch, split
                writer.put(key, reading.fingerprint, found.values, found.classes)
                work.computed += 1
        except CheckpointError as error:
            print_error(self._program, error)
            work.failed += 1
            progress.skip(left)

    def _record(self, reading: Reading, rows: MetricsTable, work: Work, has_classes: bool) -> None:
        """Count a checkpoint that was read, print its fault, and take out rows that changed."""
        if reading.fault is not None:
            print_error(self._program, reading.fault)
            work.failed += 1
        if not reading.fingerprint:  # the rows of a file that is damaged now are not shown
            for split in SPLITS:
                rows.exclude((reading.epoch, split))
            return
        work.unverified += not reading.verified
        kept = [(reading.epoch, s) for s in self._splits if s not in reading.missing]
        work.kept += len(kept)
        work.older += sum(rows.lacks_later(key, has_classes) for key in kept)
        work.missing += bool(reading.missing)
        for split in reading.missing:
            rows.mark_changed((reading.epoch, split), reading.fingerprint)

    def _can_build(self, run: ChosenRun, work: Work) -> bool:
        """Return whether the run's network can be built; if not, one line for the run says why."""
        if not work.blocked:
            try:
                self._crew.build(run)
                return True
            except UserError as error:  # e.g. without its data set
                print_error(self._program, error)
                work.blocked = True
        work.failed += 1
        return False

    def _measure(
        self, run: ChosenRun, reading: Reading, progress: Progress
    ) -> Iterator[tuple[str, MeasuredSplit]]:
        """Yield each missing split and its measures. Raises CheckpointError."""
        try:
            self._crew.fill(reading.path, reading.content)
        except UserError as error:
            raise CheckpointError(str(error)) from error
        reading.content = None  # the model has a copy
        for split in reading.missing:
            note = f"epoch {reading.epoch}, {SPLIT_NAMES[split]}"
            report = partial(progress.report, note=note)
            found, warning = self._crew.measure(split, self._may_warn(run), report)
            if warning is not None:
                self._warned.add(run.name)
                self._print_warning(f"{run.directory}: {warning}")
            if isinstance(found, ValueError):
                raise CheckpointError(f"{reading.path}, {split} set: {found}") from found
            yield split, found

    def _renew_predictions(self, run: ChosenRun, rows: MetricsTable, sizes: Sequence[float]) -> int:
        """Give rows that hold the exact prediction of today; return how many it changes.

        It depends on the run alone, and no checkpoint is evaluated for it. Rows of an earlier
        version have another prediction, or none.
        """
        keys = [key for key in rows.current if run.bare is None or key[0] in run.chosen]
        if not keys or not sizes:
            return 0
        prediction = predict_trained(run, sizes, math.inf)
        if prediction is not None and rows.differs(describe_prediction(prediction), keys):
            feature_dim = find_feature_dim(run, run.chosen.values(), len(sizes))
            if feature_dim is None:
                return 0
            prediction = predict_trained(run, sizes, feature_dim)
        classes = describe_classes(prediction, len(sizes)) if differ(sizes) else []
        return rows.replace_cells(describe_prediction(prediction), classes, keys)

    def _may_warn(self, run: ChosenRun) -> bool:
        """Return whether to warn if the other sign of the bias fits: once for bare weights."""
        return run.bare is not None and not run.bare.documented and run.name not in self._warned

    def _print_warning(self, text: str) -> None:
        """Print a warning as one line on stderr."""
        print(f"{self._program}: warning: {escape(text)}", file=sys.stderr)


def list_dependencies(run: TrainedRun, facts: dict[str, Any], precision: str) -> tuple[Any, ...]:
    """List the values that a row of nc_metrics.csv depends on besides the checkpoint.

    Args:
        run: our own, or weights that came without a config.json.
        facts: of the data set as it is now, for such weights; a run of ours has its own.
        precision: of the network.
    """
    entries = Settings.entries()
    builders = ["model", "dataset", *Settings.names(builds="data")]
    settings = run.settings.values([*builders, *Settings.names(builds="model")])
    # A row from before a setting existed still holds.
    settings = {k: v for k, v in settings.items() if v != entries[k].before}
    del settings["data_dir"]  # the facts show whether the data set has changed
    decays = list({**run.settings.values(PRINTED_SETTINGS), "loss": run.loss}.values())
    if run.bare is None:  # False stands where earlier versions had --bias_added
        return precision, False, settings, decays, run.facts
    return precision, run.bare, settings, decays, facts
