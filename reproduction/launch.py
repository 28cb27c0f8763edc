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
from utils.errors import UserError
from utils.signals import PARENT, hold_signals

GRACE = 90  # seconds for a command to save its state after it is asked to stop
POLL = 0.2  # seconds between two looks at the running commands
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

    def __init__(self, words: Sequence[str], threads: int | None = None) -> None:
        self.words, self._threads = list(words), threads
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process."""
        environment = {**os.environ, PARENT: str(os.getpid())}
        if self._threads:
            environment.setdefault("OMP_NUM_THREADS", str(self._threads))
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
        return DelayedSubmission(Command(self.words, self._threads))


def run_here(commands: Mapping[str, Sequence[str]], jobs: int) -> Iterator[tuple[str, Outcome]]:
    """Run commands by name, `jobs` at a time; yield each name and outcome as it ends.

    If the caller leaves early (a stop, an error), the running commands are stopped first.
    """
    # The commands share the cores: each would otherwise use all of them.
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None
    waiting = [(name, Command(words, threads)) for name, words in commands.items()]
    running: list[tuple[str, Command]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(waiting.pop(0))
                running[-1][1].start()
            ended = [pair for pair in running if not pair[1].is_running()]
            running = [pair for pair in running if pair not in ended]
            for name, command in ended:
                yield name, command.wait()
            if not ended:
                time.sleep(POLL)
    finally:
        for _, command in running:  # ask all to stop before waiting for one
            command.ask_to_stop()
        for _, command in running:
            command.stop()


def run_submitted(
    commands: Mapping[str, Sequence[str]],
    cluster: str,
    jobs: int,
    folder: Path,
    *,
    gpu: int | None,
    minutes: int,
    extra: Mapping[str, Any],
    say: Callable[[str], None],
) -> Iterator[tuple[str, Outcome]]:
    """Run commands as jobs of submitit; yield each name and outcome as it ends.

    Args:
        cluster: "slurm" (one job array, `jobs` of it at a time) or "local" (processes of this
            machine, `jobs` at a time).
        folder: where submitit keeps its files and the jobs' output.
        gpu: the local GPU that the jobs use; with SLURM each job gets one, whatever the number.
            None: no GPU.
        minutes: time limit of one job, after which it is requeued and resumes.
        extra: more parameters for SLURM, by their sbatch names.
        say: prints a line.

    Raises:
        UserError: submitit is not installed, or the cluster cannot be reached.
    """
    executor = _build_executor(cluster, jobs, folder, gpu, minutes, extra)
    todo = {name: Command(words) for name, words in commands.items()}
    running: dict[str, Any] = {}
    try:
        if cluster == "slurm":
            running = _submit_array(executor, todo)
            say(f"submitted {len(running)} jobs; their output is in {folder}")
            todo = {}
        while todo or running:
            while todo and len(running) < jobs:
                name = next(iter(todo))
                running[name] = executor.submit(todo.pop(name))
            for name in [name for name, job in running.items() if job.done()]:
                yield name, _read_outcome(running.pop(name))
            if running:
                time.sleep(POLL if cluster == "local" else 10)
    finally:
        _leave_jobs(cluster, running, say)


def _build_executor(
    cluster: str, jobs: int, folder: Path, gpu: int | None, minutes: int, extra: Mapping[str, Any]
) -> Any:
    try:
        import cloudpickle
        import submitit
    except ImportError as error:
        raise UserError("--launcher needs the package submitit: pip install submitit") from error
    # A job need not find these modules: they travel with it.
    for module in (sys.modules[__name__], utils.signals):
        cloudpickle.register_pickle_by_value(module)
    options = {"slurm_max_num_timeout": MOST_REQUEUES} if cluster == "slurm" else {}
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **options)
    except (RuntimeError, OSError) as error:
        raise UserError(f"--launcher {cluster}: {error}") from error
    executor.update_parameters(timeout_min=minutes, gpus_per_node=0 if gpu is None else 1)
    if cluster == "slurm":
        executor.update_parameters(
            slurm_array_parallelism=jobs,
            slurm_signal_delay_s=GRACE + 30,
            slurm_additional_parameters=dict(extra),
        )
    elif gpu is not None:
        executor.update_parameters(local_visible_gpus=[gpu])
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


def _leave_jobs(cluster: str, running: Mapping[str, Any], say: Callable[[str], None]) -> None:
    if not running:
        return
    if cluster == "slurm":
        say(f"{len(running)} jobs stay in the queue; the same command goes on when they have ended")
        return
    for job in running.values():  # their commands are asked to stop, see Command.__call__
        job.cancel(check=False)
