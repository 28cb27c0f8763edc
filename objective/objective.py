"""What is minimised: a loss with its decay terms."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from objective.decay import regularisation
from objective.losses import LOSSES


@dataclass(frozen=True)
class Objective:
    """What is minimised: a loss with label smoothing and, where `decays` is given, the decay terms.

    Attributes:
        loss: a key of `LOSSES`.
        smoothing: label smoothing.
        decays: λ_W, λ_H, λ_b of `regularisation`, or None.
    """

    loss: str
    smoothing: float = 0.0
    decays: tuple[float, float, float] | None = None

    def __call__(
        self, model: nn.Module, logits: Tensor, features: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(objective, loss without decay terms), float32 scalars, of one batch."""
        loss = LOSSES[self.loss](logits, targets, self.smoothing)
        if self.decays is None:
            return loss, loss
        weight, bias = model.fc.weight, model.fc.bias_vector()
        return loss + regularisation(features, weight, bias, *self.decays), loss
