"""What a grid of runs gave, beside the paper's numbers and the exact prediction: tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reproduction.grid import GridRun
from rundir.names import METRICS
from utils.errors import UserError
from utils.files import read_csv

EVALUATED = "nc_metrics.csv"


@dataclass(frozen=True)
class Measure:
    """A number of a run.

    Attributes:
        title: of its column.
        digits: decimals in the report.
        column: of nc_metrics.csv.
        split: of it, train or test.
        history: the column of metrics.csv that holds the same, for runs that are not evaluated.
        predicted: the column with its exact prediction.
        over_epochs: the mean over all evaluated epochs instead of the last one's.
    """

    title: str
    digits: int
    column: str
    split: str = "train"
    history: str | None = None
    predicted: str | None = None
    over_epochs: bool = False


MEASURES = {
    "top1": Measure("A %", 2, "top1", "test", "test_top1"),
    "uniform": Measure("A_Uni %", 2, "uniform_accuracy", "test", "test_uniform"),
    "many": Measure("A many %", 2, "top1_many", "test"),
    "medium": Measure("A medium %", 2, "top1_medium", "test"),
    "few": Measure("A few %", 2, "top1_few", "test"),
    "nc1": Measure("NC1", 4, "nc1"),
    "nc2": Measure("NC2", 4, "nc2"),
    "nc2_h": Measure("NC2_h", 4, "nc2_h"),
    "nc3": Measure("NC3", 4, "nc3"),
    "nc2_mean": Measure("NC2 over epochs", 4, "nc2", over_epochs=True),
    "nc3_mean": Measure("NC3 over epochs", 4, "nc3", over_epochs=True),
    "compactness": Measure("compactness", 4, "compactness"),
    "distinctiveness": Measure("distinctiveness", 4, "distinctiveness"),
    "positive": Measure("positive", 3, "positive_mean", predicted="predicted_positive"),
    "negative": Measure("negative", 3, "negative_mean", predicted="predicted_negative"),
    "bias": Measure("bias", 3, "bias_mean", predicted="predicted_bias"),
}
REFERENCES = ("paper", "predicted")
MOST_COLUMNS = 9  # of numbers in one table


@dataclass
class Result:
    """What the seeds of one setting gave.

    Attributes:
        labels: the setting.
        values: by measure one number of each finished seed.
        references: by measure and then "paper" or "predicted".
        missing: runs without a result, and why.
    """

    labels: dict[str, Any]
    values: dict[str, list[float]]
    references: dict[str, dict[str, float]]
    missing: list[str] = field(default_factory=list)

    def mean(self, measure: str) -> float | None:
        return statistics.fmean(self.values[measure]) if self.values.get(measure) else None

    def std(self, measure: str) -> float | None:
        """The sample standard deviation over seeds; None for fewer than two."""
        values = self.values.get(measure, [])
        return statistics.stdev(values) if len(values) > 1 else None


def collect(
    runs: Sequence[GridRun],
    directory: Path,
    measures: Sequence[str],
    published: Mapping[str, Mapping[str, float | None]],
    failed: Mapping[str, str],
) -> list[Result]:
    """One result for each setting of the runs under `directory`, the seeds together.

    `published` holds the paper's numbers by run name and measure, `failed` the reason why a run
    has no result. Raises UserError for a damaged file.
    """
    results: dict[tuple, Result] = {}
    for run in runs:
        if run.group not in results:
            paper = {m: v for m, v in published[run.name].items() if v is not None}
            references = {measure: {"paper": value} for measure, value in paper.items()}
            results[run.group] = Result(dict(run.group), {}, references)
        result = results[run.group]
        if run.name in failed:
            result.missing.append(f"{run.name}: {failed[run.name]}")
            continue
        values, predicted = run_values(directory / run.name, measures)
        for measure, value in values.items():
            result.values.setdefault(measure, []).append(value)
        for measure, value in predicted.items():
            result.references.setdefault(measure, {})["predicted"] = value
    return list(results.values())


def run_values(
    directory: Path, measures: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """A run's measures and their predictions, where there are any. Raises UserError."""
    history = read_csv(directory / METRICS)
    evaluated = read_csv(directory / EVALUATED) if (directory / EVALUATED).exists() else []
    values, predicted = {}, {}
    for name in measures:
        measure = MEASURES[name]
        rows = [row for row in evaluated if row.get("split") == measure.split]
        # In metrics.csv is the last epoch, whichever were evaluated.
        if measure.history:
            number = _number(history[-1], measure.history, directory / METRICS)
        elif measure.over_epochs:
            cells = [_number(row, measure.column, directory / EVALUATED) for row in rows]
            numbers = [number for number in cells if number is not None]
            number = statistics.fmean(numbers) if numbers else None
        else:
            number = _number(rows[-1], measure.column, directory / EVALUATED) if rows else None
        if number is not None:
            values[name] = number
        if measure.predicted and rows:
            exact = _number(rows[-1], measure.predicted, directory / EVALUATED)
            if exact is not None:
                predicted[name] = exact
    return values, predicted


