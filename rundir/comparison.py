"""Runs side by side: groups of runs, their means and deviations, and the losses' differences.

Reads config.json, metrics.csv and nc_metrics.csv alone. Imports no torch. docs/compare.md explains
the statistics.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from metrics import EVALUATED
from rundir.compared import NAMED, ComparedRun, read_runs
from rundir.grouping import freeze, group_equal, list_differing, make_key, rank
from rundir.tables import Numbers
from utils.console import list_some


@dataclass(frozen=True)
class Summary:
    """A number over the runs of a row.

    Attributes:
        mean: None if one of the runs has no value.
        spread: of a group the sample standard deviation (n - 1), of a difference its standard
            error; None where there are too few runs.
    """

    mean: float | None
    spread: float | None


@dataclass
class Group:
    """A row of the table: runs that differ only in the seed, or agree in the settings of --by.

    Attributes:
        labels: the settings of the row, by column.
        runs: its runs.
        summaries: by column of both files.
    """

    labels: dict[str, Any]
    runs: list[ComparedRun]
    summaries: dict[str, Summary]

    def get_shared(self, name: str) -> Any:
        """Return the value of a setting, None if it is not the same in all runs."""
        values = [run.get(name) for run in self.runs]
        return values[0] if all(value == values[0] for value in values) else None


@dataclass
class Difference:
    """The second loss less the first, of two groups that are equal but for the loss.

    Attributes:
        labels: the settings of the row; its loss is "BCE - CE".
        groups: the first and the second.
        paired: whether each run of one has its partner in the other, of the same seed.
        summaries: by column of both files; the spread is the standard error.
    """

    labels: dict[str, Any]
    groups: tuple[Group, Group]
    paired: bool
    summaries: dict[str, Summary]


@dataclass
class Comparison:
    """The result.

    Attributes:
        settings: the columns of settings.
        history_columns, measure_columns: those of metrics.csv and of nc_metrics.csv.
        groups: the rows, in their order.
        differences: between the losses, in the order of their groups.
        split: the rows of nc_metrics.csv that were taken.
        notes: lines on what was left out, and on what is not alike.
    """

    settings: list[str]
    history_columns: list[str]
    measure_columns: list[str]
    groups: list[Group]
    differences: list[Difference]
    split: str
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """The columns of numbers."""
        return [*self.history_columns, *self.measure_columns]

    @property
    def runs(self) -> list[ComparedRun]:
        """The runs of all groups."""
        return [run for group in self.groups for run in group.runs]


def compare(
    paths: Sequence[str], by: Sequence[str] | None, split: str, checkpoint: str
) -> Comparison:
    """Compare runs.

    Args:
        paths: run directories, and directories that hold runs.
        by: the settings that tell the rows apart; None: all that differ, but for the seed.
        split: the rows of nc_metrics.csv: "train" or "test".
        checkpoint: "last", "best" or the number of an epoch.

    Raises:
        UserError: a path is no run, its config.json is damaged, or no run has the checkpoint.
    """
    runs, notes = read_runs(paths, split, checkpoint)
    settings = [run.settings.replace(dataset=run.data) for run in runs]
    columns = list_differing(settings) if by is None else list(by)
    history_columns = _join_columns(run.history for run in runs)
    measure_columns = _join_columns(run.measures for run in runs)
    measure_columns = [name for name in measure_columns if name not in history_columns]
    groups = _group(runs, columns, [*history_columns, *measure_columns])
    result = Comparison(columns, history_columns, measure_columns, groups, [], split, notes)
    result.differences = _list_differences(groups, result.columns)
    notes += _note_unlike(result, checkpoint)
    return result


# --- Groups and differences ---


def _join_columns(tables: Iterable[Numbers]) -> list[str]:
    """Return the columns of all tables: those of the first one, then what others add."""
    return list(dict.fromkeys(name for table in tables for name in table.columns))


def _group(
    runs: Sequence[ComparedRun], settings: Sequence[str], columns: Sequence[str]
) -> list[Group]:
    """Return the rows: sorted by their settings, the losses of equal ones side by side."""
    keys = [tuple(freeze(run.get(name)) for name in settings) for run in runs]
    groups = []
    for members in group_equal(keys):
        own = [runs[i] for i in members]
        labels = {name: own[0].get(name) for name in settings}
        values = {name: [run.values.get(name) for run in own] for name in columns}
        summaries = {name: summarise(each) for name, each in values.items()}
        groups.append(Group(labels, own, summaries))
    return sorted(groups, key=_rank_group)


def _rank_group(group: Group) -> tuple[Any, ...]:
    others = [rank(name, value) for name, value in group.labels.items() if name != "loss"]
    return *others, rank("loss", group.labels.get("loss"))


def summarise(values: Sequence[float | None]) -> Summary:
    """Return mean and sample standard deviation (n - 1)."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return Summary(None, None)
    mean = _add(known) / len(known)
    if len(known) == 1:
        return Summary(mean, None)
    squares = _add([(value - mean) * (value - mean) for value in known])
    return Summary(mean, math.sqrt(squares / (len(known) - 1)))


