"""Short names of runs for pictures and tables: what differs among them. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import Any, NamedTuple

from input_pipeline import name_data
from rundir.config import check_data
from rundir.grouping import SEED, format_value, group_by_seed, list_differing
from rundir.trained import TrainedRun
from utils.errors import UserError

SHORT = 32  # a name of at most this many characters is shown as it is
HEAD = ("model", "dataset", "loss", "optimizer")  # settings whose values need no name beside them
NAMELESS = ("loss", "optimizer")  # those of these are always there
# Settings that change what is saved, and not what is learned.
MINOR = ("epoch_save_step",)


class Group(NamedTuple):
    """Runs that share a line in a picture.

    Attributes:
        label: its short name.
        members: the indices of its runs.
    """

    label: str
    members: list[int]


def show_setting(run: TrainedRun, name: str) -> Any:
    """Return the value of a setting; a folder's data set is named by its directory."""
    if name == "dataset":
        return name_data(run.settings.dataset, run.settings.data_dir)
    return getattr(run.settings, name)


def describe_subject(runs: Sequence[TrainedRun]) -> str:
    """Name model and data set, such as "ResNet18 on digits"; one that differs is left out."""
    found = ({str(show_setting(run, name)) for run in runs} for name in ("model", "dataset"))
    return " on ".join(values.pop() for values in found if len(values) == 1)


def name_runs(runs: Sequence[TrainedRun]) -> list[str]:
    """Return the names of runs; of several with one name, the paths."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.directory) for run in runs]


def shorten_names(runs: Sequence[TrainedRun]) -> list[str]:
    """Return the names of runs, or what differs among the runs if a name is long."""
    names = name_runs(runs)
    return names if max(map(len, names)) <= SHORT else describe_runs(runs)


def describe_runs(
    runs: Sequence[TrainedRun], *, ignore: Sequence[str] = (), head: bool = True
) -> list[str]:
    """Describe each run by the settings in which the runs differ, such as "BCE, SGD, lr 0.01".

    No two runs have the same description: those whose settings are equal are named as well.

    Args:
        runs: the runs.
        ignore: settings that are never named.
        head: whether loss and optimizer are named also where they do not differ.
    """
    names = _list_named([run for run in runs if run.is_documented], ignore, head)
    texts = [_compose(run, names) if run.is_documented else "" for run in runs]
    return [
        text if text and texts.count(text) == 1 else f"{name} ({text})" if text else name
        for text, name in zip(texts, name_runs(runs), strict=True)
    ]


def _list_named(runs: Sequence[TrainedRun], ignore: Sequence[str], head: bool) -> list[str]:
    """List the settings that a description names: the head, then the others that differ."""
    differing = list_differing([run.settings for run in runs], (*ignore, *MINOR))
    if len({show_setting(run, "dataset") for run in runs}) > 1:
        differing.append("dataset")
    if head:
        differing += NAMELESS
    first = [name for name in HEAD if name in differing and name not in ignore]
    return [*first, *(name for name in differing if name not in HEAD)]


def _compose(run: TrainedRun, names: Sequence[str]) -> str:
    """Join the values of settings. A switch is its name, and nothing if it is off."""
    parts = []
    for name in names:
        value = show_setting(run, name)
        if name in HEAD:
            parts.append(str(value))
        elif value is True:
            parts.append(name)
        elif value is not None and value is not False:
            parts.append(f"{name} {format_value(value)}")
    return ", ".join(parts)


def group_runs(
    runs: Sequence[TrainedRun], points: Sequence[Collection[Hashable]] | None = None
) -> list[Group]:
    """Group runs that differ only in the seed, and name each group for a legend.

    A run without a record of its settings is a group of its own. If all names are short and no
    group has several runs, the groups are named by them.

    Args:
        runs: the runs.
        points: what each run has a point for; the runs of a group have at least one in common.
    """
    members = _list_groups(runs, points or [{0}] * len(runs))
    firsts = [runs[group[0]] for group in members]
    names = name_runs(runs)
    if len(members) == len(runs) and max(map(len, names)) <= SHORT:
        texts = [f"{name}{_describe_looks(run)}" for name, run in zip(names, runs, strict=True)]
    elif len(runs) == 1:
        texts = [f"{names[0]}{_describe_looks(runs[0])}"]
    else:
        texts = describe_runs(firsts, ignore=(SEED,) if len(members) < len(runs) else ())
    seeds = [{runs[i].settings.seed for i in group} for group in members]
    counted = [_count(len(group), len(found)) for group, found in zip(members, seeds, strict=True)]
    return [
        Group(text + count, group)
        for text, count, group in zip(texts, counted, members, strict=True)
    ]


def _count(runs: int, seeds: int) -> str:
    """Return how many seeds a group has; runs, if some have the same seed."""
    return f", {runs} {'seeds' if runs == seeds else 'runs'}" if runs > 1 else ""


def _describe_looks(run: TrainedRun) -> str:
    return f" ({run.loss}, {run.optimizer})" if run.loss else ""


def _list_groups(
    runs: Sequence[TrainedRun], points: Sequence[Collection[Hashable]]
) -> list[list[int]]:
    """List the indices of runs of equal settings, the same data and common points."""
    documented = [i for i, run in enumerate(runs) if run.is_documented]
    groups = [[i] for i in range(len(runs)) if i not in documented]
    for equal in group_by_seed([runs[i].settings for i in documented]):
        found: list[tuple[list[int], set[Hashable]]] = []  # members and their common points
        for i in (documented[each] for each in equal):
            fitting = (
                (members, common)
                for members, common in found
                if _share_data(runs[members[0]], runs[i]) and common.intersection(points[i])
            )
            members, common = next(fitting, ([], set(points[i])))
            if not members:
                found.append((members, common))
            members.append(i)
            common.intersection_update(points[i])
        groups += [members for members, _ in found]
    return sorted(groups)


def _share_data(run: TrainedRun, other: TrainedRun) -> bool:
    """Return whether two runs were trained on the same data, as far as their records show."""
    try:
        check_data(run.directory, run.facts, other.facts)
    except UserError:
        return False
    return True
