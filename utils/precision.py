"""The precision and memory format of a network; the classifier stays in float32."""

from __future__ import annotations

import contextlib
import functools
import os
import textwrap
import time
from dataclasses import dataclass

import torch
from torch import nn

from utils.errors import UserError

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# The CPU gets bfloat16 only if it is faster than float32 by this factor. Processors with matrix
# units reach 2 and far more. Processors that only know the instructions reach 0.7.
WORTHWHILE = 1.3


@dataclass(frozen=True)
class Precision:
    """The way in which a network computes on a device.

    Attributes:
        name: the precision of the layers: fp32, tf32, bf16 or fp16.
        device: where the network computes.
        memory_format: the format of the network and its images.
    """

    name: str
    device: torch.device
    memory_format: torch.memory_format = torch.contiguous_format

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which layers compute in this precision, to be entered repeatedly.

        On a GPU it also sets the matrix units' mode for the process.
        """
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = self.name == "tf32"
            torch.backends.cudnn.allow_tf32 = self.name == "tf32"
        if self.name in AUTOCAST:
            context: contextlib.AbstractContextManager[None] = torch.autocast(
                self.device.type, AUTOCAST[self.name]
            )
            return context
        return contextlib.nullcontext()

    def place(self, model: nn.Module) -> nn.Module:
        """Move a network to the device in this memory format, and return it."""
        placed: nn.Module = model.to(self.device).to(memory_format=self.memory_format)  # type: ignore[call-overload]
        return placed

    def build_scaler(self) -> torch.amp.GradScaler:
        """Build the scaler of the loss. It keeps small gradients in fp16.

        It does nothing in other precisions. It leaves out a step with overflowing gradients and
        halves the scale. Fused optimizers decide this on the device, without waiting for it.
        """
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


def choose_precision(
    asked: str,
    device: torch.device,
    side: int,
    *,
    convolutional: bool,
    bf16_side: float,
    channels_last_side: float,
) -> Precision:
    """Choose the precision and the memory format of a network.

    `auto` is bf16 on GPUs that have it, else fp32. On the CPU it is bf16 where `is_bf16_fast()`
    and the images are large enough, else fp32. The memory format is channels_last for
    convolutional networks where that is the faster one: on a GPU where the matrix units compute
    (not in fp32), on the CPU in bf16, and in fp32 on images that are large enough.

    Args:
        asked: auto, fp32, tf32, bf16 or fp16.
        device: where the network computes.
        side: of the images, in pixels.
        convolutional, bf16_side, channels_last_side: of the network's entry in `models.NETWORKS`.

    Raises:
        UserError: tf32 or fp16 on the CPU, which gains nothing from either.
    """
    name = _resolve_name(asked, device, side >= bf16_side)
    large = device.type == "cpu" and side >= channels_last_side
    if convolutional and (name != "fp32" or large):
        return Precision(name, device, torch.channels_last)
    return Precision(name, device)


def _resolve_name(asked: str, device: torch.device, large: bool) -> str:
    if asked in ("tf32", "fp16") and device.type != "cuda":
        raise UserError(f"--precision {asked} has no effect here: it is for NVIDIA GPUs")
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if large and is_bf16_fast() else "fp32"


@functools.cache
def is_bf16_fast() -> bool:
    """Return whether this CPU multiplies bfloat16 matrices clearly faster than float32 ones.

    The instructions alone do not show it: a processor with avx512_bf16 and a hidden amx_bf16 was
    measured at 0.7 times float32. The function therefore times both for a tenth of a second, once
    per process.
    """
    return _has_bfloat16() and _time_matmul_speedup() >= WORTHWHILE


def _has_bfloat16() -> bool:
    """Return whether oneDNN has bfloat16 kernels for this CPU that are no emulation."""
    built_in = torch.backends.mkldnn.is_available()  # not on every macOS
    return built_in and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _time_matmul_speedup(size: int = 768, repeats: int = 5) -> float:
    """Return float32's time for a matrix product of `size` over bfloat16's, each the best."""
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(size, size, dtype=dtype)
        out = torch.empty_like(matrix)
        times = []
        for _ in range(repeats + 1):  # the first one sets up the kernel
            begun = time.perf_counter()
            torch.mm(matrix, matrix, out=out)
            times.append(time.perf_counter() - begun)
        best[dtype] = min(times)
    return best[torch.float32] / best[torch.bfloat16]


def set_determinism(deterministic: bool) -> None:
    """Use bit-reproducible kernels only, or else the fastest ones that cuDNN finds by trial.

    Call it before CUDA starts: cuBLAS reads its environment variable then.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def explain_determinism_error(error: BaseException) -> str | None:
    """Explain in one line that an operation has no bit-reproducible kernel; None for any other.

    torch raises a plain RuntimeError.
    """
    if "does not have a deterministic implementation" not in str(error):
        return None
    reason = textwrap.shorten(str(error), 90, placeholder=" …")
    return f"--deterministic: the network has an operation without such a kernel ({reason})"
