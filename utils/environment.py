"""The software versions and the machine of a result."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "pillow")


def describe_environment() -> dict[str, Any]:
    """Return versions of the software and, in a git checkout, the project's commit."""
    return {
        "python": platform.python_version(),
        "processor": name_processor(),
        "packages": {name: _find_version(name) for name in PACKAGES},
        "git_commit": _find_commit(),
    }


def name_processor() -> str:
    """Return the CPU's name, if the system shows it, and the number of cores."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _find_commit() -> str | None:
    """Return the commit, followed by "-dirty" if tracked files were changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    root = Path(__file__).resolve().parent.parent
    try:
        answer = subprocess.run(command, cwd=root, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.decode("utf-8", "replace").strip() or None
