"""The results of a grid of runs beside the paper's numbers and the exact prediction: tables.

Our numbers are held against the paper's, with a difference, where network, data set and length of
training are the paper's. Elsewhere its numbers are context.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from reproduction.grid import GridRun
from reproduction.readings import find_reading, read_values
from reproduction.work import Work

REFERENCES = ("paper", "predicted")
MOST_COLUMNS = 9  # largest number of number columns in one table
NOTHING = "–"  # a cell without a number

Table = tuple[list[str], list[list[str]]]  # header and cells


class Formatted(Protocol):
    """A `metrics.Measure`, or a reading of one."""

    def format(self, value: float, sign: str = "") -> str: ...


@dataclass
class Result:
    """The results of one setting over its seeds.

    Attributes:
        labels: the setting.
        values: one number of each finished seed, by measure. An arrival that did not take place
            is infinite.
        references: numbers to compare with, by measure and then by one of `REFERENCES`.
        missing: runs without a result, and why.
        context: the paper's numbers of another network, data set or length of training, by measure.
        context_of: what those are of.
        epochs: the length of the runs.
    """

    labels: dict[str, Any]
    values: dict[str, list[float]]
    references: dict[str, dict[str, float]]
    missing: list[str] = field(default_factory=list)
    context: dict[str, float] = field(default_factory=dict)
    context_of: str = ""
    epochs: int = 0

    def mean(self, measure: str) -> float | None:
        """Return the mean over seeds; None without a value."""
        return statistics.fmean(self.values[measure]) if self.values.get(measure) else None

    def deviation(self, measure: str) -> float | None:
        """Return the sample standard deviation over seeds; None for fewer than two.

        None also if one of them is infinite.
        """
        values = self.values.get(measure, [])
        several = len(values) > 1 and all(map(math.isfinite, values))
        return statistics.stdev(values) if several else None

    def get_paper(self, measure: str) -> float | None:
        """Return the paper's number, to compare with or as context; None without one."""
        held = self.references.get(measure, {}).get("paper")
        return self.context.get(measure) if held is None else held


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
    result = Result(work.label(runs[0]), {}, {}, epochs=runs[0].settings.epochs)
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
            return f"{find_reading(self.measure).title} paper ({self.context_of})"
        return " ".join(filter(None, (find_reading(self.measure).title, self.reference)))

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
        reading, number = find_reading(self.measure), self.read(result)
        if self.is_difference:
            return format_difference(reading, result.mean(self.measure), number)
        own = self.reference is None and self.context_of is None
        if own and number == math.inf:
            return format_partial_arrival(reading, result.values[self.measure], result.epochs)
        return format_mean(reading, number, result.deviation(self.measure) if own else None)


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


def format_partial_arrival(measure: Formatted, values: Sequence[float], epochs: int) -> str:
    """Return the epochs of the seeds that arrived, where some or all did not within `epochs`."""
    arrived = [value for value in values if math.isfinite(value)]
    if not arrived:
        return f"not within {epochs}"
    return f"{measure.format(statistics.fmean(arrived))} ({len(arrived)} of {len(values)} seeds)"


def format_mean(measure: Formatted, mean: float | None, deviation: float | None = None) -> str:
    """Return a mean with its standard deviation, if any, in the measure's digits."""
    if mean is None or math.isnan(mean):
        return NOTHING
    text = measure.format(mean)
    return text if deviation is None else f"{text} ± {measure.format(deviation)}"


def format_difference(measure: Formatted, ours: float | None, theirs: float | None) -> str:
    """Return ours minus theirs with its sign; nothing if one is absent or infinite."""
    if ours is None or theirs is None or not math.isfinite(ours - theirs):
        return NOTHING
    return measure.format(ours - theirs, sign="+")


def compare_losses(
    results: Sequence[Result], measures: Sequence[str], loss: str, baseline: str
) -> Table | None:
    """Return header and cells of one loss minus another in the same setting, ours and the paper's.

    Scores, biases and the loss are left out: they have other levels by design. Returns None
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
    kept = [measure for measure in measures if find_reading(measure).compares_losses]
    columns = []
    for name in kept:
        own, *others_of_it = _list_columns(results, name)
        columns += [own, *(column for column in others_of_it if column.is_papers)]
    header = [*others, *(column.title for column in columns)]
    cells = [
        [
            *_format_labels(pair[0], others),
            *(
                format_difference(find_reading(column.measure), *map(column.read, pair))
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
