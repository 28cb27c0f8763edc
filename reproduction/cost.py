"""What a grid of runs is about to take: runs, bytes on the disk, and hours.

The figures of a network on this machine come from a process of its own, see training.timing.
Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from args import Settings
from input_pipeline import SPLITS
from metrics import EVALUATED
from reproduction.grid import GridRun
from reproduction.places import THREADS, Place
from reproduction.work import Work
from rundir.space import estimate_bytes
from utils.errors import UserError
from utils.files import find_existing_parent, format_bytes, read_csv
from utils.signals import PARENT, hold_signals

MOST_SECONDS = 240  # of the process that measures; what it has found until then counts
HOUR, DAY = 3600, 24 * 3600
SHOWN_DAYS = 2  # longer times are shown in days, too
# Settings on which the size of data set and network, and the time of a step, depend.
ASKED = ["model", "dataset", "batch_size", "precision"]
ASKED += [*Settings.names(builds="model"), *Settings.names(builds="data")]


@dataclass(frozen=True)
class Pace:
    """Seconds of an image: in a training step, in a run's test pass, and in an evaluation."""

    step: float
    test: float
    evaluation: float


@dataclass(frozen=True)
class Case:
    """What is known of runs of one network and data set.

    Attributes:
        images: of the training and of the test set.
        weights, trained: bytes of the state_dict, and of the parameters that are trained.
        pace: None: not measured.
        network: what was measured, in words.
        problem: why there is no pace. Without `weights` nothing is known.
        missing: whether that is because the data set or the network cannot be had.
    """

    images: tuple[int, int] = (0, 0)
    weights: int = 0
    trained: int = 0
    pace: Pace | None = None
    network: str = ""
    problem: str = ""
    missing: bool = False


@dataclass(frozen=True)
class Figures:
    """What the process that measures has found.

    Attributes:
        cases: by `name_case`.
        device: the device of the runs in words; "" if it was not asked for, or not found.
        cuda: whether it is a GPU.
        starting: seconds that a process takes to start.
        problem: why there is no device.
    """

    cases: Mapping[str, Case] = field(default_factory=dict)
    device: str = ""
    cuda: bool = False
    starting: float = 0.0
    problem: str = ""

    def find(self, run: GridRun) -> Case:
        """Return what is known of a run."""
        return self.cases.get(name_case(run.settings), Case(problem=self.problem))


def name_case(settings: Settings) -> str:
    """Return a text that runs of the same network and data set share."""
    return json.dumps(settings.values(ASKED))


