"""A comparison as text: an aligned table, Markdown, CSV. Imports no torch."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from args import Settings
from metrics import MEASURES, SPLIT_NAMES, Measure
from rundir.compared import RUN
from rundir.comparison import Comparison, Difference, Group, Summary
from rundir.grouping import format_value, rank
from rundir.names import NAMED_FIRST
from rundir.tables import Row
from utils.console import escape, format_count, format_markdown, format_table
from utils.errors import UserError
from utils.files import encode, write_csv, write_whole
from utils.registry import find_name

COUNT = "n"
LONGEST = 28  # characters of a setting's value in a table for people
ERROR = "se"
CHECKPOINT_NAMES = {"last": "last epoch", "best": "epoch of the best test_top1"}
# Decimals of the columns of metrics.csv whose number is none of a measure; others have four digits.
DECIMALS = {"seconds": 1, "images_per_second": 0}
Line = Group | Difference


# --- Choice and order ---


def list_shown(comparison: Comparison, wanted: str | None = None) -> list[str]:
    """List the columns of numbers that people see, with the `wanted` one.

    These are the measures that eval_nc.py prints, if any row has a number, and the columns of
    metrics.csv that have no copy among the measures. The epoch is left out if it is the same.
    """
    groups = comparison.groups
    measures = [
        name
        for name in comparison.measure_columns
        if name in MEASURES and MEASURES[name].shown and _is_filled(groups, name)
    ]
    history = [
        name
        for name in comparison.history_columns
        if _is_filled(groups, name) and not _has_copy(comparison, name)
    ]
    if len({run.epoch for run in comparison.runs}) == 1:
        history.remove("epoch")
    shown = [*history, *measures]
    more = [name for name in comparison.columns if name.lower() == (wanted or "").lower()]
    return [*shown, *(name for name in more if name not in shown)]


def _is_filled(groups: Sequence[Group], column: str) -> bool:
    return any(group.summaries[column].mean is not None for group in groups)


def _has_copy(comparison: Comparison, column: str) -> bool:
    """Return whether a column of nc_metrics.csv has the same number in each row."""
    measured = [name for name in comparison.measure_columns if name in MEASURES]
    copy = next((name for name in measured if _is_copy(name, column, comparison.split)), None)
    return copy is not None and all(
        group.summaries[copy].mean is not None or group.summaries[column].mean is None
        for group in comparison.groups
    )


def _is_copy(name: str, column: str, split: str) -> bool:
    """Return whether a measure of a split has the number of a column of metrics.csv.

    train_nc1 of --nc_every is NC1. train_top1 is no measure: it is counted in training.
    """
    measure = MEASURES[name]
    if measure.history is None:
        return column == f"{split}_{name}"
    return column == measure.history and split == measure.split


def describe_column(name: str) -> Measure:
    """Return heading and digits of a column of either file."""
    if name in MEASURES:
        return MEASURES[name]
    base = re.sub(r"^(ema_)?(train_|test_)?", "", name)
    copied = [measure for measure in MEASURES.values() if measure.history == f"test_{base}"]
    like = MEASURES.get(base) or (copied[0] if copied else None)
    if like is not None:
        return replace(like, title=name, label="")
    digits = DECIMALS.get(name)
    title = f"{name} of epoch" if name in Settings.names() else name  # lr: a setting, and a column
    return Measure("", title, digits=4 if digits is None else digits, significant=digits is None)


def sort_groups(comparison: Comparison, column: str) -> Comparison:
    """Return the comparison with its rows sorted by the mean of a column, or by a setting.

    Accuracies fall; all other columns and the settings rise. Rows without a number come last.
    Raises a UserError that names the nearest column for an unknown one.
    """
    known = [*comparison.settings, COUNT, *comparison.columns]
    if column in Settings.names() and column not in known:
        raise UserError(f"--sort {column}: all rows have the same {column}")
    name = find_name(column, known, "column for --sort")
    like = describe_column(name)
    falls = name in comparison.columns and like.unit == "%" and not like.is_error

    def place(group: Group) -> tuple[Any, ...]:
        if name in comparison.settings:
            return rank(name, group.labels[name])
        value = len(group.runs) if name == COUNT else group.summaries[name].mean
        if value is None or math.isnan(value):
            return (1,)
        return 0, -value if falls else value

    return replace(comparison, groups=sorted(comparison.groups, key=place))


def list_lines(comparison: Comparison, apart: bool) -> list[Line]:
    """Return groups and differences in the order of the table.

    Args:
        comparison: the result.
        apart: whether the differences stand after all groups, and not each after its groups.
    """
    if apart:
        return [*comparison.groups, *comparison.differences]
    lines: list[Line] = []
    left = list(comparison.differences)
    for group in comparison.groups:
        lines.append(group)
        done = [each for each in left if all(part in lines for part in each.groups)]
        lines += done
        left = [each for each in left if each not in done]
    return lines


# --- For people ---


def describe_comparison(comparison: Comparison, checkpoint: str) -> str:
    """Describe in a line the runs, the epoch and the split, and which settings all runs share."""
    runs = comparison.runs
    epochs = {run.epoch for run in runs}
    when = CHECKPOINT_NAMES.get(checkpoint, "")
    if len(epochs) == 1:
        (epoch,) = epochs
        when = f"{when} ({epoch})" if when else f"epoch {epoch}"
    shared = [
        format_value(runs[0].get(name))
        for name in NAMED_FIRST
        if len({run.get(name) for run in runs}) == 1
    ]
    alike = f"; all with {', '.join(shared)}" if shared else ""
    measured = f", measures of the {SPLIT_NAMES[comparison.split]}"
    measured = measured if comparison.measure_columns else ""
    return f"{format_count(len(runs), 'run')}, {when}{measured}{alike}"


def explain_spread(comparison: Comparison) -> list[str]:
    """Explain in a line each what stands after ± in the rows of groups and of differences."""
    lines = []
    if any(len(group.runs) > 1 for group in comparison.groups):
        lines.append("± is the sample standard deviation over the n runs of a row.")
    differences = comparison.differences
    if any(each.paired for each in differences):
        lines.append(
            "A difference of n pairs: mean over runs that differ only in the loss, ± its standard "
            "error."
        )
    if not all(each.paired for each in differences):
        lines.append(
            "A difference of n, n runs, whose seeds do not match: of the means, ± its standard "
            "error."
        )
    return lines


def format_cells(
    comparison: Comparison, lines: Sequence[Line], wanted: str | None = None
) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the table for people, with the column that `wanted` names."""
    columns = {name: describe_column(name) for name in list_shown(comparison, wanted)}
    texts = [
        shorten_apart([_format_label(name, line.labels[name]) for line in lines])
        for name in comparison.settings
    ]
    header = [*comparison.settings, COUNT, *(measure.heading for measure in columns.values())]
    cells = []
    for i, line in enumerate(lines):
        sign = "+" if isinstance(line, Difference) else ""
        numbers = [
            _format_summary(line.summaries[name], measure, sign)
            for name, measure in columns.items()
        ]
        cells.append([*(column[i] for column in texts), _count(line), *numbers])
    return header, cells


