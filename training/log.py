"""The records of a run in training: console and log lines, metrics.csv, TensorBoard events."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from args import Settings
from input_pipeline.splits import DataSet
from rundir.directory import Run
from rundir.names import METRICS_COLUMNS
from training.state import TrainState
from utils.console import Console, escape, format_count, list_some
from utils.errors import UserError

EPOCHS_NAMED = 5  # of those that a resume trains again


class RunLog:
    """Records of a run in training.

    Args:
        run: the open run directory.
        settings: the complete settings of the run.

    Attributes:
        console: prints lines and appends them to train_log.txt.
    """

    def __init__(self, run: Run, settings: Settings) -> None:
        self._run, self._settings = run, settings
        self.console = Console(run.log)
        self._events: Any = None

    def introduce(
        self, data: DataSet, model: nn.Module, device_name: str, notes: Sequence[str] = ()
    ) -> None:
        """Print network, data and what is to be known of both, run directory and device."""
        settings = self._settings
        parameters = sum(p.numel() for p in model.parameters())
        train_size, test_size = (len(part or ()) for part in (data.train, data.test))
        tail = ""
        if settings.imbalance_factor > 1:
            sizes = data.class_sizes or [0]
            most = format_count(max(sizes), "training image")
            tail = f"; the largest class has {most}, the smallest {min(sizes)}"
        self.console.say(
            f"{settings.model} ({parameters:,} parameters) on {settings.dataset} with "
            f"{settings.loss}, {settings.optimizer}, {train_size:,} training and {test_size:,} "
            f"test images{tail}"
        )
        for note in (*notes, *data.notes):
            self.console.say(escape(note))
        place = escape(str(self._run.directory))
        self.console.say(f"run directory {place}, device {device_name}, {settings.precision}")

    def begin(self, state: TrainState) -> None:
        """Open the event file, and record how far a resumed run has come."""
        if self._settings.tensorboard:
            self._events = _open_events(self._run, state.epoch)
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
        if state.moved:
            self.console.say(
                f"no longer bit for bit as a run that was never stopped: now {escape(state.moved)}"
            )
        if state.epoch == self._settings.epochs:
            self.console.say("nothing is left to do")

    def record_epoch(self, state: TrainState) -> None:
        """Record the epoch that was finished last."""
        row = state.history[-1]
        if self._events is not None:
            for column in METRICS_COLUMNS[1:]:
                self._events.add_scalar(column, row[column], row["epoch"])
            self._events.flush()
        self.console.say(_format_epoch(row, self._settings.epochs))

    def end(self, state: TrainState) -> None:
        """Print that the run is finished."""
        finished = format_count(self._settings.epochs, "epoch")
        self.console.say(f"finished {finished}, best test top-1 {state.best:.2f} %")

    def record_stop(self) -> None:
        """Print the command that resumes a stopped run."""
        words = ["python", "train.py", "--resume", "--run_name", self._run.name]
        if Path(self._settings.save_dir) != Path(Settings.model_fields["save_dir"].default):
            words += ["--save_dir", self._settings.save_dir]
        self.console.say(f"stopped, state saved; resume with: {shlex.join(words)}")


def _format_epoch(row: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {row['epoch']:3d}/{epochs}  lr {row['lr']:.2e}  "
        f"train loss {row['train_loss']:.4g} top-1 {row['train_top1']:6.2f} %  "
        f"test loss {row['test_loss']:.4g} top-1 {row['test_top1']:6.2f} % "
        f"uniform {row['test_uniform']:6.2f} %  "
        f"{row['seconds']:.1f} s  {row['images_per_second']:.0f} images/s"
    )


def _open_events(run: Run, epoch: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard: the package tensorboard is not installed") from error
    return SummaryWriter(str(run.events), purge_step=epoch + 1)
