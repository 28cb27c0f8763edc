"""Many commands: run here, a few at a time, or through submitit (one machine or SLURM).

Every command must continue its work when it is started again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import utils.signals
from reproduction.places import Place, Places
from utils.errors import UserError
from utils.signals import PARENT, hold_signals

GRACE = 90  # seconds for a command to save its state after it is asked to stop
POLL, SLURM_POLL = 0.2, 10  # seconds between two looks at what runs here, and at jobs of SLURM
VISIBLE = "CUDA_VISIBLE_DEVICES"
MOST_REQUEUES = 1000  # a job may reach its time limit and be requeued this many times


@dataclass(frozen=True)
class Outcome:
    """The end of a command: its exit status, and the last line that it wrote to stderr."""

    status: int
    complaint: str = ""


class Command:
    """A command that runs as a process, or as a job of submitit.

    submitit calls `checkpoint` before a job is preempted or its time is up. The command then saves
    its state, and the job goes into the queue again.
    """

    def __init__(
        self, words: Sequence[str], variables: Mapping[str, str | None] | None = None
    ) -> None:
        """Take the words of the command line, and environment variables; None removes one."""
        self.words, self._variables = list(words), dict(variables or {})
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process."""
        merged = {**os.environ, PARENT: str(os.getpid()), **self._variables}
        environment = {name: value for name, value in merged.items() if value is not None}
        with hold_signals():  # a process that is not noted here could not be asked to stop
            # A session of its own: Ctrl-C reaches this process alone, which then asks for the stop.
            self._process = subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                env=environment,
                start_new_session=True,
            )

    def is_running(self) -> bool:
        """Return whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def wait(self) -> Outcome:
        """Wait for the end of the started process."""
        assert self._process is not None
        _, complaints = self._process.communicate()
        lines = complaints.strip().splitlines()
        return Outcome(self._process.returncode, lines[-1] if lines else "")

    def ask_to_stop(self) -> None:
        """Send SIGTERM; train.py then saves its state."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Ask the process to stop and wait `GRACE` seconds; kill it if it still runs then."""
        self.ask_to_stop()
        if self._process is None:
            return
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __call__(self) -> Outcome:
        self.start()
        try:
            return self.wait()
        finally:
            self.ask_to_stop()  # this process may have been interrupted

    def checkpoint(self, *_: Any) -> Any:
        """Stop, and return the submission that continues the work."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(Command(self.words, self._variables))


class Job:
    """A command in a job of submitit on this machine, with the methods of one that runs here."""

    def __init__(self, executor: Any, command: Command) -> None:
        self._executor, self._command = executor, command
        self._job: Any = None

    def start(self) -> None:
        """Submit the job."""
        self._job = self._executor.submit(self._command)

    def is_running(self) -> bool:
        """Return whether the job was submitted and has not ended."""
        return self._job is not None and not self._job.done()

    def wait(self) -> Outcome:
        """Wait for the end of its command."""
        return _read_outcome(self._job)

    def ask_to_stop(self) -> None:
        """End the job, which asks its command to stop, see `Command.__call__`."""
        if self._job is not None:
            self._job.cancel(check=False)

    def stop(self) -> None:
        """Do nothing: the job's own process waits for its command."""


def run_here(
    commands: Mapping[str, Sequence[str]], places: Places
) -> Iterator[tuple[str, Outcome]]:
    """Run commands by name, one in each place; yield each name and outcome as it ends.

    If the caller leaves early (a stop, an error), the running commands are stopped first.
    """
    return _run_in_places(
        commands, places, lambda words, place: Command(words, place.get_environment())
    )


def run_local_jobs(
    commands: Mapping[str, Sequence[str]], places: Places, folder: Path, *, minutes: int
) -> Iterator[tuple[str, Outcome]]:
    """Run commands as jobs of submitit on this machine, one in each place.

    The other arguments and errors are those of `run_on_slurm`.
    """
    executor = _build_executor("local", folder, minutes)
    # submitit hides the GPUs from a job. Its command sees them as this process does.
    visible = {VISIBLE: os.environ.get(VISIBLE)}

    def build(words: Sequence[str], place: Place) -> Job:
        return Job(executor, Command(words, {**place.get_environment(), **visible}))

    return _run_in_places(commands, places, build)


