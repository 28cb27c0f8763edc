"""Resuming is exact: a run that was stopped or killed ends as the one that never was."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

import train
from rundir.archives import Origin
from rundir.aside import set_newer_aside
from rundir.checkpoints import find_best_epoch
from rundir.config import read_config
from rundir.weights import load, save
from tests.helpers import read_refusal, read_table, start, train_here
from training.meter import Meter
from utils.files import read_csv

TIMINGS = ("seconds", "images_per_second")
# Dropout, crops, flips, Mixup and CutMix on; AdamW for a full optimizer state.
FLAGS = ["--model", "ViT", "--width", 64, "--depth", 1, "--augment", "DA1+DA2", "--gpu_id", -1]
FLAGS += [
    "--precision",
    "fp32",
    "--optimizer",
    "AdamW",
    "--lr",
    0.001,
    "--sample_size",
    20,
    "--batch_size",
    16,
]
EPOCHS = 8


def resume_here(run_dir, *flags):
    """Resume a run within this process; returns the exit status."""
    command = ["--resume", "--save_dir", run_dir.parent, "--run_name", run_dir.name, *flags]
    return train.main([str(word) for word in command])


def refuse_resume(capsys, run_dir, *flags):
    """Resume a run that must be refused; returns the one line on stderr."""
    return read_refusal(capsys, lambda flags: resume_here(run_dir, *flags), *flags)


def copy_run(source, target):
    shutil.copytree(source, target)
    return target


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that is never stopped."""
    directory = tmp_path_factory.mktemp("whole")
    return train_here(directory, *FLAGS, "--epochs", EPOCHS, name="whole")


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


