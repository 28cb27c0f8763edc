"""Measure neural collapse, feature properties and scores of every checkpoint of one or more runs.

python eval_nc.py --load_path model_weights/<run>
"""

from args import BARE_FLAGS, bare_settings, eval_nc_parser, stored_run
from utils.signals import StopSignal

STOPPED = "stopped; the rows computed so far are kept, the same command goes on from there"

if __name__ == "__main__":
    eval_nc_parser().parse_args()  # --help and a wrong flag are answered before torch is imported
    StopSignal(STOPPED).install()

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from figures.nc_curves import Curve, draw_nc_curves
from figures.style import save_figure
from metrics import MEASURES, Measure
from metrics.extraction import extract
from metrics.measures import Evaluation, compute_measures
from metrics.table import MetricsTable, compute_fingerprint
from rundir.checkpoints import checkpoints, select_checkpoints
from rundir.names import CONFIG
from rundir.rebuild import DATA_SETTINGS, MODEL_SETTINGS, ChosenRun, Rebuilder
from rundir.weights import load
from utils.console import Console, Progress, table
from utils.device import is_out_of_memory, pick_device
from utils.errors import UserError
from utils.precision import autocast

PICTURE, OVERLAY = "nc_curves.png", "nc_curves_overlay.png"
# What a prediction depends on besides model and data.
PREDICTION_SETTINGS = (
    *("loss", "sep_decay", "smoothing", "augment", "batch_size"),
    *("weight_decay", "feature_decay_rate", "weight_decay_bias"),
)


class CheckpointError(Exception):
    """One checkpoint cannot be evaluated; the others can."""


def main(argv: list[str] | None = None) -> int:
    args = eval_nc_parser().parse_args(argv)
    try:
        with StopSignal(STOPPED):
            return evaluate_runs(args)
    except UserError as error:
        complain(error)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        complain(f"out of memory with --batch_size {args.batch_size}: a smaller one may fit")
        return 2


def evaluate_runs(args: argparse.Namespace) -> int:
    """Evaluate, draw and print; 2 if a checkpoint could not be evaluated, else 0."""
    # Every mistake that can be seen now is told before the work begins.
    jobs = [open_job(Path(path), args) for path in args.load_path]
    refuse_without_effect(args, jobs)
    pictures = overlay_directory(args, jobs)
    device, device_name = pick_device(args.gpu_id)
    console = Console()
    console.say(f"device {device_name}")
    splits = ("train", "test") if args.split == "both" else (args.split,)
    evaluator = Evaluator(args, device, splits, console)
    tables, failures = [], 0
    for job in jobs:
        rows, failed = evaluator.evaluate(job)
        failures += failed
        tables.append(rows)
        if rows.rows:
            failures += draw([curve_of(job, rows)], job.directory / PICTURE, console)
    curves = [curve_of(job, rows) for job, rows in zip(jobs, tables, strict=True) if rows.rows]
    if len(curves) > 1:
        failures += draw(curves, pictures / OVERLAY, console)
    console.say("\n" + printed(jobs, tables, splits))
    return 2 if failures else 0


def open_job(directory: Path, args: argparse.Namespace) -> ChosenRun:
    """Read what a run directory says of itself. Raises UserError."""
    chosen = select_checkpoints(directory, args.checkpoints)
    if (directory / CONFIG).exists():
        return ChosenRun(directory, *stored_run(directory), chosen)
    settings = bare_settings(args, bias_mode_of(directory))
    return ChosenRun(directory, settings, {}, chosen)


def refuse_without_effect(args: argparse.Namespace, jobs: list[ChosenRun]) -> None:
    """A flag that does nothing for any of the runs is a mistake. Raises UserError."""
    if len({job.directory.resolve() for job in jobs}) < len(jobs):
        raise UserError("--load_path names a run twice")
    data_sets = {job.settings["dataset"] for job in jobs}
    bare = any(not job.facts for job in jobs)
    without_effect = {
        "out": len(jobs) == 1 and "it is for the picture of several runs",
        "data_dir": data_sets == {"digits"} and "digits come with scikit-learn",
        "num_workers": "folder" not in data_sets and "only folder is decoded by workers",
        **{flag: not bare and f"the run's {CONFIG} tells it" for flag in BARE_FLAGS},
    }
    for flag, reason in without_effect.items():
        if reason and getattr(args, flag) not in (None, False):
            raise UserError(f"--{flag} has no effect here: {reason}")


def overlay_directory(args: argparse.Namespace, jobs: list[ChosenRun]) -> Path:
    """Where the picture of several runs goes, made if need be. Raises UserError."""
    directory = Path(args.out) if args.out else jobs[0].directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot create {directory}: {error.strerror}") from error
    return directory


def bias_mode_of(directory: Path) -> str:
    """The kind of bias that bare weights have, seen from the first that can be read."""
    for path in checkpoints(directory).values():
        try:
            state = load(path)
        except UserError:
            continue
        if not isinstance(state, dict) or "fc.weight" not in state:
            continue
        if "fc.bias" not in state:
            return "none"
        return "diverse" if len(state["fc.bias"]) == len(state["fc.weight"]) else "unified"
    raise UserError(f"{directory}: no checkpoint holds a classifier named fc")


