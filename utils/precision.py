"""The precision in which a network's layers compute; the classifier stays in float32."""

from __future__ import annotations

import contextlib

import torch

from utils.errors import UserError

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
