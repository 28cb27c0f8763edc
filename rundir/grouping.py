"""Groups of runs: which runs differ only in the seed, and in which settings the others differ.

Pure functions of settings. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from args import Settings

SEED = "seed"


def group_by_seed(settings: Sequence[Settings]) -> list[list[int]]:
    """Group runs whose settings that shape what a run learns are equal but for the seed.

    Returns the indices of each group's runs. Groups stand in the order of their first runs.
    """
    names = [name for name in Settings.names(shapes=True) if name != SEED]
    return group_by(settings, names)


def group_by(settings: Sequence[Settings], names: Sequence[str]) -> list[list[int]]:
    """Group runs that are equal in the settings `names`; without names all runs are one group.

    Returns the indices of each group's runs. Groups stand in the order of their first runs.
    """
    groups: dict[tuple[Hashable, ...], list[int]] = {}
    for i, each in enumerate(settings):
        key = tuple(freeze(getattr(each, name)) for name in names)
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def list_differing(settings: Sequence[Settings], ignore: Sequence[str] = (SEED,)) -> list[str]:
    """List the settings that shape what a run learns and are not the same in all runs.

    They stand in the order of args.py. Those of `ignore` are left out.
    """
    return [
        name
        for name in Settings.names(shapes=True)
        if name not in ignore and len({freeze(getattr(each, name)) for each in settings}) > 1
    ]


def freeze(value: Any) -> Hashable:
    """Return a setting's value in a form that a set can hold: a list becomes a tuple."""
    return tuple(value) if isinstance(value, list) else value
