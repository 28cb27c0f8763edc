"""The directory of a run: its choice, its lock, and every file written into it."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from args import Settings
from rundir.archives import Origin, read_origin
from rundir.checkpoints import find_checkpoints
from rundir.config import Config, format_config, read_config
from rundir.names import (
    BEST,
    CONFIG,
    EVENTS,
    LAST,
    LOCK,
    LOG,
    METRICS,
    NEXT_BEST,
    list_metrics_columns,
    name_checkpoint,
    name_ema,
)
from rundir.naming import format_run_name
from rundir.pruning import prune_checkpoints
from rundir.resuming import list_changes
from rundir.weights import save
from utils.console import escape
from utils.environment import describe_environment
from utils.errors import UserError
from utils.files import (
    GrowingCsv,
    find_existing_parent,
    link_whole,
    open_log,
    read_csv,
    read_json,
    remove_temporaries,
    rename_whole,
    write_json,
)
from utils.locks import Lock, Occupied

PATIENCE = 90  # seconds that a resume waits for another trainer, which may be saving its state
LATER = ("epochs", "keep_checkpoints", "nc_every")  # a resume may change these for good
WRITTEN = (CONFIG, METRICS, LAST, BEST, "epoch_", "ema_")  # what files of a trainer begin with


@dataclass
class Run:
    """A run directory. Every file that training leaves there is written through this object.

    Attributes:
        directory: its path. `open` may give an unnamed run another one.
        resumed: whether it holds a run that goes on.
        settings: those of the command.
        log: train_log.txt, once the run is open.
        id: what its checkpoints and its config.json have in common, once one of these is written.
    """

    directory: Path
    resumed: bool
    settings: Settings
    log: TextIO | None = None
    id: str = ""
    _lock: Lock | None = field(default=None, repr=False)
    _metrics: GrowingCsv | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.directory.name

    def __truediv__(self, file: str) -> Path:
        return self.directory / file

    def open(self) -> None:
        """Create the directory, or reopen it for a resumed run; `--force` replaces a run there.

        Locks the directory against a second trainer. Others may have used it since `choose_run`
        looked: all that it found is checked again under the lock. Raises UserError if it cannot be
        written, another process trains in it, or it is not what it was.
        """
        self._make_directory()
        self._take_lock()
        try:
            self._open_locked()
        except BaseException:
            self.close()
            raise

    def _open_locked(self) -> None:
        if self.resumed:
            self._check_resumed()
        elif _is_occupied(self.directory):
            self._replace()
        self.log = open_log(self / LOG)
        remove_temporaries(self.directory, *WRITTEN)

    def __enter__(self) -> Run:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the log and let others train here."""
        if self.log is not None:
            self.log.close()
        if self._lock is not None:
            self._lock.release()

    def _make_directory(self) -> None:
        """Make the directory. An unnamed run takes the first free name by creating it."""
        unnamed = self.settings.run_name is None and not self.resumed
        names = itertools.chain([""], (f"-{count}" for count in itertools.count(2)))
        first = self.directory
        while True:
            self.directory = first.with_name(first.name + next(names))
            try:
                self.directory.mkdir(parents=True, exist_ok=not unnamed)
                return
            except FileExistsError as error:
                if not unnamed:
                    raise UserError(f"--save_dir: {self.directory} is not a directory") from error
            except OSError as error:
                raise UserError(
                    f"--save_dir: cannot create {self.directory}: {error.strerror}"
                ) from error

    def _take_lock(self) -> None:
        self._lock = Lock(self / LOCK)
        try:
            self._lock.acquire()
            return
        except Occupied as error:
            if not self.settings.resume:
                raise UserError(self._explain_occupied()) from error
        place = escape(str(self.directory))
        print(f"waiting for another process to stop training in {place}", file=sys.stderr)
        try:
            self._lock.acquire(PATIENCE)
        except Occupied as error:
            raise UserError(self._explain_occupied()) from error

    def _explain_occupied(self) -> str:
        return f"{self.directory} is being trained by another process"

    def _check_resumed(self) -> None:
        """Check that the run is still the one whose settings were taken over."""
        if list_changes(self.read_config().settings, self.settings.values()) not in (
            [],
            ["epochs"],
        ):
            raise UserError(f"{self.directory} was replaced by another run just now")

    def _replace(self) -> None:
        """Remove a run that nobody trains any more, or raise UserError without `--force`."""
        if self.settings.resume and (self / CONFIG).exists():
            raise UserError(
                f"another process has trained in {self.directory} just now; the same command "
                "resumes its run"
            )
        _check_replaceable(self.directory, self.settings)
        for entry in self.directory.iterdir():
            if entry.name == LOCK:  # the file that holds the lock stays
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def read_config(self) -> Config:
        """Read and check config.json. Raises UserError."""
        config = read_config(self.directory)
        self.id = config.run_id
        return config

    def write_config(
        self,
        settings: Settings,
        facts: dict[str, Any],
        device: str,
        network: dict[str, Any] | None = None,
    ) -> None:
        """Write config.json.

        Args:
            settings: resolved.
            facts: of the data set.
            device: its name.
            network: the library that the network comes from, and the weights that it began with.
        """
        environment = {**describe_environment(), "device": device}
        self.id = uuid.uuid4().hex
        content = format_config(settings, self.name, self.id, facts, environment, network or {})
        write_json(self / CONFIG, content)

    def extend_config(self) -> None:
        """Note in config.json what a resumed run does otherwise from now on."""
        content, changing = read_json(self / CONFIG), self.settings.values(list(LATER))
        if content["settings"] != content["settings"] | changing:
            content["settings"] |= changing
            write_json(self / CONFIG, content)

    def write_metrics(self, history: Sequence[dict[str, Any]]) -> None:
        """Write metrics.csv, a row for each finished epoch. Rows before the last do not change."""
        if self._metrics is None:
            self._metrics = GrowingCsv(self / METRICS)
        self._metrics.write(list_metrics_columns(self.settings, history), history)

    def read_metrics(self) -> list[dict[str, str]]:
        """Read the rows of metrics.csv as text; none if it is absent or damaged."""
        try:
            return read_csv(self / METRICS)
        except UserError:
            return []

    def write_weights(self, weights: Mapping[str, Any], epoch: int) -> Path:
        """Write a state_dict as epoch_NNN.pth; return the path."""
        path = self / name_checkpoint(epoch)
        save(path, weights, Origin(self.id, epoch))
        return path

    def write_average(self, weights: Mapping[str, Any], epoch: int) -> None:
        """Write the state_dict of the average of the weights as ema_NNN.pth."""
        save(self / name_ema(epoch), weights, Origin(self.id, epoch, average=True))

    def write_next_best(self, weights: Mapping[str, Any], epoch: int) -> None:
        """Write the state_dict that `replace_best` will use if the epoch has no file of its own."""
        save(self / NEXT_BEST, weights, Origin(self.id, epoch))

    def replace_best(self, epoch: int, weights: Mapping[str, Any] | None = None) -> None:
        """Let best_model.pth hold the weights of an epoch; no copy if epoch_NNN.pth holds them.

        It stays as it is if nothing holds them.

        Args:
            epoch: the best one of those that last.pth contains.
            weights: its state_dict, if it is at hand.
        """
        origin, checkpoint = Origin(self.id, epoch), self / name_checkpoint(epoch)
        if read_origin(checkpoint) == origin:
            link_whole(checkpoint, self / BEST)
        elif read_origin(self / NEXT_BEST) == origin:
            rename_whole(self / NEXT_BEST, self / BEST)
        elif weights is not None:
            save(self / BEST, weights, origin)

    def complete_best(self, epoch: int, weights: Mapping[str, Any] | None) -> None:
        """Write best_model.pth again if a kill left one of another epoch than the best.

        Arguments are those of `replace_best`.
        """
        origin = read_origin(self / BEST)
        if not (self / BEST).exists() or origin not in (None, Origin(self.id, epoch)):
            self.replace_best(epoch, weights)
        (self / NEXT_BEST).unlink(missing_ok=True)

    def prune_checkpoints(self, best_epoch: int) -> list[int]:
        """Remove the checkpoints that --keep_checkpoints does not keep; return their epochs.

        The file of `best_epoch`, the best one that has ended, stays until best_model.pth holds its
        weights. Raises UserError if a file cannot be removed.
        """
        held = read_origin(self / BEST) == Origin(self.id, best_epoch)
        needed = () if held else (best_epoch,)
        return prune_checkpoints(self.directory, self.settings.keep_checkpoints, needed)

    def has_checkpoints(self) -> bool:
        """Return whether weights were saved that are written after the first last.pth."""
        try:
            return (self / BEST).exists() or max(find_checkpoints(self.directory), default=0) > 1
        except UserError:
            return False

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
        return Run(directory, True, settings)
    if settings.resume and not settings.force:
        raise UserError(_explain_no_run(save_dir, settings.run_name))
    return Run(_choose_new_directory(save_dir, settings), False, settings)


def _check_writable(save_dir: Path) -> None:
    """Refuse a directory that cannot be written, before the data is loaded."""
    existing = find_existing_parent(save_dir)
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
        return save_dir / format_run_name(settings)
    directory = save_dir / settings.run_name
    if _is_occupied(directory):
        _check_replaceable(directory, settings)
    return directory


def _check_replaceable(directory: Path, settings: Settings) -> None:
    """Refuse to replace what is there without `--force`, or if it is no run. Raises UserError."""
    if settings.force and (directory / CONFIG).is_file():
        return
    if settings.force:
        raise UserError(
            f"--force: {directory} is not a run directory ({CONFIG} is missing); remove it"
        )
    raise UserError(
        f"{directory} exists already: give --resume to continue it, --force to replace it, "
        "or another --run_name"
    )


def _is_occupied(directory: Path) -> bool:
    """Return whether something is there besides the files that an early kill leaves."""
    if not directory.is_dir():
        return directory.exists()
    leftover = re.compile(rf"\.{re.escape(CONFIG)}(\.[0-9a-f]+)?\.tmp")
    names = (entry.name for entry in directory.iterdir())
    return any(name not in (LOG, LOCK) and not leftover.fullmatch(name) for name in names)
