"""Images on their way from a worker process to the main one."""

from __future__ import annotations

import mmap
import os
from typing import Any

import torch
from torch import Tensor


def share(images: Tensor) -> Tensor | SharedImages:
    """Put uint8 [B, 3, H, W] where another process can map it, to be sent through a queue.

    torch would put a tensor in a queue into /dev/shm, in a thread of the worker. If that is full,
    as the 64 MB of a container soon are, the thread drops the batch and the main process waits for
    it for ever. Here the memory has no other limit than the machine's or the container's, and what
    fails is raised. Systems other than Linux have no such memory and no /dev/shm: a tensor is
    returned as it is.

    Raises OSError if memory or file descriptors are too few.
    """
    if not hasattr(os, "memfd_create"):
        return images
    from multiprocessing.reduction import DupFd  # Windows has none

    number = os.memfd_create("images")
    try:
        os.posix_fallocate(number, 0, images.nbytes)
        _map(number).copy_(images.flatten())
        return SharedImages(DupFd(number), tuple(images.shape))
    finally:
        os.close(number)


class SharedImages:
    """Images in a file in memory; pickled by a worker, it is unpickled as a tensor.

    Args:
        descriptor: the file's descriptor, which crosses to the process that unpickles.
        shape: (B, 3, H, W).
    """

    def __init__(self, descriptor: Any, shape: tuple[int, ...]) -> None:
        self._descriptor = descriptor
        self._shape = shape

    def __reduce__(self) -> tuple[Any, ...]:
        return _map_images, (self._descriptor, self._shape)


def _map_images(descriptor: Any, shape: tuple[int, ...]) -> Tensor:
    """Map the images into this process; the memory is freed with the tensor."""
    number = descriptor.detach()
    try:
        return _map(number).view(shape)
    finally:
        os.close(number)


def _map(number: int) -> Tensor:
    """Map the file of a descriptor as uint8 [bytes]; the mapping ends with the tensor."""
    # All pages at once: a fault for each of them would take longer than the copy.
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
    return torch.frombuffer(mmap.mmap(number, 0, flags), dtype=torch.uint8)
