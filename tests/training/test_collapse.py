"""--nc_every: the rows are those of eval_nc.py, and training does not notice."""

import dataclasses
import multiprocessing
from types import SimpleNamespace

import pytest
import torch

import eval_nc
import train
from input_pipeline.load import load_dataset
from input_pipeline.splits import FileSplit
from models import build_model
from rundir import rebuild
from rundir.building import build_batches, build_precision
from rundir.directory import choose_run
from rundir.names import METRICS_COLUMNS, NC_COLUMNS
from rundir.resuming import read_settings
from rundir.weights import load
from tests.helpers import read_table, train_here, train_run
from tests.input_pipeline.helpers import picture
from tests.processes import run_job
from training.collapse import CollapseRecorder, _explain
from utils.console import Console
from utils.files import read_csv
from utils.signals import Stopped, StopSignal

CPU = torch.device("cpu")
# Dropout, crops, flips, Mixup and CutMix: whatever draws a random number in training.
FLAGS = ["--model", "ViT", "--width", 32, "--depth", 1, "--augment", "DA1+DA2", "--sample_size", 20]
FLAGS += ["--test_sample_size", 9, "--batch_size", 16, "--optimizer", "AdamW", "--lr", 0.001]
FLAGS += ["--precision", "fp32", "--schedule", "constant", "--save_interval", 0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return train_here(tmp_path_factory.mktemp("plain"), *FLAGS, "--epochs", 3)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The same run, measured after its second and its last epoch. The data is loaded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuild, "build_data", None)
        directory = tmp_path_factory.mktemp("measured")
        return train_here(directory, *FLAGS, "--epochs", 3, "--nc_every", 2, "--tensorboard")


def evaluate(capsys, *flags):
    capsys.readouterr()
    assert eval_nc.main([str(word) for word in ("--gpu_id", -1, "--load_path", *flags)]) == 0
    return capsys.readouterr().out


