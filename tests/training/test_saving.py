"""Saving beside training: what is on the disk after a kill at any moment, and when."""

import itertools
import os
import random
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from models import build_model
from rundir.archives import Origin, read_origin
from rundir.directory import Run, choose_run
from rundir.names import list_metrics_columns, read_ema_epoch, read_epoch
from rundir.resuming import read_settings
from rundir.weights import load
from tests.helpers import train_here
from training import saving
from training.meter import Meter
from training.saving import HostCopy, Saver
from training.setup import build_average, build_optimizer
from training.state import TrainState
from utils import files
from utils.errors import UserError
from utils.files import read_csv

CPU = torch.device("cpu")
SMALL = ["--model", "MLP", "--width", 16, "--depth", 1, "--gpu_id", -1, "--sample_size", 8]
SMALL += ["--test_sample_size", 4, "--batch_size", 16]


def test_a_copy_is_equal_and_stays_as_it_was():
    model = build_model("ResNet18", 3, (3, 8, 8)).to(memory_format=torch.channels_last)
    state = {"model": model.state_dict(), "rows": [{"a": 1}], "none": None, "half": torch.ones(3)}
    state["half"] = state["half"].half()
    snapshot = HostCopy(CPU)
    copied = snapshot.take(state)
    snapshot.wait()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    state["rows"][0]["a"] = 2
    state["rows"].append({})
    assert copied["rows"] == [{"a": 1}] and copied["none"] is None
    assert copied["half"].dtype == torch.float16
    assert copied["model"]._metadata == model.state_dict()._metadata
    for name, value in expected.items():
        assert torch.equal(copied["model"][name], value)
        assert copied["model"][name].stride() == model.state_dict()[name].stride()
    again = snapshot.take(model.state_dict() | {})
    assert not again["fc.weight"].any()


def test_the_next_copy_uses_the_same_memory():
    snapshot = HostCopy(CPU)
    places = [snapshot.take({"a": torch.full((4,), float(i))})["a"].data_ptr() for i in range(3)]
    assert len(set(places)) == 1
    assert snapshot.take({"a": torch.ones(5)})["a"].tolist() == [1] * 5


class Killed(BaseException):
    """kill −9, as far as one process can play it: nothing is written afterwards."""


class Disk:
    """Lets the process die at its n-th rename or removal, before or after it.

    `most` is the largest number of epoch_NNN.pth that there were at a time.
    """

    def __init__(self, monkeypatch, links=True):
        self.left, self.after, self.dead, self.most = None, False, False, 0
        replace, unlink = os.replace, os.unlink
        monkeypatch.setattr(files.os, "fsync", lambda descriptor: None)  # it takes most of the time
        monkeypatch.setattr(files.os, "replace", lambda *names: self._act(replace, *names))
        monkeypatch.setattr(files.os, "unlink", lambda *names: self._act(unlink, *names))
        if not links:
            monkeypatch.setattr(files.os, "link", self._refuse)

    def die_at(self, number, after):
        self.left, self.after, self.dead = number, after, False

    def revive(self):
        self.left, self.dead = None, False

    def _refuse(self, source, target):
        raise OSError("no links here")

    def _act(self, act, *names):
        if self.dead:
            raise Killed
        if not os.path.exists(names[0]):  # a temporary file that was renamed
            return act(*names)
        if self.left is None or self.left > 0:
            self.left = None if self.left is None else self.left - 1
            act(*names)
            self.most = max(self.most, len(list(Path(names[-1]).parent.glob("epoch_*.pth"))))
            return None
        self.dead = True
        if self.after:
            act(*names)
        raise Killed


