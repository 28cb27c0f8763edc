"""Shared by the tests: running the commands as a user does, and reading what they write."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start(script: str, *flags: object, **options) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    # No GPU: what the tests see does not depend on where they run.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **{**pipes, **options})


def run(script: str, *flags: object, **options) -> subprocess.CompletedProcess:
    """Run a command to its end."""
    process = start(script, *flags, **options)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def assert_mistake(result: subprocess.CompletedProcess, *words: str) -> None:
    """A user's mistake: status 2, one line on stderr that has all the words, no traceback."""
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"
