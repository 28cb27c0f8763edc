"""Attention, dropout and convolution that are fast on the CPU, too."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16  # 16 random bits decide about an element


def widen(x: Tensor) -> Tensor:
    """Return x in float32, or as it is if it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute softmax(q kᵀ/√e) v for q, k, v [..., N, e]; returns [..., N, e]."""
    # Forward and backward of the CPU's fused kernel take 6 times as long in bfloat16 as this.
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Dropout(nn.Dropout):
    """torch.nn.Dropout; on the CPU in a quarter of its time."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of `x`, of any shape, in training."""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        return x * draw_keep_mask(x, self.p)


def draw_keep_mask(x: Tensor, dropout: float) -> Tensor:
    """Draw 1/(1 − dropout) for elements of `x` that are kept and 0 for the others, on the CPU.

    torch draws a number for each element, one after the other. That is 40 % of the ViT's step in
    bfloat16. Here a number of 64 bits decides about four elements, and `dropout`, in [0, 1), is
    rounded to a multiple of 1/65,536.
    """
    numbers = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),))
    bits = numbers.view(torch.int16)[: x.numel()].view(x.shape)
    dropped = round(dropout * LEVELS)
    return (bits >= dropped - LEVELS // 2).to(x.dtype).mul_(LEVELS / (LEVELS - dropped))


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d of 3×3 with padding 1 and no bias; on the CPU faster where maps are 1×1."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve maps [B, C, H, W]."""
        if x.device.type != "cpu" or x.shape[-2:] != (1, 1):
            return super().forward(x)
        # Only the centre of the kernel meets the pixel. oneDNN would bring all nine weights into
        # its own order, there and back, which takes longer than the product.
        centre = self.weight.flatten(2)[:, :, 4]
        return F.linear(x.flatten(1), centre)[:, :, None, None]


def replace_convolutions(model: nn.Module) -> None:
    """Let the convolutions of a model that `Conv2d` can compute be computed by it.

    The layers stay the same objects: no name, weight or random draw changes.
    """
    for layer in model.modules():
        if type(layer) is not nn.Conv2d or layer.bias is not None or layer.groups != 1:
            continue
        if (layer.kernel_size, layer.padding, layer.dilation) == ((3, 3), (1, 1), (1, 1)):
            layer.__class__ = Conv2d
