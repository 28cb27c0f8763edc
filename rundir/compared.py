"""Runs as a comparison sees them: settings, and the numbers of the chosen epoch.

Reads config.json, metrics.csv and nc_metrics.csv alone. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from args import Settings
from input_pipeline import name_data
from metrics import EVALUATED
from rundir.config import Config, check_data, read_config
from rundir.grouping import SEED, make_key
from rundir.names import CONFIG, METRICS
from rundir.tables import Numbers, Row, choose_epoch, read_history, read_measures
from utils.console import list_some
from utils.errors import UserError

RUN = "run"  # the column of --by that holds the run itself
NAMED, FAULTS_NAMED = 10, 3  # runs, and faults of one file, that a line names; it counts the others


@dataclass
class ComparedRun:
    """A run, and its numbers at the chosen epoch.

    Attributes:
        directory: its path.
        settings: those of config.json.
        data: the name of its data set, which no run on other data has.
        history, measures: its metrics.csv and nc_metrics.csv.
        epoch: the chosen one.
        values: by column of both files; None without a value.
    """

    directory: Path
    settings: Settings
    data: str
    history: Numbers
    measures: Numbers
    epoch: int
    values: Row

    def get(self, name: str) -> Any:
        """Return the value of a column of settings."""
        if name == RUN:
            return str(self.directory)
        return self.data if name == "dataset" else getattr(self.settings, name)

    def identify(self, *ignored: str) -> Hashable:
        """Return what shapes a run, without the settings `ignored`, as one key."""
        return _identify(self.settings.replace(dataset=self.data), ignored)

    @property
    def last_epoch(self) -> int:
        """The number of the last epoch in metrics.csv."""
        return max(epoch for epoch in self.history.rows if isinstance(epoch, int))


def read_runs(
    paths: Sequence[str], split: str, checkpoint: str
) -> tuple[list[ComparedRun], list[str]]:
    """Read the runs of `rundir.comparison.compare`; return them and lines on what is left out.

    Raises UserError as described there.
    """
    left_out: dict[str, list[str]] = {}
    notes: list[str] = []
    configs = _read_configs(paths, left_out)
    names = _name_data(configs)
    runs = []
    for directory, config in configs.items():
        run = _choose_values(directory, config.settings, names[directory], split, checkpoint, notes)
        if run is None:
            left_out.setdefault(_explain_missing(checkpoint), []).append(str(directory))
        else:
            runs.append(run)
    omitted = [f"left out, {why}: {list_some(who, NAMED)}" for why, who in left_out.items()]
    if not runs:
        raise UserError("; ".join(["no run can be compared", *omitted, *notes]))
    return runs, [*omitted, *notes]


def _read_configs(paths: Sequence[str], left_out: dict[str, list[str]]) -> dict[Path, Config]:
    """Read config.json of all runs, each once. Raises UserError for a path that is no run."""
    found: dict[Path, bool] = {}  # whether a user named the run itself
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path} does not exist")
        if not path.is_dir():
            raise UserError(f"{path} is not a directory")
        alone = (path / CONFIG).exists()
        found |= dict.fromkeys([path] if alone else _list_runs(path, left_out), alone)
    once = {directory.resolve(): directory for directory in reversed(found)}
    configs: dict[Path, Config] = {}
    for directory in reversed(once.values()):
        try:
            configs[directory] = read_config(directory)
        except UserError as error:
            if found[directory]:
                raise
            left_out.setdefault(f"damaged {CONFIG}", []).append(f"{directory} ({error})")
    return configs


def _list_runs(path: Path, left_out: dict[str, list[str]]) -> list[Path]:
    """List the runs in a directory, and note the other directories. Raises UserError if none."""
    inside = sorted(
        child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")
    )
    runs = [child for child in inside if (child / CONFIG).exists()]
    if not runs:
        raise UserError(f"{path} is no run directory and holds none: there is no {CONFIG}")
    for child in inside:
        if child not in runs:
            held = sum(1 for _ in child.glob(f"*/{CONFIG}"))
            name = f"{child} (it holds {held} runs: name it to compare them)" if held else child
            left_out.setdefault(f"no {CONFIG}", []).append(str(name))
    return runs


def _choose_values(
    directory: Path,
    settings: Settings,
    data: str,
    split: str,
    checkpoint: str,
    notes: list[str],
) -> ComparedRun | None:
    """Read a run's numbers at the chosen epoch; None if it has no such epoch."""
    history, measures = read_history(directory), read_measures(directory)
    for file, table in ((METRICS, history), (EVALUATED, measures)):
        if table.faults:
            notes.append(f"{directory / file}: {list_some(table.faults, FAULTS_NAMED)}")
    epoch = choose_epoch(history.rows, checkpoint)
    if epoch is None:
        return None
    values = {**measures.rows.get((epoch, split), {}), **history.rows[epoch]}
    return ComparedRun(directory, settings, data, history, measures, epoch, values)


def _explain_missing(checkpoint: str) -> str:
    if checkpoint == "last":
        return f"no finished epoch in {METRICS}"
    if checkpoint == "best":
        return f"no test_top1 in {METRICS}"
    return f"no epoch {checkpoint} in {METRICS}"


def _name_data(configs: Mapping[Path, Config]) -> dict[Path, str]:
    """Name the data set of each run.

    A folder is named by its directory. Runs of equal settings that were trained on other data, as
    far as config.json shows, get other names: "digits", "digits (2)".
    """
    names: dict[Path, str] = {}
    known: dict[Hashable, list[dict[str, Any]]] = {}
    for directory, config in configs.items():
        name = name_data(config.settings.dataset, config.settings.data_dir)
        key = name, _identify(config.settings, (SEED, "loss", "dataset"))
        found = known.setdefault(key, [])
        same = (i for i, facts in enumerate(found) if _share_data(facts, config.facts))
        place = next(same, len(found))
        if place == len(found):
            found.append(config.facts)
        names[directory] = f"{name} ({place + 1})" if place else name
    return names


def _identify(settings: Settings, ignored: Sequence[str]) -> Hashable:
    names = Settings.names(shapes=True)
    return make_key(settings.values([name for name in names if name not in ignored]))


def _share_data(stored: dict[str, Any], found: dict[str, Any]) -> bool:
    """Return whether two records are of the same data, as far as they show."""
    try:
        check_data(Path(), stored, found)
    except UserError:
        return False
    return True
