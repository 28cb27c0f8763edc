"""Image files decoded by worker processes."""

from __future__ import annotations

import atexit
import errno
import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from input_pipeline.splits import FileSplit, TensorSplit
from input_pipeline.transfer import SharedImages, share
from utils.errors import UserError
from utils.signals import SIGCHLD, SIGKILL

# Shared images arrive as a tensor.
Batch = Tensor | SharedImages | UserError
# What a worker is asked for: the numbers of the samples of a batch, and the epoch.
Request = tuple[list[int], int]
_KILLED = (
    "a process that decodes images was killed, most often because memory ran out: "
    "free some memory or lower --num_workers"
)
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
    for batch in decode_some(split, torch.arange(len(split)), num_workers):
        images[filled : filled + len(batch)] = batch.numpy()
        filled += len(batch)
    return TensorSplit(torch.from_numpy(images), split.labels)


class Decodable(Protocol):
    """Samples in files: a FileSplit, or what is read of the files in place of images."""

    def fetch(self, indices: list[int], epoch: int = 0) -> Tensor:
        """Return a row of uint8 for each of the samples `indices`. Raises UserError."""

    def to(self, device: str) -> Decodable:
        """Move what is no file to a device."""


def decode_some(split: Decodable, numbers: Tensor, num_workers: int) -> Iterator[Tensor]:
    """Decode the samples `numbers`, int64 [n], in this order, as uint8 [B, 3, H, W] batches.

    Args and errors are those of `decode_whole`.
    """
    if len(numbers) == 0:
        return iter(())
    chunks = [(chunk.tolist(), 0) for chunk in numbers.split(_DECODE_CHUNK)]
    return iterate_decoded(build_decoding_loader(split, chunks, num_workers=num_workers))


class _Loader(DataLoader[Batch]):
    """A DataLoader that does not warn of more workers than cores: the user has asked for them."""

    def check_worker_number_rationality(self) -> None:
        """Overrides the warning, which would be two lines for each loader."""


def build_decoding_loader(
    split: Decodable,
    batches: Iterable[Request],
    *,
    num_workers: int,
    pin_memory: bool = False,
    persistent: bool = False,
) -> DataLoader[Batch]:
    """Build a DataLoader that decodes batches of a FileSplit; read it through `iterate_decoded`.

    Args:
        split: the files.
        batches: iterated again in each epoch.
        num_workers: processes that decode; 0 decodes in this one.
        pin_memory: deliver in page-locked memory, for copies that don't block.
        persistent: keep the workers between epochs.
    """
    return _Loader(
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


def iterate_decoded(loader: DataLoader[Batch]) -> Iterator[Tensor]:
    """Iterate over the uint8 [B, 3, H, W] batches on the CPU, in order.

    Raises:
        UserError: a file can't be decoded, here or in a worker, a worker process died, or memory,
            file descriptors or /dev/shm are too small for workers.
    """
    workers: list[BaseProcess] = []
    try:
        batches = _start(loader)
        workers = multiprocessing.active_children()
        for batch in batches:
            if isinstance(batch, UserError):
                # A new exception: `raise batch` would put this frame and its own variable into a
                # reference cycle. The garbage collector takes 10 s to end each worker in one.
                raise UserError(*batch.args)
            assert isinstance(batch, Tensor)
            yield batch
    except (EOFError, OSError, RuntimeError) as error:
        line = _explain_death(workers) or _explain_failure(error, loader.num_workers)
        if line is None or loader.num_workers == 0:
            raise
        raise UserError(line) from error


def _start(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Start an epoch of the loader, and its workers if they don't run yet."""
    if loader.num_workers == 0:
        return iter(loader)
    # Registered again each time: at exit, the function registered last is called first.
    atexit.unregister(_end_workers)
    atexit.register(_end_workers)
    handler = signal.getsignal(SIGCHLD) if SIGCHLD else None
    others = multiprocessing.active_children()
    try:
        return iter(loader)
    except (OSError, RuntimeError) as error:
        _end_halfway(error, others)
        raise
    finally:
        # DataLoader's handler raises wherever the main thread is when a worker dies, as in the
        # middle of writing a checkpoint. Without it, whoever waits for a batch finds out in 5 s.
        in_main = threading.current_thread() is threading.main_thread()
        if SIGCHLD and in_main and handler is not None:  # None: set by other means than Python's
            signal.signal(SIGCHLD, handler)


def _end_halfway(error: BaseException, others: Sequence[BaseProcess]) -> None:
    """End the workers that a failed start leaves, which are those that are not in `others`."""
    for process in set(multiprocessing.active_children()).difference(others):
        process.kill()
    # The half-built iterator in the traceback would complain of itself on stderr when freed.
    hook = sys.unraisablehook
    sys.unraisablehook = _ignore
    try:
        error.__traceback__ = None
    finally:
        sys.unraisablehook = hook


def _ignore(_: object) -> None:
    """Let an error in a destructor pass."""


def _explain_death(workers: Iterable[BaseProcess]) -> str | None:
    """Say in one line how the first of the dead workers died; None if all live or ended well."""
    codes = [worker.exitcode for worker in workers if worker.exitcode]
    if not codes:
        return None
    if SIGKILL is not None and codes[0] == -SIGKILL:
        return _KILLED
    how = f"with status {codes[0]}" if codes[0] > 0 else f"by {signal.Signals(-codes[0]).name}"
    return (
        f"a process that decodes images ended {how}: free some memory, or use --num_workers 0 "
        "to decode without such processes"
    )


def _explain_failure(error: BaseException, num_workers: int) -> str | None:
    """Say in one line which resource the workers lack; None if the error is of another kind."""
    code = getattr(error, "errno", None)
    text = " ".join(str(error).split())
    if "exited unexpectedly" in text and "worker" in text:  # between two epochs
        return _KILLED
    if isinstance(error, MemoryError):
        return (
            f"memory is too small for --num_workers {num_workers} that decode images: "
            "free some or lower --num_workers"
        )
    few_files = ("Too many open files", "ancdata", "Pin memory thread exited")
    if code in (errno.EMFILE, errno.ENFILE) or any(words in text for words in few_files):
        return (
            f"{_read_file_limit()} open files are too few for --num_workers {num_workers}: "
            "raise the limit (ulimit -n) or lower --num_workers"
        )
    if code == errno.ENOSPC:
        return (
            "no space left in /dev/shm or in the folder of temporary files, which processes that "
            "decode images need: enlarge it (docker run --shm-size) or use --num_workers 0"
        )
    if isinstance(error, RuntimeError) and "can't start new thread" not in text:
        return None
    reason = getattr(error, "strerror", None) or text or type(error).__name__
    return (
        f"--num_workers {num_workers} can't be served by this system ({reason}): "
        "lower it, or use 0 to decode without such processes"
    )


def _read_file_limit() -> object:
    try:
        import resource
    except ImportError:  # Windows
        return "the allowed"
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


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
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class _Decoder(Dataset[Batch]):
    """Map-style data set behind `build_decoding_loader`: a request -> a batch.

    It returns errors and does not raise them: DataLoader would wrap them in a traceback.
    """

    def __init__(self, split: Decodable) -> None:
        # Labels may be on a GPU, which a worker must not touch.
        self.split = split.to("cpu")

    def __getitem__(self, request: Request) -> Batch:
        worker = get_worker_info()
        try:
            images = self.split.fetch(*request)
            return share(images) if worker else images
        except UserError as error:
            return error
        except (MemoryError, OSError) as error:
            if worker is None:
                raise
            return UserError(_explain_failure(error, worker.num_workers))
