"""Training in several processes: torch's DistributedDataParallel around network and objective.

Loaded only in a job of several processes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.snapshot import Results

Forward = Callable[[Tensor, Tensor, float], Results]


class _Forward(nn.Module):
    """A forward function and the network whose parameters it uses, as one module."""

    def __init__(self, model: nn.Module, run: Forward) -> None:
        super().__init__()
        self.model, self._run = model, run

    def forward(self, images: Tensor, targets: Tensor, share: float) -> Results:
        return self._run(images, targets, share)


def share_gradients(model: nn.Module, run: Forward) -> DistributedDataParallel:
    """Return `run`, after whose backward the gradients are the mean of those of all processes.

    All processes begin with the weights of the first. Buffers stay apart: the running statistics of
    batch normalisation are those of the first process, see `World.copy_buffers`.

    Args:
        model: whose parameters it uses.
        run: maps images, targets and share to objective, loss and logits.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    newer = "forward_sync_buffers"  # the same, under the name of later versions of torch
    apart: Any = {newer if newer in known else "broadcast_buffers": False}
    return DistributedDataParallel(_Forward(model, run), gradient_as_bucket_view=True, **apart)
