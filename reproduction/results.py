"""The results of a grid of runs beside the paper's numbers and the exact prediction: tables.

Our numbers are held against the paper's, with a difference, where network, data set and length of
training are the paper's. Elsewhere its numbers are context.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from metrics import EVALUATED, MEASURES, Measure
from reproduction import OVER_EPOCHS
from reproduction.grid import GridRun
from reproduction.work import Work
from rundir.names import METRICS
from utils.errors import UserError
from utils.files import read_csv

REFERENCES = ("paper", "predicted")
MOST_COLUMNS = 9  # largest number of number columns in one table
NOTHING = "–"  # a cell without a number

Table = tuple[list[str], list[list[str]]]  # header and cells


@dataclass
class Result:
    """The results of one setting over its seeds.

    Attributes:
        labels: the setting.
        values: one number of each finished seed, by measure.
        references: numbers to compare with, by measure and then by one of `REFERENCES`.
        missing: runs without a result, and why.
        context: the paper's numbers of another network, data set or length of training, by measure.
        context_of: what those are of.
    """

    labels: dict[str, Any]
    values: dict[str, list[float]]
    references: dict[str, dict[str, float]]
    missing: list[str] = field(default_factory=list)
    context: dict[str, float] = field(default_factory=dict)
    context_of: str = ""

    def mean(self, measure: str) -> float | None:
        """Return the mean over seeds; None without a value."""
        return statistics.fmean(self.values[measure]) if self.values.get(measure) else None

    def deviation(self, measure: str) -> float | None:
        """Return the sample standard deviation over seeds; None for fewer than two."""
        values = self.values.get(measure, [])
        return statistics.stdev(values) if len(values) > 1 else None

    def get_paper(self, measure: str) -> float | None:
        """Return the paper's number, to compare with or as context; None without one."""
        held = self.references.get(measure, {}).get("paper")
        return self.context.get(measure) if held is None else held


def find_measure(name: str) -> Measure:
    """Return the entry of a measure, also of one over the epochs."""
    return MEASURES[name.removesuffix(OVER_EPOCHS)]


def title_measure(name: str) -> str:
    """Return the heading of a measure's column."""
    return find_measure(name).heading + (OVER_EPOCHS if name.endswith(OVER_EPOCHS) else "")


def collect_results(work: Work) -> list[Result]:
    """Return one result for each setting of a grid, the seeds together.

    Raises UserError for a damaged file.
    """
    groups: dict[tuple[tuple[str, Any], ...], list[GridRun]] = {}
    for run in work.runs:
        groups.setdefault(run.group, []).append(run)
    return [_collect_result(work, runs) for runs in groups.values()]


def _collect_result(work: Work, runs: Sequence[GridRun]) -> Result:
    """Return the result of the runs of one setting."""
    result = Result(work.label(runs[0]), {}, {})
    paper = runs[0].look_up_published(work.experiment)
    finished = [run for run in runs if run.name not in work.failed]
    if all(work.is_papers(run) for run in finished or runs):
        result.references = {measure: {"paper": value} for measure, value in paper.items()}
    else:
        result.context, result.context_of = paper, work.describe_paper(runs[0])
    failed = (run for run in runs if run.name in work.failed)
    result.missing = [f"{run.name}: {work.failed[run.name]}" for run in failed]
    for run in finished:
        values, predicted = read_values(work.locate(run), work.experiment.measures)
        for measure, value in values.items():
            result.values.setdefault(measure, []).append(value)
        for measure, value in predicted.items():
            result.references.setdefault(measure, {})["predicted"] = value
    return result


