"""The whole training step as one CUDA graph: recorded after a few ordinary steps, then replayed.

A small network's step is hundreds of kernels, and the host takes longer to ask for them one by one
than the GPU to compute them. A graph is asked for once. It repeats the recorded kernels on the same
addresses, so whatever changes from step to step lies in tensors that are written in place: batch,
learning rate, weights, buffers, optimizer state, loss scale and the random generator's position.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable

import torch
from torch import Tensor

from objective.optimizers import make_recordable, mark_capturable
from training.snapshot import (
    SHARES,
    Results,
    StepState,
    find_difference,
    was_left_out,
)
from utils.device import is_out_of_memory
from utils.precision import Precision

# (images, targets) -> (objective, loss, logits)
BatchFunction = Callable[[Tensor, Tensor], Results]

# Ordinary steps before the recording: cuDNN's trials, compilation, workspaces and the state of
# optimizer and scaler are then in place. None of these can happen while a graph is recorded.
WARM_UP = 3


class CudaGraph:
    """A recorded function on a CUDA device. The current stream must not be the default one."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._graph = device, torch.cuda.CUDAGraph()

    def record(self, function: Callable[[], Results]) -> Results:
        """Record what `function` asks of the device, without running it there.

        Returns its results, which every replay overwrites. Raises what recording raises.
        """
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.current_stream(self._device)
        try:
            # Threads that pin or save call CUDA meanwhile; that is no error of this thread.
            with torch.cuda.graph(self._graph, pool, stream, capture_error_mode="thread_local"):
                return function()
        except BaseException:
            self._clean_up(pool)
            raise

    def _clean_up(self, pool: tuple[int, int]) -> None:
        """Undo what torch leaves behind when a recording fails.

        Its generator would still count as recording and refuse ordinary draws, and its allocator
        would keep the recording's memory and no longer free what is cached when memory is short.
        """
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        fresh = torch.Generator(self._device)  # its position is set by who restores the state
        torch.cuda.default_generators[index].graphsafe_set_state(fresh)
        with contextlib.suppress(RuntimeError):  # if the recording did end, this is done already
            torch._C._cuda_endAllocateToPool(index, pool)
            torch._C._cuda_releasePool(index, pool)

    def replay(self) -> None:
        """Run the recorded function on the device."""
        self._graph.replay()


# What records a step on each type of device.
GRAPHS = {"cuda": CudaGraph}


class Recording:
    """A step on batches of one shape, recorded.

    Args:
        run: the step. It is recorded on copies of the batch.
        optimizer: whose update it makes.
        device: where it computes.
        images, targets: a batch.
    """

    def __init__(
        self,
        run: BatchFunction,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        images: Tensor,
        targets: Tensor,
    ) -> None:
        self._inputs = images.clone(), targets.clone()  # strides are kept
        make_recordable(optimizer, device)
        self._optimizer = optimizer
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._graph = GRAPHS[device.type](device)
        with mark_capturable(optimizer):
            self._results = self._graph.record(lambda: run(*self._inputs))

    def is_current(self) -> bool:
        """Return whether the optimizer is still as recorded: loading a state replaces its tensors.

        These are its rates and all of its state.
        """
        groups = self._optimizer.param_groups
        return all(group["lr"] is rate for group, rate in zip(groups, self._rates, strict=True))

    def replay(self, images: Tensor, targets: Tensor) -> Results:
        """Take the step on another batch; nothing waits for the device."""
        for own, given in zip(self._inputs, (images, targets), strict=True):
            own.copy_(given)
        self._graph.replay()
        objective, loss, logits = self._results
        return objective.clone(), loss.clone(), logits.clone()  # the next replay overwrites them


class RecordedStep:
    """A training step that is replayed once it is recorded and checked; ordinary until then.

    The largest batches are recorded: the last, smaller one of an epoch stays ordinary. The first
    replay is compared with an ordinary step from the same state. If recording fails, memory is too
    short or the two differ by more than rounding, all further steps are ordinary.

    Args:
        run: an ordinary step.
        state: what it changes.
        precision: in which it computes.

    Attributes:
        failure: why the steps are not recorded; "" if they are, or will be.
    """

    def __init__(self, run: BatchFunction, state: StepState, precision: Precision) -> None:
        self._run, self._state, self._precision = run, state, precision
        self._shapes: tuple[object, ...] = ()
        self._size, self._seen = 0, 0  # of the recorded batches: images, ordinary steps
        self._recording: Recording | None = None
        self.failure = ""
        make_recordable(state.optimizer, state.device)

    def is_due(self, images: Tensor, targets: Tensor) -> bool:
        """Return whether the step on this batch would be recorded now, which takes a while."""
        recorded = self._recording is not None and self._recording.is_current()
        fits = self._shapes == _describe_shapes(images, targets)
        return fits and self._seen >= WARM_UP and not recorded and not self.failure

    def __call__(self, images: Tensor, targets: Tensor) -> Results:
        """Take one step."""
        if self.failure:
            return self._run(images, targets)
        if self.is_due(images, targets):
            return self._record(images, targets)
        shapes = _describe_shapes(images, targets)
        if shapes == self._shapes and self._recording is not None:
            return self._recording.replay(images, targets)
        if shapes != self._shapes and len(images) > self._size:
            self._shapes, self._size, self._seen = shapes, len(images), 0
            self._recording = None
        self._seen += shapes == self._shapes
        return self._run(images, targets)

    def _record(self, images: Tensor, targets: Tensor) -> Results:
        """Take an ordinary step; record it, and compare a replay from the same state with it.

        Whatever comes of it, the ordinary step is the one that counts.
        """
        state, before, after, results = self._state, None, None, None
        self._recording, recording = None, None
        try:
            before = state.copy()
            results = self._run(images, targets)
            after = state.copy(results)
            if was_left_out(before, after):
                return results  # float16 overflowed: there is no update to compare
            state.restore(before)
            again = state.copy(self._run(images, targets))
            recording = Recording(self._run, state.optimizer, state.device, images, targets)
            state.restore(before)
            replayed = state.copy(recording.replay(images, targets))
            share = SHARES[self._precision.name]
            self.failure = find_difference(before, (after, again), replayed, share)
        except Exception as error:  # whatever it is: an ordinary step goes on, or raises it again
            self.failure = explain_failure(error)
        if not self.failure:
            self._recording = recording
        if after is not None and results is not None:
            state.restore(after)
            return results
        if before is not None:
            state.restore(before)
        return self._run(images, targets)


def _describe_shapes(images: Tensor, targets: Tensor) -> tuple[object, ...]:
    return images.shape, images.dtype, targets.shape, targets.dtype


def explain_failure(error: Exception) -> str:
    """Explain in one line why a step could not be recorded."""
    # The end of a failed recording raises an error of its own, whose context is the cause.
    cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
    if is_out_of_memory(error) or is_out_of_memory(cause):
        return "memory is too short for a recording"
    reason = textwrap.shorten(f"{type(cause).__name__}: {cause}", 90, placeholder=" …")
    return f"recording failed ({reason})"
