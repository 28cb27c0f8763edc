"""The processor cores and the memory that this process may use. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from utils.world import read_local_size

# Where Linux describes memory and control groups, which limit containers and cluster jobs.
_MEMINFO, _OWN_GROUPS = "proc/meminfo", "proc/self/cgroup"
_GROUPS = "sys/fs/cgroup"


def count_usable_cores(root: Path = Path("/")) -> int:
    """Count the cores that this process may use: by its affinity and its control groups' quotas.

    `root` is the directory that holds `proc` and `sys`.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    for quota, period in _read_quotas(root):
        if quota > 0 and period > 0:
            cores = min(cores, quota // period)
    return max(1, cores)


def count_default_workers() -> int:
    """Count the worker processes of a run by default: the usable cores less one, at least one.

    The processes of a job on this machine share the cores.
    """
    return max(1, count_usable_cores() // read_local_size() - 1)


def read_available_memory(root: Path = Path("/")) -> int:
    """Read how many bytes this process can still take, by the system and its control groups.

    What the system keeps of files it has read counts as available. Systems other than Linux do not
    show what is available: the result is the machine's memory, or 0 on Windows, which does not show
    that either. `root` holds `proc` and `sys`.
    """
    available = 1024 * _read_pairs(root / _MEMINFO).get("MemAvailable:", 0)
    if not available and hasattr(os, "sysconf"):
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(0, min([available, *_list_group_rests(root)]))


def _list_group_rests(root: Path) -> Iterator[int]:
    """List how many bytes each control group of this process can still take."""
    for folder in _list_groups(root, "memory"):
        stat = _read_pairs(folder / "memory.stat")
        for limit, usage, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),  # version 1
        ):
            most, used = (_read_numbers(folder / name) for name in (limit, usage))
            if most and used:
                files = (stat.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
                yield most[0] - used[0] + sum(files)


def _read_quotas(root: Path) -> Iterator[tuple[int, int]]:
    """List the microseconds of processor time that the control groups allow, and in which time."""
    for folder in _list_groups(root, "cpu"):
        both = _read_numbers(folder / "cpu.max")
        if not both:  # version 1
            both = [
                *_read_numbers(folder / "cpu.cfs_quota_us"),
                *_read_numbers(folder / "cpu.cfs_period_us"),
            ]
        if len(both) == 2:
            yield both[0], both[1]


def _list_groups(root: Path, controller: str) -> Iterator[Path]:
    """List the directories of this process's control groups, and of those around them.

    A container often sees the path of its group on the host, and its own group at the top.
    """
    for line in _read_text(root / _OWN_GROUPS).splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            top = root / _GROUPS
        elif controller in controllers.split(","):
            top = root / _GROUPS / controllers
            top = top if top.is_dir() else root / _GROUPS / controller
        else:
            continue
        inside = Path(path.strip("/"))
        yield from (top / part for part in (inside, *inside.parents))


def _read_numbers(path: Path) -> list[int]:
    """Read the whole numbers of a file; "max", for no limit, and an absent file give none."""
    words = _read_text(path).split()
    return [int(word) for word in words] if all(map(_is_integer, words)) else []


def _read_pairs(path: Path) -> dict[str, int]:
    """Read lines of a name and a whole number, and perhaps a unit."""
    rows = (line.split() for line in _read_text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and _is_integer(row[1])}


def _is_integer(word: str) -> bool:
    return word.lstrip("-").isdecimal()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