def _format_label(name: str, value: Any) -> str:
    return Path(value).name if name == RUN else format_value(value)


def _count(line: Line) -> str:
    if isinstance(line, Group):
        return str(len(line.runs))
    sizes = [len(group.runs) for group in line.groups]
    return format_count(sizes[0], "pair") if line.paired else f"{sizes[0]}, {sizes[1]}"


def _format_summary(summary: Summary, measure: Measure, sign: str) -> str:
    mean = measure.format(summary.mean, sign)
    return mean if summary.spread is None else f"{mean} ± {measure.format(summary.spread)}"


def shorten_apart(texts: Sequence[str]) -> list[str]:
    """Shorten long texts by an ellipsis, so that different ones stay different."""
    distinct = list(dict.fromkeys(texts))
    start = _count_common(distinct)
    rest = {text: text[start:] for text in distinct}
    end = _count_common([part[::-1] for part in rest.values()])
    within = {text: part[: len(part) - end] for text, part in rest.items()}
    marked = {text: f"{'…' * bool(start)}{part}{'…' * bool(end)}" for text, part in within.items()}
    for short in (
        {text: _cut(text) for text in distinct},
        {text: _cut(part) for text, part in marked.items()},
    ):
        if len(set(short.values())) == len(distinct):
            return [short[text] for text in texts]
    return list(texts)