def wait_for(condition, is_running, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and is_running() and time.monotonic() < deadline:
        time.sleep(0.0005)


def lines_in_log(run_dir):
    log = run_dir / "train_log.txt"
    return log.read_text().count("\n") if log.exists() else 0


def train_quietly(command):
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        sys.exit(train.main([str(word) for word in command]))


def run_and_kill(run_dir, moment, delay, interval, flags):
    """Start or resume the run, kill −9 in training or in saving; returns the exit status.

    A fork has imported torch already: ten new processes would take ten times as long.
    """
    known = (run_dir / "config.json").exists()
    command = ["--resume"] if known else [*FLAGS, "--epochs", EPOCHS, *flags]
    command += ["--save_dir", run_dir.parent, "--run_name", run_dir.name]
    command += ["--save_interval", interval]
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=train_quietly, args=(command,))
    begun = lines_in_log(run_dir)
    process.start()
    wait_for(lambda: lines_in_log(run_dir) > begun + 1, process.is_alive)
    time.sleep(delay)
    if moment == "saving":
        wait_for(lambda: any(run_dir.glob(".*.tmp")), process.is_alive)
    process.kill()
    process.join()
    assert process.exitcode in (-signal.SIGKILL, 0)
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--keep_checkpoints", 2, "--nc_every", 3]])
def test_killed_at_random_moments(tmp_path, whole, flags):
    """kill −9 six times in training and in saving, then on to the end."""
    chance = random.Random(0)
    if flags:
        whole = train_here(tmp_path, *FLAGS, "--epochs", EPOCHS, *flags, name="whole")
    kills = {"training": 0, "saving": 0}
    run_dir = tmp_path / "killed"
    while sum(kills.values()) < 6:
        moment = min(kills, key=kills.get)
        interval = chance.choice([0, 0, 30])  # seconds between two last.pth
        if run_and_kill(run_dir, moment, chance.uniform(0, 0.25), interval, flags) == 0:
            # The run was quicker than the kill: once more from the start.
            assert_same_run(run_dir, whole)
            run_dir = tmp_path / f"killed_{sum(kills.values())}"
            continue
        kills[moment] += 1
    assert resume_here(run_dir) == 0
    assert_same_run(run_dir, whole)
    assert not flags or read_table(run_dir) == read_table(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_on_request_within_an_epoch(tmp_path, whole, number, status):
    process = start(
        "train.py", *FLAGS, "--epochs", EPOCHS, "--save_dir", tmp_path, "--run_name", "stopped"
    )
    run_dir = tmp_path / "stopped"
    wait_for(lambda: lines_in_log(run_dir) >= 4, lambda: process.poll() is None)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == status, (out, err)
    assert err == ""
    last_line = out.strip().splitlines()[-1]
    command = f"train.py --resume --run_name stopped --save_dir {tmp_path}"
    assert last_line.endswith(command), last_line
    assert resume_here(run_dir) == 0
    assert_same_run(run_dir, whole)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's /proc")
def test_a_stop_before_training_is_one_line(tmp_path):
    process = start("train.py", *FLAGS, "--save_dir", tmp_path, "--run_name", "early")
    # torch is imported after the handlers are there and seconds before the first step.
    maps = Path(f"/proc/{process.pid}/maps")
    wait_for(lambda: "libtorch" in maps.read_text(), lambda: process.poll() is None)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.strip() == "stopped before training began"
    assert not (tmp_path / "early").exists()


AVERAGED = [*FLAGS, "--ema", 0.9, "--accumulate", 3, "--clip_grad_norm", 0.5]
AVERAGED += ["--betas", 0.8, 0.99, "--epochs", 3]


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run with parts, clipping and an average that is never stopped."""
    return train_here(tmp_path_factory.mktemp("averaged"), *AVERAGED, name="averaged")


def send_at_step(monkeypatch, number, sent):
    """Send this process a signal in a step of training."""
    steps, add = [], Meter.add

    def add_and_send(meter, *results):
        add(meter, *results)
        steps.append(1)
        if len(steps) == number:
            os.kill(os.getpid(), sent)

    monkeypatch.setattr(Meter, "add", add_and_send)


def test_an_averaged_run_killed_and_stopped_within_epochs_is_exact(tmp_path, averaged, monkeypatch):
    """Killed in the second epoch of 13 steps, then stopped in it, and in the third."""
    run_dir = tmp_path / "stopped"
    command = [*AVERAGED, "--save_dir", tmp_path, "--run_name", "stopped"]
    with monkeypatch.context() as patch:
        send_at_step(patch, 20, signal.SIGKILL)
        process = multiprocessing.get_context("fork").Process(target=train_quietly, args=(command,))
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    for step in (5, 14):
        with monkeypatch.context() as patch:
            send_at_step(patch, step, signal.SIGTERM)
            assert resume_here(run_dir) == 143
    assert load(run_dir / "last.pth")["position"]["step"] == 6
    assert resume_here(run_dir) == 0
    assert_same_run(run_dir, averaged)
    weights, average = (load(run_dir / f"{name}_003.pth") for name in ("epoch", "ema"))
    assert weights.keys() == average.keys()
    assert_same(load(run_dir / "last.pth")["average"], average)


def test_a_last_pth_of_another_average_is_refused(tmp_path, averaged, capsys):
    for what in ("absent", "shape", "name"):
        run_dir = copy_run(averaged, tmp_path / what)
        state = load(run_dir / "last.pth")
        average = state.pop("average")
        if what != "absent":
            state["average"] = {**average, "fc.bias": torch.zeros(3)}
        if what == "name":
            state["average"] = {name: v for name, v in average.items() if name != "fc.bias"}
        torch.save(state, run_dir / "last.pth")
        line = refuse_resume(capsys, run_dir)
        assert "does not fit the run's config.json" in line and "average" in line
    assert "--ema 0.9, not 0.5" in refuse_resume(capsys, averaged, "--ema", 0.5)
    assert "--accumulate 3, not 1" in refuse_resume(capsys, averaged, "--accumulate", 1)


def test_averages_newer_than_the_state_are_set_aside(tmp_path, averaged):
    run_dir = copy_run(averaged, tmp_path / "newer")
    (run_dir / "ema_003.pth").rename(run_dir / "ema_004.pth")
    assert set_newer_aside(run_dir, 2, 2) == [3, 4]
    aside = sorted(path.name for path in run_dir.glob("*.aside"))
    assert aside == ["ema_004.pth.aside", "epoch_003.pth.aside"]


def test_a_finished_run_is_left_as_it_is(whole, capsys):
    before = {path.name: path.read_bytes() for path in whole.glob("*.pth")}
    assert resume_here(whole) == 0
    assert f"finished {EPOCHS} epochs" in capsys.readouterr().out
    assert before == {path.name: path.read_bytes() for path in whole.glob("*.pth")}


def test_more_epochs_equal_a_longer_run(tmp_path, capsys):
    constant = [*FLAGS, "--schedule", "constant"]
    long = train_here(tmp_path, *constant, "--epochs", 4, name="long")
    short = train_here(tmp_path, *constant, "--epochs", 2, name="short")
    assert resume_here(short, "--epochs", 4) == 0
    assert_same_run(short, long)
    for flags, words in (
        (["--epochs", 3], "extended, not shortened"),
        (["--lr", 0.5], "--lr 0.001, not 0.5"),
    ):
        assert words in refuse_resume(capsys, short, *flags)


def test_a_damaged_last_pth_is_named_and_nothing_is_lost(tmp_path, whole, capsys):
    run_dir = copy_run(whole, tmp_path / "damaged")
    (run_dir / "last.pth").write_bytes(b"PK\x03\x04 cut off")
    before = (run_dir / "metrics.csv").read_bytes()
    line = refuse_resume(capsys, run_dir)
    assert str(run_dir / "last.pth") in line and "damaged" in line
    assert (run_dir / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("part", ["settings", "position", "model", "optimizer", "rng"])
def test_a_last_pth_without_a_part_is_named(tmp_path, whole, capsys, part):
    run_dir = copy_run(whole, tmp_path / "part")
    state = load(run_dir / "last.pth")
    del state[part]
    torch.save(state, run_dir / "last.pth")
    line = refuse_resume(capsys, run_dir)
    assert f"{run_dir / 'last.pth'} does not fit the run's config.json" in line and part in line


def test_a_lost_last_pth_is_no_reason_to_start_over(tmp_path, whole, capsys):
    run_dir = copy_run(whole, tmp_path / "lost")
    (run_dir / "last.pth").unlink()
    assert "last.pth is missing" in refuse_resume(capsys, run_dir)
    assert (run_dir / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    (run_dir / "metrics.csv").unlink()
    assert "last.pth is missing" in refuse_resume(capsys, run_dir)


def spoil(state, what):
    """Change one part of a last.pth to what no run of these settings has written."""
    if what == "momentum of another shape":
        state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(2)
    elif what == "momentum of another type":
        state["optimizer"]["state"][0]["exp_avg"] = state["optimizer"]["state"][0]["exp_avg"].half()
    elif what == "half a state":
        del state["optimizer"]["state"][0]["exp_avg_sq"]
    elif what == "a stranger's parameter":
        state["optimizer"]["state"][10**6] = state["optimizer"]["state"][0]
    elif what == "weights of another type":
        state["model"]["fc.weight"] = state["model"]["fc.weight"].double()
    elif what == "no number of epochs":
        state["position"]["epoch"] = "8"
    elif what == "too many epochs":
        state["position"]["epoch"] = 9
    elif what == "a short history":
        state["position"]["history"].pop()
    elif what == "a history without numbers":
        state["position"]["history"][0]["test_top1"] = "100"


SPOILED = [
    "momentum of another shape",
    "momentum of another type",
    "half a state",
    "a stranger's parameter",
    "weights of another type",
    "no number of epochs",
    "too many epochs",
    "a short history",
    "a history without numbers",
]


@pytest.mark.parametrize("what", SPOILED)
def test_a_last_pth_of_another_make_is_refused_before_it_is_used(tmp_path, whole, capsys, what):
    """The fused optimizers would write outside the memory of a state of another shape."""
    run_dir = copy_run(whole, tmp_path / "spoiled")
    state = load(run_dir / "last.pth")
    spoil(state, what)
    torch.save(state, run_dir / "last.pth")
    assert "does not fit the run's config.json" in refuse_resume(capsys, run_dir)


def test_a_flipped_bit_in_last_pth_is_found(tmp_path, whole, capsys):
    run_dir = copy_run(whole, tmp_path / "flipped")
    content = bytearray((run_dir / "last.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (run_dir / "last.pth").write_bytes(content)
    assert "last.pth is damaged" in refuse_resume(capsys, run_dir)


def test_a_refused_resume_changes_nothing(tmp_path, capsys):
    run_dir = train_here(tmp_path, *FLAGS, "--schedule", "constant", "--epochs", 1)
    torch.save({}, run_dir / "last.pth")
    before = {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    assert "does not fit" in refuse_resume(capsys, run_dir, "--epochs", 2)
    after = {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} <= {"train_log.txt"}


@pytest.mark.parametrize("kept", [1, 4])
def test_killed_between_metrics_csv_and_the_best_model(tmp_path, kept):
    """The resumed run writes the best model that the kill prevented, with or without epoch_NNN."""
    settings = [*FLAGS, "--epochs", 4, "--epoch_save_step", kept, "--lr", 0.05]
    run_dir = train_here(tmp_path, *settings)
    best = find_best_epoch(run_dir)
    expected = load(run_dir / "best_model.pth")
    state = load(run_dir / "last.pth")
    older = Origin(read_config(run_dir).run_id, best - 1)
    save(run_dir / "best_model.pth", {}, older)
    if kept == 4:  # as if the kill had come after the best epoch, whose weights last.pth holds
        state["position"]["history"][-1]["test_top1"] = 100.0
        save(run_dir / "last.pth", state)
        best, expected = 4, state["model"]
        (run_dir / "epoch_004.pth").unlink()
    assert resume_here(run_dir) == 0
    assert find_best_epoch(run_dir) == best
    assert_same(load(run_dir / "best_model.pth"), expected)


def test_killed_before_the_first_last_pth(tmp_path, whole):
    """epoch_001.pth is written before last.pth; a first resume has left a metrics.csv of no row."""
    run_dir = copy_run(whole, tmp_path / "first")
    for path in run_dir.glob("*.pth"):
        if path.name != "epoch_001.pth":
            path.unlink()
    header = (whole / "metrics.csv").read_text().splitlines()[0]
    (run_dir / "metrics.csv").write_text(header + "\n")
    assert resume_here(run_dir) == 0
    assert_same_run(run_dir, whole)


def edit(run_dir, before, after):
    text = (run_dir / "config.json").read_text()
    assert before in text
    (run_dir / "config.json").write_text(text.replace(before, after))


def test_settings_edited_in_config_json_are_noticed(tmp_path, whole, capsys):
    run_dir = copy_run(whole, tmp_path / "edited")
    edit(run_dir, '"lr": 0.001', '"lr": 0.5')
    assert "written with other settings" in refuse_resume(capsys, run_dir)


def test_a_changed_data_set_is_refused(tmp_path, whole, capsys):
    run_dir = copy_run(whole, tmp_path / "other")
    edit(run_dir, '"train_size": 200', '"train_size": 201')
    line = refuse_resume(capsys, run_dir)
    assert "the data set has changed" in line and "train_size" in line


SHAPING_LATER = ("precision", "compile", "graphs", "deterministic", "imbalance_factor")
SHAPING_LATER += ("momentum", "betas", "clip_grad_norm", "accumulate", "ema")


def test_a_run_of_before_some_settings_came_is_resumed_exactly(tmp_path):
    constant = [*FLAGS, "--schedule", "constant"]
    expected = train_here(tmp_path, *constant, "--epochs", 4, name="expected")
    run_dir = train_here(tmp_path, *constant, "--epochs", 2, name="early")
    config = json.loads((run_dir / "config.json").read_text())
    state = load(run_dir / "last.pth")
    for name in SHAPING_LATER:
        del config["settings"][name], state["settings"][name]
    del config["settings"]["save_interval"]
    del state["position"]["seconds"], state["hardware"]
    del config["data"]["class_sizes"]
    (run_dir / "config.json").write_text(json.dumps(config))
    torch.save(state, run_dir / "last.pth")
    assert resume_here(run_dir, "--epochs", 4) == 0
    assert_same_run(run_dir, expected)
    assert read_config(run_dir).settings.precision == "fp32"


@pytest.mark.parametrize(
    "key, value, named",
    [
        ("kind", "an H100", f"{torch.get_num_threads()} threads on CPU"),
        ("count", 64, "64 threads on CPU"),
        ("torch", "1.0", f"torch {torch.__version__}, 1.0 before"),
    ],
)
def test_a_resume_elsewhere_says_that_it_is_no_longer_exact(tmp_path, whole, key, value, named):
    run_dir = copy_run(whole, tmp_path / "elsewhere")
    state = load(run_dir / "last.pth")
    state["hardware"][key] = value
    torch.save(state, run_dir / "last.pth")
    assert resume_here(run_dir) == 0
    [line] = [text for text in read_log(run_dir) if "no longer bit for bit" in text]
    assert named in line


def test_a_resume_at_the_same_place_says_nothing(tmp_path, whole):
    run_dir = copy_run(whole, tmp_path / "here")
    assert resume_here(run_dir) == 0
    assert not any("no longer" in text for text in read_log(run_dir))


def read_log(run_dir):
    return (run_dir / "train_log.txt").read_text(encoding="utf-8").splitlines()
