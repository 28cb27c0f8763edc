"""Commands that are run here or as jobs of submitit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reproduction.launch import Command, Outcome, run_here, run_submitted
from tests.helpers import ROOT
from utils.signals import StopSignal


def test_commands_are_run_here(tmp_path):
    words = [sys.executable, "-c", "import sys; print('said', file=sys.stderr); sys.exit(3)"]
    commands = {"bad": words, "good": [sys.executable, "-c", ""]}
    assert dict(run_here(commands, 2)) == {"bad": Outcome(3, "said"), "good": Outcome(0)}


def test_a_stop_at_the_start_of_a_command_reaches_it(monkeypatch):
    started = []

    def start_and_be_stopped(*words, **options):
        started.append(start(*words, **options))
        signal.raise_signal(signal.SIGTERM)
        return started[0]

    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start_and_be_stopped)
    words = [sys.executable, "-c", "import time; time.sleep(60)"]
    with StopSignal("stopped"), pytest.raises(SystemExit) as stopped:
        list(run_here({"long": words}, 1))
    assert stopped.value.code == 143
    assert started[0].poll() == -signal.SIGTERM


def test_a_command_ends_with_a_parent_that_is_killed(tmp_path):
    child = (
        "import pathlib, sys, time; from utils.signals import stop_with_parent, StopSignal\n"
        "StopSignal('stopped').install(); stop_with_parent(); path = pathlib.Path(sys.argv[1])\n"
        "path.touch()\n"
        "try: time.sleep(60)\n"
        "finally: path.unlink()\n"
    )
    parent = (
        "import sys; from reproduction.launch import Command\n"
        "Command([sys.executable, '-c', sys.argv[1], sys.argv[2]])()\n"
    )
    mark = tmp_path / "running"
    process = subprocess.Popen([sys.executable, "-c", parent, child, str(mark)], cwd=ROOT)
    wait_until(mark.exists)
    process.kill()
    process.wait()
    wait_until(lambda: not mark.exists())


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_stops_a_program_unless_it_was_told_to_go_on(ignored):
    """nohup starts a program with SIGHUP ignored."""
    code = (
        "import signal, time; from utils.signals import StopSignal\n"
        f"signal.signal(signal.SIGHUP, signal.SIG_{'IGN' if ignored else 'DFL'})\n"
        "StopSignal('stopped').install(); signal.raise_signal(signal.SIGHUP); print('went on')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    expected = (0, "went on\n", "") if ignored else (129, "", "stopped\n")
    assert (ended.returncode, ended.stdout, ended.stderr) == expected


# Counts its starts; the first one waits for the stop.
PREEMPTED = """
import pathlib, signal, sys, time
starts = pathlib.Path(sys.argv[1])
count = len(starts.read_text()) if starts.exists() else 0
signal.signal(signal.SIGTERM, lambda *_: (starts.with_suffix(".saved").touch(), sys.exit(143)))
starts.write_text("x" * (count + 1))
if count == 0:
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_preempted_job_saves_and_is_requeued(tmp_path):
    submitit = pytest.importorskip("submitit")
    executor = submitit.AutoExecutor(folder=tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=10)
    starts = tmp_path / "starts"
    job = executor.submit(Command([sys.executable, "-c", PREEMPTED, str(starts)]))
    deadline = time.monotonic() + 60
    while not starts.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    # As SLURM does: the signal goes to the task, which is the child of the local controller.
    controller = job._process.pid
    (task,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(task), signal.SIGUSR2)
    assert job.result() == Outcome(0)
    assert starts.read_text() == "xx"
    assert (tmp_path / "starts.saved").exists()


def test_jobs_through_submitit(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)  # a job finds no module of this repository
    write = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"
    commands = {name: [sys.executable, "-c", write, str(tmp_path / name)] for name in "ab"}
    commands["c"] = [sys.executable, "-c", "raise SystemExit('no')"]
    options = {"gpu": None, "minutes": 5, "extra": {}, "say": print}
    found = dict(run_submitted(commands, "local", 2, tmp_path / "jobs", **options))
    assert found == {"a": Outcome(0), "b": Outcome(0), "c": Outcome(1, "no")}
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists()
