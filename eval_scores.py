"""Draw violins of decision scores and classifier biases of several runs, one panel per loss and
optimizer.

python eval_scores.py RUN [RUN …] --by bias_init_mean --out scores.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from input_pipeline import SPLITS
from rundir.bare import add_bare_flags, parse_with_bare_flags
from rundir.grouping import SEED, find_setting, format_value, freeze, list_differing, rank
from utils.cli import Parser, PathText, add_evaluation_flags, check_value, name_of, run_command
from utils.errors import UserError
from utils.signals import StopSignal

PROGRAM = "eval_scores.py"
STOP_MESSAGE = "stopped; nothing was written"
# Labels of the x axis; other settings have their name.
X_LABELS = {
    "bias_init_mean": "initial mean of the bias",
    "weight_decay_bias": "decay of the bias, $\\lambda_b$",
}
RUN = "run"
FALLING = "weight_decay_bias"  # its values fall along the x axis, as in the paper


def build_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Draw violins of decision scores and biases of several runs, one panel per "
        "loss and optimizer.\nWrites the picture and, beside it, the numbers as CSV. "
        "More: docs/figures.md",
    )
    add = parser.add_argument
    add("runs", nargs="+", type=check_value(PathText), metavar="RUN", help="run directories")
    add(
        "--by",
        type=check_value(Annotated[str, AfterValidator(check_axis)]),
        metavar="NAME",
        help="the x axis: settings of train.py, joined by commas, or run (default: the one or two "
        "that differ within a panel, else run)",
    )
    add(
        "--split",
        type=check_value(name_of(SPLITS, "split")),
        default="train",
        metavar="NAME",
        help="train or test (default: train)",
    )
    add(
        "--checkpoint",
        default="last",
        metavar="WHICH",
        help="last, best or the number of an epoch (default: last)",
    )
    add(
        "--out",
        type=check_value(PathText),
        required=True,
        metavar="FILE",
        help="the picture: .png, .pdf or .svg; beside it .csv, _outlines.csv of the violins and "
        "_classes.csv of classes that differ (required)",
    )
    add_evaluation_flags(parser)
    add_bare_flags(parser)
    return parser


def check_axis(text: str) -> str:
    """Return the settings of the x axis, joined by commas, or "run". Raises UserError."""
    names = [find_setting(name.strip(), [RUN]) for name in text.split(",")]
    if RUN in names and len(names) > 1:
        raise UserError(f"{text!r}: run stands alone")
    return ",".join(dict.fromkeys(names))


def parse_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags. Exits with status 2 and one line on a mistake."""
    return parse_with_bare_flags(build_parser(), argv)


if __name__ == "__main__":
    parse_flags()  # --help and a wrong flag are answered before torch is imported
    StopSignal(STOP_MESSAGE).install()

import sys

from args import Settings
from figures.scores import RANGE, Violins, draw_violins, list_outlines, list_summaries
from figures.style import save_figure
from metrics import SPLIT_NAMES
from metrics.classes import Values, measure_classes
from metrics.distributions import (
    Distribution,
    compute_distribution,
    compute_score_distributions,
)
from metrics.measures import Evaluation
from rundir.checkpoints import check_single
from rundir.labels import (
    MINOR,
    describe_runs,
    describe_subject,
    name_runs,
    shorten_names,
    show_setting,
)
from rundir.opening import find_classes, open_chosen_runs
from rundir.rebuild import Rebuilder
from rundir.trained import TrainedRun
from theory.minimum import Prediction
from utils.console import Console, Progress, escape, format_table
from utils.device import pick_device
from utils.files import check_picture, write_csv

# Besides loss and optimizer, runs that differ in one of these settings get separate panels.
PANEL_SETTINGS = ("model", "dataset", "augment")
MOST_SWEPT = 2  # settings that the x axis shows unasked
LONGEST_PLACE = 20  # characters of a run's name on the x axis
SPREAD = 1e-6  # exact values that differ by more have a range
CHECKPOINT_NAMES = {"last": "last epoch", "best": "best epoch"}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_flags(argv)
    return run_command(
        PROGRAM, lambda stop: draw(args), stopped=STOP_MESSAGE, batch_size=args.batch_size or 0
    )


