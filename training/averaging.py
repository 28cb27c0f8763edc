"""The exponential moving average of a network's weights (--ema)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Average:
    """The average of a network's weights over the updates of an optimizer.

    It begins as the initial weights. Each update then makes it `decay` times itself plus
    1 − `decay` times the weights, also in the buffers: the statistics of batch normalisation fit
    the average of the weights better than those of the last weights do. Buffers of whole numbers,
    which are counters, are copied.

    The values are those of torch's `AveragedModel.update_parameters` with `use_buffers`. That
    function reads a counter and copies it to the device, which a step must not wait for and a CUDA
    graph cannot record.

    Args:
        model: the network, where it trains.
        decay: in (0, 1).
        optimizer: it updates the network. The average follows each of its steps, but for those that
            a loss scaler leaves out because gradients overflowed.

    Attributes:
        module: the network with the averaged weights.
    """

    def __init__(self, model: nn.Module, decay: float, optimizer: torch.optim.Optimizer) -> None:
        self._blend = get_ema_multi_avg_fn(decay)
        averaged = AveragedModel(model, multi_avg_fn=self._blend, use_buffers=True)
        self.module: nn.Module = averaged.module
        self._decay = decay
        own, given = list_tensors(self.module), list_tensors(model)
        self._real, self._real_weights = select(own, given, floating=True)
        self._whole, self._whole_weights = select(own, given, floating=False)
        optimizer.register_step_post_hook(self._follow)

    @torch.no_grad()
    def _follow(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Update the average after a step of the optimizer."""
        overflow = getattr(optimizer, "found_inf", None)  # set by a scaler: above 0 if left out
        if overflow is None:
            self._blend(self._real, self._real_weights, None)
        else:
            share = (overflow.reshape(()) == 0) * (1 - self._decay)
            torch._foreach_lerp_(self._real, self._real_weights, [share] * len(self._real))
        if self._whole:
            torch._foreach_copy_(self._whole, self._whole_weights)


def list_tensors(model: nn.Module) -> list[Tensor]:
    """List the parameters and buffers of a network, detached; they share its memory."""
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]


def select(
    own: Sequence[Tensor], given: Sequence[Tensor], *, floating: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Select, in two lists of the same tensors, those with or those without a floating point."""
    chosen = [i for i, tensor in enumerate(own) if tensor.is_floating_point() == floating]
    return [own[i] for i in chosen], [given[i] for i in chosen]
