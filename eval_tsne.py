"""Draw t-SNE embeddings of runs' features over the epochs, the runs side by side.

python eval_tsne.py model_weights/<run> model_weights/<run> --checkpoints 6-13
"""

from args import eval_tsne_parser, stored_run
from utils.signals import StopSignal

STOPPED = "stopped; the pictures drawn so far are whole"

if __name__ == "__main__":
    eval_tsne_parser().parse_args()  # --help and a wrong flag are answered before torch is imported
    StopSignal(STOPPED).install()

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from figures.style import save_figure
from figures.tsne import Panel, image_of, titles, tsne_figure, write_gif
from input_pipeline.loader import BatchLoader
from input_pipeline.selection import select_first
from input_pipeline.splits import DataSet
from metrics.extraction import extract, split_batches
from metrics.tsne import check_perplexity, embed, library, unit_square
from rundir.checkpoints import select_checkpoints
from rundir.config import check_data
from rundir.names import CONFIG
from rundir.rebuild import DATA_SETTINGS, MODEL_SETTINGS, ChosenRun, rebuild_data, rebuild_model
from rundir.weights import load_weights
from utils.console import Console, Progress
from utils.device import is_out_of_memory, pick_device
from utils.errors import UserError
from utils.files import write_csv

TABLE, ANIMATION = "tsne.csv", "tsne.gif"
COLUMNS = ("epoch", "run", "sample", "label", "x", "y")


@dataclass
class Source:
    """What the features of a run's samples are extracted with; runs share what is equal.

    Attributes:
        samples: int64 [N], their numbers in the split.
        labels: int64 [N].
    """

    model: nn.Module
    batches: BatchLoader
    samples: np.ndarray
    labels: np.ndarray


def main(argv: list[str] | None = None) -> int:
    args = eval_tsne_parser().parse_args(argv)
    try:
        with StopSignal(STOPPED):
            return draw_runs(args)
    except UserError as error:
        complain(error)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        complain(f"out of memory with --batch_size {args.batch_size}: a smaller one may fit")
        return 2


def draw_runs(args: argparse.Namespace) -> int:
    """Embed and draw; 2 if an epoch could not be drawn, else 0."""
    # Every mistake that can be seen now is told before the work begins.
    library()
    console = Console()
    jobs = [open_job(Path(path), args) for path in args.runs]
    check_together(jobs)
    if args.data_dir and jobs[0].settings["dataset"] == "digits":
        raise UserError("--data_dir has no effect here: digits come with scikit-learn")
    classes = chosen_classes(args.classes, jobs[0].facts["classes"])
    epochs = common_epochs(jobs, args.checkpoints, console)
    device, device_name = pick_device(args.gpu_id)
    console.say(f"device {device_name} for the features, one CPU core for t-SNE")
    sources = build_sources(args, jobs, list(classes), device)
    check_perplexity(args.perplexity, len(sources[0].labels))
    out = output_directory(args.out, jobs)
    return Drawing(args, jobs, sources, classes, out, console).draw(epochs)


def open_job(directory: Path, args: argparse.Namespace) -> ChosenRun:
    """Read what a run directory says of itself. Raises UserError."""
    # Which epoch is the last of all is known when all runs' epochs are.
    chosen = select_checkpoints(
        directory, "all" if args.checkpoints == "last" else args.checkpoints
    )
    run = ChosenRun(directory, *stored_run(directory), chosen)
    if not isinstance(run.facts.get("classes"), list):
        raise UserError(f"{directory / CONFIG} is damaged: it does not name the classes")
    return run


def check_together(jobs: list[ChosenRun]) -> None:
    """One figure is of one data set. Raises UserError that names the first run of another."""
    if len({job.directory.resolve() for job in jobs}) < len(jobs):
        raise UserError("a run is named twice")
    first = jobs[0]
    for job in jobs[1:]:
        if len(job.facts["classes"]) != len(first.facts["classes"]):
            raise UserError(
                f"one figure is of one data set: {first.directory} has "
                f"{len(first.facts['classes'])} classes, {job.directory} has "
                f"{len(job.facts['classes'])}"
            )
        data_sets = [each.settings["dataset"] for each in (first, job)]
        if data_sets[0] != data_sets[1] or job.facts["classes"] != first.facts["classes"]:
            raise UserError(
                f"one figure is of one data set: {first.directory} was trained on {data_sets[0]}, "
                f"{job.directory} on {data_sets[1]}"
                + (" with other classes" if data_sets[0] == data_sets[1] else "")
            )


