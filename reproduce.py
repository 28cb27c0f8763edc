"""Rerun an experiment of the paper: train what is missing, evaluate, draw, and report the result
beside the published one.

python reproduce.py nc-curves --scale smoke
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from args import REPRODUCED, parse_train_args, reproduce_parser
from reproduction.experiments import EXPERIMENTS, Experiment
from reproduction.grid import GridRun, drawn_epochs, grid
from reproduction.launch import Outcome, run_here, run_submitted
from reproduction.report import Report, paper_name, render
from reproduction.results import collect
from rundir.config import read_config
from rundir.names import CONFIG, METRICS
from utils.console import Console, Progress
from utils.errors import UserError
from utils.files import read_csv, read_json, remove_temporaries, write_csv, write_json, write_whole
from utils.signals import StopSignal

ROOT = Path(__file__).resolve().parent
STOPPED = "stopped; finished work is kept, the same command goes on from there"
NOT_FINITE = 3  # train.py's exit status for a loss that is not finite
STAMP = "report.json"  # what a results directory holds, so that it is not replaced by another


def main(argv: list[str] | None = None) -> int:
    args = reproduce_parser().parse_args(argv)
    try:
        with StopSignal(STOPPED):
            return reproduce(args)
    except UserError as error:
        print(f"reproduce.py: error: {error}", file=sys.stderr)
        return 2


def reproduce(args: argparse.Namespace) -> int:
    """Train, evaluate, draw, report; 0 if every run has a result, else 2. Raises UserError."""
    refuse_without_effect(args)
    experiment = EXPERIMENTS[args.experiment]
    runs = grid_of(args)
    save_dir = Path(args.save_dir or f"model_weights/reproduce-{args.scale}")
    if args.dry_run:
        show_commands(runs, args, save_dir)
        return 0
    out = results_directory(args)
    console = Console()
    if not runs:
        return reproduce_theory(args, out, console)
    for run in runs:  # a run that is there with other settings is refused before the first starts
        parse_train_args(train_flags(run, args, save_dir))
    begun = time.monotonic()
    failed = train_missing(runs, args, save_dir, out, console)
    evaluated = [run for run in runs if run.name not in failed]
    if not evaluated:
        raise UserError(f"no run has a result: {next(iter(failed.values()))}")
    pictures = evaluate(experiment, evaluated, args, save_dir, out)
    published = {run.name: run.published(experiment) for run in runs}
    results = collect(runs, save_dir, experiment.measures, published, failed)
    report = Report(
        experiment=args.experiment,
        scale=args.scale,
        command=command_line(args),
        results=results,
        measures=experiment.measures,
        runs=[(run, run_facts(save_dir / run.name)) for run in evaluated],
        pictures=pictures,
        stands_for=runs[0].stands_for,
    )
    write_report(report, args, out)
    console.say("\n" + render(report, markdown=False))
    console.say(f"\nwrote {out / 'report.md'} ({time.monotonic() - begun:.0f} s)")
    return 2 if any(result.missing for result in results) else 0


def show_commands(runs: Sequence[GridRun], args: argparse.Namespace, save_dir: Path) -> None:
    commands = [["train.py", *train_flags(run, args, save_dir)] for run in runs]
    target = Path(args.out or "results/theory")
    commands += [["verify_theory.py", *words] for words in theory_commands(args, target)]
    try:
        for command in commands:
            print(shlex.join(["python", *command]))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough (| head)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def refuse_without_effect(args: argparse.Namespace) -> None:
    """A flag that does nothing in this combination is a mistake. Raises UserError."""
    trained = bool(EXPERIMENTS[args.experiment].datasets)
    reasons = {
        **{key: "theory trains nothing" for key in REPRODUCED if not trained},
        **({} if trained or args.seeds == 1 else {"seeds": "theory trains nothing"}),
        **({} if args.launcher else {"job_minutes": "it belongs to --launcher"}),
        **({} if args.launcher == "slurm" else {"slurm": "it belongs to --launcher slurm"}),
    }
    for key, reason in reasons.items():
        if getattr(args, key) is not None:
            raise UserError(f"--{key} has no effect here: {reason}")
    on_disk = args.dataset == "folder" or (args.experiment == "imagenet" and args.scale == "full")
    if on_disk and args.data_dir == "./data" and not args.dry_run:
        raise UserError("an image folder needs --data_dir: what holds train/ and test/ or val/")


def grid_of(args: argparse.Namespace) -> list[GridRun]:
    names = ("epochs", "sample_size", "test_sample_size", "lr_SGD", "lr_AdamW")
    overrides = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return grid(
        args.experiment,
        args.scale,
        seeds=args.seeds,
        datasets=(args.dataset,) if args.dataset else None,
        models=args.models,
        overrides=overrides,
    )


def train_flags(run: GridRun, args: argparse.Namespace, save_dir: Path) -> list[str]:
    """Of train.py for one run: resumes where it exists, starts where it does not."""
    words = run.flags()
    if run.settings["dataset"] != "digits":
        words += ["--data_dir", args.data_dir]
    gpu = min(args.gpu_id, 0) if args.launcher else args.gpu_id  # a job sees its own GPU alone
    words += ["--gpu_id", str(gpu), "--save_dir", str(save_dir), "--run_name", run.name]
    return [*words, "--resume", "--force"]


def results_directory(args: argparse.Namespace) -> Path:
    """Made if need be; another result there is not replaced. Raises UserError."""
    out = Path(args.out or f"results/{args.experiment}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot create {out}: {error.strerror}") from error
    remove_temporaries(out)
    if (out / STAMP).exists():
        held = read_json(out / STAMP)
        if held != stamp(args) and held.get("scale") != "smoke":
            raise UserError(
                f"{out} holds the result of {held.get('experiment')} at scale {held.get('scale')} "
                "on other data, networks or settings: give another --out"
            )
    return out


def stamp(args: argparse.Namespace) -> dict[str, Any]:
    """What a result is of: a longer grid of the same (more seeds) may replace it."""
    keys = ("experiment", "scale", "dataset", "models", "epochs", "sample_size")
    return {key: getattr(args, key) for key in keys}


def train_missing(
    runs: Sequence[GridRun], args: argparse.Namespace, save_dir: Path, out: Path, console: Console
) -> dict[str, str]:
    """Train every run that is not finished; returns the names of those that failed, and why."""
    todo = {
        run.name: [sys.executable, str(ROOT / "train.py"), *train_flags(run, args, save_dir)]
        for run in runs
        if not finished(run, save_dir)
    }
    console.say(f"{len(runs)} runs, {len(todo)} to train, run directories under {save_dir}")
    progress = Progress(console, "training", len(todo), unit="run")
    failed = {}
    for done, (name, outcome) in enumerate(launched(todo, args, save_dir, console), start=1):
        if outcome.status in (130, 143):
            failed[name] = "stopped"
        elif outcome.status == NOT_FINITE:
            failed[name] = "diverged: the loss is not finite"
        elif outcome.status:
            complaint = outcome.complaint.removeprefix("train.py: error: ")
            failed[name] = complaint or f"exit status {outcome.status}"
        said = failed.get(name) or last_row(save_dir / name)
        console.say(f"[{done}/{len(todo)}] {name}: {said}")
        if progress.due():
            progress.show(done, "")
    progress.close()
    return failed


def launched(
    commands: dict[str, list[str]], args: argparse.Namespace, save_dir: Path, console: Console
) -> Iterator[tuple[str, Outcome]]:
    if not args.launcher or not commands:
        return run_here(commands, args.jobs)
    return run_submitted(
        commands,
        args.launcher,
        args.jobs,
        save_dir / "submitit",
        gpu=None if args.gpu_id < 0 else args.gpu_id,
        minutes=args.job_minutes or 240,
        extra=dict(args.slurm or ()),
        say=console.say,
    )


def finished(run: GridRun, save_dir: Path) -> bool:
    path = save_dir / run.name / METRICS
    return path.exists() and len(read_csv(path)) == run.settings["epochs"]


def last_row(directory: Path) -> str:
    rows = read_csv(directory / METRICS)
    seconds = sum(float(row["seconds"]) for row in rows)
    top1, uniform = (float(rows[-1][key]) for key in ("test_top1", "test_uniform"))
    return f"test top-1 {top1:.2f} %, uniform {uniform:.2f} %, {seconds:.0f} s"


def evaluate(
    experiment: Experiment,
    runs: Sequence[GridRun],
    args: argparse.Namespace,
    save_dir: Path,
    out: Path,
) -> list[Path]:
    """Measure the checkpoints and draw; returns the pictures in `out`. Raises UserError."""
    directories = [str(save_dir / run.name) for run in runs]
    common = ["--gpu_id", str(args.gpu_id)]
    epochs = drawn_epochs(runs[0].settings["epochs"])
    if experiment.checkpoints:
        import eval_nc

        selected = epochs if experiment.checkpoints == "6-13" else experiment.checkpoints
        # Curves of a single epoch are no curves.
        overlaid = ["--out", str(out)] if args.experiment == "nc-curves" else []
        flags = ["--load_path", *directories, "--checkpoints", selected, *overlaid, *common]
        check(eval_nc.main(flags), "eval_nc.py")
    drawn = {
        "nc-curves": draw_scores_by_run,
        "bias-mean": draw_scores,
        "bias-decay": draw_scores,
        "tsne": draw_tsne,
    }.get(args.experiment, draw_accuracies)
    return drawn(experiment, runs, save_dir, out, common)


def check(status: int, script: str) -> None:
    if status:
        raise UserError(f"{script} failed with status {status}; what it said is above")


def draw_scores(experiment, runs, save_dir, out, common) -> list[Path]:
    """A score figure for each network and data set over the swept setting."""
    import eval_scores

    by = next(key for key in experiment.axes if key != "optimizer")
    pictures = []
    for model, dataset in dict.fromkeys(
        (run.settings["model"], run.settings["dataset"]) for run in runs
    ):
        chosen = [
            str(save_dir / run.name)
            for run in runs
            if (run.settings["model"], run.settings["dataset"]) == (model, dataset)
        ]
        pictures.append(out / f"scores_{model}_{dataset}.png")
        flags = [*chosen, "--by", by, "--out", str(pictures[-1]), *common]
        check(eval_scores.main(flags), "eval_scores.py")
    return pictures


def draw_scores_by_run(experiment, runs, save_dir, out, common) -> list[Path]:
    """The curves that eval_nc.py has drawn, and the scores at the end."""
    import eval_scores

    directories = [str(save_dir / run.name) for run in runs]
    picture = out / "scores.png"
    flags = [*directories, "--by", "bias_init_mean", "--out", str(picture), *common]
    check(eval_scores.main(flags), "eval_scores.py")
    return [path for path in (out / "nc_curves_overlay.png", picture) if path.exists()]


def draw_tsne(experiment, runs, save_dir, out, common) -> list[Path]:
    import eval_tsne

    first = [run for run in runs if run.settings["seed"] == 0]
    directories = [str(save_dir / run.name) for run in first]
    epochs = drawn_epochs(first[0].settings["epochs"])
    for old in out.glob("tsne_epoch_*.png"):
        old.unlink()
    flags = [*directories, "--checkpoints", epochs, "--out", str(out), *common]
    check(eval_tsne.main(flags), "eval_tsne.py")
    return [*sorted(out.glob("tsne_epoch_*.png"))[-1:], *out.glob("tsne.gif")]


def draw_accuracies(experiment, runs, save_dir, out, common) -> list[Path]:
    from figures.accuracy import accuracy_figure
    from figures.style import save_figure

    published = {run.name: run.published(experiment) for run in runs}
    results = collect(runs, save_dir, experiment.measures, published, {})
    picture = out / "accuracy.png"
    paper = {f"{run.stands_for['model']}, {paper_name(run.stands_for['dataset'])}" for run in runs}
    # Of a grid over several networks or data sets the rows tell.
    title = paper.pop() if len(paper) == 1 else "same setting"
    save_figure(accuracy_figure(results, title), picture)
    return [picture]


def theory_commands(args: argparse.Namespace, out: Path) -> list[list[str]]:
    if args.experiment != "theory":
        return []
    commands = []
    for loss in ("CE", "BCE"):
        for sweep in ("bias_decay", "bias_init_mean"):
            for classes in (10, 100) if args.scale == "full" else (10,):
                files = out / f"{loss}_{sweep}_K{classes}"
                words = ["--loss", loss, "--sweep", sweep, "--num_classes", str(classes)]
                words += ["--samples_per_class", str(128 / classes)]
                commands.append([*words, "--json", f"{files}.json", "--plot", f"{files}.png"])
    return commands


def reproduce_theory(args: argparse.Namespace, out: Path, console: Console) -> int:
    """The sweeps of verify_theory.py, and the table of predicted, found and published scores."""
    import verify_theory
    from reproduction.theory import compute_results

    begun = time.monotonic()
    disagree = False
    commands = theory_commands(args, out)
    for command in commands:
        status = verify_theory.main(command)
        if status not in (0, 1):
            check(status, "verify_theory.py")
        disagree |= status == 1
    results = compute_results((10, 100) if args.scale != "smoke" else (10,))
    report = Report(
        experiment=args.experiment,
        scale=args.scale,
        command=command_line(args),
        results=results,
        measures=EXPERIMENTS["theory"].measures,
        runs=[],
        pictures=[Path(command[-1]) for command in commands],
        stands_for={},
    )
    write_report(report, args, out)
    console.say("\n" + render(report, markdown=False))
    console.say(f"\nwrote {out / 'report.md'} ({time.monotonic() - begun:.0f} s)")
    return 1 if disagree else 0


def run_facts(directory: Path) -> dict[str, Any]:
    """What the report tells of a run: its data, environment and time."""
    config = read_config(directory)
    seconds = sum(float(row["seconds"]) for row in read_csv(directory / METRICS))
    environment = read_json(directory / CONFIG).get("environment", {})
    return {
        "settings": config["settings"],
        "data": config["data"],
        "environment": environment,
        "seconds": seconds,
    }


def command_line(args: argparse.Namespace) -> str:
    """The command that gives this result again, without where it ran and what it wrote."""
    words = ["python", "reproduce.py", args.experiment, "--scale", args.scale]
    for key in REPRODUCED:
        value = getattr(args, key)
        if value is None or key in ("launcher", "job_minutes", "slurm"):
            continue
        words += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    if args.seeds > 1:
        words += ["--seeds", str(args.seeds)]
    if args.data_dir != "./data":
        words += ["--data_dir", os.path.basename(os.path.normpath(args.data_dir))]
    return shlex.join(words)


def write_report(report: Report, args: argparse.Namespace, out: Path) -> None:
    text = render(report, markdown=True)
    write_csv(out / "results.csv", *report.csv())
    write_whole(out / "report.md", lambda file: file.write(text.encode()))
    write_json(out / STAMP, stamp(args))


if __name__ == "__main__":
    sys.exit(main())
