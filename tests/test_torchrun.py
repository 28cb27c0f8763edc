"""train.py in several processes: the same bits again, stops, deaths, resumes and mistakes."""

import hashlib
import os
import signal
import threading

import pytest
import torch

import train
from rundir.weights import load
from tests.processes import run_job
from training.step import Step
from utils.files import read_csv
from utils.signals import StopSignal
from utils.world import join, read_rank

FLAGS = [
    "--model", "ViT", "--width", "16", "--depth", "1", "--sample_size", "10", "--epochs", "3",
    "--test_sample_size", "5", "--batch_size", "16", "--augment", "DA1+DA2", "--seed", "1",
    "--accumulate", "2", "--save_interval", "0",
]  # fmt: skip
STEPS = 7  # of an epoch


def run_train(folder, *flags, at_step: int = 0, rank: int = 1, number: int = 0) -> int:
    """Call train.py; the process `rank` sends itself a signal in its `at_step`-th step."""
    steps, take = [], Step.__call__

    def take_and_stop(self, *batch):
        steps.append(1)
        if len(steps) == at_step and read_rank() == rank:
            os.kill(os.getpid(), number)
        return take(self, *batch)

    Step.__call__ = take_and_stop
    try:
        status = train.main([*FLAGS, *map(str, flags), "--save_dir", str(folder)])
    finally:
        Step.__call__ = take
    if status:
        raise SystemExit(status)
    return status


def read_numbers(run) -> list[dict[str, str]]:
    rows = read_csv(run / "metrics.csv")
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def assert_equal_runs(one, other) -> None:
    assert read_numbers(one) == read_numbers(other)
    for name in ("epoch_001.pth", "epoch_003.pth", "best_model.pth"):
        first, second = load(one / name), load(other / name)
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in two processes that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    outputs = run_job(2, run_train, folder, "--run_name", "run")
    assert outputs[1][1:] == ("", "")  # the first process alone prints
    assert "2 processes" in outputs[0][1]
    return folder / "run"


def test_one_process_trains_nearly_the_same(tmp_path, whole):
    """With dropout of its own in each process, and rounding, no more than nearly."""
    flags = ["--model", "MLP", "--epochs", 1, "--augment", "none", "--run_name", "run"]
    flags += ["--sep_decay", "--bias_init_mean", "predicted"]
    run_train(tmp_path / "one", *flags)
    run_job(2, run_train, tmp_path / "two", *flags, "--sync_bn")
    one, two = (float(read_numbers(tmp_path / n / "run")[0]["train_loss"]) for n in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-3) and whole.exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_of_one_process_stops_all_after_the_same_step(tmp_path, whole, rank):
    stopping = {"at_step": STEPS + 3, "rank": rank, "number": signal.SIGTERM}
    found = run_job(2, _run_stopped, tmp_path, stopping, expected=(128 + signal.SIGTERM,))
    assert "stopped, state saved" in found[0][1] and "torchrun" in found[0][1]
    assert load(tmp_path / "run" / "last.pth")["position"]["epoch"] == 1
    assert 3 <= load(tmp_path / "run" / "last.pth")["position"]["step"] <= 5
    flags = ["--run_name", "run", "--resume"]
    if rank == 0:
        run_job(2, run_train, tmp_path, *flags)
        assert_equal_runs(tmp_path / "run", whole)
        return
    found = run_job(3, run_train, tmp_path, *flags)
    assert "no longer bit for bit" in found[0][1] and "processes: 3, 2 before" in found[0][1]
    assert len(read_numbers(tmp_path / "run")) == 3


def _run_stopped(folder, stopping) -> int:
    return run_train(folder, "--run_name", "run", **stopping)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_job_with_one_line(tmp_path, whole, rank):
    stopping = {"at_step": STEPS + 3, "rank": rank, "number": signal.SIGKILL}
    found = run_job(2, _run_stopped, tmp_path, stopping, expected=(2, -signal.SIGKILL))
    survivor = found[1 - rank]
    lines = [line for line in survivor[2].splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1 and "a process of this job has ended" in lines[0]
    run_job(2, run_train, tmp_path, "--run_name", "run", "--resume")
    assert_equal_runs(tmp_path / "run", whole)


def test_a_process_that_takes_no_signal_ends_with_one_line(monkeypatch):
    """As one that waits for a GPU: a computation in C, which holds the main thread."""
    monkeypatch.setattr("utils.signals.DEAF_SECONDS", 0.5)
    found = run_job(2, wait_in_c, expected=(143,))
    assert sorted(err.count("a process of this job has ended") for _, _, err in found) == [0, 1]


def wait_in_c() -> None:
    with StopSignal() as stop:
        stop.world = join(gpus=False)
        stop.wait_for_step()
        stop.world.wait()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)


def test_mistakes_are_printed_once(tmp_path, whole):
    for flags, words in (
        (["--batch_size", 6], "--batch_size of at least 8, not 6"),
        (["--graphs", "on"], "--graphs on is for one NVIDIA GPU"),
        (["--modle", "MLP"], "unrecognized arguments"),
        (["--run_name", "run"], "exists already"),
    ):
        found = run_job(2, run_train, whole.parent, *flags, expected=(2,))
        lines = "".join(err for _, _, err in found).splitlines()
        assert [words in line for line in lines] == [True], found
    assert [out for _, out, _ in run_job(2, run_train, whole.parent, "--help")][1] == ""
