"""Resuming is exact: a run that was stopped or killed ends as the one that never was."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import train
from rundir.weights import load
from tests.helpers import assert_mistake, run, start
from utils.files import read_csv

TIMINGS = ("seconds", "images_per_second")
# Dropout, crops, flips, Mixup and CutMix on; AdamW for a full optimizer state.
FLAGS = ["--model", "ViT", "--width", 64, "--depth", 1, "--augment", "DA1+DA2", "--gpu_id", -1]
FLAGS += ["--optimizer", "AdamW", "--lr", 0.001, "--sample_size", 20, "--batch_size", 16]
EPOCHS = 8


def resume(tmp_path, name, *flags):
    return run("train.py", "--resume", "--save_dir", tmp_path, "--run_name", name, *flags)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that is never stopped."""
    directory = tmp_path_factory.mktemp("whole")
    flags = ["--epochs", EPOCHS, "--save_dir", directory, "--run_name", "whole"]
    result = run("train.py", *FLAGS, *flags)
    assert result.returncode == 0, result.stderr
    return directory / "whole"


def assert_same(found, expected, where="last.pth"):
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            if key not in TIMINGS:
                assert_same(found[key], expected[key], f"{where}: {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert found == expected, where


def assert_same_run(found, expected):
    """Bit-identical weights, optimizer and generator state, and metrics but for the timings."""
    names = sorted(path.name for path in expected.glob("*.pth"))
    assert sorted(path.name for path in found.glob("*.pth")) == names
    for name in names:
        assert_same(load(found / name), load(expected / name), name)
    ours, theirs = read_csv(found / "metrics.csv"), read_csv(expected / "metrics.csv")
    assert_same(ours, theirs, "metrics.csv")
    assert not list(found.glob(".*.tmp"))


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)


def lines_in_log(run_dir):
    log = run_dir / "train_log.txt"
    return log.read_text().count("\n") if log.exists() else 0


def run_and_kill(run_dir, moment, delay):
    """Start or resume the run, kill −9 in training or in saving; returns the exit status."""
    flags = ["--save_dir", run_dir.parent, "--run_name", run_dir.name]
    known = (run_dir / "config.json").exists()
    process = start("train.py", *(["--resume"] if known else [*FLAGS, "--epochs", EPOCHS]), *flags)
    begun = lines_in_log(run_dir)
    wait_for(lambda: lines_in_log(run_dir) > begun + 1, process)
    time.sleep(delay)
    if moment == "saving":
        wait_for(lambda: any(run_dir.glob(".*.tmp")), process)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode in (-signal.SIGKILL, 0), err
    return process.returncode


def test_killed_at_random_moments(tmp_path, whole):
    """kill −9 six times in training and in saving, then on to the end."""
    chance = random.Random(0)
    kills = {"training": 0, "saving": 0}
    run_dir = tmp_path / "killed"
    while sum(kills.values()) < 6:
        moment = min(kills, key=kills.get)
        if run_and_kill(run_dir, moment, chance.uniform(0, 0.25)) == 0:
            # The run was quicker than the kill: once more from the start.
            assert_same_run(run_dir, whole)
            run_dir = tmp_path / f"killed_{sum(kills.values())}"
            continue
        kills[moment] += 1
    result = resume(tmp_path, run_dir.name)
    assert result.returncode == 0, result.stderr
    assert_same_run(run_dir, whole)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_on_request_within_an_epoch(tmp_path, whole, number, status):
    process = start(
        "train.py", *FLAGS, "--epochs", EPOCHS, "--save_dir", tmp_path, "--run_name", "stopped"
    )
    run_dir = tmp_path / "stopped"
    wait_for(lambda: lines_in_log(run_dir) >= 4, process)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == status, (out, err)
    assert err == ""
    last_line = out.strip().splitlines()[-1]
    command = f"train.py --resume --run_name stopped --save_dir {tmp_path}"
    assert last_line.endswith(command), last_line
    assert resume(tmp_path, "stopped").returncode == 0
    assert_same_run(run_dir, whole)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's /proc")
