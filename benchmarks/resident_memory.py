"""Memory of this process, read from Linux's /proc."""

from __future__ import annotations

import ctypes
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def read_memory() -> int:
    """Return the bytes in memory now."""
    return _read_field("VmRSS")


def read_peak() -> int:
    """Return the most bytes in memory since `forget_peak`."""
    return _read_field("VmHWM")


def forget_peak() -> None:
    """Restart the peak, and return freed memory first: it counts again when it is used."""
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5", encoding="utf-8")


def _read_field(name: str) -> int:
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
