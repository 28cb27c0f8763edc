"""A report on a grid of runs, as markdown for a file or as plain tables for a terminal."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reproduction.experiments import EXPERIMENTS
from reproduction.grid import GridRun
from reproduction.results import Result, csv_rows, losses_compared, markdown_table, report_tables
from utils.console import table
from utils.environment import environment, processor

PAPER_NAMES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "folder": "ImageNet-1K"}


@dataclass
class Report:
    """Everything that a report tells.

    Attributes:
        experiment, scale: of the grid.
        command: that gives it again.
        results: one for each setting.
        measures: what is told of each.
        runs: those that have results, with their facts (settings, data, environment, seconds).
        pictures: files beside the report.
        stands_for: data set and model of the paper's numbers.
    """

    experiment: str
    scale: str
    command: str
    results: Sequence[Result]
    measures: Sequence[str]
    runs: Sequence[tuple[GridRun, Mapping[str, Any]]]
    pictures: Sequence[Path]
    stands_for: Mapping[str, Any] = field(default_factory=dict)

    def csv(self) -> tuple[list[str], list[dict[str, Any]]]:
        """Columns and rows of results.csv."""
        rows = csv_rows(self.results, self.measures)
        return list(rows[0]) if rows else ["measure"], rows


def render(report: Report, *, markdown: bool) -> str:
    """The report, or with `markdown` false its tables alone."""
    tabulate = markdown_table if markdown else table
    tables = [tabulate(*part) for part in report_tables(report.results, report.measures)]
    compared = losses_compared(report.results, report.measures) if report.runs else None
    if compared and compared[0]:
        tables.append(f"BCE minus CE\n\n{tabulate(*compared)}")
    missing = [line for result in report.results for line in result.missing]
    if missing:
        tables.append("Without a result:\n\n" + "\n".join(f"- {line}" for line in missing))
    if not markdown:
        return "\n\n".join([*tables, _how_to_read(report).replace("**", "")])
    experiment = EXPERIMENTS[report.experiment]
    parts = [
        f"# {experiment.title}",
        experiment.what,
        f"```bash\n{report.command}\n```",
        "\n".join(f"- {line}" for line in _facts(report)),
        _how_to_read(report),
        *tables,
        *(f"![{path.stem}]({path.name})" for path in report.pictures),
        _runs_table(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(report: Report) -> list[str]:
    lines = [f"Scale: {report.scale}."]
    if not report.runs:
        versions = ", ".join(f"{k} {v}" for k, v in environment()["packages"].items() if v)
        return [*lines, f"Machine: {processor()}. Python {platform.python_version()}, {versions}."]
    data = {
        f"{run.settings['dataset']}{_folder(facts)}: {facts['data'].get('train_size'):,} training "
        f"and {facts['data'].get('test_size'):,} test images of "
        + "×".join(map(str, facts["data"].get("image_shape", [])[1:]))
        + f", {facts['data'].get('num_classes')} classes"
        for run, facts in report.runs
    }
    first = report.runs[0][1]
    settings, found = first["settings"], first["environment"]
    packages = ", ".join(f"{k} {v}" for k, v in found.get("packages", {}).items() if v)
    rates = sorted({f"{r.settings['optimizer']} {r.settings['lr']:g}" for r, _ in report.runs})
    seeds = sorted({run.settings["seed"] for run, _ in report.runs})
    return [
        *lines,
        *(f"Data: {line}." for line in sorted(data)),
        f"Training: {settings['epochs']} epochs, batch {settings['batch_size']}, learning rate "
        f"{', '.join(rates)}, {settings['schedule']} schedule; seed "
        f"{', '.join(map(str, seeds))}.",
        f"Machine: {found.get('processor') or processor()}, device {found.get('device')}. "
        f"Python {found.get('python')}, {packages}.",
        f"Date: {time.strftime('%Y-%m-%d')}; training took "
        f"{sum(facts['seconds'] for _, facts in report.runs):.0f} s in all runs together.",
    ]


def _folder(facts: Mapping[str, Any]) -> str:
    if facts["settings"]["dataset"] != "folder":
        return ""
    return f" {Path(facts['settings']['data_dir']).name}"


def _how_to_read(report: Report) -> str:
    experiment = EXPERIMENTS[report.experiment]
    lines = ["Accuracies in percent; with several seeds mean ± sample standard deviation."]
    if "positive" in report.measures:
        lines.append(
            "`predicted` is the exact minimum of the regularised problem for the same settings; "
            "the difference tells how far training is from it."
        )
    references = any("paper" in r for result in report.results for r in result.references.values())
    if references and report.runs:
        model, dataset = report.stands_for["model"], report.stands_for["dataset"]
        name = paper_name(dataset)
        run = report.runs[0][0]
        same = (
            report.scale == "full"
            and run.settings["dataset"] in experiment.datasets
            and run.settings["model"] in experiment.models
        )
        if not same:
            lines.append(
                f"**The paper's numbers are of {model} on {name} after its full training**; ours "
                "here are of the data and the network above. Only the direction from CE to BCE can "
                "be compared."
            )
    return " ".join(lines)


def paper_name(dataset: str) -> str:
    """A data set as the paper calls it."""
    return PAPER_NAMES.get(dataset, dataset)


def _runs_table(report: Report) -> str:
    if not report.runs:
        return ""
    cells = [
        [run.name, f"{facts['seconds']:.0f}", str(facts["environment"].get("git_commit"))[:12]]
        for run, facts in report.runs
    ]
    return "## Runs\n\n" + markdown_table(["run", "seconds", "commit"], cells)
