"""The state that an exact resume needs: last.pth, how it is written and read back."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from args import Settings
from rundir.directory import Run
from rundir.names import LAST, METRICS
from rundir.weights import load, read_rng_state, restore_rng_state
from training.meter import Meter
from utils.errors import UserError
from utils.files import read_csv
from utils.seeds import mix_seed


@dataclass
class TrainState:
    """Network, optimizer, loss scaler and meter of a run, and how far it has come.

    Sample order, augmentation and learning rate follow from the seed and the epoch: they have no
    state.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the epoch after them.
        history: a row of metrics.csv for each finished epoch.
    """

    settings: Settings
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    meter: Meter
    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The best test top-1 so far, in percent; −1 before the first epoch."""
        return max((row["test_top1"] for row in self.history), default=-1.0)

    def begin_epoch(self) -> None:
        """Reset the meter and seed dropout, unless the epoch was begun before a resume."""
        if self.step == 0:
            self.meter.reset()
            torch.manual_seed(mix_seed(self.settings.seed, self.epoch + 1, 0, 0))

    def finish_epoch(self, row: dict[str, Any]) -> bool:
        """Count the epoch; return whether its test top-1 is the best so far."""
        is_best = bool(row["test_top1"] > self.best)
        self.epoch, self.step = self.epoch + 1, 0
        self.history.append(row)
        return is_best

    def save(self, run: Run) -> None:
        """Write last.pth. Raises UserError if it cannot be written."""
        position = {
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "history": self.history,
        }
        run.write_state(
            {
                "settings": identify(self.settings),
                "position": position,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "meter": self.meter.state_dict() if self.step else None,
                "rng": read_rng_state(),
            }
        )

    def load(self, run: Run, device: torch.device) -> None:
        """Restore the state from last.pth, if there is one.

        Raises UserError if it is damaged, of other settings, or lost.
        """
        if not (run / LAST).exists():
            # metrics.csv gets its first row after the first last.pth.
            if (run / METRICS).exists() and read_csv(run / METRICS):
                raise UserError(
                    f"{run / LAST} is missing: nothing to resume from; --force starts over"
                )
            return
        state = load(run / LAST, device)
        try:
            self._take(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = textwrap.shorten(str(error), 90, placeholder=" …")
            raise UserError(f"{run / LAST} does not fit the run's config.json: {reason}") from error

    def _take(self, state: dict[str, Any]) -> None:
        if Settings.add_before(state["settings"]) != identify(self.settings):
            raise ValueError("it was written with other settings")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if state["meter"] is not None:
            self.meter.load_state_dict(state["meter"])
        restore_rng_state(state["rng"])
        position = state["position"]
        self.epoch, self.step = position["epoch"], position["step"]
        self.history = list(position["history"])


def identify(settings: Settings) -> dict[str, Any]:
    """Return the settings that shape what a run learns, without the number of epochs."""
    return {name: value for name, value in settings.get_shaping().items() if name != "epochs"}
