"""Several processes that compute one result: torch.distributed, with nccl on GPUs, else gloo."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.errors import UserError
from utils.world import Result, World, read_local_size, read_number

JOIN = timedelta(minutes=10)  # for all processes to start
# One process may download or list a data set for so long. A process that dies is noticed at once:
# its connections are closed.
PATIENCE = timedelta(hours=6)
LOST = (
    "a process of this job has ended, so all do; what was saved is whole: --resume goes on from it"
)
# Words of errors that a closed connection to another process causes.
CLOSED = ("gloo", "nccl", "onnection closed", "onnection reset", "onnection refused", "roken pipe")
AGREED = (UserError, ValueError)  # errors that all processes raise if one does


def connect(gpus: bool) -> Processes:
    """Connect to the other processes of the job by the environment's variables. See `join`."""
    backend = "cpu:gloo,cuda:nccl" if gpus and torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=JOIN)
        return Processes()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"the processes of this job cannot be connected: {reason}") from error


class Processes(World):
    """Processes that are connected; see `World`."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local_rank, self.local_size = read_number("LOCAL_RANK", 0), read_local_size()
        # A group of its own: what the host agrees on must not mix with gradients under way.
        self._control: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._vote: tuple[Any, Tensor] | None = None
        self._agreed: Exception | None = None  # an error that all processes raise

    def total(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    def join_rows(self, tensor: Tensor) -> Tensor:
        counts = self.gather(len(tensor))
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def gather(self, value: Result) -> list[Result]:
        found: list[Result] = [value] * self.size
        dist.all_gather_object(found, value, group=self._control)
        return found

    def broadcast(self, value: Result) -> Result:
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def copy_buffers(self, model: nn.Module) -> None:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)

    def copy_weights(self, model: nn.Module) -> None:
        tensors = list(model.state_dict().values())
        for kind in dict.fromkeys(tensor.dtype for tensor in tensors):
            some = [tensor for tensor in tensors if tensor.dtype == kind]
            values = torch.cat([tensor.flatten() for tensor in some])  # one exchange, not hundreds
            dist.broadcast(values, src=0)
            parts = values.split([tensor.numel() for tensor in some])
            for tensor, part in zip(some, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def check(self, function: Callable[[], Result]) -> Result:
        result, error = _attempt(function)
        self._raise_first(self.gather(error))
        return result  # type: ignore[return-value]

    def call_first(self, function: Callable[[], Result]) -> Result:
        result, error = _attempt(function) if self.is_first else (None, None)
        result, error = self.broadcast((result, error))
        self._raise_first([error])
        return result  # type: ignore[return-value]

    def take_turns(self, function: Callable[[], Result]) -> Result:
        own = min(self.rank, 1) + min(self.rank, self.local_rank, 1)
        results = [self.check(function if turn == own else _pass) for turn in range(3)]
        return results[own]  # type: ignore[return-value]

    def vote(self, number: int) -> int:
        before = self._vote
        box = torch.tensor([number])
        work = dist.all_reduce(box, dist.ReduceOp.MAX, group=self._control, async_op=True)
        self._vote = work, box
        if before is None:
            return 0
        before[0].wait()
        return int(before[1])

    def wait(self) -> None:
        dist.barrier(group=self._control)

    def _raise_first(self, errors: list[Exception | None]) -> None:
        self._agreed = next((error for error in errors if error is not None), None)
        if self._agreed is not None:
            raise self._agreed

    def claim_line(self, error: BaseException | None = None) -> bool:
        if error is not None and error is self._agreed:
            return self.is_first
        store = dist.distributed_c10d._get_default_store()
        try:
            return bool(store.add("lines of failure", 1) == 1)
        except RuntimeError:  # the process that holds the store has ended: the next one prints
            return self.rank <= 1

    def explain_loss(self, error: BaseException) -> str | None:
        text = str(error).lower()
        lost = isinstance(error, dist.DistError) or any(words in text for words in CLOSED)
        return LOST if lost else None

    def leave(self) -> None:
        self.wait()
        dist.destroy_process_group()

    def abandon(self, status: int) -> NoReturn:
        if self._agreed is not None:
            with contextlib.suppress(RuntimeError):  # a launcher ends all when one has ended
                self.wait()
        for process in multiprocessing.active_children():
            process.kill()
        sys.stdout.flush()
        sys.stderr.flush()
        # Not by the usual way: a GPU that waits for a dead process would hold this one, too.
        os._exit(status)


def _attempt(function: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    try:
        return function(), None
    except AGREED as error:
        return None, error


def _pass() -> None:
    """Do nothing, while others have their turn."""
