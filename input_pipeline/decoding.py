"""Image files decoded by worker processes."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from input_pipeline.splits import FileSplit, TensorSplit
from utils.errors import UserError

_DECODE_CHUNK = 64  # files a worker decodes at a time


def decode_whole(split: FileSplit, num_workers: int) -> TensorSplit:
    """Decode every file into memory; the order is kept.

    Args:
        split: the files.
        num_workers: processes that decode. 0 decodes in this one.

    Raises:
        UserError: a file can't be decoded.
    """
    # NumPy copies: torch's copies would wake all threads for a few kilobytes at a time.
    images = np.empty((len(split), 3, *split.image_size), dtype=np.uint8)
    filled = 0
    for batch in _decode(split, torch.arange(len(split)), num_workers):
        images[filled : filled + len(batch)] = batch.numpy()
        filled += len(batch)
    return TensorSplit(torch.from_numpy(images), split.labels)


def decode_evenly(split: FileSplit, most: int, num_workers: int) -> Iterator[Tensor]:
    """Decode at most `most` evenly spaced files, as uint8 [B, 3, H, W] batches.

    Args and errors are those of `decode_whole`.
    """
    count = min(len(split), most)
    numbers = torch.arange(count) * len(split) // count
    return _decode(split, numbers, num_workers)


def _decode(split: FileSplit, numbers: Tensor, num_workers: int) -> Iterator[Tensor]:
    """Decode the samples `numbers`, int64 [n], as uint8 [B, 3, H, W] batches."""
    chunks = [chunk.tolist() for chunk in numbers.split(_DECODE_CHUNK)]
    return iterate_decoded(build_decoding_loader(split, chunks, num_workers=num_workers))


def build_decoding_loader(
    split: FileSplit,
    batches: Iterable[list[int]],
    *,
    num_workers: int,
    pin_memory: bool = False,
    persistent: bool = False,
) -> DataLoader[Tensor | UserError]:
    """Build a DataLoader that decodes batches of a FileSplit; read it through `iterate_decoded`.

    Args:
        split: the files.
        batches: lists of sample numbers, iterated again in each epoch.
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


def iterate_decoded(loader: DataLoader[Tensor | UserError]) -> Iterator[Tensor]:
    """Iterate over the uint8 [B, 3, H, W] batches on the CPU, in order.

    Raises:
        UserError: a file can't be decoded, here or in a worker, or a worker process died.
    """
    batches = iter(loader)
    if loader.num_workers > 0:
        # Registered again each time: at exit, the function registered last is called first.
        atexit.unregister(_end_workers)
        atexit.register(_end_workers)
    try:
        for batch in batches:
            if isinstance(batch, UserError):
                # A new exception: `raise batch` would put this frame and its own variable into a
                # reference cycle. The garbage collector takes 10 s to end each worker in one.
                raise UserError(*batch.args)
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0].rstrip(". ")
        raise UserError(f"{reason}: free some memory or lower --num_workers") from error


def init_worker(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM, which reach the whole process group, to the main process.

    The main process finishes its step, and may still need batches for it. Then it ends the workers
    through their queue. If the main process is killed, its workers notice it and end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end_workers() -> None:
    """End the workers of a loader that is still alive at exit, in a traceback or a notebook.

    DataLoader would send them SIGTERM and wait for ever: they ignore it.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # DataLoader's handler would complain
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class _Decoder(Dataset[Tensor | UserError]):
    """Map-style data set behind `build_decoding_loader`: a list of numbers -> a batch.

    It returns errors and does not raise them: DataLoader would wrap them in a traceback.
    """

    def __init__(self, split: FileSplit) -> None:
        # Labels may be on a GPU, which a worker must not touch.
        self.split = split.to("cpu")

    def __getitem__(self, numbers: list[int]) -> Tensor | UserError:
        try:
            return self.split.fetch(numbers)
        except UserError as error:
            return error
