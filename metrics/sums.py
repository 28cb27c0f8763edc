"""Sums over all samples of a split that several processes share; see `utils.world`.

A process alone computes the same numbers, bit for bit, as without this module.
"""

from __future__ import annotations

import torch
from torch import Tensor

from utils.world import World


def count_rows(count: int, world: World) -> int:
    """Return how many samples all processes have together, of which this one has `count`."""
    return sum(world.gather(count))


def add_up(world: World, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the sums of the processes' float64 tensors, exchanged at once.

    Each tensor has the same shape on all processes.
    """
    if world.size == 1:
        return tensors
    totals = world.total(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = totals.split([tensor.numel() for tensor in tensors])
    return tuple(part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True))


def average_rows(rows: Tensor, world: World) -> Tensor:
    """Return the mean of all processes' rows, of which this one has float64 `rows` [n, …]."""
    mean = rows.mean(dim=0) if len(rows) else rows.new_zeros(rows.shape[1:])
    # A process alone has the share 1, which changes no bit.
    return world.total(mean * (len(rows) / count_rows(len(rows), world)))
