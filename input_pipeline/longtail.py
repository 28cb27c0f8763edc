"""Long-tailed class sizes: the exponential profile of CIFAR100-LT."""

from __future__ import annotations

import math

# The power may be a rounding error below a whole number. No true distance is as small as this.
_ROUNDING = 1e-9


def compute_tail_sizes(largest: int, num_classes: int, factor: float) -> list[int]:
    """Compute n_k = ⌊n · factor^(−k/(K−1))⌋ for k = 0…K−1, at least 1.

    The profile of Cui et al. (CVPR 2019) and Cao et al. (NeurIPS 2019).

    Args:
        largest: n, the size of class 0.
        num_classes: K ≥ 2.
        factor: the size of class 0 over that of class K−1, at least 1.

    Returns:
        K sizes, falling from n to n/factor.
    """
    shares = (factor ** (-k / (num_classes - 1)) for k in range(num_classes))
    return [max(1, math.floor(largest * share * (1 + _ROUNDING))) for share in shares]
