"""Measure neural collapse, feature properties and scores of every checkpoint of one or more runs.

python eval_nc.py --load_path model_weights/<run>
"""

from args import BARE_FLAGS, bare_settings, checked_settings, eval_nc_parser
from utils.signals import StopSignal

STOPPED = "stopped; the rows computed so far are kept, the same command goes on from there"

if __name__ == "__main__":
    eval_nc_parser().parse_args()  # --help and a wrong flag are answered before torch is imported
    StopSignal(STOPPED).install()

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.checkpoint import load
from utils.console import Console, Progress, table
from utils.datasets import DataSet
from utils.device import is_out_of_memory, pick_device
from utils.errors import UserError
from utils.evaluation import (
    DATA_SETTINGS,
    MEASURES,
    MODEL_SETTINGS,
    extract,
    load_weights,
    measure,
    rebuild_data,
    rebuild_model,
    split_batches,
)
from utils.figures import Curve, nc_figure, save_figure
from utils.loader import BatchLoader
from utils.nc_table import MetricsTable, checkpoints, fingerprint, select_checkpoints
from utils.precision import autocast, memory_format
from utils.rundir import CONFIG, check_data, read_config
from utils.theory import predict_run

PREDICTED = ("predicted_positive", "predicted_negative", "predicted_bias")
COLUMNS = ("epoch", "split", *MEASURES, *PREDICTED)
PICTURE, OVERLAY = "nc_curves.png", "nc_curves_overlay.png"
# What a prediction depends on besides model and data.
PREDICTION_SETTINGS = (
    *("loss", "sep_decay", "smoothing", "augment", "batch_size"),
    *("weight_decay", "feature_decay_rate", "weight_decay_bias"),
)
SHOWN = {
    "top1": ("top-1 %", "{:.2f}"),
    "uniform_accuracy": ("uniform %", "{:.2f}"),
    "nc1": ("NC1", "{:.3g}"),
    "nc2": ("NC2", "{:.4f}"),
    "nc2_h": ("NC2_h", "{:.4f}"),
    "nc3": ("NC3", "{:.4f}"),
    "nc4": ("NC4", "{:.4f}"),
    "compactness": ("compact.", "{:.4f}"),
    "distinctiveness": ("distinct.", "{:.4f}"),
    "positive_mean": ("positive", "{:.3f}"),
    "negative_mean": ("negative", "{:.3f}"),
    "bias_mean": ("bias", "{:.3f}"),
}
SHOWN_PREDICTED = dict(zip(PREDICTED, ("pred. pos.", "pred. neg.", "pred. bias"), strict=True))


class CheckpointError(Exception):
    """One checkpoint cannot be evaluated; the others can."""


@dataclass
class Job:
    """A run directory and what of it is to be evaluated."""

    directory: Path
    settings: dict[str, Any]
    facts: dict[str, Any]  # of the data set, as the run knew it; empty for bare weights
    chosen: dict[int, Path]

    @property
    def name(self) -> str:
        return self.directory.resolve().name


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


def open_job(directory: Path, args: argparse.Namespace) -> Job:
    """Read what a run directory says of itself. Raises UserError."""
    chosen = select_checkpoints(directory, args.checkpoints)
    if (directory / CONFIG).exists():
        config = read_config(directory)
        settings = checked_settings(config["settings"], directory / CONFIG)
        return Job(directory, settings, config["data"], chosen)
    return Job(directory, bare_settings(args, bias_mode_of(directory)), {}, chosen)


def refuse_without_effect(args: argparse.Namespace, jobs: list[Job]) -> None:
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


