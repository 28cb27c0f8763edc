"""Groups of runs: which runs differ only in the seed, and in which settings the others differ.

Pure functions of settings. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from args import Settings
from input_pipeline import AUGMENTATIONS, SOURCES
from models import BIAS_STARTS, NETWORKS
from objective import LOSSES, OPTIMIZERS
from utils.registry import find_name

SEED = "seed"
COMMANDS = ("resume", "force")  # settings of a command, which no run keeps
REGISTRIES: dict[str, Iterable[str]] = {
    "model": NETWORKS,
    "dataset": SOURCES,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "augment": AUGMENTATIONS,
    "bias_init_mean": BIAS_STARTS,
}


def group_by_seed(settings: Sequence[Settings]) -> list[list[int]]:
    """Group runs whose settings that shape what a run learns are equal but for the seed.

    Returns the indices of each group's runs. Groups stand in the order of their first runs.
    """
    names = [name for name in Settings.names(shapes=True) if name != SEED]
    return group_equal([make_key(each.values(names)) for each in settings])


def group_equal(keys: Iterable[Hashable]) -> list[list[int]]:
    """Return the indices of equal keys together, in the order of their first ones."""
    groups: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
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


def make_key(values: Mapping[str, Any]) -> Hashable:
    """Return settings in a form that can be compared as one."""
    return tuple(freeze(value) for value in values.values())


def freeze(value: Any) -> Hashable:
    """Return a setting's value in a form that a set can hold: a list becomes a tuple."""
    return tuple(value) if isinstance(value, list) else value


def rank(name: str, value: Any) -> tuple[Any, ...]:
    """Return the place of a setting's value among others, for sorting.

    No value comes first, then numbers and switches, then names in the order of their registry, then
    other texts, whose numbers count as numbers.
    """
    if value is None:
        return (0,)
    if isinstance(value, (bool, int, float)):
        return 1, value
    if isinstance(value, (list, tuple)):
        return 2, tuple(value)
    registered = list(REGISTRIES.get(name, ()))
    if value in registered:
        return 3, registered.index(value)
    pieces = re.split(r"(\d+)", str(value).lower())  # texts and numbers by turns
    return 4, tuple(int(piece) if i % 2 else piece for i, piece in enumerate(pieces)), str(value)


def format_value(value: Any) -> str:
    """Return a setting's value for people, with as many digits as its number needs."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return "-".join(map(format_value, value))
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def find_setting(text: str, others: Iterable[str] = ()) -> str:
    """Return the setting that a user means, in any case, or one of `others`.

    Raises a UserError that names the nearest one.
    """
    names = [name for name in Settings.names() if name not in COMMANDS]
    return find_name(text, [*names, *others], "setting")