def read_values(
    directory: Path, measures: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return a run's measures and their exact predictions, where there are any.

    Raises UserError for a damaged file.
    """
    history = read_csv(directory / METRICS)
    evaluated = read_csv(directory / EVALUATED) if (directory / EVALUATED).exists() else []
    values, predicted = {}, {}
    for name in measures:
        measure = find_measure(name)
        rows = [row for row in evaluated if row.get("split") == measure.split]
        number = _read_value(name, directory, history, rows)
        if number is not None:
            values[name] = number
        if measure.predicted and rows:
            exact = _read_number(rows[-1], measure.predicted, directory / EVALUATED)
            if exact is not None:
                predicted[name] = exact
    return values, predicted


def _read_value(
    name: str,
    directory: Path,
    history: Sequence[Mapping[str, str]],
    evaluated: Sequence[Mapping[str, str]],
) -> float | None:
    measure, path = find_measure(name), directory / EVALUATED
    column = name.removesuffix(OVER_EPOCHS)
    if column != name:
        cells = [_read_number(row, column, path) for row in evaluated]
        numbers = [number for number in cells if number is not None]
        return statistics.fmean(numbers) if numbers else None
    if measure.history:  # metrics.csv has the last epoch, even if it was not evaluated
        return _read_number(history[-1], measure.history, directory / METRICS)
    return _read_number(evaluated[-1], column, path) if evaluated else None


def _read_number(row: Mapping[str, str], column: str, path: Path) -> float | None:
    """Return a cell's number; None where it is empty or the file has no such column."""
    text = row.get(column)
    if not text:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {column} is {text!r}") from error


def format_tables(results: Sequence[Result], measures: Sequence[str]) -> list[Table]:
    """Return tables of a few measures each, as `format_results` does. Each fits a page."""
    present = [
        measure
        for measure in measures
        if any(measure in each for r in results for each in (r.values, r.references, r.context))
    ]
    parts: list[list[str]] = []
    width = MOST_COLUMNS + 1
    for measure in present:
        columns = len(_list_columns(results, measure))
        if width + columns > MOST_COLUMNS:
            parts.append([])
            width = 0
        parts[-1].append(measure)
        width += columns
    return [format_results(results, part) for part in parts]


def _list_references(results: Sequence[Result], measure: str) -> list[str]:
    return [
        reference
        for reference in REFERENCES
        if any(reference in result.references.get(measure, {}) for result in results)
    ]


def _list_contexts(results: Sequence[Result], measure: str) -> list[str]:
    return list(dict.fromkeys(each.context_of for each in results if measure in each.context))


class Column(NamedTuple):
    """Column of a measure: our numbers, a reference's, ours minus a reference's, or context."""

    measure: str
    reference: str | None = None
    is_difference: bool = False
    context_of: str | None = None

    @property
    def title(self) -> str:
        """The heading of the column."""
        if self.is_difference:
            return "difference"
        if self.context_of is not None:
            return f"{title_measure(self.measure)} paper ({self.context_of})"
        return " ".join(filter(None, (title_measure(self.measure), self.reference)))

    @property
    def is_papers(self) -> bool:
        """Whether it shows a number of the paper's."""
        return not self.is_difference and (self.reference == "paper" or self.context_of is not None)

    def read(self, result: Result) -> float | None:
        """Return the number of a result; of a difference, what is subtracted."""
        if self.context_of is not None:
            same = self.context_of == result.context_of
            return result.context.get(self.measure) if same else None
        if self.reference is None:
            return result.mean(self.measure)
        return result.references.get(self.measure, {}).get(self.reference)

    def format(self, result: Result) -> str:
        """Return the cell of a result."""
        measure, number = find_measure(self.measure), self.read(result)
        if self.is_difference:
            return format_difference(measure, result.mean(self.measure), number)
        own = self.reference is None and self.context_of is None
        return format_mean(measure, number, result.deviation(self.measure) if own else None)


def format_results(results: Sequence[Result], measures: Sequence[str]) -> Table:
    """Return header and cells: the labels, then ours, each reference and ours minus it, context."""
    columns = [column for measure in measures for column in _list_columns(results, measure)]
    labels = list(results[0].labels)
    cells = [
        [*_format_labels(result, labels), *(column.format(result) for column in columns)]
        for result in results
    ]
    return [*labels, *(column.title for column in columns)], cells


def _list_columns(results: Sequence[Result], measure: str) -> list[Column]:
    columns = [Column(measure)]
    for reference in _list_references(results, measure):
        columns += [Column(measure, reference), Column(measure, reference, True)]
    contexts = _list_contexts(results, measure)
    return [*columns, *(Column(measure, context_of=each) for each in contexts)]


def _format_labels(result: Result, names: Sequence[str]) -> list[str]:
    values = [result.labels[name] for name in names]
    return [f"{value:g}" if isinstance(value, float) else str(value) for value in values]


def format_mean(measure: Measure, mean: float | None, deviation: float | None = None) -> str:
    """Return a mean with its standard deviation, if any, in the measure's digits."""
    if mean is None or math.isnan(mean):
        return NOTHING
    text = measure.format(mean)
    return text if deviation is None else f"{text} ± {measure.format(deviation)}"


def format_difference(measure: Measure, ours: float | None, theirs: float | None) -> str:
    """Return ours minus theirs with its sign."""
    return NOTHING if ours is None or theirs is None else measure.format(ours - theirs, sign="+")


def compare_losses(
    results: Sequence[Result], measures: Sequence[str], loss: str, baseline: str
) -> Table | None:
    """Return header and cells of one loss minus another in the same setting, ours and the paper's.

    Scores and biases are left out: the losses bring them to other levels by design. Returns None
    if no setting was run with both losses, or no measure can be compared.
    """
    others = [name for name in results[0].labels if name != "loss"]
    settings: dict[tuple[Any, ...], dict[str, Result]] = {}
    for result in results:
        setting = tuple(result.labels[name] for name in others)
        settings.setdefault(setting, {})[result.labels["loss"]] = result
    pairs = [
        (found[loss], found[baseline])
        for found in settings.values()
        if loss in found and baseline in found
    ]
    kept = [measure for measure in measures if find_measure(measure).predicted is None]
    columns = []
    for name in kept:
        own, *others_of_it = _list_columns(results, name)
        columns += [own, *(column for column in others_of_it if column.is_papers)]
    header = [*others, *(column.title for column in columns)]
    cells = [
        [
            *_format_labels(pair[0], others),
            *(
                format_difference(find_measure(column.measure), *map(column.read, pair))
                for column in columns
            ),
        ]
        for pair in pairs
    ]
    filled = [i for i in range(len(header)) if any(row[i] != NOTHING for row in cells)]
    if len(filled) <= len(others):
        return None
    return [header[i] for i in filled], [[row[i] for i in filled] for row in cells]


def list_rows(results: Sequence[Result], measures: Sequence[str]) -> list[dict[str, Any]]:
    """Return the results in long form: a row for each setting and measure."""
    rows = []
    for result in results:
        for measure in measures:
            references = result.references.get(measure, {})
            if measure not in result.values and not references and measure not in result.context:
                continue
            row = {
                **result.labels,
                "measure": measure,
                "seeds": len(result.values.get(measure, [])),
                "mean": result.mean(measure),
                "std": result.deviation(measure),
            }
            row |= {reference: references.get(reference) for reference in REFERENCES}
            of = result.context_of if measure in result.context else None
            row |= {"context": result.context.get(measure), "context_of": of}
            rows.append(row)
    return rows
