"""config.json: the settings a run was trained with, and the identity of its data.

Imports no torch, so that a refused command answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from args import Settings
from rundir.names import CONFIG
from utils.errors import UserError
from utils.files import read_json


@dataclass(frozen=True)
class Config:
    """The content of config.json.

    Attributes:
        settings: every resolved setting.
        facts: those of the data set, see `input_pipeline.splits.DataSet.facts`.
        environment: library versions, git commit and device.
        run_id: what its checkpoints name as their run; "" in a run of an earlier version.
    """

    settings: Settings
    facts: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)
    run_id: str = ""


def read_config(directory: Path) -> Config:
    """Read and check config.json. Raises UserError if it is missing or damaged."""
    path = directory / CONFIG
    if directory.is_dir() and not path.exists():
        raise UserError(f"{directory} is not a run directory: it holds no {CONFIG}")
    content = read_json(path)
    for part in ("settings", "data"):
        if not isinstance(content, dict) or not isinstance(content.get(part), dict):
            raise UserError(f"{path} is damaged: it has no {part!r}")
    try:
        settings = Settings.from_json(content["settings"])
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    environment = content.get("environment")
    environment = environment if isinstance(environment, dict) else {}
    return Config(settings, content["data"], environment, str(content.get("id", "")))


def format_config(
    settings: Settings,
    run_name: str,
    run_id: str,
    facts: dict[str, Any],
    environment: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of config.json for a new run."""
    kept = {k: v for k, v in settings.values().items() if k not in ("resume", "force")}
    return {
        "settings": {**kept, "run_name": run_name},
        "data": facts,
        "environment": environment,
        "id": run_id,
    }


def check_data(directory: Path, stored: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse a data set that is not the one the run of `directory` was trained on.

    `stored` are the facts in its config.json, `found` those of the data set at hand. Raises a
    UserError that names the first fact that differs.
    """
    changed = [key for key, value in found.items() if key in stored and stored[key] != value]
    if changed:
        key = changed[0]
        raise UserError(
            f"the data set has changed since {directory} was trained: "
            f"{key} was {stored[key]}, is {found[key]}"
        )
