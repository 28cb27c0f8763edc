"""minority_runs.py writes digits of two class sizes; it and arrival.py measure runs on them."""

import numpy as np
import pytest

import train
from benchmarks import arrival, minority_runs
from reproduction.minority import describe_rows
from theory.minimum import predict
from theory.nonnegative import predict_nonnegative
from theory.problem import Problem
from utils.files import read_csv


def test_runs_stand_beside_the_minimum(tmp_path, capsys):
    data, out = tmp_path / "digits", tmp_path / "runs.csv"
    assert minority_runs.main(["write", str(data), "--large", "20", "--small", "10"]) == 0
    assert minority_runs.main(["write", str(data), "--large", "20", "--small", "10"]) == 0
    assert "is there already" in capsys.readouterr().out
    counts = [len(list((data / "train" / str(digit)).iterdir())) for digit in range(10)]
    assert counts == [20] * 5 + [10] * 5
    flags = "--model MLP --width 32 --depth 1 --dataset folder --epochs 2 --sep_decay --gpu_id -1"
    flags += f" --batch_size 150 --data_dir {data} --save_dir {tmp_path} --run_name two"
    assert train.main(flags.split()) == 0
    assert minority_runs.main(["measure", str(tmp_path / "two"), "--out", str(out)]) == 0
    (row,) = read_csv(out)
    assert float(row["ratio"]) == 2
    # 150 images in a batch: the share of a small class is 150 · 25e-8 at the merging.
    assert float(row["equal_from"]) == pytest.approx((1 / (150 * 25e-8) - 5) / 5)
    assert float(row["positive_score_free"]) > float(row["positive_score"]) > 0
    assert -1 < float(row["cosine"]) < 1
    assert arrival.main([str(tmp_path / "two"), "--out", str(out)]) == 0
    assert "measured | free | relu" in capsys.readouterr().out
    classes = [
        {name: float(value or "nan") for name, value in each.items() if name != "run"}
        for each in read_csv(out)
    ]
    small = [each for each in classes if each["images"] == 10]
    assert [each["class"] for each in small] == [5, 6, 7, 8, 9]
    mean = np.mean([each["positive"] for each in small])
    assert mean == pytest.approx(float(row["positive_score"]))
    problem = Problem("BCE", [20] * 5 + [10] * 5, 5e-4, 5e-4)
    free, relu = predict(problem), predict_nonnegative(problem)
    for each in classes:
        k = int(each["class"])
        assert each["positive_free"] == pytest.approx(free.positive_scores[k])
        assert each["mean_norm_relu"] == pytest.approx(relu.feature_norms[k])


def test_describe_takes_means_over_the_small_classes():
    rows = np.array([[4, 0, 0], [0, 4, 0], [0, 0, 1], [0, 1, 1]], dtype=float)
    found = describe_rows(rows @ rows.T, np.array([9, 9, 2, 4]), np.array([1, 3, 6, 8]))
    assert found["cosine"] == pytest.approx(1 / np.sqrt(2))
    assert found["norm"] == pytest.approx((1 + np.sqrt(2)) / 2 / 4)
    assert (found["positive_score"], found["bias"]) == (3, 5)


def test_mistakes_end_in_a_line(tmp_path, capsys):
    assert minority_runs.main(["write", str(tmp_path / "d"), "--large", "500"]) == 2
    assert "there are only" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
    for script in (minority_runs.main, lambda flags: arrival.main(flags[1:])):
        assert script(["measure", str(tmp_path)]) == 2
        assert str(tmp_path) in capsys.readouterr().err
