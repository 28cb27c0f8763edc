"""The run directory: its name, its config.json, and what may change when a run is resumed.

Imports no torch, so that a refused command answers at once.
"""

import fcntl
import itertools
import os
import platform
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from utils.errors import UserError
from utils.files import read_csv, read_json, remove_temporaries, write_json

CONFIG, METRICS, LAST, BEST, LOG = (
    "config.json",
    "metrics.csv",
    "last.pth",
    "best_model.pth",
    "train_log.txt",
)

# Where a run is computed and how it is watched: these do not change what is learned.
FREE_SETTINGS = frozenset(
    {"gpu_id", "save_dir", "data_dir", "num_workers", "run_name", "resume", "force", "tensorboard"}
)
# Settings that runs of earlier versions lack, with the value that says what those did.
ADDED_SETTINGS = {
    "imbalance_factor": 1.0,
    "precision": "fp32",
    "compile": False,
    "deterministic": False,
}
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "pillow")


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


def read_config(directory: Path) -> dict[str, Any]:
    """The content of config.json, settings of earlier versions completed.

    Raises UserError if it is missing or damaged.
    """
    config = read_json(directory / CONFIG)
    for part in ("settings", "data"):
        if not isinstance(config, dict) or not isinstance(config.get(part), dict):
            raise UserError(f"{directory / CONFIG} is damaged: it has no {part!r}")
    config["settings"] = completed(config["settings"])
    return config


def completed(stored: dict[str, Any]) -> dict[str, Any]:
    """Settings that a run has stored, with those that its version did not have yet."""
    return {**ADDED_SETTINGS, **stored}


def write_config(run: Run, settings: dict[str, Any], data: dict[str, Any], device: str) -> None:
    """Write config.json: every resolved setting, the data set's facts, versions and device."""
    kept = {key: value for key, value in settings.items() if key not in ("resume", "force")}
    kept["run_name"] = run.name
    write_json(
        run / CONFIG,
        {"settings": kept, "data": data, "environment": {**environment(), "device": device}},
    )


def extend_config(run: Run, epochs: int) -> None:
    """Note in config.json that a resumed run goes on to more epochs."""
    config = read_config(run.directory)
    if config["settings"]["epochs"] != epochs:
        config["settings"]["epochs"] = epochs
        write_json(run / CONFIG, config)


def check_data(directory: Path, stored: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse a data set that is not the one the run of `directory` was trained on.

    `stored` are the facts in its config.json, `found` those of the data set at hand. Raises
    UserError that names the first that differs.
    """
    changed = [key for key, value in found.items() if key in stored and stored[key] != value]
    if changed:
        key = changed[0]
        raise UserError(
            f"the data set has changed since {directory} was trained: "
            f"{key} was {stored[key]}, is {found[key]}"
        )


def shaping_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that shape what is learned, but for the number of epochs."""
    free = FREE_SETTINGS | {"epochs", "distinct"}
    return {key: value for key, value in settings.items() if key not in free}


def changed_settings(stored: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """The names of settings in `asked` that `stored` has otherwise and that shape the result."""
    return [
        key for key, value in asked.items() if key not in FREE_SETTINGS and stored.get(key) != value
    ]


def check_resumable(directory: Path, stored: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse to resume the run of `stored` settings with other ones.

    More epochs are no change where the schedule does not depend on their number. Raises UserError
    that names the first setting that differs.
    """
    for key in changed_settings(stored, given):
        if key == "epochs":
            _check_more_epochs(directory, stored, given["epochs"])
            continue
        raise UserError(
            f"--resume: {directory} was trained with --{key} {stored.get(key)}, not {given[key]}; "
            "a changed setting is a new run"
        )


def _check_more_epochs(directory: Path, stored: dict[str, Any], epochs: int) -> None:
    if stored["schedule"] == "cosine":
        raise UserError(
            f"--resume: {directory} has {stored['epochs']} epochs on a cosine schedule, whose "
            f"learning rates all depend on that number; {epochs} epochs are a new run "
            "(--schedule constant and step can be extended)"
        )
    if epochs < stored["epochs"]:
        raise UserError(
            f"--resume: {directory} was set to {stored['epochs']} epochs; "
            f"it can be extended, not shortened to {epochs}"
        )


def environment() -> dict[str, Any]:
    """Versions of what computed the run, and the project's commit where it is a git checkout."""
    return {
        "python": platform.python_version(),
        "processor": processor(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
    }


def processor() -> str:
    """The CPU's name, where the system tells it, and how many cores the machine has."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit, with "-dirty" behind it where tracked files were changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    root = Path(__file__).resolve().parent.parent
    try:
        answer = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
