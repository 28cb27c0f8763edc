"""Ratios of times that were measured in turns. Imports no torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def format_ratio(base: Sequence[float] | None, seconds: Sequence[float]) -> str:
    """Return the median over rounds of base/seconds, or "-" without a base.

    A disturbance of the machine affects both times of a round equally. A ratio from 100 on has no
    decimals.
    """
    if base is None:
        return "-"
    ratio = statistics.median(b / s for b, s in zip(base, seconds, strict=True))
    return f"{ratio:.3f}" if ratio < 100 else f"{ratio:.0f}"
