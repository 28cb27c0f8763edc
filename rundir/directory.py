"""The directory of a run: its choice, its lock, and every file written into it."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from args import Settings
from rundir.config import Config, format_config, read_config
from rundir.names import (
    BEST,
    CONFIG,
    EVENTS,
    LAST,
    LOG,
    METRICS,
    METRICS_COLUMNS,
    NAMED_FIRST,
    name_checkpoint,
)
from rundir.resuming import list_changes
from rundir.weights import save
from utils.environment import describe_environment
from utils.errors import UserError
from utils.files import (
    link_whole,
    read_csv,
    read_json,
    remove_temporaries,
    write_csv,
    write_json,
)

LONGEST_NAME = 180


@dataclass
class Run:
    """A run directory. Every file that training leaves there is written through this object.

    Attributes:
        directory: its path.
        resumed: whether it holds a run that goes on.
        log: train_log.txt, once the run is open.
    """

    directory: Path
    resumed: bool
    log: TextIO | None = None

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.directory.name

    def __truediv__(self, file: str) -> Path:
        return self.directory / file

    def open(self) -> None:
        """Create the directory, or reopen it for a resumed run; `--force` replaces a run there.

        Locks the directory against a second trainer. Raises UserError if it cannot be written or
        another process trains in it.
        """
        if not self.resumed and _is_occupied(self.directory):
            _clear(self.directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--save_dir: cannot create {self.directory}: {error.strerror}"
            ) from error
        self.log = _lock(self.directory)
        remove_temporaries(self.directory)

    def read_config(self) -> Config:
        """Read and check config.json. Raises UserError."""
        return read_config(self.directory)

    def write_config(self, settings: Settings, facts: dict[str, Any], device: str) -> None:
        """Write config.json: the resolved settings, the data set's facts, versions and device."""
        environment = {**describe_environment(), "device": device}
        write_json(self / CONFIG, format_config(settings, self.name, facts, environment))

    def extend_config(self, epochs: int) -> None:
        """Note in config.json that a resumed run goes on to more epochs."""
        content = read_json(self / CONFIG)
        if content["settings"]["epochs"] != epochs:
            content["settings"]["epochs"] = epochs
            write_json(self / CONFIG, content)

    def write_metrics(self, history: Sequence[dict[str, Any]]) -> None:
        """Write metrics.csv, a row for each finished epoch."""
        write_csv(self / METRICS, METRICS_COLUMNS, history)

    def write_weights(
        self, weights: Mapping[str, Any], epoch: int, *, regular: bool, is_best: bool
    ) -> None:
        """Write a state_dict as epoch_NNN.pth, as best_model.pth, or as both but once on disk."""
        checkpoint = self / name_checkpoint(epoch)
        if regular:
            save(checkpoint, weights)
        if is_best and regular:
            link_whole(checkpoint, self / BEST)
        elif is_best:
            save(self / BEST, weights)

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Write last.pth, which commits the epochs in it."""
        save(self / LAST, state)

    @property
    def events(self) -> Path:
        """The directory of TensorBoard's events."""
        return self / EVENTS


def choose_run(settings: Settings) -> Run:
    """Decide which directory the settings ask for, new or resumed; touches no file.

    `--resume` means `run_name`, or the newest unfinished run of the same configuration; `--force`
    replaces an existing directory. Both together resume a run that exists, or else start one.
    Raises UserError if no run can be resumed or a directory may not be replaced.
    """
    save_dir = Path(settings.save_dir)
    _check_writable(save_dir)
    directory = _find_run(save_dir, settings) if settings.resume else None
    if directory is not None:
        return Run(directory, resumed=True)
    if settings.resume and not settings.force:
        raise UserError(_explain_no_run(save_dir, settings.run_name))
    return Run(_choose_new_directory(save_dir, settings), resumed=False)


def _check_writable(save_dir: Path) -> None:
    """Refuse a directory that cannot be written, before the data is loaded."""
    existing = next(path for path in (save_dir, *save_dir.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--save_dir {save_dir}: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--save_dir {save_dir}: {existing} cannot be written")


def _find_run(save_dir: Path, settings: Settings) -> Path | None:
    if settings.run_name:
        directory = save_dir / settings.run_name
        return directory if (directory / CONFIG).exists() else None
    candidates = [config.parent for config in save_dir.glob(f"*/{CONFIG}")]
    matching = [run for run in candidates if _is_same_and_unfinished(run, settings)]
    return max(matching, key=lambda run: (run / CONFIG).stat().st_mtime_ns, default=None)


def _is_same_and_unfinished(directory: Path, settings: Settings) -> bool:
    try:
        stored = read_config(directory).settings
        rows = read_csv(directory / METRICS) if (directory / METRICS).exists() else []
    except UserError:
        return False
    return not list_changes(stored, settings.values()) and len(rows) < settings.epochs


def _explain_no_run(save_dir: Path, run_name: str | None) -> str:
    if run_name:
        return (
            f"--resume: no run to resume at {save_dir / run_name}; start it without --resume, "
            "or give --resume --force to resume where a run exists and start one where none does"
        )
    return f"--resume: no unfinished run of this configuration under {save_dir}"


def _choose_new_directory(save_dir: Path, settings: Settings) -> Path:
    if settings.run_name is None:
        name = format_run_name(settings)
        attempts = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
        return next(save_dir / name for name in attempts if not (save_dir / name).exists())
    directory = save_dir / settings.run_name
    if not _is_occupied(directory) or (settings.force and (directory / CONFIG).is_file()):
        return directory
    if settings.force:
        raise UserError(
            f"--force: {directory} is not a run directory ({CONFIG} is missing); remove it"
        )
    raise UserError(
        f"{directory} exists already: give --resume to continue it, --force to replace it, "
        "or another --run_name"
    )


def format_run_name(settings: Settings) -> str:
    """Return the default name: model, data set, loss, optimizer, other given settings, time."""
    parts = [str(getattr(settings, name)) for name in NAMED_FIRST]
    for name, value in settings.get_distinct().items():
        if name in NAMED_FIRST:
            continue
        values = "-".join(map(str, value)) if isinstance(value, list) else value
        parts.append(name if value is True else f"{name}{values}")
    text = re.sub(r"[^A-Za-z0-9.+_-]", "", "_".join(parts))[:LONGEST_NAME]
    return f"{text}_{time.strftime('%Y%m%d-%H%M%S')}"


def _is_occupied(directory: Path) -> bool:
    """Return whether something is there besides the files that an early kill leaves."""
    if not directory.is_dir():
        return directory.exists()
    leftovers = {f".{CONFIG}.tmp", LOG}
    return any(entry.name not in leftovers for entry in directory.iterdir())


def _clear(directory: Path) -> None:
    """Remove a run that nobody trains any more."""
    _lock(directory).close()
    shutil.rmtree(directory)


def _lock(directory: Path) -> TextIO:
    """Open the log and lock it; the system releases the lock however the process ends."""
    try:
        log = open(directory / LOG, "a", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write {directory / LOG}: {error.strerror}") from error
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        log.close()
        raise UserError(f"{directory} is being trained by another process") from error
    except OSError:
        pass  # a file system without locks: go on unguarded
    return log