def test_a_stop_before_training_is_one_line(tmp_path):
    process = start("train.py", *FLAGS, "--save_dir", tmp_path, "--run_name", "early")
    # torch is imported after the handlers are there and seconds before the first step.
    maps = Path(f"/proc/{process.pid}/maps")
    wait_for(lambda: "libtorch" in maps.read_text(), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.strip() == "stopped before training began"
    assert not (tmp_path / "early").exists()


def test_a_finished_run_is_left_as_it_is(whole):
    before = {path.name: path.read_bytes() for path in whole.glob("*.pth")}
    result = resume(whole.parent, whole.name)
    assert result.returncode == 0, result.stderr
    assert f"finished {EPOCHS} epochs" in result.stdout
    assert before == {path.name: path.read_bytes() for path in whole.glob("*.pth")}


def test_more_epochs_equal_a_longer_run(tmp_path):
    def in_process(*flags):
        return train.main([str(word) for word in (*flags, "--save_dir", tmp_path)])

    constant = [*FLAGS, "--schedule", "constant"]
    assert in_process(*constant, "--run_name", "long", "--epochs", 4) == 0
    assert in_process(*constant, "--run_name", "short", "--epochs", 2) == 0
    assert in_process("--resume", "--run_name", "short", "--epochs", 4) == 0
    assert_same_run(tmp_path / "short", tmp_path / "long")
    assert_mistake(resume(tmp_path, "short", "--epochs", 3), "extended, not shortened")
    assert_mistake(resume(tmp_path, "short", "--lr", 0.5), "--lr 0.001, not 0.5")


def test_a_damaged_last_pth_is_named_and_nothing_is_lost(tmp_path, whole):
    run_dir = tmp_path / "damaged"
    shutil.copytree(whole, run_dir)
    (run_dir / "last.pth").write_bytes(b"PK\x03\x04 cut off")
    before = (run_dir / "metrics.csv").read_bytes()
    assert_mistake(resume(tmp_path, "damaged"), str(run_dir / "last.pth"), "damaged")
    assert (run_dir / "metrics.csv").read_bytes() == before


def test_a_lost_last_pth_is_no_reason_to_start_over(tmp_path, whole):
    run_dir = tmp_path / "lost"
    shutil.copytree(whole, run_dir)
    (run_dir / "last.pth").unlink()
    assert train.main(["--resume", "--run_name", "lost", "--save_dir", str(tmp_path)]) == 2
    assert (run_dir / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_killed_before_the_first_last_pth(tmp_path, whole):
    """epoch_001.pth is written before last.pth; a first resume has left a metrics.csv of no row."""
    run_dir = tmp_path / "first"
    shutil.copytree(whole, run_dir)
    for path in run_dir.glob("*.pth"):
        if path.name != "epoch_001.pth":
            path.unlink()
    header = (whole / "metrics.csv").read_text().splitlines()[0]
    (run_dir / "metrics.csv").write_text(header + "\n")
    assert train.main(["--resume", "--run_name", "first", "--save_dir", str(tmp_path)]) == 0
    assert_same_run(run_dir, whole)


def test_settings_edited_in_config_json_are_noticed(tmp_path, whole, capsys):
    run_dir = tmp_path / "edited"
    shutil.copytree(whole, run_dir)
    config = (run_dir / "config.json").read_text()
    (run_dir / "config.json").write_text(config.replace('"lr": 0.001', '"lr": 0.5'))
    assert train.main(["--resume", "--run_name", "edited", "--save_dir", str(tmp_path)]) == 2
    assert "written with other settings" in capsys.readouterr().err


def test_a_changed_data_set_is_refused(tmp_path, whole):
    run_dir = tmp_path / "other"
    shutil.copytree(whole, run_dir)
    config = (run_dir / "config.json").read_text()
    (run_dir / "config.json").write_text(config.replace('"train_size": 200', '"train_size": 201'))
    assert_mistake(resume(tmp_path, "other"), "the data set has changed", "train_size")