def overlay_directory(args: argparse.Namespace, jobs: list[Job]) -> Path:
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
    """Evaluates one job after another; data set, batches and model are built once for all jobs
    that share them."""

    def __init__(
        self,
        args: argparse.Namespace,
        device: torch.device,
        splits: tuple[str, ...],
        console: Console,
    ) -> None:
        self._args, self._device, self._splits, self._console = args, device, splits, console
        self._autocast = autocast(args.precision, device)
        self._built: dict[str, tuple[Any, Any]] = {}

    def evaluate(self, job: Job) -> tuple[MetricsTable, int]:
        """The run's table with the chosen rows computed, and how many checkpoints failed."""
        rows = MetricsTable(job.directory, COLUMNS, optional=PREDICTED)
        todo, prints = self._missing(job, rows)
        total = sum(len(splits) for splits in todo.values())
        kept = len(job.chosen) * len(self._splits) - total
        if total:
            try:
                self._model(job)
            except UserError as error:  # the data set is missing, say: one line for the whole run
                complain(error)
                return rows, len(todo)
        progress = Progress(self._console, job.name, total, unit="split")
        computed = failed = 0
        for epoch, splits in todo.items():
            try:
                for split, values in self._measured(job, epoch, splits):
                    values |= self._predicted(job)
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

    def _missing(self, job: Job, rows: MetricsTable) -> tuple[dict[int, list[str]], dict[int, str]]:
        """The splits to compute of each chosen epoch, and the fingerprints of the checkpoints."""
        prints = {e: fingerprint(p, *self._depends_on(job)) for e, p in job.chosen.items()}
        unheld = {
            epoch: [
                split for split in self._splits if not rows.holds((epoch, split), prints[epoch])
            ]
            for epoch in job.chosen
        }
        for epoch, splits in unheld.items():
            for split in splits:
                rows.drop((epoch, split))
        if self._args.force:
            return {epoch: list(self._splits) for epoch in job.chosen}, prints
        return {epoch: splits for epoch, splits in unheld.items() if splits}, prints

    def _depends_on(self, job: Job) -> tuple[Any, ...]:
        """What rows depend on besides the checkpoint."""
        settings = {key: job.settings[key] for key in ("model", *DATA_SETTINGS, *MODEL_SETTINGS)}
        if job.facts:  # they tell a data set that moved from one that changed
            del settings["data_dir"]
        decays = [job.settings[key] for key in PREDICTION_SETTINGS]
        return self._args.precision, self._args.bias_added, settings, decays, job.facts

    def _measured(
        self, job: Job, epoch: int, splits: list[str]
    ) -> Iterator[tuple[str, dict[str, float]]]:
        """Each split and its measures under one checkpoint. Raises CheckpointError."""
        path = job.chosen[epoch]
        data, model = self._data(job), self._model(job)
        try:
            load_weights(model, path, self._device, bias_added=self._args.bias_added)
        except UserError as error:
            raise CheckpointError(str(error)) from error
        weight, bias = model.fc.weight.detach(), model.fc.bias_vector().detach()
        for split in splits:
            extracted = extract(model, self._batches(job, data, split), self._autocast)
            try:
                yield split, measure(extracted, weight, bias)
            except ValueError as error:
                raise CheckpointError(f"{path}, {split} set: {error}") from error

    def _predicted(self, job: Job) -> dict[str, float | None]:
        """The exact minimum for a run with --sep_decay; None for each where none is claimed."""
        if not job.facts:
            return dict.fromkeys(PREDICTED)
        dim = self._model(job).feature_dim
        prediction = predict_run(job.settings, self._class_sizes(job), dim)
        if prediction is None:
            return dict.fromkeys(PREDICTED)
        scores = prediction.positive_score, prediction.negative_score, prediction.bias
        return dict(zip(PREDICTED, scores, strict=True))

    def _class_sizes(self, job: Job) -> list[int]:
        """Training images per class, from the training split where it is loaded."""
        data = self._data(job)
        split = data.train if data.train is not None else data.test
        counts = torch.bincount(split.labels.cpu(), minlength=data.num_classes).double()
        # The test set's shares, where it alone is loaded, at the training set's size.
        total = job.facts.get("train_size", len(split))
        return (counts * total / len(split)).tolist()

    def _data(self, job: Job) -> DataSet:
        identity = [job.settings[key] for key in DATA_SETTINGS]
        data = self._once("data", identity, lambda: self._load(job))
        check_data(job.directory, job.facts, data.facts())
        return data

    def _load(self, job: Job) -> DataSet:
        workers = self._args.num_workers
        settings = job.settings if workers is None else {**job.settings, "num_workers": workers}
        return rebuild_data(settings, self._args.data_dir, self._splits)

    def _batches(self, job: Job, data: DataSet, split: str) -> BatchLoader:
        workers = self._args.num_workers
        options = {
            "batch_size": self._args.batch_size,
            "device": self._device,
            "num_workers": job.settings["num_workers"] if workers is None else workers,
            "memory_format": self._memory_format(job),
        }
        identity = data, options["memory_format"]
        return self._once(split, identity, lambda: split_batches(data, split, **options))

    def _model(self, job: Job) -> nn.Module:
        data = self._data(job)
        options = [job.settings[key] for key in ("model", *MODEL_SETTINGS)]
        identity = options, data.num_classes, data.image_shape
        placement = {"device": self._device, "memory_format": self._memory_format(job)}
        return self._once(
            "model", identity, lambda: rebuild_model(job.settings, data).to(**placement)
        )

    def _memory_format(self, job: Job) -> torch.memory_format:
        return memory_format(self._device, job.settings["model"], self._args.precision)

    def _once(self, kind: str, identity: Any, build: Any) -> Any:
        """What `build` returns, kept until one of its kind with another identity is asked for."""
        if kind not in self._built or self._built[kind][0] != identity:
            self._built.pop(kind, None)  # frees the memory of the last one first
            self._built[kind] = identity, build()
        return self._built[kind][1]


def draw(curves: list[Curve], path: Path, console: Console) -> int:
    """Write a picture; returns 1 where it cannot be, 0 else."""
    try:
        save_figure(nc_figure(curves), path)
    except UserError as error:
        complain(error)
        return 1
    console.say(f"wrote {path}")
    return 0


def curve_of(job: Job, rows: MetricsTable) -> Curve:
    ordered = [rows.rows[key] for key in rows.keys]
    return Curve(job.name, job.settings["loss"], job.settings["optimizer"], ordered)


def printed(jobs: list[Job], tables: list[MetricsTable], splits: tuple[str, ...]) -> str:
    """One aligned table of all chosen rows."""
    # A bias is any where CE leaves it free; no column where nothing is predicted at all.
    predicted = {} if not any(map(has_prediction, tables)) else SHOWN_PREDICTED
    titles = [*(title for title, _ in SHOWN.values()), *predicted.values()]
    header = ["run", "epoch", "split", *titles]
    lines = []
    for job, rows in zip(jobs, tables, strict=True):
        for key in ((epoch, split) for epoch in job.chosen for split in splits):
            if key in rows.rows:
                values = [form.format(rows.rows[key][name]) for name, (_, form) in SHOWN.items()]
                exact = [rows.rows[key][name] for name in predicted]
                values += ["-" if value is None else f"{value:.3f}" for value in exact]
                lines.append([job.name, str(key[0]), key[1], *values])
    return table(header, lines)


def has_prediction(rows: MetricsTable) -> bool:
    return any(row["predicted_positive"] is not None for row in rows.rows.values())


def complain(error: Exception | str) -> None:
    print(f"eval_nc.py: error: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
