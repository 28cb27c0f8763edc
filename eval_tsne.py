"""Draw t-SNE embeddings of runs' features over the epochs, the runs side by side.

python eval_tsne.py model_weights/<run> model_weights/<run> --checkpoints 6-13
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from input_pipeline import SPLITS
from rundir.bare import add_bare_flags, parse_with_bare_flags
from utils.cli import (
    MISTAKE,
    Count,
    Natural,
    Parser,
    PathText,
    Real,
    add_evaluation_flags,
    check_value,
    make_directory,
    name_of,
    print_error,
    run_command,
)
from utils.signals import StopSignal

PROGRAM = "eval_tsne.py"
STOP_MESSAGE = "stopped; the pictures drawn so far are whole"
FORMATS = ("png", "pdf", "svg")


def build_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Draw t-SNE embeddings of runs' features, the runs side by side.\n"
        "Writes a picture per epoch (tsne_epoch_NNN), tsne.gif over them, and tsne.csv. "
        "More: docs/figures.md",
    )
    _add_choice(parser.add_argument_group("what to draw"))
    how = parser.add_argument_group("how")
    how.add_argument(
        "--perplexity",
        type=check_value(Annotated[Real, Field(gt=1)]),
        default=30.0,
        metavar="X",
        help="effective number of neighbours, at most a third of the samples (default: 30)",
    )
    how.add_argument(
        "--seed",
        type=check_value(Natural),
        default=0,
        metavar="N",
        help="of the embeddings (default: 0)",
    )
    add_evaluation_flags(how)
    add_bare_flags(parser)
    return parser


def parse_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags. Exits with status 2 and one line on a mistake."""
    return parse_with_bare_flags(build_parser(), argv)


def _add_choice(group: Any) -> None:
    """Add the flags that choose the content and the format of the pictures."""
    add = group.add_argument
    add(
        "runs",
        nargs="+",
        type=check_value(PathText),
        metavar="RUN",
        help="run directories of one data set, a panel for each",
    )
    add(
        "--checkpoints",
        default="last",
        metavar="WHICH",
        help="last, all, best, or epochs such as 1,5,10-20; drawn if all runs have them "
        "(default: last)",
    )
    add(
        "--split",
        type=check_value(name_of(SPLITS, "split")),
        default="train",
        metavar="NAME",
        help="train (without augmentation) or test (default: train)",
    )
    add(
        "--samples_per_class",
        type=check_value(Count),
        default=300,
        metavar="N",
        help="the first N samples of each class, or all if there are fewer (default: 300)",
    )
    add(
        "--classes",
        metavar="NAMES",
        help="names or numbers (from 0) of the classes to draw, such as cat,dog,7 (default: all)",
    )
    add(
        "--out",
        type=check_value(PathText),
        metavar="DIR",
        help="for the files (default: tsne in the first run's directory)",
    )
    add(
        "--format",
        type=check_value(name_of(FORMATS, "format")),
        default="png",
        metavar="NAME",
        help="png, pdf or svg of the pictures (default: png)",
    )
    add(
        "--fps",
        type=check_value(Annotated[Real, Field(ge=0.01, lt=50.5)]),
        default=2.0,
        metavar="X",
        help="epochs per second of the GIF, 0.01 to 50; the last is held longer (default: 2)",
    )


if __name__ == "__main__":
    parse_flags()  # --help and a wrong flag are answered before torch is imported
    StopSignal(STOP_MESSAGE).install()

import sys

import numpy as np
import torch
from PIL import Image

from figures.style import save_figure
from figures.tsne import Panel, draw_embeddings, render_image, write_gif
from input_pipeline.selection import select_first
from metrics import SPLIT_NAMES
from metrics.tsne import check_perplexity, embed, load_library, scale_to_unit_square
from rundir.labels import describe_runs, describe_subject, name_runs, show_setting
from rundir.opening import find_classes, open_chosen_runs
from rundir.rebuild import Rebuilder
from rundir.trained import ChosenRun, refuse_idle_flag
from utils.console import Console, Progress, escape, format_count
from utils.device import pick_device
from utils.errors import UserError
from utils.files import write_csv

TABLE, ANIMATION = "tsne.csv", "tsne.gif"
COLUMNS = ("epoch", "run", "sample", "label", "x", "y")


