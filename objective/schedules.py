"""Learning-rate schedules: pure functions of the epoch, so that a resumed run needs no state."""

from __future__ import annotations

import math
from collections.abc import Sequence


def compute_learning_rate(
    epoch: int,
    *,
    base: float,
    epochs: int,
    schedule: str = "cosine",
    warmup: int = 0,
    minimum: float = 0.0,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
) -> float:
    """Return the learning rate of an epoch (1 … epochs).

    The rate rises linearly in the first `warmup` epochs, base·e/(warmup + 1). Then `cosine` goes
    from base towards `minimum`, as torch's CosineAnnealingLR stepped per epoch. `step` multiplies
    by `gamma` after each of the `milestones` (numbers of finished epochs, warm-up included).
    `constant` stays at base.

    Raises ValueError for an unknown schedule.
    """
    if epoch <= warmup:
        return base * epoch / (warmup + 1)
    if schedule == "constant":
        return base
    if schedule == "step":
        return base * gamma ** sum(epoch > milestone for milestone in milestones)
    if schedule == "cosine":
        progress = (epoch - 1 - warmup) / (epochs - warmup)
        return minimum + (base - minimum) * (1 + math.cos(math.pi * progress)) / 2
    raise ValueError(f"schedule {schedule!r}: cosine, step or constant")
