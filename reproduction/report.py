"""A report on a grid of runs, as markdown for a file or as plain tables for a terminal."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from args import Settings
from input_pipeline import SOURCES
from reproduction.differences import list_differences
from reproduction.grid import GridRun
from reproduction.readings import find_reading
from reproduction.results import (
    Result,
    compare_losses,
    format_tables,
    list_rows,
)
from reproduction.work import Work
from rundir.config import Config, read_config
from rundir.names import METRICS
from utils.console import escape, format_markdown, format_table
from utils.environment import describe_environment, name_processor
from utils.files import encode, read_csv, write_csv, write_whole


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of a grid, its config.json, and the seconds that it trained."""

    run: GridRun
    config: Config
    seconds: float

    @property
    def settings(self) -> Settings:
        """The settings in its config.json."""
        return self.config.settings

    @property
    def steps(self) -> int:
        """The steps of an epoch."""
        return math.ceil(self.config.facts["train_size"] / self.settings.batch_size)


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        work: experiment, scale and runs.
        command: the command that gives the report again.
        results: one for each setting.
        pictures: files beside the report.
        trained: the runs that have a result.
    """

    work: Work
    command: str
    results: Sequence[Result]
    pictures: Sequence[Path]
    trained: Sequence[FinishedRun]


def build_report(
    work: Work, command: str, results: Sequence[Result], pictures: Sequence[Path]
) -> Report:
    """Read the records of the finished runs from their directories. Raises UserError."""
    trained = [_read_finished(run, work.locate(run)) for run in work.finished]
    return Report(work, command, results, pictures, trained)


def _read_finished(run: GridRun, directory: Path) -> FinishedRun:
    seconds = sum(float(row["seconds"]) for row in read_csv(directory / METRICS))
    return FinishedRun(run, read_config(directory), seconds)


def write_report(report: Report) -> Path:
    """Write report.md and results.csv, and return the path of the first. Raises UserError."""
    out = report.work.out
    rows = list_rows(report.results, report.work.experiment.measures)
    write_csv(out / "results.csv", list(rows[0]) if rows else ["measure"], rows)
    text = format_report(report)
    write_whole(out / "report.md", lambda file: file.write(encode(text)))
    return out / "report.md"


def format_report(report: Report) -> str:
    """Return the whole report in markdown."""
    experiment = report.work.experiment
    parts = [
        f"# {experiment.title}",
        experiment.what,
        f"```bash\n{escape(report.command)}\n```",
        "\n".join(f"- {line}" for line in _list_facts(report)),
        _explain(report),
        *_list_tables(report, format_markdown),
        *(f"![{path.stem}]({path.name})" for path in report.pictures),
        _format_runs(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def format_tables_plainly(report: Report) -> str:
    """Return the tables of the report and how to read them, for a terminal."""
    return "\n\n".join([*_list_tables(report, format_table), _explain(report).replace("**", "")])


def _list_tables(report: Report, tabulate: Any) -> list[str]:
    experiment, results = report.work.experiment, report.results
    tables = [tabulate(*part) for part in format_tables(results, experiment.measures)]
    baseline, *others = experiment.losses
    for loss in others if report.trained else ():
        compared = compare_losses(results, experiment.measures, loss, baseline)
        if compared:
            tables.append(f"{loss} minus {baseline}\n\n{tabulate(*compared)}")
    missing = [line for result in results for line in result.missing]
    if missing:
        tables.append("Without a result:\n\n" + "\n".join(f"- {line}" for line in missing))
    return tables


def _list_differences(report: Report) -> list[str]:
    """Say in one line what differs from the paper, if its numbers are context."""
    if not any(result.context for result in report.results):
        return []
    runs = (each.run for each in report.trained)
    found = (line for run in runs for line in list_differences(report.work, run))
    lines = list(dict.fromkeys(found))
    return [f"Differs from the paper's runs: {escape('; '.join(lines))}."] if lines else []


def _list_facts(report: Report) -> list[str]:
    """Return scale, data, training, machine and date."""
    scale = f"Scale: {report.work.scale_name}."
    if not report.trained:
        packages = _format_packages(describe_environment())
        python = platform.python_version()
        return [scale, f"Machine: {name_processor()}. Python {python}, {packages}."]
    trained = report.trained
    settings, environment = trained[0].settings, trained[0].config.environment
    rates = sorted({f"{each.settings.optimizer} {each.settings.lr:g}" for each in trained})
    seeds = sorted({each.settings.seed for each in trained})
    steps = sorted({each.steps for each in trained})
    return [
        scale,
        *(f"Data: {line}." for line in sorted({_describe_data(each.config) for each in trained})),
        f"Training: {settings.epochs} epochs of {', '.join(map(str, steps))} steps, batch "
        f"{settings.batch_size}, learning rate {', '.join(rates)}, "
        f"{settings.schedule} schedule; seed {', '.join(map(str, seeds))}.",
        *_list_differences(report),
        f"Machine: {environment.get('processor') or name_processor()}, device "
        f"{environment.get('device')}. Python {environment.get('python')}, "
        f"{_format_packages(environment)}.",
        f"Date: {time.strftime('%Y-%m-%d')}; training took "
        f"{sum(each.seconds for each in trained):.0f} s in all runs together.",
    ]


def _format_packages(environment: Mapping[str, Any]) -> str:
    packages = environment.get("packages", {})
    return ", ".join(f"{name} {version}" for name, version in packages.items() if version)


def _describe_data(config: Config) -> str:
    settings, facts = config.settings, config.facts
    streams = SOURCES[settings.dataset].streams
    folder = escape(Path(settings.data_dir).name).replace("`", "'")
    name = f"{settings.dataset} `{folder}`" if streams else settings.dataset
    sides = "×".join(map(str, facts.get("image_shape", [])[1:]))
    return (
        f"{name}: {facts.get('train_size'):,} training and {facts.get('test_size'):,} test images "
        f"of {sides}, {facts.get('num_classes')} classes"
    )


def _explain(report: Report) -> str:
    """Return the text that explains the numbers."""
    work = report.work
    lines = ["Accuracies in percent; with several seeds mean ± sample standard deviation."]
    if any(find_reading(measure).predicted for measure in work.experiment.measures):
        lines.append(
            "`predicted` is the exact minimum of the regularised problem for the same settings; "
            "the difference shows how far training is from it."
        )
    if any(find_reading(measure).is_arrival for measure in work.experiment.measures):
        lines.append(
            "`epochs until … <` is the first epoch with a value below; `stays within` is the first "
            "one from which on all values are that near to the exact prediction."
        )
    contexts = {result.context_of for result in report.results if result.context}
    if contexts:
        column = f"paper ({min(contexts)})" if len(contexts) == 1 else "paper (…)"
        lines.append(
            f"**The paper's numbers under `{column}` are context**: they are of another network, "
            "other data or other settings than ours, so no difference is shown."
        )
    losses = {result.labels["loss"] for result in report.results}
    if contexts and work.runs and len(losses) > 1:
        lines.append(
            f"Only the direction from {' to '.join(work.experiment.losses)} can be compared."
        )
    return " ".join(lines)


def _format_runs(report: Report) -> str:
    if not report.trained:
        return ""
    cells = [
        [
            each.run.name,
            f"{each.seconds:.0f}",
            str(each.config.environment.get("git_commit"))[:12],
        ]
        for each in report.trained
    ]
    return "## Runs\n\n" + format_markdown(["run", "seconds", "commit"], cells)
