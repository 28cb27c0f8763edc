"""Rerun an experiment of the paper: train what is missing, evaluate, draw, and report the result
beside the published one.

python reproduce.py nc-curves --scale smoke
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from args import Settings, complete
from input_pipeline import SOURCES
from models import NETWORKS
from objective import OPTIMIZERS
from reproduction import EXPERIMENTS, SCALES
from reproduction.grid import GridRun, build_grid, format_flags
from reproduction.launch import Outcome, run_here, run_submitted
from reproduction.pictures import Call, Drawing, list_evaluations
from reproduction.report import build_report, format_tables_plainly, write_report
from reproduction.work import Work
from rundir.resuming import take_over_settings
from utils.cli import (
    MISTAKE,
    NOT_FINITE,
    Count,
    Parser,
    PathText,
    Positive,
    add_device_flag,
    check_value,
    make_directory,
    name_of,
    run_command,
)
from utils.console import Console, Progress, escape
from utils.errors import UserError
from utils.files import read_json, remove_temporaries, write_json
from utils.locks import Lock, Occupied
from utils.registry import load_function
from utils.signals import SIGNALS

ROOT = Path(__file__).resolve().parent
STOP_MESSAGE = "stopped; finished work is kept, the same command goes on from there"
STOPPED_STATUSES = tuple(128 + number for number in SIGNALS)  # of a script that was stopped
LOCK = ".reproduce.lock"
STAMP = "report.json"  # names the result in a directory: another result must not replace it
JOB_MINUTES = 240
DATA_DIR = "./data"

# Flags that change the grid, in the order of a report's command, and those of a cluster.
OVERRIDES = ("epochs", "sample_size", "test_sample_size", *(f"lr_{name}" for name in OPTIMIZERS))
GRID_FLAGS = ("dataset", "models", *OVERRIDES)
CLUSTER_FLAGS = ("launcher", "job_minutes", "slurm")

Thousand = Annotated[int, Field(ge=1, le=1000)]
Minutes = Annotated[int, Field(ge=1, le=100_000)]


def build_parser() -> Parser:
    listed = "\n".join(f"  {name:<13}{each.title}" for name, each in EXPERIMENTS.items())
    parser = Parser(
        prog="reproduce.py",
        description="Rerun an experiment of the paper and put the result beside the published one."
        "\nTrains what is missing, evaluates, draws, and writes report.md, CSV and pictures. The "
        "same command\nstarted again goes on where it was. Exit status: 0 all runs have results, "
        "2 not,\n129, 130 and 143 stopped by SIGHUP, SIGINT and SIGTERM.\n\nexperiments:\n"
        f"{listed}",
    )
    add_grid_flags(parser.add_argument_group("what to run"))
    add_place_flags(parser.add_argument_group("how"))
    add_cluster_flags(parser.add_argument_group("on a cluster, through submitit"))
    return parser


def add_grid_flags(group: Any) -> None:
    def add(flag: str, kind: Any, help: str, metavar: str = "NAME", **options: Any) -> None:
        group.add_argument(flag, type=check_value(kind), help=help, metavar=metavar, **options)

    add("experiment", name_of(EXPERIMENTS, "experiment"), "see above", metavar="EXPERIMENT")
    scales = "; ".join(f"{name}: {scale.what}" for name, scale in SCALES.items())
    add("--scale", name_of(SCALES, "scale"), f"{scales} (default: smoke)", default="smoke")
    in_place = "in place of the scale's {} (default: {}; full: the paper's)"
    datasets = ", ".join(f"{n} {', '.join(s.datasets)}" for n, s in SCALES.items() if s.datasets)
    networks = ", ".join(f"{n} {', '.join(s.models)}" for n, s in SCALES.items() if s.models)
    add("--dataset", name_of(SOURCES, "data set"), in_place.format("data sets", datasets))
    kind = name_of(NETWORKS, "model")
    add("--models", kind, in_place.format("networks", networks), nargs="+")
    seeds = "runs of each setting, with seeds 0 to N-1; reported as mean and standard deviation"
    add("--seeds", Thousand, f"{seeds} (default: 1)", metavar="N", default=1)
    for name in ("epochs", "sample_size", "test_sample_size"):
        add(f"--{name}", Count, "as in train.py --help (default: the scale's)", metavar="N")
    for name in OPTIMIZERS:
        rates = f"(default: the scale's; full: {SCALES['full'].rates.get(name, 0.01):g})"
        add(f"--lr_{name}", Positive, f"learning rate with {name} {rates}", metavar="X")


def add_place_flags(group: Any) -> None:
    add_device_flag(group)
    group.add_argument(
        "--data_dir",
        type=check_value(PathText),
        default=DATA_DIR,
        metavar="DIR",
        help=f"as in train.py (default: {DATA_DIR})",
    )
    group.add_argument(
        "--jobs",
        type=check_value(Thousand),
        default=1,
        metavar="N",
        help="runs at a time (default: 1)",
    )
    group.add_argument(
        "--dry_run",
        action="store_true",
        help="print the training commands, one a line, and do nothing (default: off)",
    )
    group.add_argument(
        "--save_dir",
        type=check_value(PathText),
        metavar="DIR",
        help="where run directories are made (default: model_weights/reproduce-SCALE)",
    )
    group.add_argument(
        "--out",
        type=check_value(PathText),
        metavar="DIR",
        help="where report.md, CSV and pictures go (default: results/EXPERIMENT)",
    )


def add_cluster_flags(group: Any) -> None:
    group.add_argument(
        "--launcher",
        type=check_value(name_of(("local", "slurm"), "launcher")),
        metavar="NAME",
        help="slurm: a job array, --jobs of it at a time, requeued when preempted; local: the same "
        "on this machine (default: processes of this command)",
    )
    group.add_argument(
        "--job_minutes",
        type=check_value(Minutes),
        metavar="N",
        help="time limit of a job, after which it is requeued and resumes "
        f"(default: {JOB_MINUTES})",
    )
    group.add_argument(
        "--slurm",
        type=split_assignment,
        nargs="+",
        metavar="KEY=VALUE",
        help="more parameters of sbatch, such as partition=gpu cpus-per-task=8 (default: none)",
    )


def split_assignment(text: str) -> tuple[str, str]:
    """Split KEY=VALUE -> (KEY, VALUE), for argparse. Raises ArgumentTypeError."""
    key, sign, value = text.partition("=")
    if not (key and sign):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    return key, value


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("reproduce.py", lambda stop: reproduce(args), stopped=STOP_MESSAGE)


def reproduce(args: argparse.Namespace) -> int:
    """Train, evaluate, draw, report.

    Returns 0, 2 if a run has no result, or the exit status of a script that did not fail. Raises
    UserError.
    """
    work = plan_work(args)
    refuse_idle_flags(args, work)
    if args.dry_run:
        print_commands(work, args)
        return 0
    for run in work.runs:  # refuse an existing run with other settings before any run starts
        complete(take_over_settings(Settings.from_flags(list_settings(work, run, args))))
    lock = prepare_results(work.out, args)  # held until the work is done
    begun, console = time.monotonic(), Console()
    if work.runs:
        work = dataclasses.replace(work, failed=train_missing(work, args, console))
    if work.runs and not work.finished:
        raise UserError(f"no run has a result: {next(iter(work.failed.values()))}")
    status = call_scripts(list_evaluations(work))
    drawing: Drawing = load_function(work.experiment.draw)(work)
    for path in drawing.outdated:
        path.unlink()
    status = max(status, call_scripts(drawing.calls))
    results = load_function(work.experiment.find_results)(work)
    pictures = [path for path in drawing.pictures if path.exists()]
    report = build_report(work, format_command(args), results, pictures)
    path = write_report(report)
    write_json(work.out / STAMP, build_stamp(args))
    console.say("\n" + format_tables_plainly(report))
    console.say(f"\nwrote {escape(str(path))} ({time.monotonic() - begun:.0f} s)")
    lock.release()
    return MISTAKE if work.failed else status


def plan_work(args: argparse.Namespace) -> Work:
    """Return the runs that the flags ask for, and their directories. Raises UserError."""
    overrides = {name: getattr(args, name) for name in OVERRIDES}
    runs = build_grid(
        args.experiment,
        args.scale,
        seeds=args.seeds,
        datasets=[args.dataset] if args.dataset else None,
        models=args.models,
        overrides={name: value for name, value in overrides.items() if value is not None},
    )
    save_dir = Path(args.save_dir or f"model_weights/reproduce-{args.scale}")
    out = Path(args.out or f"results/{args.experiment}")
    return Work(args.experiment, args.scale, runs, save_dir, out, args.gpu_id)


def refuse_idle_flags(args: argparse.Namespace, work: Work) -> None:
    """Refuse a flag that has no effect in this combination. Raises UserError."""
    reasons = {}
    if not work.runs:
        reasons = dict.fromkeys((*GRID_FLAGS, *CLUSTER_FLAGS), f"{work.name} trains nothing")
        if args.seeds > 1:
            reasons["seeds"] = f"{work.name} trains nothing"
    if not args.launcher:
        reasons["job_minutes"] = "it belongs to --launcher"
    if args.launcher != "slurm":
        reasons["slurm"] = "it belongs to --launcher slurm"
    for name, reason in reasons.items():
        if getattr(args, name) is not None:
            raise UserError(f"--{name} has no effect here: {reason}")
    streams = any(SOURCES[run.settings.dataset].streams for run in work.runs)
    if streams and args.data_dir == DATA_DIR and not args.dry_run:
        raise UserError("an image folder needs --data_dir, which holds train/ and test/ or val/")


def list_settings(work: Work, run: GridRun, args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of train.py for a run, which resumes where it exists."""
    bundled = SOURCES[run.settings.dataset].bundled_with is not None
    return {
        **run.given,
        **({} if bundled else {"data_dir": args.data_dir}),
        "gpu_id": min(args.gpu_id, 0) if args.launcher else args.gpu_id,  # a job sees only its GPU
        "save_dir": str(work.save_dir),
        "run_name": run.name,
        "resume": True,
        "force": True,
    }


