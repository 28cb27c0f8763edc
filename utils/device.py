"""The device that a command runs on."""

import ctypes
import os
from collections.abc import Sequence

import torch

from utils.cuda_problems import (
    ELSEWHERE,
    VISIBLE,
    explain_cuda_error,
    find_problem,
    silence_warnings,
)
from utils.errors import UserError
from utils.sharing import read_sharers

CONTEXT = 3 * 2**28  # bytes of a GPU that a process takes besides its tensors: kernels, libraries
NEARLY_FULL = 2**29  # bytes; cuDNN loads kernels of some hundred megabytes
OR_CPU = "or give --gpu_id -1 for the CPU"

# Words of errors that mean too little memory, and of those that mean it on a GPU that is full.
MEMORY_ERRORS = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "NVML_SUCCESS ==",  # torch asks NVML for figures in the middle of reporting an overflow
)
PERHAPS_MEMORY_ERRORS = (
    "unable to find an engine to execute this computation",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUSOLVER_STATUS_NOT_INITIALIZED",
    "CUSOLVER_STATUS_INTERNAL_ERROR",
)


def pick_device(
    gpu_id: int | None, keep_memory: bool = True, given: bool = True, local_rank: int = 0
) -> tuple[torch.device, str]:
    """Return the device of `--gpu_id` and its name for people.

    -1, a machine without a card, and a card that CUDA_VISIBLE_DEVICES hides mean the CPU. The name
    then says why. A process on the CPU keeps the memory that it frees, unless `keep_memory` is
    False.

    Args:
        gpu_id: None means GPU 0, not `given`.
        keep_memory: see above.
        given: whether the user asked for this number. A card that is there but cannot be used is
            then an error, and not the CPU either.
        local_rank: the number of this process among those of a job on this machine. The first one
            takes the GPU of `gpu_id`, each other one the GPU after that.

    Raises:
        UserError: the GPU does not exist, cannot be used though `given`, or fails at once.
    """
    given, number = given and gpu_id is not None, gpu_id or 0
    number += local_rank if number >= 0 else 0
    problem = None if number < 0 else find_problem(number)
    if number >= 0 and problem is None:
        return _open_gpu(number)
    if given and problem is not None and problem.at_card:
        raise UserError(f"--gpu_id {number}: {problem.reason}, {OR_CPU}")
    if keep_memory:
        _keep_freed_memory()
    reason = f": {problem.reason}" if problem else ""
    return torch.device("cpu"), f"CPU ({torch.get_num_threads()} threads){reason}"


def check_gpus(flag: str, numbers: Sequence[int]) -> None:
    """Refuse a GPU that does not exist or cannot be used. Raises a UserError that names the flag.

    A machine without a card, or with hidden ones, has nothing to refuse: it uses the CPU.
    """
    for number in numbers:
        problem = find_problem(number)
        if problem is None:
            _check_number(f"{flag} {number}", number)
        elif problem.at_card:
            raise UserError(f"{flag} {number}: {problem.reason}, {OR_CPU}")


def _check_number(flag: str, number: int) -> None:
    count, hiding = torch.cuda.device_count(), os.environ.get(VISIBLE)
    if number < count:
        return
    gpus = "GPU 0" if count == 1 else f"GPUs 0 to {count - 1}"
    cpu = "--gpu_id -1 is the CPU"
    if hiding is None:
        raise UserError(f"{flag}: this machine has {gpus}; {cpu}")
    raise UserError(f"{flag}: this process sees {gpus}, the entries of {VISIBLE}={hiding!r}; {cpu}")


def _open_gpu(number: int) -> tuple[torch.device, str]:
    """Make a GPU the current one and compute a number on it. Raises UserError if it cannot."""
    _check_number(f"--gpu_id {number}", number)
    device = torch.device("cuda", number)
    try:
        with silence_warnings():
            torch.cuda.set_device(device)
            _limit_memory(device)
            torch.zeros(1, device=device).item()
    except RuntimeError as error:
        reason = explain_cuda_error(error)
        if reason is None and is_out_of_memory(error):
            reason = f"its memory is full, see nvidia-smi: wait, or {ELSEWHERE}"
        if reason is None:
            raise
        raise UserError(f"--gpu_id {number}: {reason}") from error
    return device, f"GPU {number} ({torch.cuda.get_device_name(device)})"


def _limit_memory(device: torch.device) -> None:
    """Keep this process within its share of a GPU that several use, see `utils.sharing`."""
    limit, total = _compute_limit(device)
    if limit < total:
        torch.cuda.set_per_process_memory_fraction(limit / total, device)


def _compute_limit(device: torch.device) -> tuple[int, int]:
    """Return the most bytes that tensors of this process may take on a GPU, and all its bytes."""
    total, sharers = torch.cuda.get_device_properties(device).total_memory, read_sharers()
    return (total if sharers == 1 else max(0, total // sharers - CONTEXT)), total


def measure_free_memory(device: torch.device) -> int:
    """Return how many bytes of a GPU this process can still take, within its share."""
    free, reserved = torch.cuda.mem_get_info(device)[0], torch.cuda.memory_reserved(device)
    unused = reserved - torch.cuda.memory_allocated(device)
    limit, total = _compute_limit(device)
    return free + unused if limit == total else min(free, max(0, limit - reserved)) + unused


def measure_spare_host_memory() -> int:
    """Return the bytes of pinned memory that torch keeps for its next use of them."""
    if not torch.cuda.is_initialized():
        return 0
    statistics = torch.cuda.host_memory_stats()
    owned, used = (statistics.get(f"{kind}_bytes.current", 0) for kind in ("allocated", "active"))
    return owned - used


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
    except (OSError, AttributeError, TypeError):  # another libc; Windows
        return
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, 2**31 - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of the GPU or of the machine was too small.

    torch's CPU allocator and the libraries of CUDA raise a plain RuntimeError.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    if any(words in text for words in MEMORY_ERRORS):
        return True
    return any(words in text for words in PERHAPS_MEMORY_ERRORS) and _is_gpu_full()


def _is_gpu_full() -> bool:
    """Return whether the current GPU has almost no memory left for this process."""
    if not torch.cuda.is_initialized():
        return False
    try:
        return measure_free_memory(torch.device("cuda", torch.cuda.current_device())) < NEARLY_FULL
    except RuntimeError:  # after some errors CUDA answers nothing any more
        return False


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
