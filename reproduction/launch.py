"""Many commands, run here, a few at a time. As jobs of a cluster: reproduction.jobs.

Every command must continue its work when it is started again.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from reproduction.places import Place, Places
from utils.signals import PARENT, hold_signals
from utils.torchrun import PATIENCE

# torchrun as utils.torchrun starts it, which is found from any directory.
ROOT = Path(__file__).resolve().parent.parent
START = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from utils.torchrun import main; main()"
TORCHRUN = [sys.executable, "-P", "-c", START]

GRACE = 90  # seconds for a command to save its state after it is asked to stop
MARGIN = 10  # seconds of them that are left to torchrun itself
POLL = 0.2  # seconds between two looks at what runs here
OWN_LINE = re.compile(r"\w+\.py: error: ")  # begins the line in which a script says why it fails
SHOWN_BYTES = 2**16  # of what a command wrote to stderr, from the end


@dataclass(frozen=True)
class Outcome:
    """The end of a command: its exit status, and why it failed, from what it wrote to stderr."""

    status: int
    complaint: str = ""


class Command:
    """A command that runs as a process."""

    _stderr: IO[bytes]

    def __init__(
        self, words: Sequence[str], variables: Mapping[str, str | None] | None = None
    ) -> None:
        """Take the words of the command line, and environment variables; None removes one."""
        self.words, self._variables = list(words), dict(variables or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = False

    def start(self) -> None:
        """Start the process."""
        merged = {**os.environ, PARENT: str(os.getpid()), **self._variables}
        environment = {name: value for name, value in merged.items() if value is not None}
        # A file, which never fills as a pipe does, and does not wait for the ends of all processes
        # that inherit it.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        with hold_signals():  # a process that is not noted here could not be asked to stop
            # A session of its own: Ctrl-C reaches this process alone, which then asks for the stop.
            self._process = subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env=environment,
                start_new_session=True,
            )

    def is_running(self) -> bool:
        """Return whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def wait(self) -> Outcome:
        """Wait for the end of the started process."""
        assert self._process is not None
        # Popen.wait() would hold a lock, and `stop()` in a signal's handler wait for it for ever.
        while (status := self._process.poll()) is None:
            time.sleep(POLL)
        with self._stderr as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - SHOWN_BYTES))
            return Outcome(status, choose_line(file.read().decode("utf-8", "replace")))

    def ask_to_stop(self) -> None:
        """Send SIGTERM, once: train.py then saves its state. A second one would end it at once."""
        if self.is_running() and not self._asked:
            self._asked = True
            assert self._process is not None
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


class Work(Protocol):
    """What runs in a place: a `Command`, or a job with the same methods."""

    def start(self) -> None: ...

    def is_running(self) -> bool: ...

    def wait(self) -> Outcome: ...

    def ask_to_stop(self) -> None: ...

    def stop(self) -> None: ...


def choose_line(text: str) -> str:
    """Choose the line of stderr that says why a command failed: the script's own, else the last.

    torchrun and torch may write after the script.
    """
    lines = text.strip().splitlines() or [""]
    return next(filter(OWN_LINE.match, reversed(lines)), lines[-1])


def list_torchrun_flags(processes: int) -> list[str]:
    """Return the flags of torchrun for a command of several processes on this machine."""
    return ["--standalone", f"--nproc_per_node={processes}"]


def run_here(
    commands: Mapping[str, Sequence[str]], places: Places
) -> Iterator[tuple[str, Outcome]]:
    """Run commands by name, one in each place; yield each name and outcome as it ends.

    Where a place is for several processes, torchrun starts those of a command, which must be that
    of a Python script. If the caller leaves early (a stop, an error), the running commands are
    stopped first.
    """

    def build(words: Sequence[str], place: Place) -> Command:
        environment = place.get_environment()
        if place.processes == 1:
            return Command(words, environment)
        _, *script = words
        words = [*TORCHRUN, *list_torchrun_flags(place.processes), *script]
        return Command(words, {**environment, PATIENCE: str(GRACE - MARGIN)})

    return run_in_places(commands, places, build)


def run_in_places(
    commands: Mapping[str, Sequence[str]],
    places: Places,
    build: Callable[[Sequence[str], Place], Work],
) -> Iterator[tuple[str, Outcome]]:
    """Do as `run_here`, with what `build` makes of the words and the place of a command."""
    waiting, running = dict(commands), dict[str, Work]()
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
