"""Loops that take turns, each in a process of its own with its own memory peak."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import resource
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from benchmarks.bench import KINDS, Loop
from benchmarks.images import get_training_images, load_images
from input_pipeline.splits import DataSet
from utils.device import pick_device, synchronise
from utils.errors import UserError
from utils.precision import set_determinism
from utils.registry import load_function

# Seconds of pause after a turn. Workers fill their queue in it and do not disturb the next loop.
SETTLE = 0.3


@dataclass
class Timing:
    """The results of one loop.

    Attributes:
        batch_size: images per step.
        first_step_seconds: time of the first step, and of building the network and the batches.
        compile_seconds: time of compiling in it.
        backend: the modes of cuDNN and of the matrix units in its process.
        seconds: the mean time of a step in each round.
        peak_memory_mib: peak of the GPU's tensors, or of the process if it computes on the CPU.
    """

    batch_size: int
    first_step_seconds: float
    compile_seconds: float
    backend: str = ""
    seconds: list[float] = field(default_factory=list)
    peak_memory_mib: float = 0.0

    @property
    def ms_per_step(self) -> float:
        """The median time of a step in milliseconds."""
        return 1000 * statistics.median(self.seconds)

    @property
    def images_per_second(self) -> float:
        """The median rate."""
        return self.batch_size / statistics.median(self.seconds)

    def list_values(self) -> dict[str, Any]:
        """Return the numbers of a loop for --json."""
        return {
            "seconds": self.seconds,
            "first_step_seconds": self.first_step_seconds,
            "compile_seconds": self.compile_seconds,
            "backend": self.backend,
            "peak_memory_mib": self.peak_memory_mib,
            "ms_per_step": self.ms_per_step,
            "images_per_second": self.images_per_second,
        }


def measure_loops(loops: Sequence[Loop], rounds: int) -> dict[str, Timing]:
    """Return the timings by the loops' names. Raises UserError if a process refuses its loop."""
    pipes: dict[str, Connection] = {}
    children: dict[str, BaseProcess] = {}
    timings: dict[str, Timing] = {}
    try:
        for loop in loops:
            pipes[loop.name], children[loop.name] = start_process(loop)
            started = receive(pipes[loop.name])
            timings[loop.name] = Timing(loop.bench.settings.batch_size, *started)
        for _, loop in itertools.product(range(rounds), loops):
            timings[loop.name].seconds.append(ask(pipes[loop.name], "go"))
            time.sleep(SETTLE)
        for name, child in children.items():
            timings[name].peak_memory_mib = ask(pipes[name], "stop")
            child.join()
    finally:
        for child in children.values():
            child.kill()  # those that still run after a mistake or Ctrl-C; their workers notice
    return timings


def start_process(loop: Loop) -> tuple[Connection, BaseProcess]:
    """Start the process of a loop and return a pipe to it."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    ours, theirs = context.Pipe()
    start_method = multiprocessing.get_start_method()
    child = context.Process(target=serve_turns, args=(loop, start_method, theirs))
    child.start()
    theirs.close()
    return ours, child


def ask(pipe: Connection, message: str) -> float:
    """Send a message to a loop's process and return the answer. Raises UserError."""
    with contextlib.suppress(BrokenPipeError):  # receive() reports it
        pipe.send(message)
    answer: float = receive(pipe)
    return answer


def receive(pipe: Connection) -> Any:
    """Return the message of a loop's process. Raises UserError if it refuses or has died."""
    try:
        kind, value = pipe.recv()
    except (EOFError, ConnectionError):
        raise UserError("a measuring process died: its message is above") from None
    if kind == "error":
        raise UserError(value)
    return value


def serve_turns(loop: Loop, start_method: str, pipe: Connection) -> None:
    """Run the steps of a turn at each message and answer their mean time, in a loop's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    try:
        # A spawned process would spawn its workers, too, and each worker would import torch.
        multiprocessing.set_start_method(start_method, force=True)
        if loop.bench.ours:
            set_determinism(False)
        device, _ = pick_device(loop.bench.settings.gpu_id, loop.bench.keep_memory)
        data = load_images(loop.bench)
        steps = load_function(KINDS[loop.kind].function)(loop.bench, data, device)
        turn = plan_turn(loop, data, device)
        begun = time.perf_counter()
        compiling = next(steps)
        synchronise(device)
        pipe.send(("ready", (time.perf_counter() - begun, compiling, describe_backend())))
        next(steps)  # cuDNN's trials, allocator
        while pipe.recv() == "go":
            take_steps(steps, turn.untimed)
            synchronise(device)
            begun = time.perf_counter()
            take_steps(steps, turn.timed)
            synchronise(device)
            pipe.send(("seconds", (time.perf_counter() - begun) / turn.steps))
        pipe.send(("memory", read_peak_memory(device)))
        steps.close()  # while Python still runs: DataLoader's threads must not outlive it
    except UserError as error:
        pipe.send(("error", str(error)))
    except (BrokenPipeError, EOFError):
        pass  # the parent is gone


def take_steps(steps: Iterator[float], count: int) -> None:
    """Take `count` steps of a loop."""
    for _ in range(count):
        next(steps)


@dataclass(frozen=True)
class Turn:
    """A turn of a loop.

    Attributes:
        untimed: how often the loop yields before the timing.
        timed: how often it yields within the timing.
        steps: the steps in these.
    """

    untimed: int
    timed: int
    steps: int


def plan_turn(loop: Loop, data: DataSet, device: torch.device) -> Turn:
    """Return how often a loop yields in a turn."""
    bench = loop.bench
    images, batch_size = len(get_training_images(data)), bench.settings.batch_size
    if loop.kind == "e":  # yields after an epoch
        return Turn(0, 1, min(bench.steps, -(-images // batch_size)))
    count = bench.steps
    if loop.kind == "d":  # several batches are prepared at once
        epoch = images // batch_size
        count = -(-count // epoch) * epoch
    # Batches that workers queued before the turn would raise their rate. On the CPU the model is
    # slower than the workers: the queue is full at the end of the turn, too.
    drains = loop.kind == "d" or device.type == "cuda"
    return Turn(3 * (bench.settings.num_workers or 0) if drains else 0, count, count)


def describe_backend() -> str:
    """Describe the modes of this process that decide how fast a GPU computes in float32."""
    modes = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    places = itertools.compress(("convolutions", "matrix products"), modes)
    trials = "on" if torch.backends.cudnn.benchmark else "off"
    return f"cudnn.benchmark {trials}, TF32 in {' and '.join(places) or 'nothing'}"


def read_peak_memory(device: torch.device) -> float:
    """Return the peak in MiB of the GPU's tensors, or of the process if it computes on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