def open_state(run, settings):
    """Return the state of a run, resumed if there is one; all weights are 0 at first."""
    model = build_model("MLP", 10, (3, 8, 8), width=4, depth=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    optimizer = build_optimizer(settings, model)
    average = build_average(settings, model, optimizer)
    scaler, meter = torch.amp.GradScaler("cpu"), Meter(1, CPU)
    state = TrainState(settings, model, optimizer, scaler, meter, average)
    if run.resumed:
        state.load(run)
        run.write_metrics(state.history)  # as the log does
    return state


def list_parameters(state):
    return [*state.model.parameters(), *state.average.module.parameters()]


def play(run, settings, accuracies, clock):
    """Train epochs whose weights and their averages are all the number of the epoch."""
    state = open_state(run, settings)
    columns = list_metrics_columns(settings)
    with Saver(run, state) as saver:
        while state.epoch < settings.epochs:
            with torch.no_grad():
                for parameter in list_parameters(state):
                    parameter.fill_(state.epoch + 1)
            row = dict.fromkeys(columns, 0.0) | {"epoch": state.epoch + 1}
            clock.pass_time()
            saver.save_epoch(row | {"test_top1": accuracies[state.epoch]})


class Clock:
    """Time in which an epoch takes 0 to 40 seconds."""

    def __init__(self, monkeypatch, draw):
        self._now, self._draw = 0.0, draw
        monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=lambda: self._now))

    def pass_time(self):
        self._now += self._draw.uniform(0, 40)


def find_best(accuracies):
    return 1 + accuracies.index(max(accuracies)) if accuracies else 0


def read_filling(path):
    """Return the number that fills the weights of a file."""
    state = load(path)
    return int(state["fc.weight"][0, 0])


def check_promises(run, settings, accuracies):
    """Check what a resume finds after a kill."""
    state = open_state(run, settings)
    best = find_best(accuracies[: state.epoch])
    if best:
        assert read_filling(run / "best_model.pth") == best
        assert read_origin(run / "best_model.pth") == Origin(run.id, best)
    assert all(parameter.eq(state.epoch).all() for parameter in list_parameters(state))
    assert [row["test_top1"] for row in state.history] == accuracies[: state.epoch]
    written = [e for e in range(1, 7) if e % settings.epoch_save_step == 0 or e == settings.epochs]
    found = [read_epoch(path.name) for path in sorted(run.directory.glob("epoch_*.pth"))]
    averages = [read_ema_epoch(path.name) for path in sorted(run.directory.glob("ema_*.pth"))]
    keep = settings.keep_checkpoints
    if state.epoch and (keep == "all" or state.epoch == settings.epochs):
        kept = [epoch for epoch in written if epoch <= state.epoch]
        assert found == (kept if keep == "all" else [] if keep == "best" else kept[-keep:])
        assert averages == found
    assert set(found) <= set(written) and (keep == "all" or len(found) <= count_kept(keep))
    assert set(averages) <= set(found)  # of two older files the average is removed first
    assert all(read_filling(run / f"epoch_{epoch:03d}.pth") == epoch for epoch in found)
    for epoch in averages:
        assert read_filling(run / f"ema_{epoch:03d}.pth") == epoch
        assert read_origin(run / f"ema_{epoch:03d}.pth") == Origin(run.id, epoch, average=True)
    assert not (run / "best_model.pth.next").exists()


def count_kept(keep):
    return 0 if keep == "best" else keep


# --epoch_save_step, what is drawn, --keep_checkpoints, and whether the file system has links. The
# steps: an epoch_NNN.pth after each, some, or the last epoch.
CASES = [
    (3, 1, "all", True),
    (1, 1, 1, False),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            (6, 3, "all", True),
            (1, 4, 2, True),
            (2, 5, 1, True),
            (1, 6, "best", True),
            (3, 7, "best", False),
        )
    ),
]


@pytest.mark.parametrize(("step", "seed", "keep", "links"), CASES)
def test_a_kill_at_any_rename_or_removal_keeps_every_promise(
    tmp_path, monkeypatch, step, seed, keep, links
):
    draw = random.Random(seed)
    accuracies = [float(draw.randint(0, 6)) for _ in range(6)]
    flags = ["--epochs", "6", "--epoch_save_step", str(step), "--save_dir", str(tmp_path)]
    flags += ["--keep_checkpoints", str(keep), "--ema", "0.5"]
    disk = Disk(monkeypatch, links)
    for turn in itertools.count():
        number, after = divmod(turn, 2)
        name = f"{number}_{after}"
        settings = read_settings([*map(str, SMALL), *flags, "--run_name", name])
        clock = Clock(monkeypatch, random.Random(number))
        with choose_run(settings) as run:
            run.write_config(settings, {"num_classes": 10}, "CPU")
            disk.die_at(number, bool(after))
            try:
                play(run, settings, accuracies, clock)
                break  # there are fewer renames than `number`
            except Killed:
                disk.revive()
        resumed = Run(run.directory, True, settings, id=run.id)
        check_promises(resumed, settings, accuracies)
        play(resumed, settings, accuracies, clock)
        check_promises(resumed, settings, accuracies)
        assert [float(row["test_top1"]) for row in read_csv(run / "metrics.csv")] == accuracies
        assert not list(run.directory.glob("*.aside"))
    assert number > 8
    # A newer file is written before the oldest one goes, and the best one waits for last.pth.
    assert keep == "all" or disk.most <= (0 if keep == "best" else keep + 2)