def _add(values: Sequence[float]) -> float:
    """Return the sum, without an error of rounding if all values and the sum are finite."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # too large a sum; inf and -inf
        return sum(values)


def _list_differences(groups: Sequence[Group], columns: Sequence[str]) -> list[Difference]:
    """Return the differences of all pairs of groups that are equal but for the loss."""
    if not groups or "loss" not in groups[0].labels:
        return []
    others = [
        make_key({name: value for name, value in group.labels.items() if name != "loss"})
        for group in groups
    ]
    differences = []
    for members in group_equal(others):
        family = sorted((groups[i] for i in members), key=_rank_group)
        pairs = itertools.combinations(family, 2)
        differences += [_subtract(first, second, columns) for first, second in pairs]
    return differences


def _subtract(first: Group, second: Group, columns: Sequence[str]) -> Difference:
    """Return the second group less the first, paired if each run has its partner."""
    ours, theirs = ({run.identify("loss"): run for run in group.runs} for group in (first, second))
    sizes = {len(ours), len(theirs), len(first.runs), len(second.runs)}
    paired = ours.keys() == theirs.keys() and len(sizes) == 1
    summaries = {}
    for name in columns:
        if paired:
            pairs = [
                (run.values.get(name), theirs[key].values.get(name)) for key, run in ours.items()
            ]
            summaries[name] = _subtract_pairs(pairs)
        else:
            means = first.summaries[name], second.summaries[name]
            summaries[name] = _subtract_means(means, (len(first.runs), len(second.runs)))
    name = f"{second.labels['loss']} - {first.labels['loss']}"
    return Difference({**first.labels, "loss": name}, (first, second), paired, summaries)


def _subtract_pairs(pairs: Sequence[tuple[float | None, float | None]]) -> Summary:
    """Return the mean of the pairs' differences, and its standard error s / √n."""
    changes = [None if a is None or b is None else b - a for a, b in pairs]
    summary = summarise(changes)
    if summary.spread is None:
        return summary
    return Summary(summary.mean, summary.spread / math.sqrt(len(pairs)))


def _subtract_means(means: tuple[Summary, Summary], sizes: tuple[int, int]) -> Summary:
    """Return the difference of two means, and its standard error √(s₁²/n₁ + s₂²/n₂) (Welch)."""
    first, second = means
    if first.mean is None or second.mean is None:
        return Summary(None, None)
    change = second.mean - first.mean
    if first.spread is None or second.spread is None:
        return Summary(change, None)
    errors = first.spread / math.sqrt(sizes[0]), second.spread / math.sqrt(sizes[1])
    return Summary(change, math.hypot(*errors))


# --- Notes ---


def _note_unlike(result: Comparison, checkpoint: str) -> list[str]:
    """Note what a reader of the table must know of its runs."""
    runs = result.runs
    notes = []
    unfinished = [
        f"{run.directory} ({run.last_epoch} of {run.settings.epochs})"
        for run in runs
        if run.last_epoch < run.settings.epochs
    ]
    if unfinished:
        notes.append(f"unfinished epochs: {list_some(unfinished, NAMED)}")
    epochs = {run.epoch for run in runs}
    if checkpoint == "last" and len(epochs) > 1:
        notes.append(
            f"the runs are compared at their own last epochs, which differ: {min(epochs)} to "
            f"{max(epochs)}"
        )
    twins = [group for group in group_equal([run.identify() for run in runs]) if len(group) > 1]
    notes += [
        f"equal in all settings and the seed, and counted one by one: "
        f"{list_some([str(runs[i].directory) for i in group], NAMED)}"
        for group in twins
    ]
    unmeasured = [
        str(run.directory) for run in runs if (run.epoch, result.split) not in run.measures.rows
    ]
    if len(unmeasured) == len(runs):
        words = f"no run has its epoch's row of the {result.split} set in {EVALUATED}"
        notes.append(f"{words}: eval_nc.py computes the measures")
    elif unmeasured:
        words = f"without its epoch's row of the {result.split} set in {EVALUATED}"
        notes.append(
            f"{words}, so that the measures of its row are empty: {list_some(unmeasured, NAMED)}; "
            "eval_nc.py computes them"
        )
    return notes
