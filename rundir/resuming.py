"""The settings of a resumed run, and those that may change. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from args import Settings, complete, parse_settings
from rundir.config import read_config
from rundir.names import CONFIG
from utils.cli import MISTAKE, print_error
from utils.errors import UserError
from utils.world import claim_line


def read_settings(argv: Sequence[str] | None = None) -> Settings:
    """Return the complete settings of a command line; a resumed run gives those not named there.

    Exits with status 2 and one line on a mistake.
    """
    settings = parse_settings(argv)
    try:
        return complete(take_over_settings(settings))
    except UserError as error:
        message = str(error)
    except OSError as error:  # a directory that may not be read
        message = f"{error.filename}: {error.strerror}"
    if claim_line():
        print_error("train.py", message)
    sys.exit(MISTAKE)


def take_over_settings(settings: Settings) -> Settings:
    """Fill in the settings that a user did not give from the run of `--resume --run_name`.

    The settings stay as they are if there is no such run. Raises UserError for a changed setting.
    """
    if not (settings.resume and settings.run_name):
        return settings
    directory = Path(settings.save_dir) / settings.run_name
    if not (directory / CONFIG).exists():
        return settings
    stored = read_config(directory).settings
    check_resumable(directory, stored, settings.values(sorted(settings.model_fields_set)))
    return settings.merge_over(stored).replace(save_dir=settings.save_dir)


def list_changes(stored: Settings, asked: Mapping[str, Any]) -> list[str]:
    """Return the names of the asked settings that shape a run and differ from `stored`."""
    shaping, entries = stored.get_shaping(), stored.entries()
    asked = {k: v for k, v in asked.items() if v is not None or not entries[k].left_open}
    return [name for name, value in asked.items() if name in shaping and shaping[name] != value]


def check_resumable(directory: Path, stored: Settings, given: Mapping[str, Any]) -> None:
    """Refuse to resume the run of `stored` settings with other ones.

    More epochs are no change if the schedule does not depend on their number. Raises a UserError
    that names the first setting that differs.
    """
    for name in list_changes(stored, given):
        if name == "epochs":
            _check_more_epochs(directory, stored, given["epochs"])
            continue
        value = getattr(stored, name)
        trained = f"without --{name}" if value is None else f"with --{name} {value}"
        raise UserError(
            f"--resume: {directory} was trained {trained}, not {given[name]}; a changed setting "
            "is a new run"
        )


def _check_more_epochs(directory: Path, stored: Settings, epochs: int) -> None:
    if stored.schedule == "cosine":
        raise UserError(
            f"--resume: {directory} has {stored.epochs} epochs on a cosine schedule, whose "
            f"learning rates all depend on that number; {epochs} epochs are a new run "
            "(--schedule constant and step can be extended)"
        )
    if epochs < stored.epochs:
        raise UserError(
            f"--resume: {directory} was set to {stored.epochs} epochs; "
            f"it can be extended, not shortened to {epochs}"
        )