def _number(row: Mapping[str, str], column: str, path: Path) -> float | None:
    """None where the cell is empty or the file has no such column."""
    text = row.get(column)
    if not text:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {column} is {text!r}") from error


def report_tables(
    results: Sequence[Result], measures: Sequence[str]
) -> list[tuple[list[str], list[list[str]]]]:
    """`report_table` for a few measures at a time, so that each table fits a page."""
    told = [m for m in measures if any(m in r.values or m in r.references for r in results)]
    parts: list[list[str]] = []
    width = MOST_COLUMNS + 1
    for measure in told:
        columns = 1 + 2 * len(_references(results, measure))
        if width + columns > MOST_COLUMNS:
            parts.append([])
            width = 0
        parts[-1].append(measure)
        width += columns
    return [report_table(results, part) for part in parts]


def _references(results: Sequence[Result], measure: str) -> list[str]:
    return [
        reference
        for reference in REFERENCES
        if any(reference in result.references.get(measure, {}) for result in results)
    ]


def report_table(
    results: Sequence[Result], measures: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Header and cells: the labels, then for each measure ours and, where there is one, each
    reference and the difference ours − reference."""
    labels = list(results[0].labels)
    header, columns = list(labels), [(None, label, None) for label in labels]
    for measure in measures:
        title = MEASURES[measure].title
        header.append(title)
        columns.append((measure, "ours", None))
        for reference in _references(results, measure):
            header += [f"{title} {reference}", "difference"]
            columns += [(measure, reference, None), (measure, reference, "difference")]
    cells = [[_cell(result, *column) for column in columns] for result in results]
    return header, cells


def _cell(result: Result, measure: str | None, what: str, kind: str | None) -> str:
    if measure is None:
        value = result.labels[what]
        return f"{value:g}" if isinstance(value, float) else str(value)
    digits, ours = MEASURES[measure].digits, result.mean(measure)
    if what == "ours":
        return shown(ours, result.std(measure), digits)
    reference = result.references.get(measure, {}).get(what)
    if kind == "difference":
        gap = None if ours is None or reference is None else ours - reference
        return "–" if gap is None else f"{gap:+.{digits}f}"
    return shown(reference, None, digits)


def shown(value: float | None, std: float | None, digits: int) -> str:
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text if std is None else f"{text} ± {std:.{digits}f}"


def losses_compared(
    results: Sequence[Result], measures: Sequence[str]
) -> tuple[list[str], list[list[str]]] | None:
    """Header and cells of BCE minus CE in the same setting, ours and the paper's; None if no
    setting was run with both."""
    others = [key for key in results[0].labels if key != "loss"]
    by_key = {(r.labels["loss"], *(r.labels[key] for key in others)): r for r in results}
    pairs = [
        (by_key["CE", *key], by_key["BCE", *key])
        for key in dict.fromkeys(key[1:] for key in by_key)
        if ("CE", *key) in by_key and ("BCE", *key) in by_key
    ]
    if not pairs:
        return None
    # A bias has no meaning in CE, and scores have other levels by design.
    kept = [m for m in measures if m not in ("positive", "negative", "bias")]
    header = [*others, *(f"{MEASURES[m].title}{who}" for m in kept for who in ("", " paper"))]
    cells = []
    for ce, bce in pairs:
        row = [_cell(ce, None, key, None) for key in others]
        for measure in kept:
            digits = MEASURES[measure].digits
            ours = _difference(bce.mean(measure), ce.mean(measure))
            paper = _difference(*(r.references.get(measure, {}).get("paper") for r in (bce, ce)))
            row += ["–" if gap is None else f"{gap:+.{digits}f}" for gap in (ours, paper)]
        cells.append(row)
    filled = [i for i in range(len(header)) if any(row[i] != "–" for row in cells)]
    return [header[i] for i in filled], [[row[i] for i in filled] for row in cells]


def _difference(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs


def csv_rows(results: Sequence[Result], measures: Sequence[str]) -> list[dict[str, Any]]:
    """Long form in full precision: a row for each setting and measure."""
    rows = []
    for result in results:
        for measure in measures:
            references = result.references.get(measure, {})
            if measure not in result.values and not references:
                continue
            rows.append(
                {
                    **result.labels,
                    "measure": measure,
                    "seeds": len(result.values.get(measure, [])),
                    "mean": result.mean(measure),
                    "std": result.std(measure),
                    **{reference: references.get(reference) for reference in REFERENCES},
                }
            )
    return rows


def markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
