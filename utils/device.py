"""The device that a command runs on."""

import ctypes

import torch

from utils.errors import UserError


def pick_device(gpu_id: int, keep_memory: bool = True) -> tuple[torch.device, str]:
    """Return the device of `--gpu_id` and its name for people.

    -1, or a machine without CUDA, means the CPU. The process then keeps the memory that it frees,
    unless `keep_memory` is False. Raises UserError for a GPU that does not exist.
    """
    if gpu_id < 0 or not torch.cuda.is_available():
        if keep_memory:
            _keep_freed_memory()
        reason = "" if gpu_id < 0 else ": no CUDA device found"
        return torch.device("cpu"), f"CPU ({torch.get_num_threads()} threads){reason}"
    count = torch.cuda.device_count()
    if gpu_id >= count:
        raise UserError(
            f"--gpu_id {gpu_id}: this machine has GPUs 0 to {count - 1}, or -1 for the CPU"
        )
    device = torch.device("cuda", gpu_id)
    torch.cuda.set_device(device)
    return device, f"GPU {gpu_id} ({torch.cuda.get_device_name(device)})"


def leave_default_stream(device: torch.device) -> None:
    """Make a stream of its own this thread's current one on a CUDA device, for good.

    A CUDA graph cannot be recorded on the default stream. What was asked of the device before comes
    first. On the CPU nothing happens.
    """
    if device.type != "cuda":
        return
    current = torch.cuda.current_stream(device)
    if current == torch.cuda.default_stream(device):
        stream = torch.cuda.Stream(device)
        stream.wait_stream(current)
        torch.cuda.set_stream(stream)


def _keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, if libc is glibc.

    A step on the CPU frees and allocates hundreds of megabytes. The system would otherwise map and
    clear them page by page each time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, 2**31 - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of the GPU or of the machine was too small.

    torch's CPU allocator raises a plain RuntimeError.
    """
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
