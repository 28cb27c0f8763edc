"""Cores and memory as control groups of both versions limit them."""

import os

import pytest

from utils.resources import count_default_workers, count_usable_cores, read_available_memory

KIB, GIB = 2**10, 2**30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that writes files below a root; the machine has 8 cores and 16 GiB left."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)

    def write(files):
        files = {"proc/meminfo": "MemTotal: 33554432 kB\nMemAvailable: 16777216 kB\n"} | files
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tmp_path

    return write


def test_a_machine_without_groups(machine):
    root = machine({})
    assert (count_usable_cores(root), read_available_memory(root)) == (8, 16 * GIB)


def test_a_system_without_proc_or_affinity(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_usable_cores(tmp_path) == 1
    assert read_available_memory(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf(
        "SC_PHYS_PAGES"
    )


@pytest.mark.parametrize("path", ["/job/step", "/"], ids=["own path", "path of a container"])
@pytest.mark.parametrize(
    ("limit", "used", "files", "left"),
    [
        (4 * GIB, GIB, 0, 3 * GIB),
        (4 * GIB, 4 * GIB, 2 * GIB, 2 * GIB),  # files that were read give way
        (4 * GIB, 5 * GIB, 0, 0),
        (64 * GIB, GIB, 0, 16 * GIB),
        ("max", GIB, 0, 16 * GIB),
    ],
)
def test_memory_of_version_2(machine, path, limit, used, files, left):
    group = "sys/fs/cgroup" + ("" if path == "/" else "/job")  # the group around limits, too
    root = machine(
        {
            "proc/self/cgroup": f"0::{path}",
            "sys/fs/cgroup/job/step/memory.max": "max",
            f"{group}/memory.max": limit,
            f"{group}/memory.current": used,
            f"{group}/memory.stat": f"anon 5\ninactive_file {files - 7}\nactive_file 7\n",
        }
    )
    assert read_available_memory(root) == left


def test_memory_of_version_1(machine):
    group = "sys/fs/cgroup/memory/docker/1"
    root = machine(
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1",
            f"{group}/memory.limit_in_bytes": 4 * GIB,
            f"{group}/memory.usage_in_bytes": 3 * GIB,
            f"{group}/memory.stat": f"total_inactive_file {GIB}\ntotal_active_file 0\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 2**63 - 4096,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": 30 * GIB,
        }
    )
    assert read_available_memory(root) == 2 * GIB


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"sys/fs/cgroup/cpu.max": "350000 100000"}, 3),
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"sys/fs/cgroup/cpu.max": "9900000 100000"}, 8),
        (
            {"sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "200000 100000"},
            2,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/a",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": 400000,
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": 100000,
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1,
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000,
            },
            8,
        ),
    ],
)
def test_quotas_of_processor_time(machine, files, cores):
    assert count_usable_cores(machine({"proc/self/cgroup": "0::/a/b"} | files)) == cores


def test_this_machine():
    assert 1 <= count_usable_cores() <= os.cpu_count()
    assert count_default_workers() == max(1, count_usable_cores() - 1)
    assert read_available_memory() > 64 * KIB
