"""In which precision and memory format a network computes; the classifier stays in float32."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time

import torch

from models import MODELS
from utils.errors import UserError

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# bfloat16 has to beat float32 by this factor on the CPU before it is chosen there. Processors with
# matrix units are at 2 and far above it, those that only know the instructions at 0.7.
WORTHWHILE = 1.3
# The side in pixels of images from which on bfloat16 pays on such a processor: on smaller ones the
# casts cost more than the convolutions gain. The MLP gains in large batches only, and seconds.
LEAST_SIDES = {
    "models.resnet": 16,
    "models.densenet": 32,
    "models.vit": 1,
    "models.swin": 1,
    "models.mlp": math.inf,
}
# The same for channels_last on the CPU in fp32: on smaller images the ResNets are slower in it.
CHANNELS_LAST_SIDES = {"models.resnet": 32, "models.densenet": 1}


def resolve_precision(asked: str, device: torch.device, model: str, side: int) -> str:
    """What `--precision` means here: fp32, tf32, bf16 or fp16; `auto` is decided.

    auto is bf16 on GPUs that have it, else fp32. On the CPU it is bf16 where `fast_bfloat16()` and
    the images are of `LEAST_SIDES` or more, else fp32.

    Args:
        asked: auto, fp32, tf32, bf16 or fp16.
        device: where the network computes.
        model: a key of `models.MODELS`.
        side: of the images, in pixels.

    Raises:
        UserError: tf32 or fp16 on the CPU, which gains nothing from either.
    """
    if asked in ("tf32", "fp16") and device.type != "cuda":
        raise UserError(f"--precision {asked} has no effect here: it is for NVIDIA GPUs")
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    pays = side >= LEAST_SIDES[MODELS[model].module]
    return "bf16" if pays and fast_bfloat16() else "fp32"


def memory_format(
    device: torch.device, model: str, precision: str, side: int
) -> torch.memory_format:
    """channels_last for convolutional networks where it is the faster one, else contiguous.

    On a GPU that is where the matrix units compute (not in fp32). On the CPU it is in bf16, and in
    fp32 on images of `CHANNELS_LAST_SIDES` or more.

    Args:
        device: where the network computes.
        model: a key of `models.MODELS`.
        precision: a result of `resolve_precision`.
        side: of the images, in pixels.
    """
    if not MODELS[model].convolutional:
        return torch.contiguous_format
    in_fp32 = device.type == "cpu" and side >= CHANNELS_LAST_SIDES[MODELS[model].module]
    return torch.channels_last if precision != "fp32" or in_fp32 else torch.contiguous_format


@functools.cache
def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices clearly faster than float32 ones.

    The instructions alone do not tell: a processor with avx512_bf16 whose amx_bf16 is hidden was
    measured at 0.7 times float32. So the two are timed, a tenth of a second, once per process.
    """
    return _has_bfloat16() and _matmul_speedup() >= WORTHWHILE


def _has_bfloat16() -> bool:
    """Whether oneDNN has bfloat16 kernels for this CPU that are no emulation."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _matmul_speedup(size: int = 768, repeats: int = 5) -> float:
    """float32's time for a matrix product of `size` over bfloat16's, each the best of several."""
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


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which layers compute in `precision`: fp32, tf32 (CUDA), bf16 or fp16.

    It can be entered again and again. fp32 and tf32 set the matrix units' mode for the process.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UserError("--precision tf32 has no effect here: only NVIDIA GPUs have it")
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if precision in AUTOCAST:
        return torch.autocast(device.type, AUTOCAST[precision])
    return contextlib.nullcontext()


def gradient_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss in fp16, where small gradients would be lost, and nothing otherwise.

    A step whose gradients overflow is left out and the scale halved. With fused optimizers that is
    decided on the device, without waiting for it.
    """
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def set_determinism(deterministic: bool) -> None:
    """Bit-reproducible kernels only, or else the fastest ones that cuDNN finds by trial.

    To be called before CUDA starts, which is when cuBLAS reads its environment variable.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def is_nondeterministic(error: BaseException) -> bool:
    """Whether an operation has no bit-reproducible kernel (torch raises a plain RuntimeError)."""
    return "does not have a deterministic implementation" in str(error)
