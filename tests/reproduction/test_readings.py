"""What a report reads from the tables of a run, and grids in which a loss has fewer settings."""

import math
from dataclasses import replace

import pytest

from metrics import MEASURES
from reproduction import BELOW, EXPERIMENTS, OVER_EPOCHS, WITHIN
from reproduction.grid import build_grid
from reproduction.pictures import Call
from reproduction.readings import find_reading, read_values
from reproduction.results import Result, collect_results, compare_losses, format_results
from reproduction.starts import draw_starts
from reproduction.work import Work
from utils.files import write_csv

NC2, BIAS = f"nc2{BELOW}0.2", f"bias_mean{WITHIN}5 %"


def write_run(directory, nc2, biases, predicted=1.0):
    """A run with one epoch for each value."""
    directory.mkdir(parents=True)
    epochs = range(1, len(nc2) + 1)
    trained = [
        {"epoch": e, "test_top1": 90 + e, "test_uniform": 80, "test_loss": 1 / e, "seconds": 1}
        for e in epochs
    ]
    write_csv(directory / "metrics.csv", list(trained[0]), trained)
    rows = [
        {
            "epoch": epoch,
            "split": split,
            "nc2": 9.0 if split == "test" else nc2[epoch - 1],
            "nc2_h": 0.1,
            "bias_mean": biases[epoch - 1],
            "predicted_bias": predicted,
        }
        for epoch in epochs
        for split in ("train", "test")
    ]
    write_csv(directory / "nc_metrics.csv", list(rows[0]), rows)


def test_an_arrival_is_an_epoch(tmp_path):
    def read(nc2, biases, predicted=1.0):
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        write_run(directory, nc2, biases, predicted)
        return read_values(directory, [NC2, BIAS, "test_loss"])[0]

    found = read([0.5, 0.2, 0.1, 0.3], [0.1, 1.0, 0.96, 1.04])
    assert found == {NC2: 3.0, BIAS: 2.0, "test_loss": 0.25}
    # It passes through its prediction at epoch 2.
    assert read([0.1] * 4, [0.5, 1.0, 1.2, 1.04]) == {NC2: 1.0, BIAS: 4.0, "test_loss": 0.25}
    never = read([0.2, 0.3], [1.0, 0.9])
    assert never[NC2] == never[BIAS] == math.inf
    assert read([None, 0.1], [-1.0, -0.99], predicted=-1.0)[BIAS] == 1
    for absent in (None, 0.0):  # no prediction, or none from which a distance is relative
        assert BIAS not in read([0.1], [1.0], predicted=absent)


def test_arrivals_in_a_table():
    values = {"some": [3.0, math.inf, 4.0], "none": [math.inf] * 3, "all": [3.0, 4.0, 4.0]}
    results = [Result({"start": k}, {NC2: v}, {}, epochs=15) for k, v in values.items()]
    header, cells = format_results(results, [NC2])
    assert header == ["start", "epochs until NC2 < 0.2"]
    assert [row[1] for row in cells] == ["3.5 (2 of 3 seeds)", "not within 15", "3.7 ± 0.6"]


def test_losses_are_compared_where_they_have_the_same_scale():
    names = [NC2, BIAS, "nc2", f"nc2{OVER_EPOCHS}", "bias_mean", "test_loss"]
    results = [
        Result({"loss": loss}, {name: [value] for name in names}, {}, epochs=9)
        for loss, value in (("CE", 1.0), ("BCE", 3.0))
    ]
    header, cells = compare_losses(results, names, "BCE", "CE")
    assert header == [find_reading(name).title for name in names[:4]]
    assert cells == [["+2", "+2", "+2.0000", "+2.0000"]]
    results[0].values[NC2] = [math.inf]
    assert find_reading(NC2).title not in compare_losses(results, names, "BCE", "CE")[0]


@pytest.fixture
def starts(monkeypatch):
    """The experiment with starts that are numbers."""
    entry = EXPERIMENTS["bias-start"]
    axes = {**entry.axes, "bias_init_mean": (None, 2, 6)}
    monkeypatch.setitem(EXPERIMENTS, "bias-start", replace(entry, axes=axes))


def test_a_loss_can_have_fewer_settings(starts):
    runs = build_grid("bias-start", "smoke", seeds=2)
    found = [(run.settings.loss, run.settings.bias_init_mean, run.settings.seed) for run in runs]
    one = [("CE", 0, 0), ("CE", 0, 1), *(("BCE", m, s) for m in (0, 2, 6) for s in (0, 1))]
    assert sorted(found) == sorted(one * 2)  # two optimizers


def test_pictures_of_the_starts(starts, tmp_path):
    grid = build_grid("bias-start", "smoke", seeds=2)
    runs = [run for run in grid if run.settings.optimizer == "SGD"]
    work = Work("bias-start", "smoke", runs, tmp_path, tmp_path, failed={runs[-1].name: "stopped"})
    for run in work.finished:
        exact = None if run.settings.loss == "CE" else 5.8
        write_run(work.locate(run), [0.9, 0.1], [0.0, 5.0], exact)
    drawing = draw_starts(work)
    picture, scores = drawing.pictures
    assert picture.name == "starts_MLP_digits_SGD.png"
    assert scores.name == "scores_MLP_digits.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    (call,) = drawing.calls
    assert isinstance(call, Call) and call.script == "eval_scores"
    assert sum(word.endswith("_s0") for word in call.flags) == len(runs) / 2
    first = collect_results(work)[0]
    assert first.values["uniform_accuracy"] == [80.0, 80.0]
    assert MEASURES["nc2"].heading in find_reading(NC2).title
