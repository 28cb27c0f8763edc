"""The run directory: its name, its config.json, and what may change when a run is resumed.

Imports no torch, so that a refused command answers at once.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rundir.config import (
    FREE_SETTINGS,
    changed_settings,
    read_config,
)
from rundir.names import CONFIG, LOG, METRICS
from utils.errors import UserError
from utils.files import read_csv, remove_temporaries


@dataclass
class Run:
    """A run directory; `open` makes it and locks it against a second trainer."""

    directory: Path
    resumed: bool
    log: TextIO | None = None

    @property
    def name(self) -> str:
        return self.directory.name

    def __truediv__(self, file: str) -> Path:
        return self.directory / file

    def open(self) -> None:
        """Create the directory, in place of a run there that `--force` gave up, or reopen it.

        Raises UserError if it cannot be written or another process trains in it.
        """
        if not self.resumed and _occupied(self.directory):
            _clear(self.directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--save_dir: cannot create {self.directory}: {error.strerror}"
            ) from error
        self.log = _lock(self.directory)
        remove_temporaries(self.directory)


def choose_run(settings: dict[str, Any], distinct: dict[str, Any]) -> Run:
    """Decide which directory `settings` ask for, new or resumed; touches no file.

    `--resume` means `run_name`, or the newest unfinished run of the same configuration; `--force`
    replaces an existing directory; both together resume what is there and start anew where nothing
    is. `distinct` are the settings that the name of a new run tells. Raises UserError for what is
    refused.
    """
    save_dir = Path(settings["save_dir"])
    _check_writable(save_dir)
    directory = _existing_run(save_dir, settings) if settings["resume"] else None
    if directory is not None:
        return Run(directory, resumed=True)
    if settings["resume"] and not settings["force"]:
        raise UserError(_nothing_to_resume(save_dir, settings["run_name"]))
    return Run(_new_directory(save_dir, settings, distinct), resumed=False)


def _check_writable(save_dir: Path) -> None:
    """Refuse before the data is loaded what could not be written after."""
    existing = next(path for path in (save_dir, *save_dir.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--save_dir {save_dir}: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--save_dir {save_dir}: {existing} cannot be written")


def _existing_run(save_dir: Path, settings: dict[str, Any]) -> Path | None:
    if settings["run_name"]:
        directory = save_dir / settings["run_name"]
        return directory if (directory / CONFIG).exists() else None
    candidates = [config.parent for config in save_dir.glob(f"*/{CONFIG}")]
    matching = [run for run in candidates if _same_and_unfinished(run, settings)]
    return max(matching, key=lambda run: (run / CONFIG).stat().st_mtime_ns, default=None)


def _same_and_unfinished(directory: Path, settings: dict[str, Any]) -> bool:
    try:
        stored = read_config(directory)["settings"]
        rows = read_csv(directory / METRICS) if (directory / METRICS).exists() else []
    except UserError:
        return False
    return not changed_settings(stored, settings) and len(rows) < settings["epochs"]


def _nothing_to_resume(save_dir: Path, run_name: str | None) -> str:
    if run_name:
        return (
            f"--resume: no run to resume at {save_dir / run_name}; start it without --resume, "
            "or give --resume --force to resume where a run exists and start one where none does"
        )
    return f"--resume: no unfinished run of this configuration under {save_dir}"


def _new_directory(save_dir: Path, settings: dict[str, Any], distinct: dict[str, Any]) -> Path:
    if settings["run_name"] is None:
        name = default_run_name(settings, distinct)
        attempts = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
        return next(save_dir / name for name in attempts if not (save_dir / name).exists())
    directory = save_dir / settings["run_name"]
    if not _occupied(directory) or (settings["force"] and (directory / CONFIG).is_file()):
        return directory
    if settings["force"]:
        raise UserError(
            f"--force: {directory} is not a run directory ({CONFIG} is missing); remove it"
        )
    raise UserError(
        f"{directory} exists already: give --resume to continue it, --force to replace it, "
        "or another --run_name"
    )


def _occupied(directory: Path) -> bool:
    """Whether something is there; what a run left that was killed before its config.json is not."""
    if not directory.is_dir():
        return directory.exists()
    leftovers = {f".{CONFIG}.tmp", LOG}
    return any(entry.name not in leftovers for entry in directory.iterdir())


def _clear(directory: Path) -> None:
    """Remove a run that nobody trains any more."""
    _lock(directory).close()
    shutil.rmtree(directory)


def _lock(directory: Path) -> TextIO:
    """Open the log and hold a lock on it; the system releases it however the process ends."""
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


def default_run_name(settings: dict[str, Any], distinct: dict[str, Any]) -> str:
    """Model, data set, loss, optimizer, the settings that differ from the defaults, time."""
    named = ("model", "dataset", "loss", "optimizer")
    parts = [str(settings[key]) for key in named]
    for key, value in distinct.items():
        if key in named or key in FREE_SETTINGS:
            continue
        values = "-".join(map(str, value)) if isinstance(value, list) else value
        parts.append(key if value is True else f"{key}{values}")
    text = re.sub(r"[^A-Za-z0-9.+_-]", "", "_".join(parts))[:180]
    return f"{text}_{time.strftime('%Y%m%d-%H%M%S')}"
