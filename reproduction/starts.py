"""The pictures of runs that begin at several starts of the bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from input_pipeline import name_data
from metrics import EVALUATED, MEASURES
from reproduction import BELOW
from reproduction.grid import GridRun
from reproduction.pictures import Drawing, draw_scores, list_first_seed
from reproduction.readings import TRAINED, find_reading, read_number
from reproduction.work import Work
from rundir.names import METRICS, spell_for_files
from utils.files import read_csv

EVALUATED_COLUMNS = ("nc2", "nc2_h", "bias_mean", "predicted_bias")
TRAINED_COLUMNS = ("test_loss", "top1", "uniform_accuracy")
STARTS = {"prior": "the prior", "predicted": "the prediction"}


def draw_starts(work: Work) -> Drawing:
    """Draw the epochs from each start, and a score figure over the starts for the first seed.

    There is one picture of the epochs for each network, data set and optimizer.
    """
    from figures.starts import draw_starts
    from figures.style import save_figure

    readings = map(find_reading, work.experiment.measures)
    limit = next(reading.limit for reading in readings if reading.kind == BELOW)
    groups: dict[tuple[str, str, str], list[GridRun]] = {}
    for run in work.finished:
        key = run.settings.model, run.settings.dataset, run.settings.optimizer
        groups.setdefault(key, []).append(run)
    pictures = []
    for (model, dataset, optimizer), runs in groups.items():
        seeds = len({run.settings.seed for run in runs})
        title = f"{model} on {name_data(dataset, work.data_dir)}, {optimizer}"
        title += f", {seeds} seeds" if seeds > 1 else ""
        path = work.out / f"starts_{spell_for_files(model)}_{dataset}_{optimizer}.png"
        save_figure(draw_starts(title, _build_curves(work, runs), limit), path)
        pictures.append(path)
    scores = draw_scores(replace(work, runs=list_first_seed(work)))
    return Drawing([*pictures, *scores.pictures], scores.calls)


def _build_curves(work: Work, runs: Sequence[GridRun]) -> list[Any]:
    """Return a curve for each loss and start, its seeds together."""
    from figures.curves import Curve

    members: dict[tuple[tuple[str, Any], ...], list[GridRun]] = {}
    for run in runs:
        members.setdefault(run.group, []).append(run)
    curves = []
    for group, seeds in members.items():
        labels = dict(group)
        value = labels["bias_init_mean"]
        start = STARTS.get(value, value) if isinstance(value, str) else f"{value:g}"
        rows = [_read_rows(work.locate(run)) for run in seeds]
        loss = labels["loss"]
        curves.append(Curve(f"{loss}, bias from {start}", loss, labels["optimizer"], rows))
    return curves


def _read_rows(directory: Path) -> list[dict[str, Any]]:
    """Read the rows of a picture from the tables of a run. Raises UserError for a damaged one."""
    path = directory / EVALUATED
    evaluated = [
        {name: read_number(row, name, path) for name in EVALUATED_COLUMNS}
        | {"epoch": int(row["epoch"]), "split": "train"}
        for row in read_csv(path)
        if row["split"] == "train"
    ]
    path = directory / METRICS
    columns = {name: (TRAINED | MEASURES)[name].history or "" for name in TRAINED_COLUMNS}
    trained = [
        {name: read_number(row, column, path) for name, column in columns.items()}
        | {"epoch": int(row["epoch"]), "split": "test"}
        for row in read_csv(path)
    ]
    return [*evaluated, *trained]
