"""Batch normalisation over the whole batch of a job of several processes (--sync_bn)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# What timm's batch normalisation does after it.
AFTERWARDS = ("drop", "act")


def share_statistics(model: nn.Module, device: torch.device) -> nn.Module:
    """Let the batch normalisation of a network take mean and variance over all processes.

    Names, weights and buffers stay as they are. On a GPU the layers become torch's SyncBatchNorm,
    which has no CPU version; on the CPU they get `SharedStatistics`.

    Args:
        model: the network, before its optimizer is built.
        device: where it trains.
    """
    if device.type == "cuda":
        return _convert(model)
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            kind = type(layer)
            layer.__class__ = type(f"Shared{kind.__name__}", (SharedStatistics, kind), {})
    return model


def _convert(model: nn.Module) -> nn.Module:
    """Return the network with torch's SyncBatchNorm, or timm's where a layer of timm's is."""
    if any(hasattr(layer, "act") for layer in model.modules() if isinstance(layer, _BatchNorm)):
        from timm.layers import convert_sync_batchnorm

        converted: nn.Module = convert_sync_batchnorm(model)
        return converted
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


class _Total(torch.autograd.Function):
    """The sum of the processes' tensors. Its gradient is the sum of their gradients.

    torch.distributed.nn has the same, under a name that later versions of torch no longer want.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """Sum up."""
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        """Sum up the gradients."""
        return _Total.forward(ctx, gradient)


class SharedStatistics:
    """Batch normalisation whose statistics are those of all processes; to be mixed into a layer.

    The statistics are computed in float32 or better, the variance about the mean. A process may
    have no samples.
    """

    def forward(self: Any, x: Tensor) -> Tensor:
        """Normalise x [B, C] or [B, C, …]."""
        if not self.training:
            return super().forward(x)  # type: ignore[misc,no-any-return]
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        over = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        own_count = values.new_tensor([x.numel() // x.shape[1]])
        sums = _Total.apply(torch.cat([values.sum(over), own_count]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(shape)
        variance = _Total.apply(centred.square().sum(over)) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        normal = normal.to(x.dtype)
        for name in AFTERWARDS:
            layer = getattr(self, name, None)
            normal = normal if layer is None else layer(normal)
        return normal

    def _follow(self: Any, mean: Tensor, variance: Tensor) -> None:
        """Let the running statistics follow those of a batch."""
        if not self.track_running_stats:
            return
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = self.momentum
            if share is None:  # the plain mean over all batches
                share = 1 / self.num_batches_tracked
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_(variance.to(self.running_var.dtype), share)
