"""Commands as jobs of submitit, on this machine or on a cluster."""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from reproduction.jobs import Task, run_local_jobs, run_on_slurm
from reproduction.launch import Outcome, run_here
from reproduction.places import Place, Places, divide_machine

# Two processes. The first start waits for the stop, which the first process hands on to the other.
PREEMPTED = """
import json, os, pathlib, signal, sys, time
folder, rank = pathlib.Path(sys.argv[1]), os.environ["RANK"]
names = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
starts = folder / f"starts{rank}"
count = len(starts.read_text().splitlines()) if starts.exists() else 0
signal.signal(signal.SIGTERM, lambda *_: (folder / "saved").touch())
with starts.open("a") as file:
    print(json.dumps([os.environ[name] for name in names]), file=file)
while count == 0:
    if (folder / "saved").exists():
        sys.exit(143)
    time.sleep(0.02)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_preempted_job_of_two_processes_saves_and_is_requeued(tmp_path):
    submitit = pytest.importorskip("submitit")
    executor = submitit.AutoExecutor(folder=tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=10, tasks_per_node=2)
    starts = [tmp_path / f"starts{rank}" for rank in "01"]
    job = executor.submit(Task([sys.executable, "-c", PREEMPTED, str(tmp_path)]))
    deadline = time.monotonic() + 60
    while not all(map(Path.exists, starts)) and time.monotonic() < deadline:
        time.sleep(0.05)
    # As SLURM does: the signal goes to the tasks, which are the children of the local controller.
    controller = job._process.pid
    tasks = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    for task in tasks:
        os.kill(int(task), signal.SIGUSR2)
    assert job.results() == [Outcome(0), Outcome(0)]
    (port,) = {json.loads(line)[-1] for path in starts for line in path.read_text().splitlines()}
    assert 20_000 <= int(port) < 32_768
    for rank, path in enumerate(starts):
        line = json.dumps(["2", str(rank), "2", "127.0.0.1", port])
        assert path.read_text().splitlines() == [line, line]


# Saves for longer than submitit waits until it kills the tasks of a job.
SAVES = """
import pathlib, signal, sys, time
path = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1.5), path.touch(), sys.exit(143)))
print("running"); path.with_suffix(".begun").touch(); time.sleep(60)
"""


def test_jobs_through_submitit(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)  # a job finds no module of this repository
    write = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"
    codes = {"long": SAVES, "a": write, "b": write, "c": "raise SystemExit('no')"}
    commands = {n: [sys.executable, "-c", code, str(tmp_path / n)] for n, code in codes.items()}
    places = Places(divide_machine(2, [None]))
    running = run_local_jobs(commands, places, tmp_path / "jobs", minutes=5)
    found = dict(next(running) for _ in range(3))
    assert found == {"a": Outcome(0), "b": Outcome(0), "c": Outcome(1, "no")}
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists()
    assert (tmp_path / "long.begun").exists()
    running.close()
    assert (tmp_path / "long").exists()


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
        num_tasks = 1
        task = lambda self, number: self  # noqa: E731

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


SBATCH = """#!/bin/bash
cp $1 {folder}/batch
export SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_JOB_NUM_NODES=2 SLURM_JOB_NODELIST='n[8-9]'
for rank in 0 1 2 3; do
    SLURM_PROCID=$rank SLURM_LOCALID=$((rank % 2)) bash $1 &
done > /dev/null 2>&1
echo Submitted batch job 7
"""
SRUN = """#!/bin/bash
while [ "$1" != {python} ]; do shift; done
exec "$@" > /dev/null 2> {folder}/error$SLURM_PROCID
"""
WRITE_RANK = """
import json, os, pathlib, sys
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
found = [os.environ[name] for name in names]
pathlib.Path(sys.argv[1] + found[0]).write_text(json.dumps(found))
sys.exit("a.py: error: the reason" if found[0] == "2" else 2)
"""


@pytest.mark.slow
def test_a_job_of_slurm_on_two_nodes(tmp_path, monkeypatch):
    """A stand-in for SLURM starts the tasks of the real batch script, all on this machine."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("reproduction.jobs.SLURM_POLL", 0.05)
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", "#!/bin/bash\n")):
        (tmp_path / name).write_text(text.format(folder=tmp_path, python=sys.executable))
        (tmp_path / name).chmod(0o755)
    words = [sys.executable, "-c", WRITE_RANK, str(tmp_path / "rank")]
    options = {"minutes": 7, "extra": {"cpus-per-task": "8"}, "say": print, "nodes": 2}
    found = run_on_slurm({"a": words}, 1, tmp_path / "j", with_gpu=True, processes=4, **options)
    assert dict(found) == {"a": Outcome(2, "a.py: error: the reason")}
    for rank in range(4):
        written = json.loads((tmp_path / f"rank{rank}").read_text())
        assert written == [str(rank), "4", str(rank % 2), "2", "n8"]
    batch = (tmp_path / "batch").read_text().splitlines()
    for line in ("nodes=2", "ntasks-per-node=2", "gpus-per-node=2", "cpus-per-task=8", "time=7"):
        assert f"#SBATCH --{line}" in batch
    assert "#SBATCH --signal=USR2@120" in batch