def _run_in_places(
    commands: Mapping[str, Sequence[str]],
    places: Places,
    build: Callable[[Sequence[str], Place], Command | Job],
) -> Iterator[tuple[str, Outcome]]:
    waiting, running = dict(commands), dict[str, Command | Job]()
    try:
        while waiting or running:
            while (chosen := places.take(waiting)) is not None:
                name, place = chosen
                # Noted before it starts: a stop in that moment must reach it, too.
                running[name] = build([*waiting.pop(name), *place.list_flags()], place)
                running[name].start()
            ended = [name for name, work in running.items() if not work.is_running()]
            for name in ended:
                work = running.pop(name)
                places.leave(name)
                yield name, work.wait()
            if not ended:
                time.sleep(POLL)
    finally:
        for work in running.values():  # ask all to stop before waiting for one
            work.ask_to_stop()
        for work in running.values():
            work.stop()


def run_on_slurm(
    commands: Mapping[str, Sequence[str]],
    jobs: int,
    folder: Path,
    *,
    with_gpu: bool,
    minutes: int,
    extra: Mapping[str, Any],
    say: Callable[[str], None],
) -> Iterator[tuple[str, Outcome]]:
    """Run commands as one job array; yield each name and outcome as it ends.

    Args:
        commands: the words of each command line by its name.
        jobs: how many of the array run at a time.
        folder: where submitit keeps its files and the jobs' output.
        with_gpu: whether each job gets a GPU. It is number 0 for the job.
        minutes: time limit of one job, after which it is requeued and resumes.
        extra: more parameters for SLURM, by their sbatch names.
        say: prints a line.

    Raises:
        UserError: submitit is not installed, or the cluster cannot be reached.
    """
    executor = _build_executor("slurm", folder, minutes, slurm_max_num_timeout=MOST_REQUEUES)
    executor.update_parameters(
        gpus_per_node=int(with_gpu),
        slurm_array_parallelism=jobs,
        slurm_signal_delay_s=GRACE + 30,
        slurm_additional_parameters=dict(extra),
    )
    running: dict[str, Any] = {}
    try:
        running = _submit_array(executor, {n: Command(words) for n, words in commands.items()})
        say(f"submitted {len(running)} jobs; their output is in {folder}")
        while running:
            for name in [name for name, job in running.items() if job.done()]:
                yield name, _read_outcome(running.pop(name))
            if running:
                time.sleep(SLURM_POLL)
    finally:
        if running:
            end = "the same command goes on when they have ended"
            say(f"{len(running)} jobs stay in the queue; {end}")


def _build_executor(cluster: str, folder: Path, minutes: int, **options: Any) -> Any:
    try:
        import cloudpickle
        import submitit
    except ImportError as error:
        raise UserError("--launcher needs the package submitit: pip install submitit") from error
    # A job need not find these modules: they travel with it.
    for module in (sys.modules[__name__], utils.signals):
        cloudpickle.register_pickle_by_value(module)
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **options)
    except (RuntimeError, OSError) as error:
        raise UserError(f"--launcher {cluster}: {error}") from error
    executor.update_parameters(timeout_min=minutes)
    return executor


def _submit_array(executor: Any, commands: Mapping[str, Command]) -> dict[str, Any]:
    with _explain_cluster_errors(), executor.batch():
        submitted = [executor.submit(command) for command in commands.values()]
    return dict(zip(commands, submitted, strict=True))


@contextlib.contextmanager
def _explain_cluster_errors() -> Iterator[None]:
    from submitit.core.utils import FailedJobError

    try:
        yield
    except (FailedJobError, subprocess.CalledProcessError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(f"--launcher slurm: the jobs were not accepted: {reason}") from error


def _read_outcome(job: Any) -> Outcome:
    """Return the outcome of a job that ended; one that died without a result counts as failed."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        return job.result()
    except (FailedJobError, UncompletedJobError) as error:
        lines = str(error).strip().splitlines()
        return Outcome(1, f"{lines[0] if lines else 'no result'} (log: {job.paths.stderr})")
