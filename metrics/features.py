"""Features that lie on the host and are computed with on the device."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from utils.device import measure_free_memory, measure_spare_host_memory
from utils.errors import UserError
from utils.files import format_bytes
from utils.resources import read_available_memory
from utils.world import read_local_size

# Bytes of a piece of features on the host. torch rounds pinned memory up to a power of two: 10.5 GB
# in one piece would take 17.2 GB.
PIECE = 1 << 28
# Features of fewer bytes are not refused: the process keeps what it frees in smaller blocks than
# this (`utils.device`), which the system does not count as free.
SMALL = 1 << 30


class HostFeatures:
    """Features that lie on the host in pieces; the rows that are asked for cross to the device.

    A measure takes them as it takes a tensor [N, d] on `device`. It reads them by rows only, in
    the chunks of `metrics.checks.split_rows`.

    Args:
        values: [N, d] on the host, or pieces [n, d] of it of one type, in pinned memory where the
            device is a GPU.
        device: where the rows are computed with.
    """

    ndim = 2

    def __init__(self, values: Tensor | Sequence[Tensor], device: torch.device) -> None:
        self.device = device
        self._pieces = [values] if isinstance(values, Tensor) else list(values)
        self._ends = list(accumulate(map(len, self._pieces)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, rows: slice) -> Tensor:
        """Return some rows on the device; the host does not wait for pinned memory."""
        parts = [part.to(self.device, non_blocking=True) for part in self._cut(rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __setitem__(self, rows: slice, values: Tensor) -> None:
        """Replace some rows; the host does not wait for pinned memory."""
        for part in self._cut(rows):
            part.copy_(values[: len(part)], non_blocking=True)
            values = values[len(part) :]

    def _cut(self, rows: slice) -> Iterator[Tensor]:
        """List the parts of the pieces that hold some rows; an empty one for no rows."""
        first, stop, step = rows.indices(len(self))
        if first >= stop:
            yield self._pieces[0][:0]
        while first < stop:
            number = bisect_right(self._ends, first)
            begin = self._ends[number] - len(self._pieces[number])
            part = self._pieces[number][first - begin : stop - begin : step]
            yield part
            first += step * len(part)

    @property
    def shape(self) -> torch.Size:
        """(N, d)."""
        return torch.Size((len(self), self._pieces[0].shape[1]))

    @property
    def dtype(self) -> torch.dtype:
        """The type of a number."""
        return self._pieces[0].dtype

    def is_floating_point(self) -> bool:
        """Return whether the type is a floating one."""
        return self.dtype.is_floating_point

    def cpu(self) -> Tensor:
        """Return all of them, [N, d] on the host."""
        return self._pieces[0] if len(self._pieces) == 1 else torch.cat(self._pieces)


Features = Tensor | HostFeatures


def allocate_features(
    count: int, dim: int, device: torch.device, budget: float | None = None
) -> Features:
    """Allocate float32 features [count, dim] on the device, or on the host if they do not fit.

    Args:
        count, dim: N and d.
        device: where they are computed with.
        budget: bytes that they may take there; None is what `find_budget` finds.

    Raises:
        UserError: they fit neither there nor on the host.
    """
    budget = find_budget(device) if budget is None else budget
    check_room(count, dim, device, budget)
    if 4 * count * dim <= budget:
        return torch.empty(count, dim, device=device)
    pinned, height = device.type == "cuda", max(1, PIECE // (4 * dim))
    heights = [min(height, count - first) for first in range(0, max(1, count), height)]
    pieces = [torch.empty(rows, dim, pin_memory=pinned) for rows in heights]
    return HostFeatures(pieces, device)


def check_room(count: int, dim: int, device: torch.device, budget: float | None = None) -> None:
    """Refuse float32 features [count, dim] that do not fit; see `allocate_features`.

    The system ends a process without a word when its memory is full. The processes of a job on this
    machine are taken to have as many each. Raises UserError.
    """
    need = 4 * count * dim
    if need < SMALL:
        return
    if device.type != "cpu" and need <= (find_budget(device) if budget is None else budget):
        return
    sharers = read_local_size()
    need *= sharers
    free = read_available_memory()  # 0 where the system does not show it
    if free and need > free + sharers * measure_spare_host_memory():
        raise UserError(
            f"the features, {sharers * count:,} × {dim:,} numbers, take {format_bytes(need)} of "
            f"memory, and {format_bytes(free)} are free on this machine: take one with more, or "
            "share the samples between several (torchrun)"
        )


def find_budget(device: torch.device) -> float:
    """Return the bytes of the device that features may take: a third of what is free on a GPU.

    The network's passes and the measures need the rest. On the CPU there is no other place.
    """
    if device.type != "cuda":
        return float("inf")
    return measure_free_memory(device) / 3
