"""How much memory decoded images may take."""

from __future__ import annotations

import torch

from utils.device import measure_free_memory
from utils.resources import read_available_memory
from utils.world import read_local_size

# The images may take one part in so many: network, step and other programs need the rest.
_SHARE = 4
_LEAST = 2**28  # bytes that they may always take


def find_room(device: torch.device | None = None) -> int:
    """Find how many bytes the images of a set may take that are held in memory.

    It is a quarter of what the host has left for each process of a job and, for a GPU, of what the
    GPU has left, and at least 256 MiB. Images on a GPU stay in the host's memory, too.

    Args:
        device: where the images will be used. None: the CPU.
    """
    free = read_available_memory() // read_local_size()
    if device is not None and device.type == "cuda":
        free = min(free, measure_free_memory(device))
    return max(_LEAST, free // _SHARE)
