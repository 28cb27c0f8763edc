"""The training step as a run takes it, eager or with its loss compiled."""

from __future__ import annotations

import os
import shutil
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.device import synchronise
from utils.errors import UserError

# (images, targets) -> (objective, loss, logits)
BatchFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass
class CompileTime:
    """Time of the steps that compiled, in seconds, and the images in them."""

    seconds: float = 0.0
    images: int = 0

    def rate_without(self, images: int, seconds: float) -> float:
        """Return images per second of `images` in `seconds`, without these steps if others remain.

        Args:
            images: of all steps.
            seconds: that all steps took.
        """
        if images > self.images:
            images, seconds = images - self.images, seconds - self.seconds
        return images / seconds

    def describe(self, images: int) -> str:
        """Describe for the log how `rate_without` counts the compile time."""
        if images > self.images:
            return f"compiled in {self.seconds:.1f} s, not counted in images/s"
        return (
            f"compiled in {self.seconds:.1f} s, counted in images/s: every step of the epoch "
            "compiled"
        )


class Step:
    """Runner of a training step on batches; nothing in it waits for the device.

    Args:
        training_step: forward, loss, backward and update of one batch.
        device: where it computes.
        compiled: whether its loss was compiled. The first step of each shape of batch compiles;
            `take_compile_time` returns how long that took.
        graphs: whether it was compiled with CUDA graphs.
    """

    def __init__(
        self,
        training_step: BatchFunction,
        device: torch.device,
        compiled: bool = False,
        graphs: bool = False,
    ) -> None:
        self._training_step, self._device = training_step, device
        self._compiled, self._graphs = compiled, compiled and graphs
        self._compile_time = CompileTime()
        self._shapes: set[tuple[torch.Size, torch.Size]] = set()

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step on images [B, C, H, W] and targets [B] or [B, K].

        Returns:
            objective and loss (scalars) and logits [B, K], float32, detached.
        """
        shapes = images.shape, targets.shape
        if not self._compiled or shapes in self._shapes:
            return self._run(images, targets)
        begun = time.perf_counter()
        results = self._run(images, targets)
        synchronise(self._device)
        self._shapes.add(shapes)
        self._compile_time.seconds += time.perf_counter() - begun
        self._compile_time.images += len(images)
        return results

    def take_compile_time(self) -> CompileTime:
        """Return the compile time since the last call."""
        taken, self._compile_time = self._compile_time, CompileTime()
        return taken

    def _run(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self._graphs:
            return self._training_step(images, targets)
        torch.compiler.cudagraph_mark_step_begin()
        objective, loss, logits = self._training_step(images, targets)
        # The next step's graph overwrites them.
        return objective.clone(), loss.clone(), logits.clone()


def compile_function(function: BatchFunction, device: torch.device, graphs: bool) -> BatchFunction:
    """Compile a function for fixed shapes: an epoch has two, of the full and of the last batch.

    `graphs` adds CUDA graphs. Raises UserError if there is no compiler.
    """
    check_compiler(device)
    mode = "reduce-overhead" if graphs else "default"
    compiled: BatchFunction = torch.compile(function, mode=mode, dynamic=False, fullgraph=True)
    return compiled


def check_compiler(device: torch.device) -> None:
    """Refuse `--compile` where torch would find no compiler. Raises UserError.

    The CPU's kernels are C++. For a GPU, Triton compiles its launchers with a C compiler.
    """
    on_gpu = device.type == "cuda"
    given = os.environ.get("CC" if on_gpu else "CXX")
    names = ["gcc", "clang", "cc"] if on_gpu else ["g++", "clang++"]
    candidates = [given] if given else names
    if not any(shutil.which(name) for name in candidates):
        raise UserError(f"--compile needs a compiler, but there is no {' or '.join(candidates)}")


def explain_compile_error(error: BaseException) -> str | None:
    """Explain in one line that torch.compile itself failed, e.g. because a header is missing.

    None for any other error.
    """
    if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return None
    reason = textwrap.shorten(str(error), 90, placeholder=" …")
    return f"--compile: torch.compile failed here ({reason}); the run works without it"
