"""The table of measures that eval_nc.py prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metrics import MEASURES, Measure
from metrics.table import MetricsTable
from utils.console import format_table


def format_rows(
    runs: Sequence[tuple[str, Iterable[int]]],
    tables: Sequence[MetricsTable],
    splits: Sequence[str],
) -> str:
    """Format the chosen rows of all runs as one aligned table.

    Args:
        runs: name and chosen epochs of each.
        tables: their tables.
        splits: the chosen splits.
    """
    shown = list_shown([row for rows in tables for row in rows.current.values()])
    header = ["run", "epoch", "split", *(measure.heading for measure in shown.values())]
    lines = []
    for (name, epochs), rows in zip(runs, tables, strict=True):
        current = rows.current
        for epoch, split in [(epoch, split) for epoch in epochs for split in splits]:
            if (epoch, split) in current:
                row = current[epoch, split]
                cells = [measure.format(row[column]) for column, measure in shown.items()]
                lines.append([name, str(epoch), split, *cells])
    return format_table(header, lines)


def list_shown(rows: Sequence[Mapping[str, Any]]) -> dict[str, Measure]:
    """Return the measures to print.

    One that may be empty needs a number in any row of its function.
    """
    filled = {
        measure.function
        for name, measure in MEASURES.items()
        if any(row[name] is not None for row in rows)
    }
    return {
        name: measure
        for name, measure in MEASURES.items()
        if measure.shown and (not measure.may_be_empty or measure.function in filled)
    }
