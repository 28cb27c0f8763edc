"""Seeds that follow from a run's seed and the use of each."""

from __future__ import annotations

import numpy as np


def mix_seed(seed: int, *key: int) -> int:
    """Hash a seed and its use, e.g. (epoch, step), into one 64-bit generator seed.

    A sum such as seed + epoch would give run 0's epoch 1 the draws of run 1's epoch 0. NumPy's
    SeedSequence keeps them apart.

    Args:
        seed: the run's seed, ≥ 0.
        key: integers ≥ 0 that name the use.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=key)
    return int(sequence.generate_state(1, np.uint64)[0])
