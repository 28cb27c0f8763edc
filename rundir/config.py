"""config.json: what a run was trained with, and what may change when it is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rundir.names import CONFIG
from utils.environment import environment
from utils.errors import UserError
from utils.files import read_json, write_json

if TYPE_CHECKING:
    from rundir.directory import Run

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