def chosen_classes(text: str | None, names: list[str]) -> dict[int, str]:
    """The classes of --classes, or all, by number. Raises UserError."""
    if text is None:
        return dict(enumerate(names))
    chosen = {}
    for word in (part.strip() for part in text.split(",")):
        number = names.index(word) if word in names else int(word) if word.isdecimal() else -1
        if not 0 <= number < len(names):
            raise UserError(
                f"--classes: {word!r} is no class; there are {len(names)}, "
                f"{names[0]!r} (0) to {names[-1]!r} ({len(names) - 1})"
            )
        chosen[number] = names[number]
    return dict(sorted(chosen.items()))


def common_epochs(jobs: list[ChosenRun], selection: str, console: Console) -> list[int]:
    """The chosen epochs that all runs have. Raises UserError if there is none."""
    common = sorted(set.intersection(*(set(job.chosen) for job in jobs)))
    left_out = sorted({epoch for job in jobs for epoch in job.chosen} - set(common))
    if not common:
        held = ", ".join(f"{job.name} {listed(list(job.chosen))}" for job in jobs)
        raise UserError(f"--checkpoints {selection}: the runs have no epoch in common ({held})")
    if selection == "last":
        left_out = [epoch for epoch in left_out if epoch > common[-1]]
        common = common[-1:]
    if left_out:
        console.say(f"not drawn, as not all runs have them: epochs {listed(left_out)}")
    return common


def listed(epochs: list[int]) -> str:
    """[1, 2, 3, 5] -> "1-3, 5"."""
    spans: list[list[int]] = []
    for epoch in epochs:
        if spans and epoch == spans[-1][1] + 1:
            spans[-1][1] = epoch
        else:
            spans.append([epoch, epoch])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)


def output_directory(out: str | None, jobs: list[ChosenRun]) -> Path:
    """Where the files go, made if need be. Raises UserError."""
    directory = Path(out) if out else jobs[0].directory / "tsne"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot create {directory}: {error.strerror}") from error
    return directory


def build_sources(
    args: argparse.Namespace, jobs: list[ChosenRun], classes: list[int], device: torch.device
) -> list[Source]:
    """What each job's features are extracted with, equal things built once. Raises UserError."""
    built: dict[str, Any] = {}

    def once(identity: Any, build: Callable[[], Any]) -> Any:
        key = repr(identity)
        if key not in built:
            built[key] = build()
        return built[key]

    sources = []
    for job in jobs:
        data_settings = [job.settings[key] for key in DATA_SETTINGS]
        data, samples, facts = once(data_settings, lambda job=job: build_data(args, job, classes))
        check_data(job.directory, job.facts, facts)
        options = {
            "batch_size": args.batch_size,
            "device": device,
            "num_workers": job.settings["num_workers"],
        }
        batches = once(
            [data_settings, "batches"],
            lambda data=data, options=options: split_batches(data, args.split, **options),
        )
        model_settings = [job.settings[key] for key in ("model", *MODEL_SETTINGS)]
        model = once(
            [data.image_shape, *model_settings],
            lambda job=job, data=data: rebuild_model(job.settings, data).to(device),
        )
        labels = getattr(data, args.split).labels.numpy()
        sources.append(Source(model, batches, samples.numpy(), labels))
        if not np.array_equal(labels, sources[0].labels):
            raise UserError(
                f"{jobs[0].directory} and {job.directory} do not have the same samples: "
                "a smaller --samples_per_class may be what both have"
            )
    return sources


def build_data(
    args: argparse.Namespace, job: ChosenRun, classes: list[int]
) -> tuple[DataSet, torch.Tensor, dict[str, Any]]:
    """The data set with the samples to draw alone, their numbers, and the whole set's facts."""
    whole = rebuild_data(job.settings, args.data_dir, (args.split,))
    split = getattr(whole, args.split)
    first = select_first(split.labels, args.samples_per_class)
    samples = first[torch.isin(split.labels[first], torch.tensor(classes))]
    drawn = dataclasses.replace(whole, **{args.split: split.select(samples)})
    return drawn, samples, whole.facts()


