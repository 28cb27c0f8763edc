"""Draw violins of decision scores and classifier biases of several runs, one panel per loss and
optimizer.

python eval_scores.py RUN [RUN …] --by bias_init_mean --out scores.png
"""

from args import eval_scores_parser, stored_run
from utils.signals import StopSignal

if __name__ == "__main__":
    eval_scores_parser().parse_args()  # --help and a wrong flag are answered before torch
    StopSignal("stopped; nothing was written").install()

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from args import SWEPT
from figures.scores import Violins, draw_violins, list_outlines, list_summaries
from figures.style import save_figure
from metrics.distributions import compute_distribution, compute_score_distributions
from rundir.checkpoints import select_checkpoints
from rundir.rebuild import Rebuilder, TrainedRun
from utils.console import Console, Progress, table
from utils.device import is_out_of_memory, pick_device
from utils.errors import UserError
from utils.files import check_picture, write_csv

X_LABELS = {
    "bias_init_mean": "initial mean of the bias",
    "weight_decay_bias": "decay of the bias, $\\lambda_b$",
    "run": "run",
}
# What tells the panels of one figure apart, if it differs between the runs, besides loss and
# optimizer.
PANEL_SETTINGS = ("model", "dataset", "augment")


def main(argv: list[str] | None = None) -> int:
    args = eval_scores_parser().parse_args(argv)
    try:
        with StopSignal("stopped; nothing was written"):
            draw(args)
    except UserError as error:
        print(f"eval_scores.py: error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(
            f"eval_scores.py: error: out of memory with --batch_size {args.batch_size}: a smaller "
            "one may fit",
            file=sys.stderr,
        )
        return 2
    return 0


def draw(args: argparse.Namespace) -> None:
    """Evaluate the runs, write picture and numbers, print the means. Raises UserError."""
    # Every mistake that can be seen now is told before the work begins.
    picture = Path(args.out)
    check_picture("--out", picture)
    runs = [open_run(Path(path)) for path in args.runs]
    checkpoints = [chosen_checkpoint(run.directory, args.checkpoint) for run in runs]
    check_together(runs)
    by = args.by or differing(runs)
    runs, checkpoints = in_order(runs, checkpoints, by)
    places = places_of(runs, by)
    panels = panels_of(runs)

    device, device_name = pick_device(args.gpu_id)
    console = Console()
    console.say(f"device {device_name}")
    rebuilder = Rebuilder(device, (args.split,), batch_size=args.batch_size, data_dir=args.data_dir)
    progress = Progress(console, "scores", len(runs), unit="run")
    violins = []
    for i, (run, checkpoint) in enumerate(zip(runs, checkpoints, strict=True)):
        values, predicted = evaluate(rebuilder, run, checkpoint, args.split)
        violins.append(Violins(panels[i], places[i], values, predicted))
        if progress.due():
            progress.show(i + 1, run.name)
    progress.close()
    save_figure(draw_violins(violins, X_LABELS[by], title_of(runs, args)), picture)
    numbers = write_numbers(runs, violins, picture)
    console.say(printed(runs, violins))
    console.say("\n" + "\n".join(f"wrote {path}" for path in (picture, *numbers)))


def open_run(directory: Path) -> TrainedRun:
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory")
    return TrainedRun(directory, *stored_run(directory))


def chosen_checkpoint(directory: Path, which: str) -> Path:
    """The file of `last`, `best` or an epoch's number. Raises UserError."""
    if which not in ("last", "best") and not re.fullmatch(r"\d+", which):
        raise UserError(f"--checkpoint {which!r}: last, best or the number of an epoch")
    return next(iter(select_checkpoints(directory, which).values()))


def check_together(runs: Sequence[TrainedRun]) -> None:
    """Refuse runs that one figure cannot hold. Raises UserError."""
    if len({run.directory.resolve() for run in runs}) < len(runs):
        raise UserError("a run is named twice")
    first = runs[0]
    for run in runs[1:]:
        ours, theirs = (part.facts.get("num_classes") for part in (first, run))
        if ours != theirs:
            raise UserError(
                f"runs of different class counts do not share a figure: {first.directory} has "
                f"{ours} classes, {run.directory} {theirs}"
            )


def differing(runs: Sequence[TrainedRun]) -> str:
    """The first swept setting that is not the same in all runs, else "run"."""
    return next((key for key in SWEPT if len({run.settings[key] for run in runs}) > 1), "run")


