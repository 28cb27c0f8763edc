"""One optimisation step, eager or compiled, for train.py and the benchmark alike."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from objective.objective import Objective
from utils.device import synchronise
from utils.errors import UserError
from utils.precision import autocast, gradient_scaler


@dataclass
class Compiling:
    """The steps that compiled: their time in seconds and the images in them."""

    seconds: float = 0.0
    images: int = 0

    def rate_without(self, images: int, seconds: float) -> float:
        """Images per second of `images` in `seconds`, without these steps if others remain."""
        if images > self.images:
            images, seconds = images - self.images, seconds - self.seconds
        return images / seconds

    def place(self, images: int) -> str:
        """What `rate_without` makes of the compile time, for the log."""
        if images > self.images:
            return "not counted in images/s"
        return "counted in images/s: every step of the epoch compiled"


class Step:
    """Forward, objective, backward and update of one batch; nothing in it waits for the device.

    Args:
        model: in training mode when it is called.
        optimizer: over the model's parameters.
        objective: what is minimised.
        precision: fp32, tf32, bf16 or fp16, of the layers; objective and gradients are float32.
        device: the model's.
        compiled: compile model and objective (torch.compile). The first step of each shape of batch
            compiles, which `take_compile_time` tells.
        graphs: compile with CUDA graphs; without effect on the CPU.

    Attributes:
        scaler: the loss scaler of fp16, whose state belongs into a checkpoint.

    Raises:
        UserError: there is no C++ compiler to compile with.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        precision: str,
        device: torch.device,
        compiled: bool = False,
        graphs: bool = True,
    ) -> None:
        self._optimizer, self._device, self._compiled = optimizer, device, compiled
        self._graphs = compiled and graphs and device.type == "cuda"
        self.scaler = gradient_scaler(precision, device)
        self._compiling = Compiling()
        self._shapes: set[tuple[torch.Size, torch.Size]] = set()
        self._forward = forward_function(model, objective, precision, device)
        if compiled:
            self._forward = compile_function(self._forward, device, self._graphs)

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step on images [B, C, H, W] and targets [B] or [B, K].

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
        self._compiling.seconds += time.perf_counter() - begun
        self._compiling.images += len(images)
        return results

    def take_compile_time(self) -> Compiling:
        """What compiling has taken since the last call."""
        taken, self._compiling = self._compiling, Compiling()
        return taken

    def _run(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Before the forward pass: no gradient of the last step is alive when CUDA graphs reuse
        # their memory.
        self._optimizer.zero_grad(set_to_none=True)
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        objective, loss, logits = self._forward(images, targets)
        self.scaler.scale(objective).backward()
        self.scaler.step(self._optimizer)
        self.scaler.update()
        results = objective.detach(), loss.detach(), logits.detach()
        if self._graphs:  # the next step's graph overwrites them
            results = tuple(result.clone() for result in results)
        return results


def forward_function(
    model: nn.Module, objective: Objective, precision: str, device: torch.device
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """(images, targets) -> (objective, loss, logits); a function, so that compiling it leaves the
    names in the model's state_dict alone."""
    context = autocast(precision, device)

    def forward(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with context:
            logits, features = model(images)
        total, loss = objective(model, logits, features, targets)
        return total, loss, logits

    return forward


def compile_function(function: Callable, device: torch.device, graphs: bool) -> Callable:
    """torch.compile for fixed shapes: an epoch has two, of the full and of the last batch.

    With CUDA graphs where `graphs`. Raises UserError where there is no compiler.
    """
    check_compiler(device)
    mode = "reduce-overhead" if graphs else "default"
    return torch.compile(function, mode=mode, dynamic=False, fullgraph=True)


def check_compiler(device: torch.device) -> None:
    """Refuse --compile where torch would fail in the midst of it. Raises UserError.

    The CPU's kernels are C++; on a GPU Triton compiles its launchers with a C compiler.
    """
    if device.type == "cuda":
        given, names = os.environ.get("CC"), ("gcc", "clang", "cc")
    else:
        given, names = os.environ.get("CXX"), ("g++", "clang++")
    candidates = (given,) if given else names
    if not any(shutil.which(name) for name in candidates):
        raise UserError(f"--compile needs a compiler, but there is no {' or '.join(candidates)}")


def is_compile_error(error: BaseException) -> bool:
    """Whether torch.compile itself failed, e.g. since the compiler lacks a header."""
    return type(error).__module__.startswith(("torch._inductor", "torch._dynamo"))