def draw(args: argparse.Namespace) -> int:
    """Evaluate the runs, write picture and numbers, print the means. Raises UserError."""
    # Report all mistakes that can be found now, before the work begins.
    picture = Path(args.out)
    check_picture("--out", picture)
    check_single(args.checkpoint)
    opened = open_chosen_runs(args.runs, args.checkpoint, args)
    runs: list[TrainedRun] = list(opened)
    checkpoints = [next(iter(run.chosen.values())) for run in opened]
    check_together(runs, args.data_dir)
    by = args.by or find_swept(runs)
    runs, checkpoints = sort_runs(runs, checkpoints, by)
    places, panels = name_places(runs, by), name_panels(runs)

    device, device_name = pick_device(args.gpu_id)
    console = Console()
    console.say(f"device {device_name}")
    rebuilder = Rebuilder(device, (args.split,), batch_size=args.batch_size, data_dir=args.data_dir)
    progress = Progress(console, "scores", len(runs), unit="run")
    violins, classes = [], []
    for i, (run, checkpoint) in enumerate(zip(runs, checkpoints, strict=True)):
        evaluation, values = evaluate(rebuilder, run, checkpoint, args.split)
        means, ranges = list_predictions(evaluation.prediction, values)
        violins.append(Violins(panels[i], places[i], values, means, ranges))
        classes.append(measure_classes(evaluation))
        if progress.is_due():
            progress.show(i + 1, run.name)
    progress.close()
    heading = compose_heading(runs, args.split, args.checkpoint) + (", EMA" if args.ema else "")
    save_figure(draw_violins(violins, label_axis(by), heading), picture)
    numbers = write_numbers(runs, violins, classes, picture)
    console.say("\n" + format_statistics(runs, violins))
    hidden = find_hidden(runs, by)
    if hidden:
        console.say(f"\nthe x axis shows {by}; the runs differ in {', '.join(hidden)}, too")
    console.say("\n" + "\n".join(f"wrote {escape(str(path))}" for path in (picture, *numbers)))
    return 0


def check_together(runs: Sequence[TrainedRun], data_dir: str | None) -> None:
    """Refuse runs that one figure cannot hold. Raises UserError."""
    if len({run.directory.resolve() for run in runs}) < len(runs):
        raise UserError("a run is named twice")
    first = runs[0]
    for run in runs[1:]:
        ours, theirs = (len(find_classes(part, data_dir)) for part in (first, run))
        if ours != theirs:
            raise UserError(
                f"runs of different class counts do not share a figure: {first.directory} has "
                f"{ours} classes, {run.directory} {theirs}"
            )


def differs(name: str, runs: Sequence[TrainedRun]) -> bool:
    """Return whether a setting is not the same in all runs."""
    return len({freeze(show_setting(run, name)) for run in runs}) > 1


def find_swept(runs: Sequence[TrainedRun]) -> str:
    """Return what differs within a panel, joined by commas; "run" for nothing or too much."""
    swept = list_swept(runs)
    return ",".join(swept) if 0 < len(swept) <= MOST_SWEPT else RUN


def list_swept(runs: Sequence[TrainedRun]) -> list[str]:
    """List the settings, but for the seed, that are not the same in all runs of some panel.

    Those of `X_LABELS` come first.
    """
    ignored = (*PANEL_SETTINGS, "loss", "optimizer", SEED, *MINOR)
    panels: dict[str, list[Settings]] = {}
    for run, panel in zip(runs, name_panels(runs), strict=True):
        panels.setdefault(panel, []).append(run.settings)
    found = {name for each in panels.values() for name in list_differing(each, ignored)}
    return sorted(found, key=lambda name: (name not in X_LABELS, Settings.names().index(name)))