class EpochError(Exception):
    """One epoch cannot be drawn; the others can."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_flags(argv)
    return run_command(
        PROGRAM, lambda stop: draw_runs(args), stopped=STOP_MESSAGE, batch_size=args.batch_size or 0
    )


def draw_runs(args: argparse.Namespace) -> int:
    """Embed and draw; return 2 if an epoch could not be drawn, else 0."""
    # Report all mistakes that can be found now, before the work begins.
    load_library()
    console = Console()
    # `last` means the last epoch that all runs have: this needs the epochs of every run.
    selection = "all" if args.checkpoints == "last" else args.checkpoints
    runs = open_chosen_runs(args.runs, selection, args)
    names = check_together(runs, args.data_dir)
    refuse_idle_flag("data_dir", args.data_dir, runs)
    classes = choose_classes(args.classes, names)
    epochs = choose_epochs(runs, args.checkpoints, console)
    device, device_name = pick_device(args.gpu_id)
    console.say(f"device {device_name} for the features, one CPU core for t-SNE")
    chosen = torch.tensor(list(classes))

    def select(labels: torch.Tensor) -> torch.Tensor:
        first = select_first(labels, args.samples_per_class)
        return first[torch.isin(labels[first], chosen)]

    rebuilder = Rebuilder(
        device,
        (args.split,),
        batch_size=args.batch_size,
        data_dir=args.data_dir,
        select=select,
        keep_all=True,
    )
    labels = check_samples(rebuilder, runs, args.split)
    check_perplexity(args.perplexity, len(labels))
    usual = runs[0].directory / ("tsne_ema" if args.ema else "tsne")
    out = make_directory("--out", Path(args.out) if args.out else usual)
    return Drawing(args, runs, rebuilder, classes, out, console).draw(epochs)


def check_together(runs: Sequence[ChosenRun], data_dir: str | None) -> list[str]:
    """Refuse runs of several data sets; return the class names of the one.

    Raises a UserError that names the first other run.
    """
    if len({run.directory.resolve() for run in runs}) < len(runs):
        raise UserError("a run is named twice")
    first = runs[0]
    names = find_classes(first, data_dir)
    for run in runs[1:]:
        others = find_classes(run, data_dir)
        shown, other_shown = (show_setting(each, "dataset") for each in (first, run))
        if len(names) != len(others):
            raise UserError(
                f"one figure shows one data set: {first.directory} has {len(names)} classes, "
                f"{run.directory} has {len(others)}"
            )
        if first.settings.dataset != run.settings.dataset or names != others:
            classes = " with other classes" if shown == other_shown else ""
            raise UserError(
                f"one figure shows one data set: {first.directory} was trained on {shown}, "
                f"{run.directory} on {other_shown}{classes}"
            )
    return names


def choose_classes(text: str | None, names: Sequence[str]) -> dict[int, str]:
    """Return the classes of --classes, or all, by number. Raises UserError."""
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


def choose_epochs(runs: Sequence[ChosenRun], selection: str, console: Console) -> list[int]:
    """Return the chosen epochs that all runs have. Raises UserError if there is none."""
    common = sorted(set.intersection(*(set(run.chosen) for run in runs)))
    left_out = sorted({epoch for run in runs for epoch in run.chosen} - set(common))
    if not common:
        held = ", ".join(f"{run.name} {format_epochs(list(run.chosen))}" for run in runs)
        raise UserError(f"--checkpoints {selection}: the runs have no epoch in common ({held})")
    if selection == "last":
        left_out = [epoch for epoch in left_out if epoch > common[-1]]
        common = common[-1:]
    if left_out:
        console.say(f"not drawn, as not all runs have them: epochs {format_epochs(left_out)}")
    return common


def format_epochs(epochs: Sequence[int]) -> str:
    """Format [1, 2, 3, 5] -> "1-3, 5"."""
    spans: list[list[int]] = []
    for epoch in epochs:
        if spans and epoch == spans[-1][1] + 1:
            spans[-1][1] = epoch
        else:
            spans.append([epoch, epoch])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)


def check_samples(rebuilder: Rebuilder, runs: Sequence[ChosenRun], split: str) -> torch.Tensor:
    """Build all data and networks; return the labels of the samples to draw, int64 [N].

    Raises UserError if the runs do not have the same samples.
    """
    labels = [getattr(rebuilder.data(run), split).labels for run in runs]
    for run, own in zip(runs, labels, strict=True):
        if not torch.equal(own, labels[0]):
            raise UserError(
                f"{runs[0].directory} and {run.directory} do not have the same samples: "
                "try a smaller --samples_per_class"
            )
        rebuilder.model(run)
    return labels[0]


class Drawing:
    """Embedding and drawing of one epoch after another; files are whole after each."""

    def __init__(
        self,
        args: argparse.Namespace,
        runs: Sequence[ChosenRun],
        rebuilder: Rebuilder,
        classes: dict[int, str],
        out: Path,
        console: Console,
    ) -> None:
        self._args, self._runs, self._rebuilder = args, runs, rebuilder
        self._classes, self._out, self._console = classes, out, console
        self._names = name_runs(runs)
        subject = describe_subject(runs)
        self._title = ", ".join(filter(None, (subject, SPLIT_NAMES[args.split])))
        # All panels show the same epoch: the number of epochs is no difference between runs.
        self._title += ", EMA" if args.ema else ""
        self._panel_titles = describe_runs(runs, ignore=("epochs",))
        self._embeddings: list[np.ndarray] = []
        self._rows: list[dict[str, Any]] = []
        self._frames: list[Image.Image] = []

    def draw(self, epochs: Sequence[int]) -> int:
        """Write all files; return 2 if an epoch could not be drawn, else 0."""
        total = len(epochs) * len(self._runs)
        progress = Progress(self._console, "t-SNE", total, unit="panel")
        failed = 0
        for index, epoch in enumerate(epochs):
            try:
                features = [self._extract(run, epoch) for run in self._runs]
                self._embed(features, epoch, progress, index * len(self._runs))
            except EpochError as error:
                print_error(PROGRAM, f"{error}; epoch {epoch} is left out")
                failed += 1
                continue
            self._write(epoch)
        progress.close()
        if self._frames:
            write_gif(self._out / ANIMATION, self._frames, self._args.fps)
            pictures = format_count(len(self._frames), "picture")
            place = escape(str(self._out))
            self._console.say(f"{place}: {pictures}, {ANIMATION} and {TABLE} written")
        return MISTAKE if failed else 0

    def _extract(self, run: ChosenRun, epoch: int) -> np.ndarray:
        """Return float32 features [N, d] of a run under one checkpoint. Raises EpochError."""
        try:
            extracted = self._rebuilder.extract(run, run.chosen[epoch], self._args.split)
        except UserError as error:
            raise EpochError(str(error)) from error
        return extracted.features.cpu().numpy()

    def _embed(
        self, features: Sequence[np.ndarray], epoch: int, progress: Progress, done: int
    ) -> None:
        """Embed features, beginning at the embeddings of the last epoch. Raises EpochError."""
        principal: Sequence[np.ndarray | None] = [None] * len(self._runs)
        starts = self._embeddings or principal
        embeddings = []
        for index, (run, own, start) in enumerate(zip(self._runs, features, starts, strict=True)):

            def report(share: float, before: int = done + index, name: str = run.name) -> None:
                if progress.is_due():
                    progress.show(round(before + share, 2), f"epoch {epoch}, {name}")

            options = {"perplexity": self._args.perplexity, "seed": self._args.seed}
            try:
                embeddings.append(embed(own, start=start, on_progress=report, **options))
            except ValueError as error:
                raise EpochError(f"{run.chosen[epoch]}: {error}") from error
        self._embeddings = embeddings

    def _write(self, epoch: int) -> None:
        """Write the picture of the current embeddings, and the table with their rows."""
        panels = []
        split = self._args.split
        for run, name, title, embedding in zip(
            self._runs, self._names, self._panel_titles, self._embeddings, strict=True
        ):
            labels = getattr(self._rebuilder.data(run), split).labels.numpy()
            positions = scale_to_unit_square(embedding)
            panels.append(Panel(title, positions, labels))
            samples = self._rebuilder.samples(run, split).tolist()
            self._rows += [
                dict(zip(COLUMNS, (epoch, name, *point), strict=True))
                for point in zip(samples, labels.tolist(), *positions.T.tolist(), strict=True)
            ]
        figure = draw_embeddings(f"{self._title}: epoch {epoch}", panels, self._classes)
        self._frames.append(render_image(figure))
        save_figure(figure, self._out / f"tsne_epoch_{epoch:03d}.{self._args.format}")
        write_csv(self._out / TABLE, COLUMNS, self._rows)


if __name__ == "__main__":
    sys.exit(main())