def print_commands(work: Work, args: argparse.Namespace) -> None:
    """Print the training commands, or those that draw if the experiment trains nothing."""
    commands = [("train", format_flags(list_settings(work, run, args))) for run in work.runs]
    if not work.runs:
        drawing: Drawing = load_function(work.experiment.draw)(work)
        commands = [(call.script, call.flags) for call in drawing.calls]
    for script, flags in commands:
        print(shlex.join(["python", f"{script}.py", *flags]))


def prepare_results(out: Path, args: argparse.Namespace) -> Lock:
    """Make and lock the results directory. Raises UserError if it holds another result."""
    make_directory("--out", out)
    lock = Lock(out / LOCK)
    try:
        lock.acquire()
    except Occupied as error:
        raise UserError(f"--out: another reproduce.py writes into {out}") from error
    remove_temporaries(out, "")
    if not (out / STAMP).exists():
        return lock
    held = read_json(out / STAMP)
    if held != build_stamp(args) and held.get("scale") != "smoke":
        raise UserError(
            f"{out} holds the result of {held.get('experiment')} at scale {held.get('scale')} "
            "on other data, networks or settings: give another --out"
        )
    return lock


def build_stamp(args: argparse.Namespace) -> dict[str, Any]:
    """Return the identity of a result. A run of the same with more seeds may replace it."""
    names = ("experiment", "scale", "dataset", "models", "epochs", "sample_size")
    return {name: getattr(args, name) for name in names}