def count_states(monkeypatch):
    epochs = []
    write = Run.write_state

    def write_state(run, state):
        epochs.append(state["position"]["epoch"])
        write(run, state)

    monkeypatch.setattr(Run, "write_state", write_state)
    return epochs


@pytest.mark.parametrize(("interval", "expected"), [(30, [1, 5]), (0, [1, 2, 3, 4, 5])])
def test_last_pth_is_written_after_the_first_epoch_then_seldom_and_at_the_end(
    tmp_path, monkeypatch, interval, expected
):
    epochs = count_states(monkeypatch)
    train_here(tmp_path, *SMALL, "--epochs", 5, "--save_interval", interval)
    assert epochs == expected


def test_a_run_that_diverges_keeps_its_last_epoch(tmp_path, monkeypatch):
    train_epoch = train.train_epoch

    def diverge(state, *others):
        if state.epoch == 3:
            raise train.NonFiniteLoss(4, 1, 0.1)
        return train_epoch(state, *others)

    monkeypatch.setattr(train, "train_epoch", diverge)
    flags = [*SMALL, "--epochs", 5, "--epoch_save_step", 5, "--save_dir", tmp_path]
    assert train.main([*map(str, flags), "--run_name", "r"]) == 3
    state = load(tmp_path / "r" / "last.pth")
    assert state["position"]["epoch"] == 3
    best = read_origin(tmp_path / "r" / "best_model.pth").epoch
    assert best == find_best([row["test_top1"] for row in state["position"]["history"]])


def test_an_error_of_the_thread_ends_the_run_in_one_line(tmp_path, monkeypatch, capsys):
    """The disk is full at the second epoch; a resume goes on from the first."""
    write_weights = Run.write_weights

    def fill_disk(run, weights, epoch):
        if epoch == 2:
            raise UserError("cannot write it: No space left on device")
        write_weights(run, weights, epoch)

    flags = [*SMALL, "--epochs", 4, "--save_dir", tmp_path, "--run_name", "r"]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_weights", fill_disk)
        assert train.main([*map(str, flags)]) == 2
    assert capsys.readouterr().err == "train.py: error: cannot write it: No space left on device\n"
    assert len(read_csv(tmp_path / "r" / "metrics.csv")) == 1
    assert train.main(["--resume", "--run_name", "r", "--save_dir", str(tmp_path)]) == 0
    assert len(read_csv(tmp_path / "r" / "metrics.csv")) == 4


def test_the_seconds_of_the_epochs_add_up_to_the_time_of_the_run(tmp_path, monkeypatch):
    """Also where the disk takes longer than an epoch: a file takes 0.1 s here."""
    moments = []
    begin, write_whole = TrainState.begin_epoch, files.write_whole

    def begin_epoch(state):
        moments.append(time.monotonic())
        begin(state)

    def write_slowly(path, write):
        time.sleep(0.1)
        write_whole(path, write)
        moments.append(time.monotonic())

    monkeypatch.setattr(TrainState, "begin_epoch", begin_epoch)
    monkeypatch.setattr(files, "write_whole", write_slowly)
    monkeypatch.setattr("rundir.weights.write_whole", write_slowly)
    run = train_here(tmp_path, *SMALL, "--epochs", 4)
    written = read_csv(run / "metrics.csv")
    whole = moments[-1] - moments[0] - 0.1  # metrics.csv is written once more at the end
    assert sum(float(row["seconds"]) for row in written) == pytest.approx(whole, rel=0.02)
    assert whole > 1.0  # ten files
