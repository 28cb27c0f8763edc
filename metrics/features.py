"""Features that lie on the host and are computed with on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from utils.device import measure_free_memory


@dataclass(frozen=True, eq=False)
class HostFeatures:
    """Features too many for the device's memory; the rows that are asked for cross to it.

    A measure takes them as it takes a tensor [N, d] on `device`. It reads them by rows only, in
    the chunks of `metrics.checks.split_rows`.

    Attributes:
        values: [N, d] on the host, in pinned memory where the device is a GPU.
        device: where the rows are computed with.
    """

    values: Tensor
    device: torch.device

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> Tensor:
        """Return a copy of some rows on the device; the host does not wait for pinned memory."""
        return self.values[rows].to(self.device, non_blocking=True)

    @property
    def shape(self) -> torch.Size:
        """(N, d)."""
        return self.values.shape

    @property
    def ndim(self) -> int:
        """The number of dimensions, 2."""
        return self.values.ndim

    @property
    def dtype(self) -> torch.dtype:
        """The type of a number."""
        return self.values.dtype

    def is_floating_point(self) -> bool:
        """Return whether the type is a floating one."""
        return self.values.is_floating_point()

    def cpu(self) -> Tensor:
        """Return all of them, [N, d] on the host."""
        return self.values


Features = Tensor | HostFeatures


def allocate_features(
    count: int, dim: int, device: torch.device, budget: float | None = None
) -> Features:
    """Allocate float32 features [count, dim] on the device, or on the host if they do not fit.

    Args:
        count, dim: N and d.
        device: where they are computed with.
        budget: bytes that they may take there; None is what `find_budget` finds.
    """
    if 4 * count * dim <= (find_budget(device) if budget is None else budget):
        return torch.empty(count, dim, device=device)
    pinned = device.type == "cuda"
    return HostFeatures(torch.empty(count, dim, pin_memory=pinned), device)


def find_budget(device: torch.device) -> float:
    """Return the bytes of the device that features may take: a third of what is free on a GPU.

    The network's passes and the measures need the rest. On the CPU there is no other place.
    """
    if device.type != "cuda":
        return float("inf")
    return measure_free_memory(device) / 3
