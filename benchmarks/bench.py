"""The loops of train_speed.py by name, and the settings of each. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from args import Settings
from models import find_network
from utils.errors import UserError
from utils.resources import count_usable_cores


@dataclass(frozen=True)
class Kind:
    """A kind of loop.

    Attributes:
        title: its name in the table.
        function: maps (`Bench`, data set, device) to a generator. It yields after each step the
            seconds that the step compiled.
        ours: whether its process computes with train.py's settings: freed memory is kept, and
            cuDNN tries its kernels. A conventional loop has torch's defaults.
    """

    title: str
    function: str
    ours: bool = True


FEW_WORKERS = 2  # of loop (a2)
KINDS: dict[str, Kind] = {
    "a2": Kind("conventional", "benchmarks.loops:run_conventionally", ours=False),
    "a": Kind("conventional", "benchmarks.loops:run_conventionally", ours=False),
    "b": Kind("train.py", "benchmarks.loops:run_as_train"),
    "c": Kind("ceiling", "benchmarks.loops:run_step_alone"),
    "d": Kind("batches", "benchmarks.loops:run_batches_alone"),
    "e": Kind("whole epoch", "benchmarks.epochs:run_epochs"),
}


@dataclass(frozen=True)
class Bench:
    """The task of a loop and its timing. It travels to another process.

    Attributes:
        settings: the settings of train.py, as it resolves them; `img_size` is given.
        steps: timed steps per turn.
        num_images: number of training images.
        num_classes: K.
        data_dir: an image tree; None: random images in memory.
        stream: whether the images of the tree are read from files even if they are few.
        layout: torch's name of the memory format in place of train.py's; None: train.py's.
        graphs: whether the step is recorded as a CUDA graph.
        ours: whether the process computes with train.py's settings, see `Kind`.
        keep_memory: whether it keeps the memory that it frees on the CPU.
    """

    settings: Settings
    steps: int
    num_images: int
    num_classes: int
    data_dir: str | None = None
    stream: bool = False
    layout: str | None = None
    graphs: bool = False
    ours: bool = True
    keep_memory: bool = True

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, H, W) in pixels."""
        side = self.settings.img_size
        assert side is not None
        return 3, side, side

    def replace_settings(self, **values: Any) -> Bench:
        """Return a copy with other settings of train.py's."""
        return dataclasses.replace(self, settings=self.settings.replace(**values))


@dataclass(frozen=True)
class Loop:
    """A row of the table: a kind of loop (a key of `KINDS`) and its settings."""

    kind: str
    name: str
    bench: Bench


def _keep_memory(bench: Bench) -> Bench:
    return dataclasses.replace(bench, keep_memory=True)


def _use_channels_last(bench: Bench) -> Bench:
    return dataclasses.replace(bench, layout="channels_last")


def _use_tf32(bench: Bench) -> Bench:
    return bench.replace_settings(precision="tf32")


def _use_bf16(bench: Bench) -> Bench:
    return bench.replace_settings(precision="bf16")


def _compile(bench: Bench) -> Bench:
    return bench.replace_settings(compile=True)


def _use_graphs(bench: Bench) -> Bench:
    return dataclasses.replace(bench, graphs=True)


# --what_helps adds these to a float32, contiguous, eager step, in this order.
CPU_MEANS: dict[str, Callable[[Bench], Bench]] = {
    "memory": _keep_memory,
    "channels_last": _use_channels_last,
    "bf16": _use_bf16,
    "compile": _compile,
}
GPU_MEANS: dict[str, Callable[[Bench], Bench]] = {
    "tf32": _use_tf32,
    "bf16": _use_bf16,
    "channels_last": _use_channels_last,
    "graphs": _use_graphs,
    "compile": _compile,
}


def list_default_kinds() -> list[str]:
    """List all kinds; (a2) only where it has fewer workers than (a)."""
    return [name for name in KINDS if name != "a2" or count_usable_cores() > FEW_WORKERS]


def list_loops(bench: Bench, kinds: Sequence[str], num_workers: int | None = None) -> list[Loop]:
    """Return a loop of each kind, all with the same settings.

    `num_workers` are those of (a); by default a worker for each usable core.
    """
    workers = {"a2": FEW_WORKERS, "a": count_usable_cores() if num_workers is None else num_workers}
    loops = []
    for name in kinds:
        kind = KINDS[name]
        chosen = dataclasses.replace(bench, ours=kind.ours, keep_memory=kind.ours)
        if name in workers:
            chosen = chosen.replace_settings(num_workers=workers[name])
        loops.append(Loop(name, f"({name}) {kind.title}", chosen))
    return loops


def list_means(bench: Bench, asked: Sequence[str], on_gpu: bool) -> list[Loop]:
    """Return the step alone with one means after the other, each added to all before it.

    bf16 comes last on a CPU where --precision auto does not choose it: it is no gain there.

    Args:
        bench: with the precision that `auto` chooses.
        asked: names of means; empty: all that have an effect here.
        on_gpu: whether the device is a GPU.

    Raises:
        UserError: a means has no effect.
    """
    means = dict(GPU_MEANS if on_gpu else CPU_MEANS)
    if not on_gpu and bench.settings.precision != "bf16":
        means["bf16"] = means.pop("bf16")
    if not find_network(bench.settings.model).convolutional:
        del means["channels_last"]
    chosen = asked or list(means)
    idle = [name for name in chosen if name not in means]
    if idle:
        known = ", ".join(means)
        raise UserError(f"--what_helps {idle[0]} has no effect here: use some of {known}")
    plain = bench.replace_settings(precision="fp32", compile=False)
    plain = dataclasses.replace(plain, layout="contiguous_format", keep_memory=False)
    loops = [Loop("c", "float32", plain)]
    for name, add_to in means.items():
        if name in chosen:
            loops.append(Loop("c", f"+ {name}", add_to(loops[-1].bench)))
    return loops
