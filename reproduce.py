"""Rerun an experiment of the paper: train what is missing, evaluate, draw, and report the result
beside the published one.

python reproduce.py nc-curves --scale smoke
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from args import Settings, complete
from input_pipeline import SOURCES
from reproduction.checks import (
    check_data,
    explain_confirmation,
    needs_confirmation,
    refuse_cost,
    refuse_idle_flags,
    refuse_lost_checkpoints,
    refuse_other_classes,
)
from reproduction.cost import Cost, estimate_cost
from reproduction.flags import (
    DATA_DIR,
    GRID_FLAGS,
    JOB_MINUTES,
    OVERRIDES,
    PASSED,
    parse_flags,
    split_assignment,
)
from reproduction.grid import GridRun, build_grid, format_flags
from reproduction.jobs import run_local_jobs, run_on_slurm
from reproduction.launch import Outcome, list_torchrun_flags, run_here
from reproduction.pictures import Call, Drawing, list_evaluations
from reproduction.places import Places, divide_machine
from reproduction.report import build_report, format_tables_plainly, write_report
from reproduction.selection import select_runs
from reproduction.work import Work
from rundir.resuming import take_over_settings
from utils.cli import (
    MISTAKE,
    NOT_FINITE,
    SMALLEST_BATCH,
    list_device_flags,
    make_directory,
    run_command,
)
from utils.console import Console, Progress, escape
from utils.errors import UserError
from utils.files import read_json, remove_temporaries, write_json
from utils.locks import Lock, Occupied
from utils.registry import load_function
from utils.signals import SIGNALS
from utils.world import refuse_several

ROOT = Path(__file__).resolve().parent
# The program is found through its own directory, not the one that the user is in.
TIMING = [
    sys.executable,
    "-P",
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from training.timing import main; main()",
]
STOP_MESSAGE = "stopped; finished work is kept, the same command goes on from there"
STOPPED_STATUSES = tuple(128 + number for number in SIGNALS)  # of a script that was stopped
LOCK = ".reproduce.lock"
STAMP = "report.json"  # names the result in a directory: another result must not replace it


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_flags(argv)
    return run_command("reproduce.py", lambda stop: reproduce(args), stopped=STOP_MESSAGE)


def reproduce(args: argparse.Namespace) -> int:
    """Train, evaluate, draw, report.

    Returns 0, 2 if a run has no result, or the exit status of a script that did not fail. Raises
    UserError.
    """
    refuse_several("reproduce.py")
    work = plan_work(args)
    refuse_idle_flags(vars(args), work)
    if args.dry_run:
        print_commands(work, args)
        print_cost(work, args)
        return 0
    for run in work.runs:  # refuse an existing run with other settings before any run starts
        complete(take_over_settings(Settings.from_flags(list_settings(work, run, args))))
    refuse_lost_checkpoints(work)
    if args.copy_of:
        refuse_other_classes(work, args.copy_of)
    stamp = build_stamp(work, args)
    lock = prepare_results(work.out, stamp)  # held until the work is done
    begun, console = time.monotonic(), Console()
    if work.runs:
        check_devices(args)
        announce_cost(work, args, console)
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
    write_json(work.out / STAMP, stamp)
    console.say("\n" + format_tables_plainly(report))
    console.say(f"\nwrote {escape(str(path))} ({time.monotonic() - begun:.0f} s)")
    lock.release()
    return MISTAKE if work.failed else status


def plan_work(args: argparse.Namespace) -> Work:
    """Return the runs that the flags ask for, and their directories. Raises UserError."""
    overrides = {name: getattr(args, name) for name in OVERRIDES}
    grid = build_grid(
        args.experiment,
        args.scale,
        seeds=args.seeds,
        datasets=[args.dataset] if args.dataset else None,
        models=args.models,
        overrides={name: value for name, value in overrides.items() if value is not None},
        copy_of=args.copy_of,
    )
    runs = select_runs(grid, [split_assignment(text) for text in args.only or ()])
    save_dir = Path(args.save_dir or f"model_weights/reproduce-{args.scale}")
    out = Path(args.out or f"results/{args.experiment}")
    gpu_id = args.gpu_ids[0] if args.gpu_ids else args.gpu_id
    needed = SMALLEST_BATCH * args.gpus_per_run
    smallest = min((run.settings.batch_size for run in runs), default=needed)
    if smallest < needed:
        raise UserError(
            f"--gpus_per_run {args.gpus_per_run} needs batches of at least {needed} images, "
            f"the runs have {smallest}"
        )
    return Work(args.experiment, args.scale, runs, save_dir, out, gpu_id, args.data_dir)


def list_settings(work: Work, run: GridRun, args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of train.py for a run, which resumes where it exists, but no device."""
    bundled = SOURCES[run.settings.dataset].bundled_with is not None
    return {
        **run.given,
        **({} if bundled else {"data_dir": args.data_dir}),
        **{name: value for name in PASSED if (value := getattr(args, name)) is not None},
        "save_dir": str(work.save_dir),
        "run_name": run.name,
        "resume": True,
        "force": True,
    }


