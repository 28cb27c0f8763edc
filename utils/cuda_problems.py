"""Why CUDA cannot be used, or failed: one line each, with the remedy."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

DEVICES = Path("/dev")  # where Linux shows the cards: nvidia0, nvidia1, …, and nvidiactl
VISIBLE = "CUDA_VISIBLE_DEVICES"
HIDE_ALL = ("", "NoDevFiles")  # first entries of VISIBLE that hide every card, besides numbers < 0
LONGEST = 120  # characters of a message of CUDA's without a remedy of its own
ELSEWHERE = "choose another --gpu_id, or -1 for the CPU"
NO_APPLE_GPU = "Apple's GPU is not used: it has no float64, which the measures need"
INSTALL = "see https://pytorch.org/get-started/locally"

# What CUDA or torch says (a regular expression), what it means and what helps.
REMEDIES = (
    (
        r"driver on your system is too old",
        "the NVIDIA driver{found} is too old for this torch, which is built for CUDA {built}: "
        f"update the driver, or install a torch for an earlier CUDA ({INSTALL})",
    ),
    (
        r"Found no NVIDIA driver",
        "the driver's library libcuda.so.1 is not found: install the NVIDIA driver, or start the "
        "container with it (docker run --gpus all)",
    ),
    (
        r"forward compatibility was attempted",
        "the CUDA compatibility libraries do not work on this card: update the NVIDIA driver, or "
        "take them out of LD_LIBRARY_PATH",
    ),
    (
        r"unsupported display driver",
        "the parts of the NVIDIA driver have different versions: restart the machine",
    ),
    (
        r"system not yet initialized",
        "the cards wait for NVIDIA's fabric manager: start the service nvidia-fabricmanager",
    ),
    (
        r"CUDA unknown error|driver initialization failed",
        "CUDA does not start: load the kernel module again (nvidia-modprobe -u), or restart the "
        "machine",
    ),
    (
        r"busy or unavailable",
        "another process holds this GPU for itself, see nvidia-smi (exclusive mode, or a GPU in "
        f"MIG mode without a slice): wait, or {ELSEWHERE}",
    ),
    (
        r"uncorrectable ECC error",
        "the memory of this GPU has a fault (uncorrectable ECC error, see nvidia-smi -q -d ECC): "
        f"reset it, or {ELSEWHERE}",
    ),
    (
        r"unspecified launch failure",
        "the GPU failed in the middle of its work (unspecified launch failure): begin again, with "
        "--resume in train.py; if it comes back, see the Xid errors in dmesg",
    ),
    (
        r"no kernel image is available",
        f"this torch has no kernels for this GPU: install another ({INSTALL}), or {ELSEWHERE}",
    ),
)


@dataclass(frozen=True)
class Problem:
    """Why torch cannot use a GPU.

    Attributes:
        reason: in one line.
        at_card: whether a card is there for this process. It is then a fault that can be mended,
            and no machine without a card.
    """

    reason: str
    at_card: bool


@contextlib.contextmanager
def silence_warnings() -> Iterator[None]:
    """Keep torch from warning about cards and drivers: this program says it in its own line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def find_problem(gpu_id: int) -> Problem | None:
    """Return why torch cannot use a GPU; None if it can, or if there is no GPU of this number."""
    with silence_warnings():
        if torch.cuda.is_available():
            exists = gpu_id < torch.cuda.device_count()
            reason = _explain_missing_kernels(gpu_id) if exists else None
            return Problem(reason, at_card=True) if reason else None
        cards, hiding = count_cards(), os.environ.get(VISIBLE)
        if cards == 0:
            apple = f" ({NO_APPLE_GPU})" if torch.backends.mps.is_available() else ""
            return Problem(f"no CUDA device found{apple}", at_card=False)
        first = "0" if hiding is None else hiding.split(",")[0].strip()
        number = int(first) if re.fullmatch(r"-?\d+", first) else None
        if first in HIDE_ALL or (number is not None and number < 0):
            hidden = f"no CUDA device found ({VISIBLE}={hiding!r} hides all)"
            return Problem(hidden, at_card=False)
        is_uuid = first.startswith(("GPU-", "MIG-"))
        if not is_uuid and (number is None or number >= cards):
            return Problem(
                f"{VISIBLE}={hiding!r} begins with no GPU of this machine: list numbers from 0 to "
                f"{cards - 1}, separated by commas, or unset it",
                at_card=True,
            )
        return Problem(_explain_no_start(), at_card=True)


def count_cards() -> int:
    """Count the NVIDIA cards that this process may open."""
    if not _can_open(DEVICES / "nvidiactl"):
        return 0
    return sum(_can_open(path) for path in DEVICES.glob("nvidia[0-9]*"))


def _can_open(device: Path) -> bool:
    try:
        number = os.open(device, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return False
    try:
        return stat.S_ISCHR(os.fstat(number).st_mode)
    finally:
        os.close(number)


def _explain_no_start() -> str:
    """Explain why CUDA does not start though a card is there."""
    if torch.version.cuda is None:
        return f"this torch, {torch.__version__}, has no CUDA: install another ({INSTALL})"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = explain_cuda_error(error) or _shorten(error)
    else:
        reason = "torch sees no CUDA device"
    hiding = os.environ.get(VISIBLE)
    return reason if hiding is None else f"{reason} ({VISIBLE}={hiding!r})"


def _shorten(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return textwrap.shorten(text, LONGEST, placeholder=" …")


def _explain_missing_kernels(gpu_id: int) -> str | None:
    """Explain that the installed torch has no kernels for a GPU; None if it has."""
    if torch.version.cuda is None:  # ROCm names its architectures in another way
        return None
    built, capability = torch.cuda.get_arch_list(), torch.cuda.get_device_capability(gpu_id)
    if not built or any(_runs_on(name, capability) for name in built):
        return None
    major, minor = capability
    return (
        f"this torch has no kernels for the {torch.cuda.get_device_name(gpu_id)} (compute "
        f"capability {major}.{minor}; built for {' '.join(built)}): install another ({INSTALL})"
    )


def _runs_on(name: str, capability: tuple[int, int]) -> bool:
    """Return whether kernels run on a GPU of a compute capability (major, minor).

    Machine code, "sm_86", runs on the same major and an equal or higher minor number. PTX,
    "compute_80", is translated for every equal or higher capability. The letter "a" ties both to
    the one capability, "f" to its family: the same major number.
    """
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
    if found is None:
        return False
    kind, major, minor, letter = found[1], int(found[2]), int(found[3]), found[4]
    if letter == "a":
        return (major, minor) == capability
    if kind == "sm" or letter == "f":
        return major == capability[0] and minor <= capability[1]
    return (major, minor) <= capability


def explain_cuda_error(error: BaseException) -> str | None:
    """Explain in one line an error of CUDA's that has a remedy; None for any other."""
    text = str(error)
    remedy = next((words for pattern, words in REMEDIES if re.search(pattern, text)), None)
    if remedy is None:
        return None
    found = re.search(r"found version (\d+)", text)
    version = f" (for CUDA {int(found[1]) // 1000}.{int(found[1]) % 1000 // 10})" if found else ""
    return remedy.format(found=version, built=torch.version.cuda)