def assert_equal(found, expected):
    """Bit for bit, but for timings and the measures."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        other = {"seconds", "images_per_second", *NC_COLUMNS}
        assert found.keys() - other == expected.keys() - other
        for key in expected.keys() - other:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list):
        for one, two in zip(found, expected, strict=True):
            assert_equal(one, two)
    else:
        assert found == expected


def test_training_does_not_notice(plain, measured):
    names = sorted(path.name for path in plain.glob("*.pth"))
    assert names == sorted(path.name for path in measured.glob("*.pth"))
    for name in names:  # last.pth holds the random generators, too
        assert_equal(load(measured / name), load(plain / name))


def test_eval_nc_keeps_the_rows_and_computes_the_same(measured, capsys):
    rows = read_table(measured)
    assert list(rows) == [(2, "train"), (2, "test"), (3, "train"), (3, "test")]
    assert "0 evaluated, 4 unchanged rows kept" in evaluate(
        capsys, measured, "--checkpoints", "2,3"
    )
    assert "2 evaluated, 4 unchanged rows kept" in evaluate(capsys, measured)
    evaluate(capsys, measured, "--checkpoints", "2,3", "--force")
    for key, row in read_table(measured).items():
        for name, value in rows.get(key, {}).items():
            if name != "split" and value:
                assert float(row[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-7)


def test_two_processes_write_the_rows_of_their_weights(tmp_path, capsys):
    flags = [*FLAGS, "--epochs", 1, "--nc_every", 1, "--gpu_id", -1, "--dataset", "digits"]
    flags += ["--save_dir", tmp_path, "--run_name", "run"]
    (status, _, err), other = run_job(2, train.main, [str(flag) for flag in flags])
    assert (status, err) == (0, "") and other == (0, "", "")
    rows = read_table(tmp_path / "run")
    assert "0 evaluated, 2 unchanged rows kept" in evaluate(capsys, tmp_path / "run")
    evaluate(capsys, tmp_path / "run", "--force")
    assert list(rows) == [(1, "train"), (1, "test")]
    for key, row in read_table(tmp_path / "run").items():
        for name, value in row.items():
            if name != "split" and value:
                assert float(rows[key][name]) == pytest.approx(float(value), rel=1e-5, abs=1e-7)


def test_metrics_csv_and_events_hold_the_measures_of_the_training_set(plain, measured):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert list(read_csv(plain / "metrics.csv")[0]) == list(METRICS_COLUMNS)
    rows, table = read_csv(measured / "metrics.csv"), read_table(measured)
    assert list(rows[0]) == [*METRICS_COLUMNS, *NC_COLUMNS]
    events = EventAccumulator(str(measured / "tensorboard")).Reload()
    for column in NC_COLUMNS:
        values = [row[column] for row in rows]
        expected = [table[epoch, "train"][column.removeprefix("train_")] for epoch in (2, 3)]
        assert values == ["", *expected]
        written = {event.step: event.value for event in events.Scalars(column)}
        assert written == pytest.approx({2: float(values[1]), 3: float(values[2])})
    lines = (measured / "train_log.txt").read_text().splitlines()
    assert sum("training set: NC1" in line for line in lines) == 2


def test_a_stop_in_the_measures_is_resumed_exactly(plain, measured, tmp_path, monkeypatch):
    measure = CollapseRecorder.measure

    def stop_and_measure(recorder, model, epoch, stop):
        if epoch == 2:
            stop.number = 15
        return measure(recorder, model, epoch, stop)

    flags = [*FLAGS, "--epochs", 3, "--nc_every", 2]
    with monkeypatch.context() as patch:
        patch.setattr(CollapseRecorder, "measure", stop_and_measure)
        run = train_here(tmp_path, *flags, status=143)
    assert not (run / "nc_metrics.csv").exists() and not (run / "epoch_002.pth").exists()
    train_here(tmp_path, "--resume")
    for name in ("epoch_002.pth", "epoch_003.pth", "last.pth"):
        assert_equal(load(run / name), load(plain / name))
    for row, expected in zip(*(read_csv(r / "metrics.csv") for r in (run, measured)), strict=True):
        assert [row[name] for name in NC_COLUMNS] == [expected[name] for name in NC_COLUMNS]


def test_measures_that_a_resume_turns_off_or_on_stay_in_the_file(tmp_path):
    flags = ["--schedule", "constant", "--nc_every", 1]
    run = train_run(tmp_path, "r", *flags, "--epochs", 1)
    first = read_csv(run / "metrics.csv")[0]
    train_here(tmp_path, "--resume", "--epochs", 2, "--nc_every", 0)
    train_here(tmp_path, "--resume", "--epochs", 3)  # config.json has it off by now
    rows = read_csv(run / "metrics.csv")
    assert rows[0]["train_nc1"] == first["train_nc1"] != ""
    assert [row["train_nc1"] for row in rows[1:]] == ["", ""]
    train_here(tmp_path, "--resume", "--epochs", 4, "--nc_every", 4)
    assert [bool(row["train_nc1"]) for row in read_csv(run / "metrics.csv")] == [1, 0, 0, 1]


def test_an_epoch_is_measured_before_its_checkpoint_goes(tmp_path, capsys):
    flags = ["--epochs", 4, "--nc_every", 1, "--epoch_save_step", 2, "--keep_checkpoints", 1]
    run = train_run(tmp_path, "r", *flags)
    assert [path.name for path in run.glob("epoch_*")] == ["epoch_004.pth"]
    rows = read_table(run)
    assert [epoch for epoch, split in rows if split == "test"] == [1, 2, 3, 4]
    # Only weights that a file has held can be told from others.
    prints = (run / "nc_metrics.json").read_text()
    assert [f'"{epoch} test"' in prints for epoch in (1, 2, 3, 4)] == [False, True, False, True]
    assert "0 evaluated, 2 unchanged rows kept" in evaluate(capsys, run)
    assert read_table(run) == rows


def test_runs_without_epoch_files_are_evaluated_by_their_best_model(tmp_path, capsys):
    run = train_run(tmp_path, "r", "--epochs", 3, "--nc_every", 1, "--keep_checkpoints", "best")
    assert not list(run.glob("epoch_*"))
    best = max(read_csv(run / "metrics.csv"), key=lambda row: float(row["test_top1"]))["epoch"]
    rows = read_table(run)
    assert "2 evaluated, 0 unchanged rows kept" in evaluate(capsys, run)
    again = read_table(run)
    assert [epoch for epoch, _ in again] == [1, 1, 2, 2, 3, 3]
    assert float(again[int(best), "test"]["nc1"]) == pytest.approx(
        float(rows[int(best), "test"]["nc1"])
    )
    command = ["--load_path", str(run), "--checkpoints", "last", "--gpu_id", "-1"]
    assert eval_nc.main(command) == 2
    assert "give best for its best_model.pth" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_streamed_images_are_decoded_for_the_measures_alone(tmp_path, monkeypatch, workers):
    """The rows are those of the same images in memory, and no process stays."""
    for split in ("train", "test"):
        for number in range(8):
            (tmp_path / "data" / split / str(number % 2)).mkdir(parents=True, exist_ok=True)
            path = tmp_path / "data" / split / str(number % 2) / f"{split}{number}.png"
            picture(number, 8, 8).save(path)
    flags = ["--dataset", "folder", "--data_dir", tmp_path / "data", "--num_workers", workers]
    flags += ["--model", "MLP", "--width", 16, "--depth", 1, "--nc_every", 1, "--gpu_id", -1]
    flags += ["--save_dir", tmp_path, "--run_name", "r", "--batch_size", 4]
    settings = read_settings([str(word) for word in flags])
    model, found = build_model("MLP", 2, (3, 8, 8), width=16, depth=1), []
    monkeypatch.setattr(rebuild, "build_data", None)
    with choose_run(settings) as run:
        for room in (0, None):
            data = load_dataset("folder", tmp_path / "data", in_memory_bytes=room)
            run.write_config(settings, data.facts(), "CPU")
            batches = build_batches(settings, data, build_precision(settings, "fp32", CPU))
            recorder = CollapseRecorder(run, data, batches, Console())
            found.append(recorder.measure(model, 1, StopSignal()).rows)
            assert isinstance(data.train, FileSplit) == (room == 0)
    assert found[0] == found[1] and found[0].keys() == {"train", "test"}
    assert not multiprocessing.active_children()


@pytest.fixture
def recorder(tmp_path):
    """A recorder of a new run whose test set lacks a class, and the network."""
    flags = ["--model", "MLP", "--width", 16, "--depth", 1, "--sample_size", 5, "--gpu_id", -1]
    flags += ["--save_dir", tmp_path, "--run_name", "r", "--nc_every", 1]
    settings = read_settings([str(word) for word in flags])
    data = load_dataset("digits", ".", sample_size=5)
    present = (data.test.labels != 3).nonzero().flatten()
    data = dataclasses.replace(data, test=data.test.select(present))
    run = choose_run(settings)
    with run:
        run.write_config(settings, data.facts(), "CPU")
        batches = build_batches(settings, data, build_precision(settings, "fp32", CPU))
        yield (
            CollapseRecorder(run, data, batches, Console()),
            build_model("MLP", 10, (3, 8, 8), width=16, depth=1),
        )


def test_what_cannot_be_measured_is_a_line(recorder, capsys):
    recorder, model = recorder
    measured = recorder.measure(model, 1, StopSignal())
    assert list(measured.rows) == ["train"] and list(measured.columns) == list(NC_COLUMNS)
    assert "epoch 1: no measures of the test set: labels: no samples of class 3" in (
        capsys.readouterr().out
    )
    with torch.no_grad():
        next(model.parameters()).fill_(float("inf"))
    measured = recorder.measure(model, 2, StopSignal())
    assert measured.columns == {} and not measured.rows
    assert "no measures of the training set: logits are not finite" in capsys.readouterr().out


def test_a_stop_leaves_the_generators_and_the_mode_of_training(recorder):
    recorder, model = recorder
    model.train()
    before, stop = torch.get_rng_state(), StopSignal()
    stop.number = 15
    with pytest.raises(Stopped):
        recorder.measure(model, 1, stop)
    assert torch.equal(torch.get_rng_state(), before) and model.training


def test_too_little_memory_is_a_line_and_another_error_is_not(recorder, capsys, monkeypatch):
    recorder, model = recorder

    def fail(*_):
        raise RuntimeError(message)

    monkeypatch.setattr("training.collapse.measure_evaluation", fail)
    message = "DefaultCPUAllocator: can't allocate memory"
    assert not recorder.measure(model, 1, StopSignal()).rows
    assert "no measures of the training set: out of memory" in capsys.readouterr().out
    with pytest.raises(RuntimeError):  # of several processes the others do not know of it
        _explain(RuntimeError(message), "training set", SimpleNamespace(size=2))
    message = "a defect"
    with pytest.raises(RuntimeError, match="a defect"):
        recorder.measure(model, 1, StopSignal())
