"""The objective of training: a loss with label smoothing and the decay terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from objective import LOSSES
from objective.decay import compute_decay
from utils.registry import load_function


@dataclass(frozen=True)
class Decays:
    """The decays λ_W, λ_H and λ_b of problem (1), all at least 0."""

    weight_decay: float
    feature_decay_rate: float
    weight_decay_bias: float


class Objective:
    """A loss with label smoothing and, where `decays` is given, the decay terms.

    Args:
        loss: a key of `objective.LOSSES`.
        smoothing: label smoothing, in [0, 1).
        decays: the decays of the loss's own decay terms (`--sep_decay`), or None.
    """

    def __init__(self, loss: str, smoothing: float = 0.0, decays: Decays | None = None) -> None:
        self._compute_loss = load_function(LOSSES[loss].function)
        self._smoothing, self._decays = smoothing, decays

    def __call__(
        self,
        classifier: Any,
        logits: Tensor,
        features: Tensor,
        targets: Tensor,
        share: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Return (objective, loss without decay terms) of one batch, float32 scalars.

        Those of the parts of a batch, each with its share, add up to those of the batch.

        Args:
            classifier: the network's, a `models.linear.Classifier`.
            logits: [B, K].
            features: [B, d].
            targets: int64 [B], or probabilities [B, K].
            share: these samples' share of a batch of which they are a part, in [0, 1]; 0 for none.
        """
        # The sum of no logits: a gradient of 0, where a mean over no samples has none.
        loss = self._compute_loss(logits, targets, self._smoothing) if share else logits.sum()
        if share not in (0, 1):
            loss = loss * share
        if self._decays is None:
            return loss, loss
        decay = compute_decay(
            features,
            classifier.weight,
            classifier.bias_vector(),
            self._decays.weight_decay * share,
            self._decays.feature_decay_rate,  # its term sums over samples: it has its share already
            self._decays.weight_decay_bias * share,
        )
        return loss + decay, loss
