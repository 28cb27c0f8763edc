"""Which device a command runs on."""

import ctypes

import torch

from utils.errors import UserError


def pick_device(gpu_id: int, keep_memory: bool = True) -> tuple[torch.device, str]:
    """Return the device of `--gpu_id` and its name for people.

    -1, or a machine without CUDA, is the CPU, for which the process then keeps the memory it frees
    unless told not to. Raises UserError for a GPU that is not there.
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


def _keep_freed_memory() -> None:
    """Let this process reuse the memory it frees instead of giving it back, where libc is glibc.

    On the CPU a step or a forward pass frees and allocates hundreds of megabytes; each time the
    system would map and clear them again page by page.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, 2**31 - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the GPU's or the machine's memory was too small.

    torch's CPU allocator raises a plain RuntimeError.
    """
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
