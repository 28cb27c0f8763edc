"""The loops of train_speed.py by name, and the settings of each. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from args import Settings
from models import NETWORKS
from utils.errors import UserError


@dataclass(frozen=True)
class Kind:
    """A kind of loop.

    Attributes:
        title: its name in the table.
        function: maps (`Bench`, data set, device) to a generator. It yields after each step the
            seconds that the step compiled.
        keeps_memory: whether its process keeps the memory that it frees, as train.py does.
    """

    title: str
    function: str
    keeps_memory: bool = True


KINDS: dict[str, Kind] = {
    "a": Kind("conventional", "benchmarks.loops:run_conventionally", keeps_memory=False),
    "b": Kind("train.py", "benchmarks.loops:run_as_train"),
    "c": Kind("ceiling", "benchmarks.loops:run_step_alone"),
    "d": Kind("batches", "benchmarks.loops:run_batches_alone"),
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
        graphs: whether a compiled step uses CUDA graphs.
        keep_memory: whether the process keeps the memory that it frees on the CPU.
    """

    settings: Settings
    steps: int
    num_images: int
    num_classes: int
    data_dir: str | None = None
    stream: bool = False
    layout: str | None = None
    graphs: bool = True
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


def _compile_without_graphs(bench: Bench) -> Bench:
    return dataclasses.replace(_compile(bench), graphs=False)


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
    "compile": _compile_without_graphs,
    "graphs": _use_graphs,
}


def list_loops(bench: Bench, kinds: Sequence[str]) -> list[Loop]:
    """Return a loop of each kind, all with the same settings."""
    loops = []
    for letter in kinds:
        kind = KINDS[letter]
        kept = dataclasses.replace(bench, keep_memory=kind.keeps_memory)
        loops.append(Loop(letter, f"({letter}) {kind.title}", kept))
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
    if not NETWORKS[bench.settings.model].convolutional:
        del means["channels_last"]
    chosen = asked or list(means)
    idle = [name for name in chosen if name not in means]
    if "graphs" in chosen and "compile" not in chosen:
        idle.append("graphs without compile")
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
