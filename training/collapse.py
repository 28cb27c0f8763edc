"""Measures of neural collapse while a run trains, the ones that eval_nc.py computes afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from input_pipeline import SPLITS
from input_pipeline.loader import BatchLoader
from input_pipeline.splits import DataSet
from metrics import MEASURES, SPLIT_NAMES
from metrics.table import MetricsTable, compute_fingerprint
from rundir.archives import read_archive
from rundir.crew import MeasuredSplit, evaluate_split, measure_evaluation
from rundir.directory import Run
from rundir.evaluator import list_dependencies
from rundir.names import NC_COLUMNS, NC_PREFIX
from rundir.rebuild import Rebuilder
from rundir.trained import TrainedRun, open_run
from rundir.weights import read_rng_state, restore_rng_state
from utils.console import Console, Progress
from utils.device import is_out_of_memory
from utils.signals import Stopped, StopSignal
from utils.world import ALONE, World

PRECISION = "fp32"  # the default of eval_nc.py, which then keeps the rows


@dataclass(frozen=True)
class Measured:
    """The measures of the weights of an epoch.

    Attributes:
        epoch: its number.
        rows: all measures by split; empty for an epoch that is not measured.
        table: nc_metrics.csv; None for an epoch that is not measured.
        dependencies: what the rows depend on besides the weights.
    """

    epoch: int
    rows: dict[str, MeasuredSplit] = field(default_factory=dict)
    table: MetricsTable | None = None
    dependencies: tuple[Any, ...] = ()

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of metrics.csv: those of the training set."""
        values = self.rows["train"].values if "train" in self.rows else {}
        names = {column: column.removeprefix(NC_PREFIX) for column in NC_COLUMNS}
        return {column: values[name] for column, name in names.items() if name in values}

    def write(self, checkpoint: Path | None) -> None:
        """Write the rows of nc_metrics.csv. `checkpoint` holds the weights, if a file does.

        eval_nc.py then keeps the rows: they have the fingerprint that it computes for the file.
        """
        if self.table is None:
            return
        fingerprint = None
        if checkpoint is not None:
            content = read_archive(checkpoint).content
            fingerprint = compute_fingerprint(content, *self.dependencies)
        for split, row in self.rows.items():
            self.table.put((self.epoch, split), fingerprint, row.values, row.classes)


class CollapseRecorder:
    """Measures a network every `nc_every` epochs and after the last.

    The weights are copied into a network of its own, in evaluation mode, in float32 and in the
    memory format of an evaluation: training is not touched. Images are shared with the training.

    Args:
        run: open, with its config.json written.
        data: the data set of the run.
        batches: of training and of the test, whose images are on the device.
        console: for progress, and for what could not be measured.
        world: the processes that share the images. The first one alone keeps the table.
    """

    def __init__(
        self,
        run: Run,
        data: DataSet,
        batches: tuple[BatchLoader, BatchLoader],
        console: Console,
        world: World = ALONE,
    ) -> None:
        self._world = world
        self._run, self._settings, self._console = run, run.settings, console
        self._data, self._batches = data, batches
        self._opened: tuple[TrainedRun, Rebuilder, MetricsTable | None] | None = None

    def measure(self, model: nn.Module, epoch: int, stop: StopSignal) -> Measured:
        """Measure both splits with the weights of `model`, if this epoch is one to measure.

        A split whose measures are not defined (features that are not finite, a class without
        samples), or that is too large for the memory of a process alone, is left out, and a line
        says why. The random generators stay as they are. Raises Stopped if a stop is requested.
        """
        every = self._settings.nc_every
        if every == 0 or (epoch % every and epoch != self._settings.epochs):
            return Measured(epoch)
        device = self._batches[0].device
        generators = read_rng_state(device)
        try:
            rows = dict(self._measure_splits(model, epoch, stop))
        finally:
            restore_rng_state(generators, device)
        run, _, table = self._open()
        return Measured(epoch, rows, table, list_dependencies(run, run.facts, PRECISION))

    def _open(self) -> tuple[TrainedRun, Rebuilder, MetricsTable | None]:
        """Open the run as an evaluation does, once."""
        if self._opened is None:
            run = self._world.call_first(lambda: open_run(self._run.directory))
            train, test = self._batches
            workers, device, world = self._settings.num_workers, train.device, self._world
            rebuilder = Rebuilder(
                device, SPLITS, num_workers=workers, precision=PRECISION, world=world
            )
            placed = dataclasses.replace(self._data, train=train.split, test=test.split)
            rebuilder.adopt(run, placed, self._data.facts())
            table = MetricsTable(run.directory, MEASURES) if world.is_first else None
            for note in table.notes if table else []:
                self._console.say(note)
            self._opened = run, rebuilder, table
        return self._opened

    def _measure_splits(
        self, model: nn.Module, epoch: int, stop: StopSignal
    ) -> Iterator[tuple[str, MeasuredSplit]]:
        run, rebuilder, _ = self._open()
        twin = rebuilder.model(run)
        twin.load_state_dict(model.state_dict())
        self._world.copy_buffers(twin)  # running statistics may differ between processes
        for split in SPLITS:
            title = f"epoch {epoch}/{self._settings.epochs}: {SPLIT_NAMES[split]}, measures"
            batches = rebuilder.batches(run, split)
            try:
                with Progress(self._console, title, batches.num_samples) as progress:
                    report = partial(_report, progress, batches.num_samples, stop)
                    evaluation = evaluate_split(rebuilder, run, twin, batches, report)
                    measured = measure_evaluation(evaluation)
            except (ValueError, RuntimeError) as error:
                reason = _explain(error, SPLIT_NAMES[split], self._world)
                self._console.say(f"epoch {epoch}: {reason}")
                continue
            yield split, measured
        rebuilder.drop_batches()


def _report(progress: Progress, images: int, stop: StopSignal, share: float) -> None:
    """Show the share of the images that is done; raise Stopped if a stop is requested."""
    if progress.is_due():
        progress.show(round(share * images), "")
    if stop.poll():
        raise Stopped


def _explain(error: ValueError | RuntimeError, split: str, world: World) -> str:
    """Explain why a split has no measures; raises what is no matter of weights or memory.

    A ValueError is that of all processes. The others do not know that one has too little memory,
    and wait for it: the job must end.
    """
    if isinstance(error, ValueError):
        return f"no measures of the {split}: {error}"
    if is_out_of_memory(error) and world.size == 1:
        return f"no measures of the {split}: out of memory"
    raise error
