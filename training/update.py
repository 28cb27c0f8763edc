"""The update of a network's weights from their gradients."""

from __future__ import annotations

import torch


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
