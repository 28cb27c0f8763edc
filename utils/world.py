"""The processes of one job, as torchrun starts them; without torchrun a single one.

Imports no torch, and `utils.distributed` only in a job of several processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

# What torchrun tells each process of a job; every other launcher of torch.distributed does, too.
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# torchrun gives each process a file for its error, in a directory for each of them.
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"

Result = TypeVar("Result")


class World:
    """The processes that compute one result together. This class: a process alone.

    All processes must call each method, and in the same order.

    Attributes:
        rank: the number of this process, from 0. The first one alone prints and writes files.
        size: the number of processes.
        local_rank, local_size: the same among the processes on this machine.
    """

    rank, size, local_rank, local_size = 0, 1, 0, 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum of the processes' tensors, of equal shapes; the given one may change."""
        return tensor

    def join_rows(self, tensor: Tensor) -> Tensor:
        """Return the rows of all processes' tensors [n, …], in the order of the ranks.

        Each may have another number of rows.
        """
        return tensor

    def gather(self, value: Result) -> list[Result]:
        """Return the values of all processes in the order of the ranks. They are pickled."""
        return [value]

    def broadcast(self, value: Result) -> Result:
        """Return the value of the first process. It is pickled."""
        return value

    def copy_buffers(self, model: nn.Module) -> None:
        """Give a network the buffers of the first process's: its running statistics."""

    def copy_weights(self, model: nn.Module) -> None:
        """Give a network all values of the first process's state_dict."""

    def check(self, function: Callable[[], Result]) -> Result:
        """Call a function without methods of this class on every process; return its result.

        A UserError or ValueError of one process is raised on all.
        """
        return function()

    def call_first(self, function: Callable[[], Result]) -> Result:
        """Call a function on the first process alone; return its result on all, pickled.

        A UserError or ValueError is raised on all.
        """
        return function()

    def take_turns(self, function: Callable[[], Result]) -> Result:
        """Call a function on the first process, and on the others once it has ended there.

        What it downloads or caches is there for the others: after the first process, those follow
        that are the first on their machine. Errors are those of `check`.
        """
        return function()

    def vote(self, number: int) -> int:
        """Return the largest number that a process has given; nothing waits for the others.

        With several processes it is that of the call before, which by then has arrived. All get the
        same number in the same call.
        """
        return number

    def wait(self) -> None:
        """Wait until all processes are here."""

    def claim_line(self, error: BaseException | None = None) -> bool:
        """Return whether this process is the one that prints why the job fails.

        It never waits. `error` may be one that `check` or `call_first` has raised on all processes:
        then it is the first.
        """
        return True

    def explain_loss(self, error: BaseException) -> str | None:
        """Explain in one line an error that the end of another process causes; None for others."""
        return None

    def leave(self) -> None:
        """End the connections to the other processes, which have all come so far."""

    def abandon(self, status: int) -> None:
        """End this process at once if there are others, which may be dead or stuck."""


ALONE = World()
_joined = ALONE


def read_number(name: str, default: int) -> int:
    """Read a whole number from an environment variable."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def read_rank() -> int:
    """Return the number of this process in its job, from 0; before `join`."""
    return read_number("RANK", 0) if read_size() > 1 else 0


def read_size() -> int:
    """Return how many processes this job has; before `join`."""
    return read_number("WORLD_SIZE", 1) if all(map(os.environ.get, NEEDED)) else 1


def read_local_size() -> int:
    """Return how many processes of this job are on this machine; before `join`."""
    return max(1, read_number("LOCAL_WORLD_SIZE", 1)) if read_size() > 1 else 1


def join(gpus: bool) -> World:
    """Connect to the other processes of this job, once; return them all.

    Args:
        gpus: whether tensors of GPUs will be exchanged, if there are any.

    Raises:
        UserError: the others do not answer.
    """
    global _joined
    if read_size() == 1 or _joined is not ALONE:
        return _joined
    from utils.distributed import connect

    _joined = connect(gpus)
    return _joined


def get_world() -> World:
    """Return what `join` has returned: this process alone before it."""
    return _joined


def hush_torch() -> None:
    """Let torch's own lines about lost connections go, in a job of several; before its import."""
    if read_size() > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def leave() -> None:
    """End what `join` began."""
    global _joined
    _joined.leave()
    _joined = ALONE


def claim_line(error: BaseException | None = None) -> bool:
    """Return whether this process prints why the job fails, see `World.claim_line`.

    Before `join` the processes have no connection. Those that torchrun has started on a machine
    then decide by a file in the directory that it made for them: the first one prints.
    """
    if _joined.size > 1:
        return _joined.claim_line(error)
    place = os.environ.get(ERROR_FILE)
    if read_size() == 1 or not place:
        return read_rank() == 0
    try:
        os.close(os.open(Path(place).parent.parent / "line", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    except OSError:
        return read_rank() == 0
    return True


def refuse_several(program: str) -> None:
    """Refuse torchrun for a program that does not divide its work. Raises UserError."""
    if read_size() > 1:
        raise UserError(f"{program} runs as one process: start it with python, not torchrun")