class Evaluator:
    """Evaluates one job after another."""

    def __init__(
        self,
        args: argparse.Namespace,
        device: torch.device,
        splits: tuple[str, ...],
        console: Console,
    ) -> None:
        self._args, self._splits, self._console = args, splits, console
        self._autocast = autocast(args.precision, device)
        self._runs = Rebuilder(
            device,
            splits,
            batch_size=args.batch_size,
            data_dir=args.data_dir,
            num_workers=args.num_workers,
            precision=args.precision,
        )

    def evaluate(self, job: ChosenRun) -> tuple[MetricsTable, int]:
        """The run's table with the chosen rows computed, and how many checkpoints failed."""
        rows = MetricsTable(job.directory, MEASURES)
        for note in rows.notes:
            print(f"eval_nc.py: warning: {note}", file=sys.stderr)
        todo, prints = self._missing(job, rows)
        total = sum(len(splits) for splits in todo.values())
        kept = len(job.chosen) * len(self._splits) - total
        if total:
            try:
                self._runs.model(job)
            except UserError as error:  # the data set is missing, say: one line for the whole run
                complain(error)
                return rows, len(todo)
        progress = Progress(self._console, job.name, total, unit="split")
        computed = failed = 0
        for epoch, splits in todo.items():
            try:
                for split, values in self._measured(job, epoch, splits):
                    rows.put((epoch, split), prints[epoch], values)
                    computed += 1
            except CheckpointError as error:
                complain(error)
                failed += 1
            if progress.due():
                progress.show(computed, f"epoch {epoch}")
        progress.close()
        failures = f", {failed} checkpoints failed" if failed else ""
        self._console.say(
            f"{job.directory}: {computed} evaluated, {kept} unchanged rows kept{failures}"
        )
        return rows, failed

    def _missing(
        self, job: ChosenRun, rows: MetricsTable
    ) -> tuple[dict[int, list[str]], dict[int, str]]:
        """The splits to compute of each chosen epoch, and the fingerprints of the checkpoints."""
        prints = {e: compute_fingerprint(p, *self._depends_on(job)) for e, p in job.chosen.items()}
        unheld = {
            epoch: [
                split for split in self._splits if not rows.holds((epoch, split), prints[epoch])
            ]
            for epoch in job.chosen
        }
        for epoch, splits in unheld.items():
            for split in splits:
                rows.drop_changed((epoch, split), prints[epoch])
        if self._args.force:
            return {epoch: list(self._splits) for epoch in job.chosen}, prints
        return {epoch: splits for epoch, splits in unheld.items() if splits}, prints

    def _depends_on(self, job: ChosenRun) -> tuple[Any, ...]:
        """What rows depend on besides the checkpoint."""
        settings = {key: job.settings[key] for key in ("model", *DATA_SETTINGS, *MODEL_SETTINGS)}
        if job.facts:  # they tell a data set that moved from one that changed
            del settings["data_dir"]
        if settings["imbalance_factor"] == 1:  # rows of before there were long tails still hold
            del settings["imbalance_factor"]
        decays = [job.settings[key] for key in PREDICTION_SETTINGS]
        return self._args.precision, self._args.bias_added, settings, decays, job.facts

    def _measured(
        self, job: ChosenRun, epoch: int, splits: list[str]
    ) -> Iterator[tuple[str, dict[str, float | None]]]:
        """Each split and its measures under one checkpoint. Raises CheckpointError."""
        path = job.chosen[epoch]
        try:
            model = self._runs.loaded(job, path, bias_added=self._args.bias_added)
        except UserError as error:
            raise CheckpointError(str(error)) from error
        for split in splits:
            evaluation = Evaluation(
                extract(model, self._runs.batches(job, split), self._autocast),
                model.fc.weight.detach(),
                model.fc.bias_vector().detach(),
                self._runs.class_sizes(job),
                long_tailed=job.settings["imbalance_factor"] != 1,
                prediction=self._runs.prediction(job),
            )
            try:
                yield split, compute_measures(evaluation)
            except ValueError as error:
                raise CheckpointError(f"{path}, {split} set: {error}") from error


def draw(curves: list[Curve], path: Path, console: Console) -> int:
    """Write a picture; returns 1 where it cannot be, 0 else."""
    try:
        save_figure(draw_nc_curves(curves), path)
    except UserError as error:
        complain(error)
        return 1
    console.say(f"wrote {path}")
    return 0


def curve_of(job: ChosenRun, rows: MetricsTable) -> Curve:
    ordered = [rows.rows[key] for key in rows.keys]
    return Curve(job.name, job.settings["loss"], job.settings["optimizer"], ordered)


def printed(jobs: list[ChosenRun], tables: list[MetricsTable], splits: tuple[str, ...]) -> str:
    """One aligned table of all chosen rows."""
    shown = list_shown([row for rows in tables for row in rows.rows.values()])
    header = ["run", "epoch", "split", *(measure.title for measure in shown.values())]
    lines = []
    for job, rows in zip(jobs, tables, strict=True):
        for key in ((epoch, split) for epoch in job.chosen for split in splits):
            if key in rows.rows:
                row = rows.rows[key]
                values = [measure.format(row[name]) for name, measure in shown.items()]
                lines.append([job.name, str(key[0]), key[1], *values])
    return table(header, lines)


def list_shown(rows: Sequence[Mapping[str, float | None]]) -> dict[str, Measure]:
    """The measures to print: of the optional ones those whose function gave any row a number."""
    filled = {
        measure.function
        for name, measure in MEASURES.items()
        if any(row[name] is not None for row in rows)
    }
    return {
        name: measure
        for name, measure in MEASURES.items()
        if measure.shown and (not measure.optional or measure.function in filled)
    }


def complain(error: Exception | str) -> None:
    print(f"eval_nc.py: error: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
