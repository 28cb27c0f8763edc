"""Commands that are run here or as jobs of submitit."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reproduction.launch import Command, Outcome, run_here, run_local_jobs, run_on_slurm
from reproduction.places import Place, Places, divide_machine
from tests.helpers import ROOT
from utils.signals import StopSignal


def test_commands_are_run_here(tmp_path):
    words = [sys.executable, "-c", "import sys; print('said', file=sys.stderr); sys.exit(3)"]
    commands = {"bad": words, "good": [sys.executable, "-c", ""]}
    found = dict(run_here(commands, Places(divide_machine(2, [None]))))
    assert found == {"bad": Outcome(3, "said"), "good": Outcome(0)}


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
        list(run_here({"long": words}, Places(divide_machine(1, [None]))))
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


@pytest.mark.slow
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
    places = Places(divide_machine(2, [None]))
    found = dict(run_local_jobs(commands, places, tmp_path / "jobs", minutes=5))
    assert found == {"a": Outcome(0), "b": Outcome(0), "c": Outcome(1, "no")}
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists()


WRITE_PLACE = """
import json, os, pathlib, sys
names = ("OMP_NUM_THREADS", "GPU_SHARERS", "CUDA_VISIBLE_DEVICES")
found = {name: os.environ.get(name) for name in names}
pathlib.Path(sys.argv[1]).write_text(json.dumps([found, sys.argv[2:]]))
"""


@pytest.mark.parametrize("visible", ["4,6", None])
@pytest.mark.parametrize("launcher", ["here", "local"])
def test_a_command_gets_the_threads_and_the_part_of_a_gpu_of_its_place(
    tmp_path, monkeypatch, launcher, visible
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    commands = {name: [sys.executable, "-c", WRITE_PLACE, str(tmp_path / name)] for name in "abc"}
    places = Places([Place(0, 2, 0, 2), Place(1, 1, 1, 1), Place(2, 1, 0, 2)])
    if launcher == "here":
        found = dict(run_here(commands, places))
    else:
        pytest.importorskip("submitit")
        found = dict(run_local_jobs(commands, places, tmp_path / "jobs", minutes=5))
    assert found == dict.fromkeys("abc", Outcome(0))
    written = [json.loads((tmp_path / name).read_text()) for name in "abc"]
    keys = ("OMP_NUM_THREADS", "GPU_SHARERS", "CUDA_VISIBLE_DEVICES")
    assert [tuple(map(environment.get, keys)) for environment, _ in written] == [
        ("2", "2", visible),
        ("1", "1", visible),
        ("1", "2", visible),
    ]
    assert [flags for _, flags in written] == [["--gpu_id", n] for n in ("0", "1", "0")]


def test_a_job_of_slurm_gets_the_number_of_its_one_gpu(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    parameters = {}

    class Job:
        def __init__(self, command):
            self.result = lambda: Outcome(0, " ".join(command.words))

        def done(self):
            return True

    class Executor:
        def __init__(self, folder, cluster, **options):
            parameters.update(options, cluster=cluster)

        def update_parameters(self, **given):
            parameters.update(given)

        batch, submit = contextlib.nullcontext, lambda self, command: Job(command)

    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    options = {"with_gpu": True, "minutes": 7, "extra": {"partition": "gpu"}, "say": print}
    found = dict(run_on_slurm({"a": ["one"], "b": ["two"]}, 3, tmp_path, **options))
    assert found == {"a": Outcome(0, "one"), "b": Outcome(0, "two")}
    assert parameters["cluster"] == "slurm"
    assert (parameters["gpus_per_node"], parameters["timeout_min"]) == (1, 7)
    assert parameters["slurm_array_parallelism"] == 3
    assert parameters["slurm_additional_parameters"] == {"partition": "gpu"}
