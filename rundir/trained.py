"""A trained run as evaluation sees it: what its directory records. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from args import Settings
from rundir.bare import Bare
from rundir.config import Versions, read_config
from utils.errors import UserError


@dataclass
class TrainedRun:
    """A run directory and the content of its config.json.

    Attributes:
        directory: its path.
        settings: complete. Those of weights that came without a config.json are in part defaults.
        facts: of the data set; empty for weights that came without a config.json.
        id: what its checkpoints name as their run; "" if they name none.
        versions: the definitions of network and pixels that it was trained with.
        bare: what is known of weights that came without a config.json; None for a run of ours.
        network: what config.json records of the network's library and its first weights.
    """

    directory: Path
    settings: Settings
    facts: dict[str, Any]
    id: str
    versions: Versions
    bare: Bare | None = field(default=None, kw_only=True)
    network: dict[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.directory.resolve().name

    @property
    def loss(self) -> str:
        """The loss it was trained with; "" if that is not known."""
        return self.settings.loss if self.is_documented else ""

    @property
    def optimizer(self) -> str:
        """The optimizer it was trained with; "" if that is not known."""
        return self.settings.optimizer if self.is_documented else ""

    @property
    def is_documented(self) -> bool:
        """Whether a config.json or an args.txt records how it was trained."""
        return self.bare is None or self.bare.documented


@dataclass
class ChosenRun(TrainedRun):
    """A run, and the checkpoints to evaluate, by epoch.

    With `average` these are averages of its weights.
    """

    chosen: dict[int, Path]
    average: bool = field(default=False, kw_only=True)

    @property
    def name(self) -> str:
        """The name of the directory, and whether averages are evaluated."""
        return f"{super().name} (EMA)" if self.average else super().name


def open_run(directory: Path) -> TrainedRun:
    """Read what a run directory records of its run. Raises UserError."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory")
    config = read_config(directory)
    return TrainedRun(
        directory,
        config.settings,
        config.facts,
        config.run_id,
        config.versions,
        network=config.network,
    )


def refuse_idle_flag(flag: str, value: object, runs: Sequence[TrainedRun]) -> None:
    """Refuse a value for a setting that has no effect in any of the runs. Raises UserError."""
    why_idle = Settings.entries()[flag].why_idle
    reasons = [why_idle(run.settings) for run in runs]
    if value is not None and all(reasons):
        raise UserError(f"--{flag} has no effect here: {reasons[0]}")