def in_order(
    runs: Sequence[TrainedRun], checkpoints: Sequence[Path], by: str
) -> tuple[list[TrainedRun], list[Path]]:
    """Panels CE before BCE, SGD before AdamW; within them by the swept setting (the bias decay
    falling, as in the paper), and by run in the order given."""

    def key(pair: tuple[TrainedRun, Path]) -> tuple[Any, ...]:
        settings = pair[0].settings
        panel = *(str(settings[name]) for name in PANEL_SETTINGS), settings["loss"] != "CE"
        swept = settings[by] if by != "run" else 0
        swept = -swept if by == "weight_decay_bias" else swept
        return *panel, settings["loss"], settings["optimizer"] != "SGD", swept, settings["seed"]

    pairs = sorted(zip(runs, checkpoints, strict=True), key=key)
    return [run for run, _ in pairs], [path for _, path in pairs]


def panels_of(runs: Sequence[TrainedRun]) -> list[str]:
    shown = [key for key in PANEL_SETTINGS if len({run.settings[key] for run in runs}) > 1]
    return [
        ", ".join(str(run.settings[key]) for key in (*shown, "loss", "optimizer")) for run in runs
    ]


def title_of(runs: Sequence[TrainedRun], args: argparse.Namespace) -> str:
    """What all runs share: network and data set, and what of it was passed through."""
    shared = [
        str(runs[0].settings[key])
        for key in ("model", "dataset")
        if len({run.settings[key] for run in runs}) == 1
    ]
    split = {"train": "training set", "test": "test set"}[args.split]
    epoch = {"last": "last epoch", "best": "best epoch"}.get(
        args.checkpoint, f"epoch {args.checkpoint}"
    )
    return ", ".join([" on ".join(shared), split, epoch] if shared else [split, epoch])


def places_of(runs: Sequence[TrainedRun], by: str) -> list[str]:
    """What stands below each run. Raises UserError for two of one panel at the same place."""
    if by == "run":
        return [run.name for run in runs]
    values = [f"{run.settings[by]:g}" for run in runs]
    taken = list(zip(panels_of(runs), values, strict=True))
    if len(set(taken)) == len(taken):
        return values
    seeded = [f"{value}, s{run.settings['seed']}" for value, run in zip(values, runs, strict=True)]
    taken = list(zip(panels_of(runs), seeded, strict=True))
    for place in taken:
        if taken.count(place) > 1:
            twins = [run.name for run, other in zip(runs, taken, strict=True) if other == place]
            raise UserError(
                f"{twins[0]} and {twins[1]} have the same --{by}, loss, optimizer and seed: "
                "give --by run"
            )
    return seeded


def evaluate(rebuilder: Rebuilder, run: TrainedRun, checkpoint: Path, split: str):
    """The distributions by kind and the predictions by kind. Raises UserError."""
    extracted = rebuilder.extract(run, checkpoint, split)
    classifier = rebuilder.model(run).fc
    try:
        positive, negative = compute_score_distributions(
            extracted.features, extracted.labels, classifier.weight.detach()
        )
    except ValueError as error:
        raise UserError(f"{checkpoint}, {split} set: {error}") from error
    values = {"positive_score": positive}
    if run.settings["bias_mode"] != "none":
        values["bias"] = compute_distribution(classifier.bias_vector().detach())
    values["negative_score"] = negative
    exact = rebuilder.prediction(run)
    return values, {kind: getattr(exact, kind, None) for kind in values}


def write_numbers(
    runs: Sequence[TrainedRun], violins: Sequence[Violins], picture: Path
) -> list[Path]:
    """The statistics and the outlines that were drawn, as CSV beside the picture."""
    written = []
    for rows_of, ending in ((list_summaries, ".csv"), (list_outlines, "_outlines.csv")):
        pairs = zip(runs, violins, strict=True)
        rows = [row for run, drawn in pairs for row in rows_of(str(run.directory), drawn)]
        path = picture.with_name(picture.stem + ending)
        write_csv(path, list(rows[0]), rows)
        written.append(path)
    return written


def printed(runs: Sequence[TrainedRun], violins: Sequence[Violins]) -> str:
    header = ["run", "panel", "x", "score", "mean", "std", "min", "max", "predicted"]
    lines = []
    for run, drawn in zip(runs, violins, strict=True):
        for row in list_summaries(run.name, drawn):
            numbers = [row[key] for key in ("mean", "std", "min", "max", "predicted")]
            shown = ["-" if number is None else f"{number:.3f}" for number in numbers]
            lines.append([run.name, drawn.panel, drawn.place, row["kind"], *shown])
    return "\n" + table(header, lines)


if __name__ == "__main__":
    sys.exit(main())
