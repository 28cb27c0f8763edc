"""Commands that are run here; with several processes through torchrun."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from reproduction.launch import Command, Outcome, choose_line, run_here
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


SAVE = """
import pathlib, signal, sys, time
from utils.signals import StopSignal, stop_with_parent
stop, mark = StopSignal("stopped").install(), pathlib.Path(sys.argv[1])
stop.wait_for_step()
stop_with_parent()
mark.touch()
while not stop.requested:
    time.sleep(0.02)
time.sleep(float(sys.argv[2]))
mark.rename(mark.with_suffix(".saved"))
"""


def test_a_command_is_asked_to_stop_once(tmp_path, monkeypatch):
    """A second SIGTERM would end it before it has saved."""
    monkeypatch.chdir(ROOT)
    command = Command([sys.executable, "-c", SAVE, str(tmp_path / "mark"), "0.3"])
    command.start()
    wait_until((tmp_path / "mark").exists)
    command.ask_to_stop()
    time.sleep(0.1)
    command.stop()
    assert command.wait() == Outcome(0)
    assert (tmp_path / "mark.saved").exists()


def test_the_end_of_the_parent_does_not_end_a_stop_that_is_under_way(tmp_path):
    parent = (
        "import pathlib, subprocess, sys, os, time\n"
        "os.environ['STOP_WITH_PARENT'] = str(os.getpid())\n"
        "child = subprocess.Popen([sys.executable, '-c', *sys.argv[1:]])\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.02)\n"
        "child.terminate()\n"
    )
    words = [sys.executable, "-c", parent, SAVE, str(tmp_path / "mark"), "1.5"]
    subprocess.run(words, cwd=ROOT, check=True)
    wait_until((tmp_path / "mark.saved").exists)


def test_the_line_of_the_script_is_chosen():
    own = "train.py: error: no room"
    assert choose_line(f"a warning\n{own}\nW0101 torchrun failed\n  exitcode: 2\n") == own
    assert choose_line("Traceback\nValueError: x\n") == "ValueError: x"
    assert choose_line("") == ""


# The second process fails; the first one ends with it, as it is asked to.
FAIL = """
import json, os, pathlib, signal, sys, time
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
found = [os.environ.get(name) for name in names]
mark = pathlib.Path(sys.argv[1] + os.environ["RANK"])
stops = os.environ["STOP_WITH_PARENT"] == str(os.getppid())
signal.signal(signal.SIGTERM, lambda *_: (mark.with_suffix(".saved").touch(), sys.exit(143)))
mark.write_text(json.dumps([found, stops, sys.argv[2:]]))
while os.environ["RANK"] == "0" or not os.path.exists(sys.argv[1] + "0"):
    time.sleep(0.02)
print("fail.py: error: the reason", file=sys.stderr)
sys.exit(3)
"""


@pytest.mark.slow
def test_several_processes_are_started_by_torchrun(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the repository is not on the path
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    (tmp_path / "fail.py").write_text(FAIL)
    words = [sys.executable, str(tmp_path / "fail.py"), str(tmp_path / "mark")]
    places = Places([Place(0, 3, 1, 1, 2, (1, 3))])
    found = dict(run_here({"run": words}, places))
    assert found == {"run": Outcome(3, "fail.py: error: the reason")}
    for rank in "01":
        environment, stops, flags = json.loads((tmp_path / f"mark{rank}").read_text())
        assert environment == [rank, "2", rank, "3", "5,7"]
        assert stops and flags == ["--gpu_id", "0"]
    assert (tmp_path / "mark0.saved").exists()


@pytest.mark.slow
def test_the_processes_of_torchrun_save_when_its_parent_is_killed(tmp_path):
    (tmp_path / "save.py").write_text(
        SAVE.replace("sys.argv[1])", "sys.argv[1] + os.environ['RANK'])").replace(
            "import ", "import os, ", 1
        )
    )
    parent = (
        "import sys; from reproduction.launch import run_here\n"
        "from reproduction.places import Place, Places\n"
        "list(run_here({'run': sys.argv}, Places([Place(0, 1, None, 1, 2)])))\n"
    )
    words = [sys.executable, "-c", parent, str(tmp_path / "save.py"), str(tmp_path / "mark"), "1.5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, env=environment)
    marks = [tmp_path / f"mark{rank}" for rank in "01"]
    wait_until(lambda: all(mark.exists() for mark in marks))
    process.kill()
    process.wait()
    wait_until(lambda: all(mark.with_suffix(".saved").exists() for mark in marks))
