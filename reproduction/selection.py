"""The part of a grid of runs that `--only` leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from args import Settings
from reproduction.grid import GridRun
from utils.errors import UserError
from utils.registry import find_name


def select_runs(
    runs: Sequence[GridRun], assignments: Sequence[tuple[str, str]]
) -> Sequence[GridRun]:
    """Return the runs of a grid that have an assigned value in each setting that is named.

    Args:
        runs: of the whole grid.
        assignments: (setting, value) as texts. Several values of one setting are all admitted. A
            setting is one that the grid spans, or the seed.

    Raises:
        UserError: the grid does not span a setting, or has no run with a value, or none with these
            values together.
    """
    if not (runs and assignments):
        return runs
    names = [*dict(runs[0].group), "seed"]
    admitted: dict[str, list[Any]] = {}
    for text, value in assignments:
        name = _find_setting(text, names)
        admitted.setdefault(name, []).append(_find_value(name, value, runs))
    kept = [
        run
        for run in runs
        if all(getattr(run.settings, name) in values for name, values in admitted.items())
    ]
    if not kept:
        shown = " ".join("=".join(pair) for pair in assignments)
        raise UserError(f"--only {shown}: the grid has runs with each, but none with all of these")
    return kept


def _find_setting(text: str, names: Sequence[str]) -> str:
    try:
        return find_name(text, names, "setting of the grid")
    except UserError as error:
        raise UserError(f"--only: {error}") from error


def _find_value(name: str, text: str, runs: Sequence[GridRun]) -> Any:
    """Return the value that a text means, of the setting's own type."""
    present = list(dict.fromkeys(getattr(run.settings, name) for run in runs))
    try:
        value = getattr(Settings.from_flags({name: text}), name)
    except UserError:
        value = None
    if value is None or value not in present:
        listed = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in present)
        raise UserError(f"--only {name}={text}: the grid has {name} {listed}")
    return value
