"""Saving beside training: a copy of the state in host memory, written to files by a thread."""

from __future__ import annotations

import copy
import time
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from rundir.aside import remove_aside
from rundir.directory import Run
from training.collapse import Measured
from training.state import TrainState
from utils.background import Background
from utils.signals import Stopped


class HostCopy:
    """A copy of nested containers of tensors in host memory. The next copy uses its memory again.

    Args:
        device: where the tensors are. From a GPU they are copied to pinned memory, and the host
            does not wait for that.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[Hashable, Tensor] = {}
        self._copied = torch.cuda.Event() if device.type == "cuda" else None

    def take(self, state: Any) -> Any:
        """Return a copy of `state`, which is complete after `wait`; it ends the last copy's use."""
        copied = self._copy(state, ())
        if self._copied is not None:
            self._copied.record()
        return copied

    def wait(self) -> None:
        """Wait until the copy is complete."""
        if self._copied is not None:
            self._copied.synchronize()

    def _copy(self, part: Any, place: tuple[Hashable, ...]) -> Any:
        if isinstance(part, Tensor):
            return self._copy_tensor(part, place)
        if isinstance(part, Mapping):
            copied: Any = copy.copy(part)  # a state_dict keeps its _metadata
            for key, value in part.items():
                copied[key] = self._copy(value, (*place, key))
            return copied
        if isinstance(part, list | tuple):
            return type(part)(self._copy(value, (*place, i)) for i, value in enumerate(part))
        return part

    def _copy_tensor(self, tensor: Tensor, place: tuple[Hashable, ...]) -> Tensor:
        buffer = self._buffers.get(place)
        if buffer is None or _describe(buffer) != _describe(tensor):
            pinned = self._copied is not None
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=pinned, requires_grad=False)
            self._buffers[place] = buffer
        return buffer.copy_(tensor.detach(), non_blocking=True)


def _describe(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.stride()


class Saver:
    """Writer of a run's files while it trains, and the clock of its epochs.

    The files of an epoch are written in this order: epoch_NNN.pth, ema_NNN.pth, its rows of
    nc_metrics.csv if it was measured, last.pth, best_model.pth, its row of metrics.csv. Then the
    epoch_NNN.pth and ema_NNN.pth go that `keep_checkpoints` does not keep. last.pth, with
    best_model.pth, is left out within `save_interval` seconds after the last one, but never at a
    stop, at the end, or if training fails. What is newer than last.pth is set aside by a resume.
    best_model.pth always holds the best weights of the epochs that last.pth contains. If neither
    last.pth nor an epoch_NNN.pth holds them, they are written to best_model.pth.next before
    last.pth and renamed after it.

    The `with` block ends with all files written: with the state in the middle of an epoch if
    Stopped leaves it, else with that after the last epoch. An error in the thread is raised by the
    next call of any method.

    In a job of several processes the first one writes. The others count the epochs.
    """

    def __init__(self, run: Run, state: TrainState) -> None:
        self._run, self._state, self._settings = run, state, state.settings
        self._kept, self._best = HostCopy(state.device), HostCopy(state.device)
        self._best_weights: Any = None  # of the best epoch, if no file of its own holds them
        self._unsaved: Any = None  # the copy after the last epoch, until last.pth holds it
        self._thread = Background("saving")
        self._failed = False
        known = state.epoch > 0 or state.step > 0
        self._saved_best = state.best_epoch
        self._saved_at = time.monotonic() if known else float("-inf")
        self._begun = time.monotonic() - state.seconds

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._finish(stopped=kind is Stopped)
        finally:
            self._thread.close()

    def _finish(self, stopped: bool) -> None:
        if stopped:
            self._state.collect()
        if self._failed or not self._state.world.is_first:
            return
        self._thread.wait()
        if stopped:
            self._state.seconds = time.monotonic() - self._begun
            self._unsaved = self._copy_state()
        if self._unsaved is not None:
            self._write(self._unsaved, regular=False, due=True)
        if self._state.epoch == self._settings.epochs:
            remove_aside(self._run.directory)

    def save_epoch(self, row: dict[str, Any], measured: Measured | None = None) -> None:
        """Count an epoch that has ended, with its row of metrics.csv but for `seconds`.

        Waits for the files of the epoch before, and copies the state. After the last epoch it waits
        for all files; `seconds` contain that time. `measured` are the measures of its weights.
        """
        self._thread.wait()
        state, settings, now = self._state, self._settings, time.monotonic()
        row["seconds"] = now - self._begun
        self._begun = now
        is_best = state.finish_epoch(row)
        if not state.world.is_first:
            return
        final = state.epoch == settings.epochs
        regular = final or state.epoch % settings.epoch_save_step == 0
        regular = regular and settings.keep_checkpoints != "best"
        due = final or now - self._saved_at >= settings.save_interval
        stored = self._unsaved = self._copy_state()
        if is_best:
            own_file = regular or due
            weights = state.model.state_dict()
            self._best_weights = None if own_file else self._best.take(weights)
        if due:
            self._saved_at = now
        self._thread.start(self._write, stored, regular, due, measured)
        if final:
            self._thread.wait()
            row["seconds"] += time.monotonic() - now
            self._run.write_metrics(state.history)

    def _copy_state(self) -> dict[str, Any]:
        """Copy the state. The rows of finished epochs do not change: their list alone is copied."""
        state = self._state.state_dict()
        history = state["position"].pop("history")
        copied: dict[str, Any] = self._kept.take(state)
        copied["position"]["history"] = list(history)
        return copied

    def check(self) -> None:
        """Raise the error of the thread, if there is one; waits for nothing."""
        self._thread.check()

    def _write(
        self,
        stored: dict[str, Any],
        regular: bool,
        due: bool,
        measured: Measured | None = None,
    ) -> None:
        try:
            self._write_files(stored, regular, due, measured)
        except BaseException:
            self._failed = True
            raise

    def _write_files(
        self, stored: dict[str, Any], regular: bool, due: bool, measured: Measured | None
    ) -> None:
        self._kept.wait()
        position, checkpoint = stored["position"], None
        if regular:
            checkpoint = self._run.write_weights(stored["model"], position["epoch"])
            if "average" in stored:
                self._run.write_average(stored["average"], position["epoch"])
        if measured is not None:
            measured.write(checkpoint)
        if due:
            self._write_state(stored)
            self._unsaved = None
        self._run.write_metrics(position["history"])
        if regular:
            self._run.prune_checkpoints(self._state.best_epoch)

    def _write_state(self, stored: dict[str, Any]) -> None:
        best_epoch, position = self._state.best_epoch, stored["position"]
        changed = best_epoch != self._saved_best
        if changed and self._best_weights is not None:
            self._best.wait()
            self._run.write_next_best(self._best_weights, best_epoch)
        self._run.write_state(stored)
        if changed:
            is_last = position["epoch"] == best_epoch and position["step"] == 0
            self._run.replace_best(best_epoch, stored["model"] if is_last else None)
        self._saved_best = best_epoch
