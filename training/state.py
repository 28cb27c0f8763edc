"""The state that an exact resume needs: last.pth, how it is written and read back."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from args import Settings
from rundir.aside import set_newer_aside
from rundir.directory import Run
from rundir.names import LAST, METRICS, list_metrics_columns
from rundir.weights import load, read_rng_state, restore_rng_state
from training.averaging import Average
from training.checks import check_history, check_tensors, merge_optimizer_state
from training.meter import Meter
from utils.errors import UserError
from utils.files import read_csv
from utils.seeds import mix_seed
from utils.world import ALONE, World

# The errors of a state that is not as it was written.
REFUSED = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, OverflowError)


@dataclass
class TrainState:
    """Network, optimizer, loss scaler, meter and average of a run, and how far it has come.

    Sample order, augmentation and learning rate follow from the seed and the epoch: they have no
    state.

    Attributes:
        world: the processes that train together; the first writes the state.
        epoch: finished epochs.
        step: finished steps of the epoch after them.
        history: a row of metrics.csv for each finished epoch.
        seconds: that the epoch after them has taken before a resume.
        newer: epochs that a kill had left newer than last.pth, which a resume has set aside.
        pruned: epochs whose weights `--keep_checkpoints` of a resume has removed.
        moved: what differs in hardware and torch since the state was saved; "" for nothing.
    """

    settings: Settings
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    meter: Meter
    average: Average | None = None
    world: World = ALONE
    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    newer: list[int] = field(default_factory=list)
    pruned: list[int] = field(default_factory=list)
    moved: str = ""
    _generators: list[Any] = field(
        default_factory=list
    )  # states of the other processes' generators

    @property
    def device(self) -> torch.device:
        """The device that trains."""
        return self.meter.device

    @property
    def best(self) -> float:
        """The best test top-1 so far, in percent; −1 before the first epoch."""
        return max((row["test_top1"] for row in self.history), default=-1.0)

    @property
    def best_epoch(self) -> int:
        """The first epoch of the best test top-1; 0 before the first epoch."""
        if not self.history:
            return 0
        return int(max(self.history, key=lambda row: row["test_top1"])["epoch"])

    def begin_epoch(self) -> None:
        """Reset the meter and seed dropout, unless the epoch was begun before a resume."""
        if self.step == 0:
            self.meter.reset()
            # Dropout differs between processes; the first draws as a process alone does.
            own = [self.world.rank] if self.world.rank else []
            torch.manual_seed(mix_seed(self.settings.seed, self.epoch + 1, 0, 0, *own))

    def collect(self) -> None:
        """Bring what each process has of an unfinished epoch to the first, which will write it."""
        self.meter.share()
        self._generators = self.world.gather(read_rng_state(self.device))[1:]

    def finish_epoch(self, row: dict[str, Any]) -> bool:
        """Count the epoch; return whether its test top-1 is the best so far."""
        is_best = bool(row["test_top1"] > self.best)
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.history.append(row)
        return is_best

    def state_dict(self) -> dict[str, Any]:
        """Return the content of last.pth. Its tensors are those in use: copy them before a step."""
        position = {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "history": self.history,
        }
        average = {} if self.average is None else {"average": self.average.module.state_dict()}
        return {
            "settings": identify(self.settings),
            "position": position,
            "model": self.model.state_dict(),
            **average,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "meter": self.meter.state_dict() if self.step else None,
            "rng": read_rng_state(self.device),
            "other_rngs": self._generators,
            "hardware": describe_hardware(self.device, self.world.size),
        }

    def load(self, run: Run) -> None:
        """Restore the state from last.pth, if there is one; set aside what is newer.

        The first process comes before the others and alone changes files. Raises UserError if
        last.pth is damaged, of other settings, or lost.
        """
        if not (run / LAST).exists():
            # metrics.csv gets its first row, and a second epoch its weights, after last.pth.
            if run.has_checkpoints() or ((run / METRICS).exists() and read_csv(run / METRICS)):
                raise UserError(
                    f"{run / LAST} is missing: nothing to resume from; --force without "
                    "--resume starts over"
                )
            return
        state = load(run / LAST)
        try:
            self._take(state)
        except REFUSED as error:
            reason = textwrap.shorten(str(error), 90, placeholder=" …")
            raise UserError(f"{run / LAST} does not fit the run's config.json: {reason}") from error
        if not self.world.is_first:
            return
        rows = run.read_metrics()
        self._take_over_seconds(rows)
        self.newer = set_newer_aside(run.directory, self.epoch, len(rows))
        if self.history:
            is_last = self.step == 0 and self.best_epoch == self.epoch
            run.complete_best(self.best_epoch, self.model.state_dict() if is_last else None)
            self.pruned = run.prune_checkpoints(self.best_epoch)

    def _take_over_seconds(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Take the seconds of metrics.csv: a last epoch's contain the writing of last.pth."""
        for row, written in zip(self.history, rows, strict=False):
            with contextlib.suppress(ValueError, KeyError):
                row["seconds"] = float(written["seconds"])

    def _take(self, state: dict[str, Any]) -> None:
        """Check every part of a stored state, then use it. Raises one of `REFUSED`."""
        idle = Settings.names(shapes=False)
        stored = Settings.add_before(state["settings"])
        if {k: v for k, v in stored.items() if k not in idle} != identify(self.settings):
            raise ValueError("it was written with other settings")
        position = state["position"]
        epoch, step = position["epoch"], position["step"]
        seconds = float(position.get("seconds", 0.0))  # an earlier version did not keep it
        if not (isinstance(epoch, int) and isinstance(step, int)):
            raise ValueError("it does not show how far the run has come")
        if not (0 <= epoch <= self.settings.epochs and 0 <= step <= self.meter.steps):
            raise ValueError(f"epoch {epoch} and step {step} are not of this run")
        check_history(position["history"], epoch, list_metrics_columns(self.settings))
        check_tensors("the network", state["model"], self.model.state_dict())
        if self.average is not None:
            check_tensors("the average", state["average"], self.average.module.state_dict())
        optimizer = merge_optimizer_state(self.optimizer, state["optimizer"])
        meter = state["meter"]
        if meter is not None:
            check_tensors("the meter", meter, self.meter.state_dict())
            if len(meter["sizes"]) != step:
                raise ValueError(f"the meter has not counted {step} steps")
            self.meter.load_state_dict(meter)
        self.scaler.load_state_dict(state["scaler"])
        self._restore_generator(epoch, step, [state["rng"], *state.get("other_rngs", ())])
        now = describe_hardware(self.device, self.world.size)
        self.moved = compare_hardware(state.get("hardware"), now)
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(optimizer)
        self.epoch, self.step, self.seconds = epoch, step, seconds
        self.history = [dict(row) for row in position["history"]]

    def _restore_generator(self, epoch: int, step: int, states: Sequence[Any]) -> None:
        """Restore this process's generator; a process that there was not gets a seed of its own."""
        rank = self.world.rank
        if rank < len(states):
            restore_rng_state(states[rank], self.device)
        else:
            torch.manual_seed(mix_seed(self.settings.seed, epoch + 1, 0, step, rank))


