"""The table of measures that eval_nc.py prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metrics import EVALUATED, MEASURES, SPLIT_NAMES, TRIVIAL, Measure
from utils.console import format_table

BEST_BY = "top1"  # the measure of the best checkpoint
Rows = Mapping[tuple[int, str], Mapping[str, Any]]


@dataclass(frozen=True)
class Evaluated:
    """The rows of one run, for the table.

    Attributes:
        name: the run's name, or a label in its place.
        epochs: its chosen epochs, in order.
        rows: its rows that hold, by epoch and split.
        full_name: its name if `name` is a label.
    """

    name: str
    epochs: Sequence[int]
    rows: Rows
    full_name: str = ""

    def list_epochs(self, split: str) -> list[int]:
        """Return the chosen epochs with a row of this split."""
        return [epoch for epoch in self.epochs if (epoch, split) in self.rows]

    def find_best(self, split: str) -> int | None:
        """Return the first chosen epoch of the best top-1 on the test set.

        Without any row of the test set it is the best of `split`. None without a value.
        """
        judged = "test" if self.list_epochs("test") else split
        found = {epoch: self.rows[epoch, judged][BEST_BY] for epoch in self.list_epochs(judged)}
        values = {epoch: value for epoch, value in found.items() if value is not None}
        return max(values, key=lambda epoch: values[epoch], default=None)

    def list_marked(self, splits: Sequence[str]) -> list[tuple[int, str, str]]:
        """List the chosen rows: epoch, split, and "best", "last", both or nothing."""
        marked = {}
        for split in splits:
            epochs, best = self.list_epochs(split), self.find_best(split)
            for epoch in epochs:
                words = {"best": epoch == best, "last": epoch == epochs[-1]}
                marked[epoch, split] = ", ".join(word for word, holds in words.items() if holds)
        keys = [(epoch, split) for epoch in self.epochs for split in splits]
        return [(*key, marked[key]) for key in keys if key in marked]


def format_rows(runs: Sequence[Evaluated], splits: Sequence[str], *, all_rows: bool = False) -> str:
    """Format the last and the best checkpoint of each run and split as one aligned table.

    Lines below it count the rows that are not shown, and give the full names of runs.

    Args:
        runs: the runs.
        splits: the chosen splits.
        all_rows: whether all chosen rows are shown.
    """
    shown = list_shown([row for run in runs for row in run.rows.values()])
    header = ["run", "epoch", "split", *(measure.heading for measure in shown.values())]
    lines, left_out = [], 0
    for run in runs:
        for epoch, split, mark in run.list_marked(splits):
            if not mark and not all_rows:
                left_out += 1
                continue
            row = run.rows[epoch, split]
            cells = [measure.format(row[column]) for column, measure in shown.items()]
            number = f"{epoch} {mark}" if len(run.epochs) > 1 else str(epoch)
            lines.append([run.name, number.rstrip(), split, *cells])
    parts = [format_table(header, lines)]
    if left_out:
        rows = "1 more row is" if left_out == 1 else f"{left_out} more rows are"
        parts.append(f"{rows} in {EVALUATED}; --all_rows prints all")
    exact = [line for run in runs for line in describe_exact_collapse(run)]
    if exact:
        parts.append("\n".join(["at the exact minimum:", *exact]))
    names = [f"{run.name}: {run.full_name}" for run in runs if run.full_name]
    return "\n\n".join([*parts, "\n".join(names)] if names else parts)


def describe_exact_collapse(run: Evaluated) -> list[str]:
    """Return a line with the measures of collapse at the exact minimum of a run.

    None without a prediction, and none where the minimum has no more to it than a simplex ETF.
    """
    keys = [(epoch, split) for epoch in run.epochs for split in SPLIT_NAMES]
    rows = [run.rows[key] for key in keys if key in run.rows]
    exact = {
        name: rows[-1].get(measure.predicted)
        for name, measure in MEASURES.items()
        if rows and measure.predicted and not measure.quantity
    }
    if not any((exact.get(name) or 0) > TRIVIAL for name in ("nc2", "nc2_h", "nc3")):
        return []
    values = [f"{MEASURES[name].title} {MEASURES[name].format(v)}" for name, v in exact.items()]
    return [f"{run.name}: {', '.join(values)}"]


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