def _count_common(texts: Sequence[str]) -> int:
    """Count the characters with which all texts begin."""
    columns = zip(*texts, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def _cut(text: str) -> str:
    """Return a text of at most `LONGEST` characters; an ellipsis stands for a longer one's middle.

    The end is where names of runs have their time.
    """
    if len(text) <= LONGEST:
        return text
    end = (LONGEST - 1) // 2
    return f"{text[: LONGEST - 1 - end]}…{text[len(text) - end :]}"


def format_blocks(
    header: Sequence[str], cells: Sequence[Sequence[str]], fixed: int, width: int
) -> str:
    """Align a table in blocks that fit a width; each repeats the first `fixed` columns.

    Where these take more than half of the width, they are blocks of their own and the rows have
    numbers, which each block repeats.
    """
    widths = [max(len(escape(row[i])) for row in (header, *cells)) for i in range(len(header))]
    if sum(size + 2 for size in widths[:fixed]) > width / 2 and fixed > 1:
        numbered = [[str(i), *row] for i, row in enumerate(cells, start=1)]
        return format_blocks(["row", *header], numbered, 1, width)
    room = width - sum(size + 2 for size in widths[:fixed])
    blocks: list[list[int]] = [[]]
    used = 0
    for i in range(fixed, len(header)):
        if blocks[-1] and used + widths[i] > room:
            blocks.append([])
            used = 0
        blocks[-1].append(i)
        used += widths[i] + 2
    tables = []
    for block in blocks:
        chosen = [*range(fixed), *block]
        rows = [[row[i] for i in chosen] for row in cells]
        tables.append(format_table([header[i] for i in chosen], rows))
    return "\n\n".join(tables)


def _escape_markdown(text: str) -> str:
    """Return text in which no character is markup; `format_markdown` sees to bars."""
    return re.sub(r"([\\`*_\[\]<>#&~$])", r"\\\1", escape(text))


# --- For pictures ---


def name_groups(comparison: Comparison) -> list[str]:
    """Name each row for a legend by its settings, such as "BCE, lr 0.1, 3 runs"."""
    names = []
    for group in comparison.groups:
        # A setting that is off, or that the network does not have, takes no room in a legend.
        given = {k: v for k, v in group.labels.items() if v is not None and v is not False}
        parts = [_name_label(name, value) for name, value in given.items()]
        count = len(group.runs)
        if count > 1:
            parts.append(format_count(count, "run"))
        names.append(", ".join(parts) or group.runs[0].directory.name)
    return names


def _name_label(name: str, value: Any) -> str:
    text = _cut(_format_label(name, value))
    return text if name in (*NAMED_FIRST, RUN) else f"{name} {text}"


def list_rows(
    rows: Mapping[Hashable, Row], columns: Iterable[str], split: str
) -> list[dict[str, Any]]:
    """Return the rows of one file by epoch, each with all columns and its epoch and split.

    Args:
        rows: by epoch or by (epoch, split).
        columns: of numbers; None where a row has none.
        split: the rows to take of those by (epoch, split); that of the others.
    """
    names = list(columns)
    found: dict[int, dict[str, Any]] = {}
    for key, row in rows.items():
        epoch, own = key if isinstance(key, tuple) else (key, split)
        if own == split:
            values = {name: row.get(name) for name in names}
            found[epoch] = {**values, "epoch": epoch, "split": split}
    return [found[epoch] for epoch in sorted(found)]


# --- Files ---


def write_markdown(
    path: Path, comparison: Comparison, lines: Sequence[Line], checkpoint: str
) -> None:
    """Write the table for people and all that must be known of it. Raises UserError."""
    described = _escape_markdown(describe_comparison(comparison, checkpoint))
    remarks = [*explain_spread(comparison), *comparison.notes]
    header, cells = format_cells(comparison, lines)
    header, *rows = [[_escape_markdown(cell) for cell in row] for row in (header, *cells)]
    parts = [f"{described}.", format_markdown(header, rows)]
    parts.append("\n".join(f"- {_escape_markdown(remark)}" for remark in remarks))
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_whole(path, lambda file: file.write(encode(text)))


def write_tables(path: Path, comparison: Comparison) -> list[Path]:
    """Write the groups as CSV, and the differences, if any, beside it; return the paths.

    Raises UserError.
    """
    rows = [
        _list_cells(group.labels, {COUNT: len(group.runs)}, group.summaries, "std")
        for group in comparison.groups
    ]
    write_csv(path, list(rows[0]), rows)
    if not comparison.differences:
        return [path]
    rows = []
    for each in comparison.differences:
        sizes = [len(group.runs) for group in each.groups]
        counts = {"pairs": sizes[0] if each.paired else None}
        counts |= {"n_first": sizes[0], "n_second": sizes[1]}
        rows.append(_list_cells(each.labels, counts, each.summaries, ERROR))
    beside = name_differences(path)
    write_csv(beside, list(rows[0]), rows)
    return [path, beside]


def name_differences(path: Path) -> Path:
    """Return the name of the file of differences."""
    return path.with_name(f"{path.stem}_differences{path.suffix}")


def _list_cells(
    labels: dict[str, Any], counts: dict[str, Any], summaries: dict[str, Summary], spread: str
) -> dict[str, Any]:
    """Return a row of a CSV file. A column of a setting and one of numbers never share a name."""
    row = {name: _protect(value) for name, value in labels.items()} | counts
    for name, summary in summaries.items():
        row[f"{name}_mean"], row[f"{name}_{spread}"] = summary.mean, summary.spread
    return row


def _protect(value: Any) -> Any:
    """Return the value of a setting as a cell that no spreadsheet takes for a formula."""
    if isinstance(value, (list, tuple)):
        value = format_value(value)
    if isinstance(value, str):
        value = escape(value)
        return f"'{value}" if value.startswith(("=", "+", "-", "@")) else value
    return value
