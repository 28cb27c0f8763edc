"""Stopping on request: finish the step, save, leave."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from utils.world import ALONE, claim_line, get_world, read_size

# Signals that Windows does not have: None there.
SIGHUP: int | None = getattr(signal, "SIGHUP", None)
SIGCHLD: int | None = getattr(signal, "SIGCHLD", None)
SIGKILL: int | None = getattr(signal, "SIGKILL", None)
SIGNALS: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT, *([SIGHUP] if SIGHUP else []))
DEAF_SECONDS = 20
LOST = (
    "a process of this job has ended, so all do; what was saved is whole: start again "
    "(train.py with --resume)"
)
ALARM = 1000  # more than the number of any signal
PARENT = "STOP_WITH_PARENT"  # environment variable: the process with which a child stops
_heard = threading.Event()  # set once the main thread has taken a signal


_installed: "StopSignal | None" = None  # in a job of several processes


class StopSignal:
    """Handler of SIGTERM, SIGINT and SIGHUP within its `with` block.

    SIGHUP comes when the terminal closes; it stays ignored where it was, as nohup wants it.

    Before `wait_for_step()` is called, a signal ends the program at once with `message`: nothing
    can be lost yet. Afterwards the first signal is remembered, and the loop stops after its step. A
    second one of the same kind ends the process at once, for a user who will not wait. In a job of
    several processes it does not: the launcher may send what the terminal has sent already.

    Attributes:
        number: of the signal; None before one.
        world: the processes that stop together.
    """

    def __init__(self, message: str = "stopped before training began") -> None:
        self._message = message
        self.number: int | None = None
        self.world = ALONE
        self._remember = False
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a stop was requested."""
        return self.number is not None

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as a shell reports it: SIGTERM 143, SIGINT 130, SIGHUP 129."""
        return 128 + (self.number or 0)

    def poll(self, alarm: bool = False) -> bool:
        """Return whether to stop here; all processes of a job get the same answer.

        With `alarm`, on any of them, the answer is yes although no stop was requested.
        """
        number = self.world.vote(ALARM if alarm else self.number or 0)
        if 0 < number < ALARM:
            self.number = number
        return number > 0

    def wait_for_step(self) -> None:
        """Remember requests from now on: the loop stops after its step."""
        self._remember = True

    def install(self) -> "StopSignal":
        """Handle the signals from now on."""
        for number in SIGNALS:
            if number == SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._handle)
        if read_size() > 1:
            _end_if_deaf(self)
        return self

    def __enter__(self) -> "StopSignal":
        return self.install()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: Any) -> None:
        self.number = number
        _heard.set()
        if self._remember:
            if read_size() == 1:
                signal.signal(number, signal.SIG_DFL)
            return
        if claim_line():
            print(self.explain_early_end(), file=sys.stderr)
        sys.exit(self.exit_status)

    def explain_early_end(self) -> str:
        """Explain an end by a signal. A launcher stops all processes also when one has died."""
        if self._remember:
            return LOST
        return self._message + (", or another process of this job ended" * (read_size() > 1))

    @property
    def patience(self) -> float:
        """Seconds in which the main thread takes a signal; less while nothing can be lost."""
        return DEAF_SECONDS if self._remember else DEAF_SECONDS / 10


def _end_if_deaf(stop: StopSignal) -> None:
    """End this process, with a line, if a signal comes and the main thread does not take it.

    Python handles signals in the main thread. If that waits in C, for another process or for a GPU
    that waits for one, and the other has died, it takes none. The launcher kills it 30 seconds
    after its SIGTERM. The `StopSignal` that was installed last counts.
    """
    global _installed
    watched, _installed = _installed is not None, stop
    if watched:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # gets each signal's number at once

    def watch() -> None:
        while os.read(reader, 1)[0] not in SIGNALS:
            pass
        assert _installed is not None
        if _heard.wait(_installed.patience):
            return
        if claim_line():
            print(f"error: {_installed.explain_early_end()}", file=sys.stderr, flush=True)
        get_world().abandon(128 + signal.SIGTERM)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="signals", daemon=True).start()


class Stopped(Exception):
    """A stop that was requested; the step is finished and the run's state is written."""


@contextlib.contextmanager
def hold_signals() -> Iterator[None]:
    """Hold the signals that stop a program back until the block has ended, then let them act.

    For a step that a stop must not cut in two, such as starting a process and noting that it runs.
    """
    held: list[int] = []
    # What is ignored stays ignored, also in a process that is started here.
    handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    previous = {n: signal.signal(n, lambda number, _frame: held.append(number)) for n in handled}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for signum in held:
            signal.raise_signal(signum)


def stop_with_parent() -> None:
    """Stop this process, as SIGTERM does, when the parent that asks for it has ended.

    A parent that is killed cannot stop its children itself. It asks by its number in the
    environment variable `PARENT`. On Windows a process does not see that its parent has ended.
    """
    parent = os.environ.get(PARENT, "")
    if parent.isdecimal() and os.name != "nt":
        threading.Thread(target=_watch_parent, args=(int(parent),), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    if not _heard.is_set():  # a second signal would end a stop that is under way
        os.kill(os.getpid(), signal.SIGTERM)
