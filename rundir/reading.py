"""Checkpoints that a thread reads and verifies while the one before is evaluated."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rundir.archives import Archive
from rundir.checkpoints import check_origin
from rundir.foreign import read_content
from rundir.weights import Checkpoint, open_checkpoint
from utils.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Reading:
    """A checkpoint as it was read once.

    Attributes:
        epoch, path: of the checkpoint.
        verified: whether it has checksums.
        fingerprint: stands for its content and all else that its rows depend on; "" if the file
            is damaged or of another run.
        missing: the splits to compute.
        content: what `rundir.foreign.read_content` returns, if splits are missing.
        fault: why it cannot be evaluated; None if it can.
    """

    epoch: int
    path: Path
    verified: bool = False
    fingerprint: str = ""
    missing: list[str] = field(default_factory=list)
    content: Any = None
    fault: UserError | None = None


@dataclass(frozen=True)
class Reader:
    """Reads each checkpoint of a run once: verifies it, and loads it if a row is to be computed.

    Attributes:
        run_id: what the checkpoints name as their run; "" if they name none.
        compute_print: maps what was read of a file to the fingerprint of its rows.
        list_missing: lists the splits of an epoch that have no row with this fingerprint.
    """

    run_id: str
    compute_print: Callable[[Archive], str]
    list_missing: Callable[[int, str], list[str]]

    def read(self, epoch: int, path: Path) -> Reading:
        """Read one checkpoint; a fault of the file is returned, not raised."""
        reading = Reading(epoch, path)
        try:
            with open_checkpoint(path) as checkpoint:
                self._fill(reading, checkpoint)
        except UserError as error:
            reading.fault = error
        return reading

    def _fill(self, reading: Reading, checkpoint: Checkpoint) -> None:
        check_origin(reading.path, checkpoint.archive.origin, self.run_id)
        reading.verified = checkpoint.archive.verified
        reading.fingerprint = self.compute_print(checkpoint.archive)
        reading.missing = self.list_missing(reading.epoch, reading.fingerprint)
        if reading.missing:
            reading.content = read_content(checkpoint)


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result]:
    """Yield `read(item)` for each item in order; a thread reads the next one meanwhile.

    At most two results are held: the one in use and the next. An error in `read` is raised here.
    """
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(thread.submit(read, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)