class Drawing:
    """Embeds and draws one epoch after another; files are whole after each."""

    def __init__(
        self,
        args: argparse.Namespace,
        jobs: list[ChosenRun],
        sources: list[Source],
        classes: dict[int, str],
        out: Path,
        console: Console,
    ) -> None:
        self._args, self._jobs, self._sources = args, jobs, sources
        self._classes, self._out, self._console = classes, out, console
        names = [job.name for job in jobs]
        unique = len(set(names)) == len(names)
        self._names = names if unique else [str(job.directory) for job in jobs]
        settings = [job.settings for job in jobs]
        self._title, self._panel_titles = titles(settings, self._names, args.split)
        self._embeddings: list[np.ndarray | None] = [None] * len(jobs)
        self._rows: list[dict[str, Any]] = []
        self._frames: list[Image.Image] = []

    def draw(self, epochs: list[int]) -> int:
        """Write all files; 2 if an epoch could not be drawn, else 0."""
        total = len(epochs) * len(self._jobs)
        progress = Progress(self._console, "t-SNE", total, unit="panel")
        failed = 0
        for index, epoch in enumerate(epochs):
            try:
                features = [self._features(i, epoch) for i in range(len(self._jobs))]
                self._embed(features, epoch, progress, index * len(self._jobs))
            except EpochError as error:
                complain(error)
                failed += 1
                continue
            self._write(epoch)
        progress.close()
        if self._frames:
            write_gif(self._out / ANIMATION, self._frames, self._args.fps)
            self._console.say(
                f"{self._out}: {len(self._frames)} pictures, {ANIMATION} and {TABLE} written"
            )
        return 2 if failed else 0

    def _features(self, index: int, epoch: int) -> np.ndarray:
        """float32 [N, d] of a run's samples under one checkpoint. Raises EpochError."""
        source, path = self._sources[index], self._jobs[index].chosen[epoch]
        try:
            load_weights(source.model, path, source.batches.device)
        except UserError as error:
            raise EpochError(f"{error}; epoch {epoch} is left out") from error
        extracted = extract(source.model, source.batches, contextlib.nullcontext())
        return extracted.features.cpu().numpy()

    def _embed(self, features: list[np.ndarray], epoch: int, progress: Progress, done: int) -> None:
        """Take the embeddings on from the last epoch's. Raises EpochError."""
        embeddings = []
        for index, (own, job) in enumerate(zip(features, self._jobs, strict=True)):

            def report(share: float, before: int = done + index, name: str = job.name) -> None:
                if progress.due():
                    progress.show(round(before + share, 2), f"epoch {epoch}, {name}")

            options = {"perplexity": self._args.perplexity, "seed": self._args.seed}
            start = self._embeddings[index]
            try:
                embeddings.append(embed(own, start=start, on_progress=report, **options))
            except ValueError as error:
                path = job.chosen[epoch]
                raise EpochError(f"{path}: {error}; epoch {epoch} is left out") from error
        self._embeddings = embeddings

    def _write(self, epoch: int) -> None:
        """The picture of the embeddings at hand, and the table with their rows."""
        panels = []
        for index, name in enumerate(self._names):
            source, positions = self._sources[index], unit_square(self._embeddings[index])
            panels.append(Panel(self._panel_titles[index], positions, source.labels))
            columns = source.samples.tolist(), source.labels.tolist(), *positions.T.tolist()
            self._rows += [
                dict(zip(COLUMNS, (epoch, name, *point), strict=True))
                for point in zip(*columns, strict=True)
            ]
        figure = tsne_figure(f"{self._title}: epoch {epoch}", panels, self._classes)
        self._frames.append(image_of(figure))
        save_figure(figure, self._out / f"tsne_epoch_{epoch:03d}.{self._args.format}")
        write_csv(self._out / TABLE, COLUMNS, self._rows)


class EpochError(Exception):
    """One epoch cannot be drawn; the others can."""


def complain(error: Exception | str) -> None:
    print(f"eval_tsne.py: error: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
