"""The training step as a run takes it: ordinary, with its loss compiled, or recorded as a whole."""

from __future__ import annotations

import os
import shutil
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from input_pipeline.division import Division
from objective.objective import Objective
from training.averaging import Average
from training.recording import GRAPHS, RecordedStep
from training.snapshot import Results, StepState
from training.update import Update
from utils.device import leave_default_stream, synchronise
from utils.errors import UserError
from utils.precision import Precision
from utils.registry import load_function

# What a step does once for batches of a shape, beside training; the log shows its time.
COMPILED, RECORDED, NOT_RECORDED = "compiled", "recorded", "failed to record"
WHOLE = Division(batch_size=1)  # batches that are computed at once


@dataclass
class CompileTime:
    """Time of the steps that compiled or recorded, in seconds, and the images in them."""

    seconds: float = 0.0
    images: int = 0
    work: list[str] = field(default_factory=list)

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
        work = " and ".join(self.work)
        if images > self.images:
            return f"{work} in {self.seconds:.1f} s, not counted in images/s"
        return f"{work} in {self.seconds:.1f} s, counted in images/s: no other step is in the epoch"


class Step:
    """Runner of a training step on batches; nothing in it waits for the device.

    Only a step that compiles or records waits, once for batches of a shape.

    Args:
        take: forward, loss, backward and update of one batch.
        device: where it computes.
        compiled: whether its loss was compiled. The first step of each shape of batch compiles;
            `take_compile_time` returns how long that took.
        note: a line for the log.
    """

    def __init__(
        self,
        take: Callable[..., Results] | RecordedStep,
        device: torch.device,
        compiled: bool = False,
        note: str = "",
    ) -> None:
        self._take, self._device, self._compiled = take, device, compiled
        self._compile_time, self._note = CompileTime(), note
        self._shapes: set[tuple[torch.Size, torch.Size]] = set()

    def __call__(self, images: Tensor, targets: Tensor, size: int | None = None) -> Results:
        """Take one step on images [B, C, H, W] and targets [B] or [B, K].

        Args:
            images, targets: of a batch, or this process's share of one.
            size: the samples of the batch in all processes; None: B.

        Returns:
            objective and loss (scalars) and logits [B, K], float32, detached. The scalars of all
            processes add up to those of the batch.
        """
        shapes = images.shape, targets.shape
        compiles = self._compiled and shapes not in self._shapes
        recorder = self._take if isinstance(self._take, RecordedStep) else None
        # A recorded step is that of a process alone.
        batch = (images, targets) if recorder or size is None else (images, targets, size)
        records = recorder is not None and recorder.is_due(images, targets)
        if not (compiles or records):
            return self._take(*batch)
        begun = time.perf_counter()
        results = self._take(*batch)
        synchronise(self._device)
        self._shapes.add(shapes)
        self._compile_time.seconds += time.perf_counter() - begun
        self._compile_time.images += len(images)
        if compiles:
            self._count_work(COMPILED)
        if recorder is not None and records:
            self._count_work(NOT_RECORDED if recorder.failure else RECORDED)
            self._note = explain_ordinary(recorder.failure)
        return results

    def _count_work(self, word: str) -> None:
        if word not in self._compile_time.work:
            self._compile_time.work.append(word)

    def take_compile_time(self) -> CompileTime:
        """Return the time of compiling and recording since the last call."""
        taken, self._compile_time = self._compile_time, CompileTime()
        return taken

    def take_note(self) -> str:
        """Return why the steps run without a CUDA graph that was asked for, once; else ""."""
        taken, self._note = self._note, ""
        return taken


def explain_ordinary(reason: str) -> str:
    """Return the log's line that steps run without the CUDA graph; "" without a reason."""
    return f"--graphs on: the steps run without a CUDA graph: {reason}" if reason else ""


def build_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    objective: Objective,
    precision: Precision,
    compiled: bool = False,
    graphs: bool = False,
    *,
    division: Division = WHOLE,
    clip_grad_norm: float | None = None,
    average: Average | None = None,
) -> Step:
    """Build the training step of a network; nothing in it waits for the device.

    Args:
        model: on the device of `precision`, as are the optimizer's parameters.
        optimizer: it updates the model; with `graphs` its learning rate becomes a tensor.
        scaler: of the loss.
        objective: what is minimised.
        precision: in which the layers compute.
        compiled: compile model and objective.
        graphs: replay the step as a CUDA graph, on a stream that is not CUDA's default one. On
            another device the steps are ordinary ones.
        division: of a batch, in parts and among the processes of a job.
        clip_grad_norm: the largest norm of the gradient, or None.
        average: of the weights. It follows the optimizer, so that the step changes it, too.
    """
    device, ranks = precision.device, division.ranks
    update = Update(optimizer, scaler, clip_grad_norm)
    run_forward = build_forward(model, objective, precision, compiled)
    if ranks > 1:
        run_forward = load_function("training.parallel:share_gradients")(model, run_forward)
    keep_apart = run_forward.no_sync if ranks > 1 else nullcontext

    def add_gradient(images: Tensor, targets: Tensor, share: float) -> Results:
        # A function of its own: what a part holds for its gradient is freed before the next part.
        total, loss, logits = run_forward(images, targets, share)
        # The processes' gradients are averaged, those of a batch's parts are summed.
        scaler.scale(total * ranks if ranks > 1 else total).backward()
        return total.detach(), loss.detach(), logits.detach()

    def take_step(images: Tensor, targets: Tensor, size: int | None = None) -> Results:
        # Also while a graph is recorded, in whose own memory the gradients then lie.
        optimizer.zero_grad(set_to_none=True)
        *before, last = division.split(images, targets, len(images) if size is None else size)
        with keep_apart():
            results = [add_gradient(*part) for part in before]
        results.append(add_gradient(*last))
        update()
        return join_results(results)

    if not graphs:
        return Step(take_step, device, compiled)
    if device.type not in GRAPHS or ranks > 1:
        reason = "it needs an NVIDIA GPU" if ranks == 1 else "it is for one process"
        return Step(take_step, device, compiled, explain_ordinary(reason))
    leave_default_stream(device)
    state = StepState(model, optimizer, scaler, device, average)
    return Step(RecordedStep(take_step, state, precision), device, compiled)


def build_forward(
    model: nn.Module, objective: Objective, precision: Precision, compiled: bool
) -> Any:
    """Build the function from images, targets and share to objective, loss and logits."""
    context = precision.autocast()

    def forward(images: Tensor, targets: Tensor, share: float) -> Results:
        with context:
            logits, features = model(images)
        total, loss = objective(model.fc, logits, features, targets, share)
        return total, loss, logits

    return compile_function(forward, precision.device) if compiled else forward


def join_results(results: Sequence[Results]) -> Results:
    """Return the objective and the loss of a batch, and its logits, from those of its parts."""
    if len(results) == 1:
        return results[0]
    objectives, losses, logits = zip(*results, strict=True)
    return torch.stack(objectives).sum(), torch.stack(losses).sum(), torch.cat(logits)


def compile_function(
    function: Callable[..., Results], device: torch.device
) -> Callable[..., Results]:
    """Compile a function for fixed shapes: an epoch has two, of the full and of the last batch.

    With parts it has at most four. Raises UserError if there is no compiler.
    """
    check_compiler(device)
    compiled: Callable[..., Results] = torch.compile(function, dynamic=False, fullgraph=True)
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
