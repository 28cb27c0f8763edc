"""Image files decoded by worker processes."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from input_pipeline.splits import FileSplit
from utils.errors import UserError

_DECODE_CHUNK = 64  # files a worker decodes at a time


def decode(split: FileSplit, numbers: Tensor, num_workers: int) -> Iterator[Tensor]:
    chunks = [chunk.tolist() for chunk in numbers.split(_DECODE_CHUNK)]
    return decoded_batches(decoding_loader(split, chunks, num_workers=num_workers))


def decoding_loader(
    split: FileSplit,
    batches: Iterable[list[int]],
    *,
    num_workers: int,
    pin_memory: bool = False,
    persistent: bool = False,
) -> DataLoader:
    """A DataLoader that decodes batches of a FileSplit; read it through `decoded_batches`.

    Args:
        split: the files.
        batches: lists of sample numbers, iterated anew in each epoch.
        num_workers: processes that decode; 0 decodes in this one.
        pin_memory: deliver in page-locked memory, for copies that don't block.
        persistent: keep the workers between epochs.
    """
    return DataLoader(
        _Decoder(split),
        sampler=batches,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=persistent and num_workers > 0,
        worker_init_fn=init_worker,
        # A DataLoader without its own generator would draw from the default one at each epoch,
        # and the model's dropout would depend on how the data is loaded.
        generator=torch.Generator(),
    )


def decoded_batches(loader: DataLoader) -> Iterator[Tensor]:
    """uint8 [B, 3, H, W] batches on the CPU, in order.

    Raises:
        UserError: a file can't be decoded, wherever that happened, or a worker process died.
    """
    batches = iter(loader)
    if loader.num_workers > 0:
        # Anew each time: of functions to be called at exit, the last one registered is first.
        atexit.unregister(_end_workers)
        atexit.register(_end_workers)
    try:
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0].rstrip(". ")
        raise UserError(f"{reason}: free some memory or lower --num_workers") from error


def init_worker(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM, which reach the whole process group, to the main process.

    It finishes its step, for which it may still need batches, and then ends the workers through
    their queue; a worker whose main process was killed notices and leaves by itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end_workers() -> None:
    """End workers that a loader kept alive (by a traceback, in a notebook) still has at exit.

    DataLoader would send them SIGTERM, which they leave to the main process, and wait for ever.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # DataLoader's handler would complain
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class _Decoder:
    """The map-style data set behind `decoding_loader`: a list of numbers -> a batch.

    Errors are returned, not raised: DataLoader would wrap them into a worker's traceback.
    """

    def __init__(self, split: FileSplit) -> None:
        # Labels may be on a GPU, which a worker must not touch.
        self.split = split.to("cpu")

    def __getitem__(self, numbers: list[int]) -> Tensor | UserError:
        try:
            return self.split.fetch(numbers)
        except UserError as error:
            return error
