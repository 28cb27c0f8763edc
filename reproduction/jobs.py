"""Many commands as jobs of submitit, on this machine or on a cluster with SLURM.

Every command must continue its work when it is started again. A job of several processes has a task
for each of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import reproduction.launch
import utils.signals
from reproduction.launch import GRACE, POLL, Command, Outcome, choose_line, run_in_places
from reproduction.places import VISIBLE, Place, Places
from utils.errors import UserError

SLURM_POLL = 10  # seconds between two looks at jobs of SLURM
MOST_REQUEUES = 1000  # a job may reach its time limit and be requeued this many times
PORTS = 20_000, 32_768  # below those that Linux hands out by itself


class Task(Command):
    """A command in a job of submitit, or one process of it if the job has several tasks.

    submitit signals all tasks before a job is preempted or its time is up, and calls `checkpoint`
    in the first one. That process of the command then stops together with all others, the state is
    saved, and the job goes into the queue again.
    """

    def __init__(
        self,
        words: Sequence[str],
        variables: Mapping[str, str | None] | None = None,
        *,
        stoppable: bool = False,
    ) -> None:
        """Take the words of the command line and environment variables.

        `stoppable`: SIGTERM stops the command. On SLURM it must not: it comes before the signal of
        a preemption, and the job would end instead of going into the queue.
        """
        super().__init__(words, variables)
        self._stoppable = stoppable

    def __call__(self) -> Outcome:
        self._variables |= _enter_job()
        if self._stoppable:
            signal.signal(signal.SIGTERM, lambda *_: self.ask_to_stop())
        self.start()
        try:
            return self.wait()
        finally:
            self.ask_to_stop()  # this process may have been interrupted

    def checkpoint(self, *_: Any) -> Any:
        """Stop, and return the submission that continues the work."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(Task(self.words, self._variables, stoppable=self._stoppable))


def _enter_job() -> dict[str, str]:
    """Return what torch.distributed asks of the environment, if this job has several tasks.

    As torchrun sets it: every process sees all GPUs of its node, and takes one by its local rank.
    """
    from submitit import JobEnvironment

    job = JobEnvironment()
    if job.num_tasks == 1:
        return {}
    job.paths.result_pickle.unlink(missing_ok=True)  # of this task before the job was requeued
    port = random.Random(job.job_id).randrange(*PORTS)  # the same for all tasks
    return {
        "RANK": str(job.global_rank),
        "WORLD_SIZE": str(job.num_tasks),
        "LOCAL_RANK": str(job.local_rank),
        "LOCAL_WORLD_SIZE": str(job.num_tasks // job.num_nodes),
        "MASTER_ADDR": job.hostnames[0] if job.num_nodes > 1 else "127.0.0.1",
        "MASTER_PORT": str(port),
    }


class Job:
    """A command in a job of submitit on this machine, with the methods of one that runs here."""

    def __init__(self, executor: Any, task: Task) -> None:
        self._executor, self._task = executor, task
        self._job: Any = None
        self._asked = False

    def start(self) -> None:
        """Submit the job."""
        self._job = self._executor.submit(self._task)

    def is_running(self) -> bool:
        """Return whether the job was submitted and has not ended."""
        return self._job is not None and not self._job.done()

    def wait(self) -> Outcome:
        """Wait for the end of its command."""
        return _read_outcome(self._job)

    def ask_to_stop(self) -> None:
        """Ask all tasks to stop, once. submitit's own `cancel` kills them a second later."""
        if self.is_running() and not self._asked:
            self._asked = True
            # The job is a process of submitit's that hands the signal on to its tasks.
            os.kill(int(self._job.job_id), signal.SIGTERM)

    def stop(self) -> None:
        """Ask the job to stop and wait `GRACE` seconds; kill it if it still runs then."""
        self.ask_to_stop()
        end = time.monotonic() + GRACE
        while self.is_running() and time.monotonic() < end:
            time.sleep(POLL)
        if self.is_running():
            self._job.cancel(check=False)


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
        executor.update_parameters(tasks_per_node=place.processes)
        variables = {**visible, **place.get_environment()}
        return Job(executor, Task(words, variables, stoppable=True))

    return run_in_places(commands, places, build)


def run_on_slurm(
    commands: Mapping[str, Sequence[str]],
    jobs: int,
    folder: Path,
    *,
    with_gpu: bool,
    minutes: int,
    extra: Mapping[str, Any],
    say: Callable[[str], None],
    processes: int = 1,
    nodes: int = 1,
) -> Iterator[tuple[str, Outcome]]:
    """Run commands as one job array; yield each name and outcome as it ends.

    Args:
        commands: the words of each command line by its name.
        jobs: how many of the array run at a time.
        folder: where submitit keeps its files and the jobs' output.
        with_gpu: whether each process of a job gets a GPU. Those of a node are numbered from 0.
        minutes: time limit of one job, after which it is requeued and resumes.
        extra: more parameters for SLURM, by their sbatch names.
        say: prints a line.
        processes: of each job, a multiple of `nodes`.
        nodes: of each job.

    Raises:
        UserError: submitit is not installed, or the cluster cannot be reached.
    """
    executor = _build_executor("slurm", folder, minutes, slurm_max_num_timeout=MOST_REQUEUES)
    each = processes // nodes
    if processes > 1:
        executor.update_parameters(nodes=nodes, tasks_per_node=each)
    executor.update_parameters(
        gpus_per_node=each if with_gpu else 0,
        slurm_array_parallelism=jobs,
        slurm_signal_delay_s=GRACE + 30,
        slurm_additional_parameters=dict(extra),
    )
    running: dict[str, Any] = {}
    try:
        running = _submit_array(executor, {name: Task(words) for name, words in commands.items()})
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
    for module in (sys.modules[__name__], reproduction.launch, utils.signals):
        cloudpickle.register_pickle_by_value(module)
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **options)
    except (RuntimeError, OSError) as error:
        raise UserError(f"--launcher {cluster}: {error}") from error
    executor.update_parameters(timeout_min=minutes)
    return executor


def _submit_array(executor: Any, tasks: Mapping[str, Task]) -> dict[str, Any]:
    with _explain_cluster_errors(), executor.batch():
        submitted = [executor.submit(task) for task in tasks.values()]
    return dict(zip(tasks, submitted, strict=True))


@contextlib.contextmanager
def _explain_cluster_errors() -> Iterator[None]:
    from submitit.core.utils import FailedJobError

    try:
        yield
    except (FailedJobError, subprocess.CalledProcessError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(f"--launcher slurm: the jobs were not accepted: {reason}") from error


def _read_outcome(job: Any) -> Outcome:
    """Return the outcome of a job that ended: that of its first task.

    Another task may have written why they failed; one process writes it for all.
    """
    first, *others = [job.task(number) for number in range(job.num_tasks)]
    outcome = _read_task(first)
    if not outcome.status:
        return outcome
    found = [_read_task(task) for task in others if task.paths.result_pickle.exists()]
    lines = [each.complaint for each in (outcome, *found)]
    return Outcome(outcome.status, choose_line("\n".join(lines[::-1])))


def _read_task(task: Any) -> Outcome:
    """Return the outcome of a task that ended; one that died without a result counts as failed."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        outcome: Outcome = task.result()
    except (FailedJobError, UncompletedJobError) as error:
        lines = str(error).strip().splitlines()
        return Outcome(1, f"{lines[0] if lines else 'no result'} (log: {task.paths.stderr})")
    return outcome