def ask(
    runs: Iterable[GridRun], command: Sequence[str], place: Place, data_dir: str, *, timed: bool
) -> Figures:
    """Ask the process of training.timing about runs; it is stopped if this one is.

    Args:
        runs: those that have something to do.
        command: starts the process.
        place: where a run would be, with its threads and its GPU.
        data_dir: the directory of the data sets.
        timed: whether steps are measured, and not only sizes found.
    """
    by_name = {name_case(run.settings): run.settings for run in runs}
    cases = [settings.replace(data_dir=data_dir).values() for settings in by_name.values()]
    request = {
        "cases": cases,
        "gpu_id": place.seen_gpu_id,
        "processes": place.processes,
        "timed": timed,
        "begun": time.time(),
    }
    environment = {**os.environ, PARENT: str(os.getpid()), **place.get_environment()}
    if place.processes > 1:  # the process that measures has the threads of all
        environment[THREADS] = str(int(environment[THREADS]) * place.processes)
    with hold_signals():
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone
        )
    try:
        lines, complaint = process.communicate(json.dumps(request), timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        lines, complaint = process.communicate()[0], f"it took more than {MOST_SECONDS} s"
    finally:
        process.kill()
        process.wait()
    return read_figures(list(by_name), lines.splitlines(), complaint)


def read_figures(names: Sequence[str], lines: Iterable[str], complaint: str = "") -> Figures:
    """Return the figures in lines of training.timing.

    Args:
        names: of the cases in the order of the request.
        lines: of JSON; others are passed by.
        complaint: of a process that ended early.
    """
    found: dict[int, dict[str, Any]] = {}
    machine: dict[str, Any] = {}
    for line in lines:
        if not line.startswith("{"):
            continue
        reply = json.loads(line)
        number = reply.pop("case", None)
        (machine if number is None else found.setdefault(number, {})).update(reply)
    reason = (complaint.strip().splitlines() or ["no figures"])[-1]
    cases = {names[number]: _read_case(reply, reason) for number, reply in found.items()}
    if not machine:
        return Figures(cases, problem=reason)
    return Figures(cases, machine["device"], machine["cuda"], machine["starting"], reason)


def _read_case(reply: Mapping[str, Any], reason: str) -> Case:
    if "weights" not in reply:
        problem = reply.get("missing") or reply.get("unknown") or reason
        return Case(problem=problem, missing="missing" in reply)
    pace = None
    if "step" in reply:
        pace = Pace(reply["step"], reply["test"], reply["evaluation"])
    images = reply["images"][0], reply["images"][1]
    problem = "" if pace else reply.get("unmeasured", reason)
    network = reply.get("network", "")
    return Case(images, reply["weights"], reply["trained"], pace, network, problem)


@dataclass(frozen=True)
class Cost:
    """What is left to do of a grid, and what it takes.

    Attributes:
        runs, finished, begun: numbers of runs; `begun` are among those to do.
        needed: bytes that are still to be written.
        free: bytes that the disk has left.
        training: seconds of all runs that are to do, in the places that they share.
        evaluation: seconds of the evaluation that follows.
        timed: whether the seconds were asked for.
        at_a_time: runs at a time.
        shared: whether two of them share a device.
        processes: of a run.
        figures: what the seconds follow from.
        unknown: why seconds, or bytes too, are not known of some runs or of all.
        unsized: whether bytes are among it.
        missing: why the data set of a run cannot be had.
    """

    runs: int
    finished: int
    begun: int
    needed: int
    free: int
    training: float
    evaluation: float
    timed: bool
    at_a_time: int
    shared: bool
    figures: Figures
    unknown: tuple[str, ...] = ()
    unsized: bool = False
    missing: str = ""
    processes: int = 1

    @property
    def to_do(self) -> int:
        """The number of runs that are not finished."""
        return self.runs - self.finished

    @property
    def fits(self) -> bool:
        """Whether the disk has room for what is still to be written."""
        return self.needed <= self.free

    def describe(self, save_dir: Path) -> list[str]:
        """Describe it in lines."""
        begun = f", {self.begun} of them begun" if self.begun else ""
        counts = f"{self.runs} runs, {self.finished} finished, {self.to_do} to train{begun}"
        lines = [f"{counts}; run directories under {save_dir}"]
        if self.to_do:
            needed = f"up to {format_bytes(self.needed)} to write"
            if self.unsized:
                partly = f"more than {format_bytes(self.needed)}" if self.needed else "unknown"
                needed = f"{partly} ({'; '.join(self.unknown)})"
            lines.append(f"disk: {needed}, {format_bytes(self.free)} free")
        if not self.timed and self.to_do:
            lines.append("time: not estimated: the jobs run on other machines than this one")
        if self.timed and (self.training or self.evaluation or self.unknown):
            lines.append(f"time: {self.describe_time()}")
        paces = {case.network: case.pace for case in self.figures.cases.values() if case.pace}
        lines += [
            f"measured: {network}: {format_rate(pace.step)} images/s in training, "
            f"{format_rate(pace.test)} in a test pass"
            for network, pace in paces.items()
        ]
        return lines

    def describe_time(self) -> str:
        """Describe the seconds in words: about 3.2 h on CPU (2 threads): …"""
        reasons = "; ".join(self.unknown)
        if not (self.training or self.evaluation):
            return f"unknown ({reasons})"
        parts = f"{format_seconds(self.training)} of training"
        parts += f", {format_seconds(self.evaluation)} of evaluation" if self.evaluation else ""
        device = self.figures.device.partition(":")[0]  # the rest says why it is no GPU
        words = f"about {format_seconds(self.training + self.evaluation)} on {device}: {parts}"
        if self.to_do and self.at_a_time > 1:
            condition = ", if they do not slow each other" if self.shared else ""
            words += f" with {self.at_a_time} runs at a time{condition}"
        if self.to_do and self.processes > 1:
            words += f"; {self.describe_processes()}"
        return words + (f"; not counted: {reasons}" if reasons else "")

    def describe_processes(self) -> str:
        """Describe what the seconds of training take for granted of several processes."""
        if self.figures.cuda:
            return f"a run takes {self.processes} GPUs, whose exchange of gradients is not counted"
        each = f"the {self.processes} processes of a run"
        return f"{each} are taken to be as fast as one with all their threads"


def format_seconds(seconds: float) -> str:
    """Format a time in seconds, minutes or hours, long ones also in days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 1.5 * HOUR:
        return f"{seconds / 60:.0f} min"
    hours = seconds / HOUR
    days = f" ({seconds / DAY:,.0f} days)" if seconds >= SHOWN_DAYS * DAY else ""
    return f"{hours:.1f} h{days}" if hours < 10 else f"{hours:,.0f} h{days}"


def format_rate(seconds: float) -> str:
    """Format seconds of an image as images a second."""
    rate = 1 / max(seconds, 1e-9)
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def estimate_cost(
    work: Work, places: Sequence[Place], command: Sequence[str], data_dir: str, *, timed: bool
) -> Cost:
    """Find what is left to do of a grid, and what it takes. Raises UserError.

    Args:
        work: its runs and their directories.
        places: those of the runs, the first one stands for all.
        command: starts the process of training.timing.
        data_dir: the directory of the data sets.
        timed: whether the seconds are wanted.
    """
    concerned = [run for run in work.runs if _has_work(work, run)]
    figures = Figures()
    if concerned:
        figures = ask(concerned, command, places[0], data_dir, timed=timed)
    free = shutil.disk_usage(find_existing_parent(work.save_dir)).free
    return add_up(work, figures, places, free, timed=timed)


def add_up(
    work: Work, figures: Figures, places: Sequence[Place], free: int, *, timed: bool
) -> Cost:
    """Add up what the runs of a grid take."""
    to_do = [run for run in work.runs if not work.is_trained(run)]
    at_a_time = min(len(places), max(1, len(to_do)))
    estimates = {
        run.name: estimate_bytes(run.settings, case.weights, case.trained)
        for run in to_do
        if (case := figures.find(run)).weights
    }
    needed = sum(
        max(0, estimates[run.name].total - count_written(work.locate(run)))
        for run in to_do
        if run.name in estimates
    )
    spare = max((each.spare for each in estimates.values()), default=0)
    seconds = [count_training_seconds(work, run, figures) for run in to_do] if timed else []
    longest = max(seconds, default=0.0)
    evaluations = [count_evaluation_seconds(work, run, figures) for run in work.runs if timed]
    cases = [figures.find(run) for run in (work.runs if timed else to_do) if _has_work(work, run)]
    return Cost(
        runs=len(work.runs),
        finished=len(work.runs) - len(to_do),
        begun=sum(work.count_epochs(run) > 0 for run in to_do),
        needed=needed + spare * at_a_time if to_do else 0,
        free=free,
        training=max(sum(seconds) / at_a_time, longest),
        evaluation=sum(evaluations),
        timed=timed,
        at_a_time=at_a_time,
        shared=len({place.gpu_id for place in places[:at_a_time]}) < at_a_time,
        figures=figures,
        unsized=len(estimates) < len(to_do),
        unknown=tuple(dict.fromkeys(case.problem for case in cases if case.problem)),
        missing=next((case.problem for case in cases if case.missing), ""),
        processes=places[0].processes,
    )


def _has_work(work: Work, run: GridRun) -> bool:
    return not work.is_trained(run) or bool(list_unevaluated(work, run))


def count_written(directory: Path) -> int:
    """Count the bytes of the checkpoints in a run directory; a file of two names counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for path in directory.glob("*.pth"):
        with contextlib.suppress(OSError):
            status = path.stat()
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def count_training_seconds(work: Work, run: GridRun, figures: Figures) -> float:
    """Count the seconds that the rest of a run takes; 0 where they are not known."""
    case = figures.find(run)
    if case.pace is None:
        return 0.0
    train, test = case.images
    epochs = run.settings.epochs - work.count_epochs(run)
    return figures.starting + epochs * (train * case.pace.step + test * case.pace.test)


def count_evaluation_seconds(work: Work, run: GridRun, figures: Figures) -> float:
    """Count the seconds of the passes that the evaluation of a run lacks."""
    case = figures.find(run)
    if case.pace is None:
        return 0.0
    images = dict(zip(SPLITS, case.images, strict=True))
    return sum(images[split] * case.pace.evaluation for _, split in list_unevaluated(work, run))


def list_unevaluated(work: Work, run: GridRun) -> list[tuple[int, str]]:
    """List the epochs and splits that eval_nc.py will measure, and has not yet.

    Whether a row still holds is found by eval_nc.py alone.
    """
    path = work.locate(run) / EVALUATED
    rows: list[dict[str, str]] = []
    with contextlib.suppress(UserError):  # absent or damaged: all are measured
        rows = read_csv(path) if path.exists() else []
    done = {(row.get("epoch"), row.get("split")) for row in rows}
    pairs = [(epoch, split) for epoch in work.list_needed_epochs(run) for split in SPLITS]
    return [(epoch, split) for epoch, split in pairs if (str(epoch), split) not in done]
