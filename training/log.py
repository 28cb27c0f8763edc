"""The records of a run in training: lines and bars of the console, and services for its numbers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from args import Settings
from input_pipeline import name_data
from input_pipeline.corrupt import NAMED
from input_pipeline.loader import BatchLoader
from input_pipeline.splits import DataSet
from metrics import MEASURES
from rundir.directory import Run
from rundir.names import NC_COLUMNS, NC_PREFIX
from training.meter import NonFiniteLoss
from training.pace import Pace
from training.state import TrainState
from training.table import EpochTable
from training.writers import Writer, open_writers
from utils.cli import MISTAKE, NOT_FINITE
from utils.console import WIDTH, Console, Progress, escape, format_count, list_some
from utils.signals import Stopped
from utils.world import ALONE, World

# Exit statuses for the services, by what ends training; 255 is wandb's for a stop by the user.
STATUSES: dict[type[BaseException] | None, int] = {None: 0, Stopped: 255, NonFiniteLoss: NOT_FINITE}
EPOCHS_NAMED = 5  # of those that a resume trains again


class RunLog:
    """Records of a run in training.

    Its `with` block, after `begin`, ends with all numbers sent to the services that got them.

    Args:
        run: the open run directory.
        settings: the complete settings of the run.
        world: the processes that train together; the first one records.

    Attributes:
        console: prints lines of at most `WIDTH` columns and appends them to train_log.txt.
    """

    def __init__(self, run: Run, settings: Settings, world: World = ALONE) -> None:
        self._run, self._settings, self._world = run, settings, world
        self.console = Console(run.log, WIDTH, quiet=not world.is_first)
        self._table = EpochTable(settings.epochs)
        self._writers: list[Writer] = []

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for writer in self._writers:
            writer.close(STATUSES.get(kind, MISTAKE))

    def introduce(
        self, data: DataSet, model: nn.Module, device_name: str, notes: Sequence[str], space: str
    ) -> None:
        """Print network and data, the notes on both, run directory and device, and the space."""
        settings = self._settings
        dataset = name_data(settings.dataset, settings.data_dir)
        parameters = sum(p.numel() for p in model.parameters())
        train_size, test_size = (len(part or ()) for part in (data.train, data.test))
        self.console.say(
            f"{settings.model} ({parameters:,} parameters) on {dataset} with "
            f"{settings.loss}, {settings.optimizer}, {train_size:,} training and {test_size:,} "
            "test images"
        )
        if settings.imbalance_factor > 1:
            sizes = data.class_sizes or [0]
            most = format_count(max(sizes), "training image")
            self.console.say(f"the largest class has {most}, the smallest {min(sizes)}")
        for note in notes:
            self.console.say(escape(note))
        for split, names in (data.skipped or {}).items():
            for name in names if len(names) > NAMED else ():
                self.console.record(escape(f"skipped of the {split} set: {name}"))
        place = escape(str(self._run.directory))
        self.console.say(f"run directory {place}, device {device_name}, {settings.precision}")
        self.console.say(space)

    def begin(self, state: TrainState, batches: tuple[BatchLoader, BatchLoader]) -> None:
        """Open the services for numbers, and record how far a resumed run has come.

        `batches` are those of training and of the test. Raises UserError if a service fails.
        """
        self._state = state
        self._sizes = [part.num_samples for part in batches]
        self._pace = Pace(state, *self._sizes)
        if self.console.quiet:
            return
        self._writers = open_writers(self._run, self._settings, state.epoch, self.console.say)
        if not self._run.resumed:
            return
        self._run.write_metrics(state.history)
        steps = f" and {format_count(state.step, 'step')}" if state.step else ""
        finished = format_count(state.epoch, "epoch")
        self.console.say(f"resuming after {finished}{steps} of {self._settings.epochs}")
        if state.newer:
            self.console.say(
                f"trains again what ended after the last saved state: epoch "
                f"{list_some(state.newer, EPOCHS_NAMED)}; its files are set aside (*.aside)"
            )
        if state.pruned:
            removed = format_count(len(state.pruned), "older checkpoint")
            keep = self._settings.keep_checkpoints
            self.console.say(f"removed {removed} (--keep_checkpoints {keep})")
        if state.moved:
            self.console.say(
                f"no longer bit for bit as a run that was never stopped: now {escape(state.moved)}"
            )
        if state.epoch == self._settings.epochs:
            self.console.say("nothing is left to do")

    def watch_training(self, seen: int) -> Progress:
        """Return the display of an epoch in training, of which `seen` images are done."""
        left = self._pace.estimate_training
        return Progress(self.console, self._title, self._sizes[0], start=seen, left=left)

    def watch_test(self) -> Progress:
        """Return the display of the test after an epoch."""
        left = self._pace.estimate_testing
        return Progress(self.console, f"{self._title} test", self._sizes[1], left=left, quick=True)

    @property
    def _title(self) -> str:
        return f"epoch {self._state.epoch + 1}/{self._settings.epochs}"

    def record_epoch(self) -> None:
        """Record the epoch that was finished last."""
        row = self._state.history[-1]
        self._pace.begin_epoch()
        for line in self._table.format(row, self._pace.estimate_training(0)):
            self.console.say(line)
        if NC_COLUMNS[0] in row:
            self.console.say(_format_collapse(row, self._settings.epochs))
        # A column that is empty in this epoch is no number.
        values = {k: v for k, v in row.items() if k != "epoch" and isinstance(v, int | float)}
        for writer in self._writers:
            writer.write(row["epoch"], values)

    def end(self, state: TrainState) -> None:
        """Print that the run is finished."""
        finished = format_count(self._settings.epochs, "epoch")
        self.console.say(f"finished {finished}, best test top-1 {state.best:.2f} %")

    def record_stop(self) -> None:
        """Print the command that resumes a stopped run."""
        start = ["python"]
        if self._world.size > 1:
            one_node = ["--standalone"] * (self._world.size == self._world.local_size)
            start = ["torchrun", *one_node, f"--nproc_per_node={self._world.local_size}"]
        words = [*start, "train.py", "--resume", "--run_name", self._run.name]
        if Path(self._settings.save_dir) != Path(Settings.model_fields["save_dir"].default):
            words += ["--save_dir", self._settings.save_dir]
        self.console.say(f"stopped, state saved; resume with:\n    {shlex.join(words)}")


def _format_collapse(row: dict[str, Any], epochs: int) -> str:
    measures = {column: MEASURES[column.removeprefix(NC_PREFIX)] for column in NC_COLUMNS}
    shown = [f"{m.title} {m.format(row[column])}" for column, m in measures.items()]
    return f"epoch {row['epoch']:3d}/{epochs}  training set: {'  '.join(shown)}"
