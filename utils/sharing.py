"""The shares of one machine that processes get which run at the same time. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from utils.errors import UserError
from utils.resources import count_usable_cores

# Environment variable: how many processes share the GPU of this one. Each takes that part of its
# memory at most, see utils.device.
GPU_SHARERS = "GPU_SHARERS"

TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def read_sharers() -> int:
    """Read how many processes share the GPU of this one, this one included. Raises UserError."""
    text = os.environ.get(GPU_SHARERS, "1")
    if not (text.isdecimal() and int(text) > 0):
        raise UserError(f"{GPU_SHARERS}={text!r} in the environment must be a whole number above 0")
    return int(text)


def split_cores(parts: int) -> list[int]:
    """Split the cores into numbers of threads, at least one each; the first ones get the rest."""
    each, rest = divmod(_count_compute_cores(), parts)
    return [max(1, each + (number < rest)) for number in range(parts)]


def _count_compute_cores() -> int:
    """Count the cores for threads that compute: two that share a core gain nothing."""
    usable = count_usable_cores()
    try:
        numbers = os.sched_getaffinity(0)
        siblings = {Path(TOPOLOGY.format(number)).read_text() for number in numbers}
    except (AttributeError, OSError):  # macOS, Windows, or a system that does not show them
        return usable
    return min(usable, len(siblings))
