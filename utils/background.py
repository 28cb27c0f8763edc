"""Work that a thread does while the program goes on, one job at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """A thread that does one job at a time. An error in a job is raised by the next `wait`."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._job: Future[Any] | None = None

    def start(self, job: Callable[..., object], *arguments: object) -> None:
        """Start a job once the one before has ended. Raises the error of that one."""
        self.wait()
        self._job = self._thread.submit(job, *arguments)

    def check(self) -> None:
        """Raise the error of a job that has ended in one; wait for nothing."""
        if self._job is not None and self._job.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the end of the job. Raises its error, once."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def close(self) -> None:
        """Wait for the end of the job and end the thread, whatever the job's error."""
        self._thread.shutdown()