def find_hidden(runs: Sequence[TrainedRun], by: str) -> list[str]:
    """List the settings that differ within a panel and that the x axis does not show."""
    return [] if by == RUN else [name for name in list_swept(runs) if name not in by.split(",")]


def label_axis(by: str) -> str:
    """Return the label of the x axis."""
    return ", ".join(X_LABELS.get(name, name) for name in by.split(","))


def sort_runs(
    runs: Sequence[TrainedRun], checkpoints: Sequence[Path], by: str
) -> tuple[list[TrainedRun], list[Path]]:
    """Sort runs by panel, and within a panel by the swept settings; "run" keeps their order.

    Losses and optimizers stand in the order in which objective/ names them.
    """

    def place(pair: tuple[TrainedRun, Path]) -> tuple[Any, ...]:
        settings = pair[0].settings
        panel = [str(show_setting(pair[0], name)) for name in PANEL_SETTINGS]
        panel_rank = [rank(name, getattr(settings, name)) for name in ("loss", "optimizer")]
        swept = [] if by == RUN else [rank_swept(pair[0], name) for name in by.split(",")]
        return *panel, *panel_rank, *swept, settings.seed

    pairs = sorted(zip(runs, checkpoints, strict=True), key=place)
    return [run for run, _ in pairs], [path for _, path in pairs]


def rank_swept(run: TrainedRun, name: str) -> tuple[Any, ...]:
    """Return the place of a run's value along the x axis."""
    value = show_setting(run, name)
    return rank(name, -value if name == FALLING and value is not None else value)


def name_panels(runs: Sequence[TrainedRun]) -> list[str]:
    """Return the title of each run's panel."""
    names = [name for name in PANEL_SETTINGS if differs(name, runs)]
    names += ["loss", "optimizer"]
    return [", ".join(str(show_setting(run, name)) for name in names) for run in runs]


def compose_heading(runs: Sequence[TrainedRun], split: str, checkpoint: str) -> str:
    """Name the shared model and data set of the runs, the split and the checkpoint."""
    epoch = CHECKPOINT_NAMES.get(checkpoint, f"epoch {checkpoint}")
    return ", ".join(part for part in (describe_subject(runs), SPLIT_NAMES[split], epoch) if part)


def name_places(runs: Sequence[TrainedRun], by: str) -> list[str]:
    """Return the name below each run: its values of the x axis, and what tells equal ones apart."""
    if by == RUN:
        return shorten_places(runs)
    names = by.split(",")
    values = [", ".join(format_value(show_setting(run, name)) for name in names) for run in runs]
    return describe_places(runs, values, names)


def describe_places(
    runs: Sequence[TrainedRun], values: Sequence[str], names: Sequence[str] = ()
) -> list[str]:
    """Return values, those that runs of a panel share followed by what else differs in these runs.

    `names` are the settings that the values already show.
    """
    groups = list(zip(name_panels(runs), values, strict=True))
    places = list(values)
    for group in set(groups):
        within = [i for i, own in enumerate(groups) if own == group]
        if len(within) > 1:
            texts = describe_runs([runs[i] for i in within], ignore=names, head=False)
            for i, text in zip(within, texts, strict=True):
                places[i] = f"{values[i]}, {text}" if values[i] else text
    return places


def shorten_places(runs: Sequence[TrainedRun]) -> list[str]:
    """Return the names of runs; if one is long, what differs within each panel."""
    if max(len(run.name) for run in runs) <= LONGEST_PLACE:
        return [run.name for run in runs]
    places = describe_places(runs, [""] * len(runs))
    return [place or f"seed {run.settings.seed}" for place, run in zip(places, runs, strict=True)]


