"""The update of a network's weights from their gradients, and the parts of a batch before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.cli import SMALLEST_BATCH


@dataclass(frozen=True)
class Parts:
    """The parts in which batches are computed, one after another.

    Attributes:
        number: of the parts of a whole batch.
        batch_size: the images of a whole batch.
    """

    number: int = 1
    batch_size: int = 1

    def split(self, images: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Yield the parts of a batch, as equal as can be, and the share of each, in (0, 1].

        A smaller batch has fewer parts. No part has less than two images or, but for that reason,
        more than a part of a whole batch.
        """
        size = len(images)
        proportional = -(-size * self.number // self.batch_size)  # rounded up
        number = max(1, min(self.number, proportional, size // SMALLEST_BATCH))
        if number == 1:
            yield images, targets, 1.0
            return
        for part in zip(images.tensor_split(number), targets.tensor_split(number), strict=True):
            yield *part, len(part[0]) / size


class Update:
    """The update of an optimizer's parameters from their gradients; it never waits for the device.

    Args:
        optimizer: what it updates.
        scaler: of the loss.
        clip_grad_norm: longer gradients are scaled to this Euclidean norm, which is over all
            parameters of the optimizer; None leaves them.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        clip_grad_norm: float | None = None,
    ) -> None:
        self.optimizer, self.scaler, self._largest = optimizer, scaler, clip_grad_norm
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self) -> None:
        """Update the parameters, and the scale of the loss."""
        if self._largest is not None:
            self.scaler.unscale_(self.optimizer)
            # An overflow becomes NaN here. The scaler has seen it, and leaves this update out.
            torch.nn.utils.clip_grad_norm_(self._parameters, self._largest)
        self.scaler.step(self.optimizer)
        self.scaler.update()