def train_missing(work: Work, args: argparse.Namespace, console: Console) -> dict[str, str]:
    """Train every run that is not finished; return why runs failed, by their names."""
    train = [sys.executable, str(ROOT / "train.py")]
    commands = {
        run.name: [*train, *format_flags(list_settings(work, run, args))]
        for run in work.runs
        if not work.is_trained(run)
    }
    count = len(commands)
    place = escape(str(work.save_dir))
    console.say(f"{len(work.runs)} runs, {count} to train, run directories under {place}")
    progress = Progress(console, "training", count, unit="run")
    failed = {}
    launched = launch(commands, args, work.save_dir / "submitit", console)
    for done, (name, outcome) in enumerate(launched, start=1):
        if outcome.status:
            failed[name] = explain_failure(outcome)
        news = failed.get(name) or work.describe_training(name)
        console.say(f"[{done}/{count}] {name}: {news}")
        if progress.is_due():
            progress.show(done, "")
    progress.close()
    return failed


def launch(
    commands: Mapping[str, list[str]], args: argparse.Namespace, folder: Path, console: Console
) -> Iterator[tuple[str, Outcome]]:
    """Run commands here or as jobs; yield each name and outcome as it ends."""
    if not args.launcher or not commands:
        return run_here(commands, args.jobs)
    return run_submitted(
        commands,
        args.launcher,
        args.jobs,
        folder,
        gpu=None if args.gpu_id < 0 else args.gpu_id,
        minutes=args.job_minutes or JOB_MINUTES,
        extra=dict(args.slurm or ()),
        say=console.say,
    )


def explain_failure(outcome: Outcome) -> str:
    """Explain in a few words why a training run failed."""
    if outcome.status in STOPPED_STATUSES:
        return "stopped"
    if outcome.status == NOT_FINITE:
        return "diverged: the loss is not finite"
    complaint = outcome.complaint.removeprefix("train.py: error: ")
    return complaint or f"exit status {outcome.status}"


def call_scripts(calls: Sequence[Call]) -> int:
    """Call scripts one after the other; return the largest status. Raises UserError."""
    largest = 0
    for call in calls:
        status = call_script(call.script, call.flags)
        if status in STOPPED_STATUSES:
            sys.exit(status)
        if status not in call.accepted:
            raise UserError(f"{call.script}.py failed with status {status}; see its lines above")
        largest = max(largest, status)
    return largest


def call_script(name: str, flags: Sequence[str]) -> int:
    """Import another script, call its main() in this process, and return its status."""
    status: int = load_function(f"{name}:main")(list(flags))
    return status


def format_command(args: argparse.Namespace) -> str:
    """Return the command that gives this result again, without flags of place and device."""
    words = ["python", "reproduce.py", args.experiment, "--scale", args.scale]
    for name in GRID_FLAGS:
        value = getattr(args, name)
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    if args.seeds > 1:
        words += ["--seeds", str(args.seeds)]
    if args.data_dir != DATA_DIR:
        words += ["--data_dir", os.path.basename(os.path.normpath(args.data_dir))]
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main())