def identify(settings: Settings) -> dict[str, Any]:
    """Return the settings that shape what a run learns, without the number of epochs."""
    return {name: value for name, value in settings.get_shaping().items() if name != "epochs"}


def describe_hardware(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Describe what the bits of a run depend on: kind and number of processors, and torch."""
    # A plain str can be unpickled.
    software = {"torch": str(torch.__version__), "processes": processes}
    if device.type == "cuda":
        return {"kind": torch.cuda.get_device_name(device), "count": 1, **software}
    kind = f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    return {"kind": kind, "count": torch.get_num_threads(), **software}


def compare_hardware(before: Any, now: dict[str, Any]) -> str:
    """Return in words what has changed since a state was saved; "" for nothing, or if unknown."""
    if not isinstance(before, dict):
        return ""
    changes = []
    if before.get("processes", 1) != now["processes"]:
        changes.append(f"processes: {now['processes']}, {before.get('processes', 1)} before")
    if any(before.get(key) != now[key] for key in ("count", "kind")):
        changes.append(f"{_describe_processors(now)}, {_describe_processors(before)} before")
    if before.get("torch", now["torch"]) != now["torch"]:
        changes.append(f"torch {now['torch']}, {before['torch']} before")
    return "; ".join(changes)


def _describe_processors(hardware: dict[str, Any]) -> str:
    kind, count = str(hardware.get("kind")), hardware.get("count")
    return f"{count} threads on {kind}" if kind.startswith("CPU") else f"{count} × {kind}"