def evaluate(
    rebuilder: Rebuilder, run: TrainedRun, checkpoint: Path, split: str
) -> tuple[Evaluation, dict[str, Distribution]]:
    """Evaluate a checkpoint; return the distributions of scores and bias by kind, too.

    Raises UserError.
    """
    extracted = rebuilder.extract(run, checkpoint, split)
    classifier: Any = rebuilder.model(run).fc
    evaluation = Evaluation(
        extracted,
        classifier.weight.detach(),
        classifier.bias_vector().detach(),
        rebuilder.class_sizes(run),
        prediction=rebuilder.prediction(run),
    )
    try:
        positive, negative = compute_score_distributions(
            extracted.features, extracted.labels, evaluation.weight
        )
    except ValueError as error:
        raise UserError(f"{checkpoint}, {split} set: {error}") from error
    values = {"positive_score": positive}
    if run.settings.bias_mode != "none":
        values["bias"] = compute_distribution(evaluation.bias)
    values["negative_score"] = negative
    return evaluation, values


def list_predictions(
    exact: Prediction | None, values: dict[str, Distribution]
) -> tuple[dict[str, float | None], dict[str, tuple[float, float]]]:
    """Return the exact means of scores and bias by kind, and the ranges of those that differ.

    Where the level of the biases is free, their range is shown at the level that was found.
    """
    means = {kind: getattr(exact, kind, None) for kind in values}
    if exact is None:
        return means, {}
    spreads = {"positive_score": exact.positive_scores, "negative_score": exact.others}
    if "bias" in values:
        level = values["bias"].mean if exact.problem.bias_level_is_free else 0.0
        spreads["bias"] = exact.biases + level
    ends = {kind: (float(each.min()), float(each.max())) for kind, each in spreads.items()}
    return means, {kind: (low, high) for kind, (low, high) in ends.items() if high - low > SPREAD}


def write_numbers(
    runs: Sequence[TrainedRun],
    violins: Sequence[Violins],
    classes: Sequence[Sequence[Values]],
    picture: Path,
) -> list[Path]:
    """Write the statistics and the drawn outlines as CSV files beside the picture.

    So are the means of the classes of the runs whose classes differ in size, if there are any.
    """
    written = []
    for list_rows, ending in ((list_summaries, ".csv"), (list_outlines, "_outlines.csv")):
        pairs = zip(runs, violins, strict=True)
        rows = [row for run, drawn in pairs for row in list_rows(str(run.directory), drawn)]
        path = picture.with_name(picture.stem + ending)
        write_csv(path, list(rows[0]), rows)
        written.append(path)
    rows = [
        {"run": str(run.directory), "panel": drawn.panel, "x": drawn.place, "class": k, **row}
        for run, drawn, own in zip(runs, violins, classes, strict=True)
        for k, row in enumerate(own)
    ]
    if rows:
        path = picture.with_name(f"{picture.stem}_classes.csv")
        write_csv(path, list(rows[0]), rows)
        written.append(path)
    return written


def format_statistics(runs: Sequence[TrainedRun], violins: Sequence[Violins]) -> str:
    """Format the statistics of all runs as one aligned table; long names stand below it."""
    shown = ["mean", "std", "min", "max", "predicted"]
    if any(drawn.predicted_range for drawn in violins):
        shown += RANGE
    header = [
        "run",
        "panel",
        "x",
        "score",
        *(name.replace("predicted_", "pred. ") for name in shown),
    ]
    lines = []
    labels = shorten_names(runs)
    for label, drawn in zip(labels, violins, strict=True):
        for row in list_summaries(label, drawn):
            numbers = [row[key] for key in shown]
            cells = ["-" if number is None else f"{number:.3f}" for number in numbers]
            lines.append([label, drawn.panel, drawn.place, str(row["kind"]), *cells])
    pairs = zip(labels, name_runs(runs), strict=True)
    full = [f"{label}: {name}" for label, name in pairs if label != name]
    return "\n\n".join([format_table(header, lines), *(["\n".join(full)] if full else [])])


if __name__ == "__main__":
    sys.exit(main())
