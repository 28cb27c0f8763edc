"""Tensors on their way from the host to the device, which must not wait for each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to the device; the host does not wait for a GPU.

    A GPU reads pinned memory by itself. From other memory torch copies only once the GPU has done
    all that it was asked to do before.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Carrier:
    """Copies decoded batches to a GPU ahead of their use, while it computes.

    A stream of its own copies the next batch into one of two buffers; the stream that computes
    reads the other one. Events order the two streams, and the host waits for neither. Which stream
    computes is asked for at each batch. On the CPU batches pass through.

    Args:
        device: where the batches are used.
        streams: the functions and classes of torch.cuda, in whose place a test puts its own. None:
            those of torch.cuda for a GPU, no streams for the CPU.
    """

    def __init__(self, device: torch.device, streams: Any = None) -> None:
        self._device = device
        self._streams = torch.cuda if streams is None and device.type == "cuda" else streams
        self._buffers: tuple[_Buffer, ...] = ()
        if self._streams is not None:
            stream = self._streams.Stream(device)
            self._buffers = tuple(_Buffer(device, self._streams, stream) for _ in range(2))

    def carry(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Iterate over the batches on the device.

        Whoever takes a batch must have asked the device for all that reads it before the next one
        is taken: then it is overwritten.

        Args:
            batches: tensors on the CPU with equal shapes but for the first dimension; pinned, if
                the device is a GPU.
        """
        if not self._buffers:
            for batch in batches:
                yield batch.to(self._device)
            return
        ahead, free = None, self._buffers[0]
        for batch in batches:
            free.fill(batch)
            if ahead is not None:
                yield from ahead.lend()
            ahead, free = free, self._buffers[free is self._buffers[0]]
        if ahead is not None:
            yield from ahead.lend()


class _Buffer:
    """Memory on the device that is filled on one stream and read on another."""

    def __init__(self, device: torch.device, streams: Any, stream: Any) -> None:
        self._device, self._streams, self._stream = device, streams, stream
        self._filled, self._read = streams.Event(), streams.Event()
        self._memory = torch.empty(0)
        self._count = 0

    def fill(self, batch: Tensor) -> None:
        """Ask for a copy of the batch, after what was asked of the device with the one before."""
        self._stream.wait_event(self._read)
        with self._streams.stream(self._stream):
            if len(self._memory) < len(batch):
                self._memory = torch.empty_like(batch, device=self._device)
            self._count = len(batch)
            self._memory[: self._count].copy_(batch, non_blocking=True)
        self._filled.record(self._stream)

    def lend(self) -> Iterator[Tensor]:
        """Yield the batch once, for the stream that is current."""
        current = self._streams.current_stream(self._device)
        current.wait_event(self._filled)
        # The memory was taken on the other stream: it must outlast its last use on this one.
        self._memory.record_stream(current)
        try:
            yield self._memory[: self._count]
        finally:
            self._read.record(self._streams.current_stream(self._device))