def print_commands(work: Work, args: argparse.Namespace) -> None:
    """Print the training commands, or those that draw if the experiment trains nothing."""
    if not work.runs:
        drawing: Drawing = load_function(work.experiment.draw)(work)
        for call in drawing.calls:
            print(shlex.join(["python", f"{call.script}.py", *call.flags]))
    groups = max(1, len(list_devices(args)) // args.gpus_per_run)
    places = itertools.cycle(divide_machine(groups, list_devices(args), args.gpus_per_run))
    for run, place in zip(work.runs, places, strict=False):
        variables = [f"{name}={value}" for name, value in place.list_visible().items()]
        words = [*variables, "python", *list_launcher(args), "train.py"]
        flags = [*format_flags(list_settings(work, run, args)), *place.list_flags()]
        print(shlex.join([*words, *flags]))


def list_launcher(args: argparse.Namespace) -> list[str]:
    """Return the words that start train.py several times; none where a job does that."""
    if args.gpus_per_run == 1 or args.launcher:
        return []
    return ["-m", "torch.distributed.run", *list_torchrun_flags(args.gpus_per_run)]


def find_cost(work: Work, args: argparse.Namespace) -> Cost:
    """Find what is left to do; hours only where the runs are on this machine."""
    places = divide_machine(args.jobs, list_devices(args), args.gpus_per_run)
    timed = args.launcher != "slurm"
    return estimate_cost(work, places, TIMING, args.data_dir, timed=timed)


def print_cost(work: Work, args: argparse.Namespace) -> None:
    """Print what the runs would take, on stderr and as comments: stdout holds commands alone."""
    if not work.runs:
        return
    sys.stdout.flush()
    cost = find_cost(work, args)
    lines = cost.describe(work.save_dir)
    if not cost.fits:
        lines.append("the disk has too little room: the command would refuse to begin")
    if needs_confirmation(work, cost):
        lines.append(explain_confirmation(cost))
    if args.launcher and args.gpus_per_run > 1:
        tasks = f"a job starts its command {args.gpus_per_run} times"
        lines.append(f"{tasks} as one run, with the variables that torchrun would set")
    for line in lines:
        print(f"# {escape(line)}", file=sys.stderr)


def announce_cost(work: Work, args: argparse.Namespace, console: Console) -> None:
    """Say what is about to be done, and check that it can be. Raises UserError."""
    cost = find_cost(work, args)
    for line in cost.describe(work.save_dir):
        console.say(line)
    refuse_cost(work, cost, confirmed=args.yes)
    check_data([run for run in work.runs if not work.is_trained(run)], args.data_dir)


def check_devices(args: argparse.Namespace) -> None:
    """Refuse GPUs that this machine does not have. Raises UserError."""
    if args.launcher == "slurm":
        return
    given, flag = args.gpu_ids or [], "--gpu_ids"
    if args.gpu_id is not None and args.gpu_id >= 0:
        given, flag = [args.gpu_id], "--gpu_id"
    if args.gpus_per_run > 1 and not args.gpu_ids and args.gpu_id != -1:
        first = args.gpu_id or 0
        given = range(first, first + args.gpus_per_run)
        flag = f"--gpus_per_run {args.gpus_per_run} needs GPU"
    if given:
        load_function("utils.device:check_gpus")(flag, given)


def prepare_results(out: Path, stamp: Mapping[str, Any]) -> Lock:
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
    # Stamps of earlier versions name fewer flags, and no data.
    complete_stamp = {**dict.fromkeys(GRID_FLAGS), "data": stamp["data"], **held}
    if complete_stamp != stamp and held.get("scale") != "smoke":
        raise UserError(
            f"{out} holds the result of {held.get('experiment')} at scale {held.get('scale')} "
            "on other data, networks or settings: give another --out"
        )
    return lock


def build_stamp(work: Work, args: argparse.Namespace) -> dict[str, Any]:
    """Return the identity of a result. A run of the same with more seeds may replace it."""
    names = ("experiment", "scale", *GRID_FLAGS)
    data = sorted({work.label(run)["dataset"] for run in work.runs})
    return {**{name: getattr(args, name) for name in names}, "data": data}


def train_missing(work: Work, args: argparse.Namespace, console: Console) -> dict[str, str]:
    """Train every run that is not finished; return why runs failed, by their names."""
    missing = [run for run in work.runs if not work.is_trained(run)]
    count = len(missing)
    progress = Progress(console, "training", count, unit="run")
    failed = {}
    for done, (name, outcome) in enumerate(launch(work, missing, args, console), start=1):
        if outcome.status:
            failed[name] = explain_failure(outcome)
        news = failed.get(name) or work.describe_training(name)
        console.say(f"[{done}/{count}] {name}: {news}")
        if progress.is_due():
            progress.show(done, "")
    progress.close()
    return failed


def launch(
    work: Work, runs: Sequence[GridRun], args: argparse.Namespace, console: Console
) -> Iterator[tuple[str, Outcome]]:
    """Train runs here or as jobs; yield each name and outcome as it ends. Raises UserError."""
    train = [sys.executable, str(ROOT / "train.py")]
    commands = {run.name: [*train, *format_flags(list_settings(work, run, args))] for run in runs}
    folder, minutes = work.save_dir / "submitit", args.job_minutes or JOB_MINUTES
    if not commands:
        return iter(())
    if args.launcher == "slurm":
        options = dict(args.slurm or ())
        nodes = int(options.pop("nodes", 1))
        device = -1 if args.gpu_id == -1 else 0  # a job sees its GPUs alone
        return run_on_slurm(
            {name: [*words, *list_device_flags(device)] for name, words in commands.items()},
            args.jobs,
            folder,
            with_gpu=device == 0,
            minutes=minutes,
            extra=options,
            say=console.say,
            processes=args.gpus_per_run,
            nodes=nodes,
        )
    begun = {run.name: threads for run in runs if (threads := work.find_threads(run)) is not None}
    places = Places(divide_machine(args.jobs, list_devices(args), args.gpus_per_run), begun)
    if args.launcher == "local":
        return run_local_jobs(commands, places, folder, minutes=minutes)
    return run_here(commands, places)


def list_devices(args: argparse.Namespace) -> list[int | None]:
    """Return the devices that the runs share; None is the one that a run takes by itself."""
    return args.gpu_ids or [args.gpu_id]


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
            words += format_flags({name: value})
    # With several processes BatchNorm may take its statistics in smaller batches.
    for name in ("seeds", "gpus_per_run"):
        if getattr(args, name) > 1:
            words += [f"--{name}", str(getattr(args, name))]
    if args.data_dir != DATA_DIR:
        words += ["--data_dir", os.path.basename(os.path.normpath(args.data_dir))]
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main())
