"""compare.py: means, deviations and differences against numpy, and what is left out or refused."""

import csv
import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import compare
from figures import style
from figures.training_curves import PANELS
from metrics import MEASURES
from rundir.comparison_text import format_blocks, shorten_apart
from rundir.names import METRICS_COLUMNS
from tests.helpers import ROOT, assert_mistake, read_refusal, run, write_run
from utils.files import read_csv

FILES = {"metrics.csv": METRICS_COLUMNS, "nc_metrics.csv": tuple(MEASURES)}
GRID = [
    {"loss": loss, "lr": lr, "seed": seed}
    for loss, lr, seed in itertools.product(("BCE", "CE"), (0.1, 0.02), (0, 1, 2))
]


def read_value(directory, column, epoch, split="test"):
    """One number, by a reading of its own."""
    for name, columns in FILES.items():
        with open(directory / name) as file:
            rows = list(csv.DictReader(file)) if column in columns else []
        for row in rows:
            if row["epoch"] == str(epoch) and row.get("split", split) == split:
                return float(row[column])
    raise KeyError(column)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Runs by their settings."""
    directory = tmp_path_factory.mktemp("grid")
    names = [f"MLP_{s['loss']}_lr{s['lr']}_seed{s['seed']}_20260101-000000" for s in GRID]
    return [
        (write_run(directory / name, random=i, **settings), settings)
        for i, (name, settings) in enumerate(zip(names, GRID, strict=True))
    ]


def call(capsys, *words):
    assert compare.main(list(map(str, words))) == 0
    return capsys.readouterr()


def edit_config(directory, **settings):
    content = json.loads((directory / "config.json").read_text())
    content["settings"] |= settings
    (directory / "config.json").write_text(json.dumps(content))


# --- Numbers ---


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_column_has_the_mean_and_the_sample_deviation(grid, tmp_path, capsys, split):
    call(capsys, grid[0][0].parent, "--split", split, "--out", tmp_path / "t.csv")
    rows = read_csv(tmp_path / "t.csv")
    columns = [name for part in FILES.values() for name in part]
    pairs = [f"{name}_{kind}" for name in columns for kind in ("mean", "std")]
    assert list(rows[0]) == ["loss", "lr", "n", *pairs]
    # The losses of equal settings side by side, in the order of their registry.
    order = [("CE", "0.02"), ("BCE", "0.02"), ("CE", "0.1"), ("BCE", "0.1")]
    assert [(row["loss"], row["lr"]) for row in rows] == order
    for row, name in itertools.product(rows, columns):
        values = [
            read_value(directory, name, 3, split)
            for directory, settings in grid
            if (settings["loss"], str(settings["lr"])) == (row["loss"], row["lr"])
        ]
        assert row["n"] == "3"
        assert float(row[f"{name}_mean"]) == pytest.approx(np.mean(values), rel=1e-14)
        assert float(row[f"{name}_std"]) == pytest.approx(np.std(values, ddof=1), rel=1e-12)


def test_differences_are_those_of_equal_seeds(grid, tmp_path, capsys):
    said = call(capsys, *(directory for directory, _ in grid), "--out", tmp_path / "t.csv")
    rows = read_csv(tmp_path / "t_differences.csv")
    assert [(row["loss"], row["lr"], row["pairs"]) for row in rows] == [
        ("BCE - CE", "0.02", "3"),
        ("BCE - CE", "0.1", "3"),
    ]
    by_settings = {tuple(map(str, s.values())): directory for directory, s in grid}
    for row, name in itertools.product(rows, ("test_top1", "nc1")):
        changes = [
            read_value(by_settings["BCE", row["lr"], seed], name, 3)
            - read_value(by_settings["CE", row["lr"], seed], name, 3)
            for seed in "012"
        ]
        error = np.std(changes, ddof=1) / math.sqrt(3)
        assert float(row[f"{name}_mean"]) == pytest.approx(np.mean(changes), rel=1e-10)
        assert float(row[f"{name}_se"]) == pytest.approx(error, rel=1e-10)
    losses = [line.split("  ")[0] for line in said.out.splitlines() if "  0." in line]
    assert losses[:6] == ["CE", "BCE", "BCE - CE"] * 2
    assert "3 pairs" in said.out


def test_differences_of_other_seeds_are_those_of_the_means(tmp_path, capsys):
    for i, (loss, seed) in enumerate([("CE", 0), ("CE", 1), ("BCE", 1), ("BCE", 2), ("BCE", 3)]):
        write_run(tmp_path / "r" / f"{i}", random=i, loss=loss, seed=seed)
    call(capsys, tmp_path / "r", "--out", tmp_path / "t.csv")
    (row,) = read_csv(tmp_path / "t_differences.csv")
    assert (row["pairs"], row["n_first"], row["n_second"]) == ("", "2", "3")
    values = [read_value(tmp_path / "r" / f"{i}", "top1", 3) for i in range(5)]
    first, second = values[:2], values[2:]
    error = math.sqrt(np.var(first, ddof=1) / 2 + np.var(second, ddof=1) / 3)
    assert float(row["top1_mean"]) == pytest.approx(np.mean(second) - np.mean(first))
    assert float(row["top1_se"]) == pytest.approx(error)


def test_three_losses_have_three_differences(tmp_path, capsys):
    for loss in ("MSE", "CE", "BCE"):
        write_run(tmp_path / "r" / loss, loss=loss)
    call(capsys, tmp_path / "r", "--out", tmp_path / "t.csv")
    rows = read_csv(tmp_path / "t.csv")
    assert [row["loss"] for row in rows] == ["CE", "BCE", "MSE"]
    assert {row["top1_std"] for row in rows} == {""}  # of one run
    rows = read_csv(tmp_path / "t_differences.csv")
    assert [row["loss"] for row in rows] == ["BCE - CE", "MSE - CE", "MSE - BCE"]
    assert {row["top1_se"] for row in rows} == {""}


def test_by_pools_what_it_does_not_name(grid, tmp_path, capsys):
    paths = [directory for directory, _ in grid]
    call(capsys, *paths, "--by", "LR", "--checkpoint", 2, "--out", tmp_path / "t.csv")
    rows = read_csv(tmp_path / "t.csv")
    assert [(row["lr"], row["n"], row["epoch_mean"]) for row in rows] == [
        ("0.02", "6", "2.0"),
        ("0.1", "6", "2.0"),
    ]
    values = [read_value(directory, "nc2", 2) for directory, s in grid if s["lr"] == 0.02]
    assert float(rows[0]["nc2_std"]) == pytest.approx(np.std(values, ddof=1))
    assert not (tmp_path / "t_differences.csv").exists()
    call(capsys, *paths, "--by", "loss", "seed", "--out", tmp_path / "t.csv")
    assert [row["n"] for row in read_csv(tmp_path / "t.csv")] == ["2"] * 6
    assert [row["pairs"] for row in read_csv(tmp_path / "t_differences.csv")] == ["2"] * 3
    call(capsys, *paths, "--by", "run", "--out", tmp_path / "t.csv")
    assert {row["run"] for row in read_csv(tmp_path / "t.csv")} == set(map(str, paths))


def test_best_is_the_first_epoch_of_the_best_top1(tmp_path, capsys):
    directory = write_run(tmp_path / "r", 9)
    rows = read_csv(directory / "metrics.csv")
    best = max(range(9), key=lambda i: float(rows[i]["test_top1"]))
    call(capsys, directory, "--checkpoint", "best", "--out", tmp_path / "t.csv")
    assert read_csv(tmp_path / "t.csv")[0]["epoch_mean"] == f"{best + 1}.0"


# --- The table ---


def test_rows_are_sorted_by_a_column(grid, tmp_path, capsys):
    def sort(column):
        call(capsys, grid[0][0].parent, "--sort", column, "--out", tmp_path / "t.csv")
        return read_csv(tmp_path / "t.csv")

    falling = [float(row["top1_mean"]) for row in sort("top1")]
    assert falling == sorted(falling, reverse=True) != sorted(falling)
    rising = [float(row["nc1_mean"]) for row in sort("NC1")]
    assert rising == sorted(rising)
    assert [row["lr"] for row in sort("lr")] == ["0.02", "0.02", "0.1", "0.1"]
    assert [row["loss"] for row in sort("loss")] == ["CE", "CE", "BCE", "BCE"]


def test_copies_are_shown_once(grid, tmp_path, capsys):
    def head(*words):
        out = tmp_path / "t.md"
        call(capsys, grid[0][0].parent, *words, "--out", out)
        return out.read_text().splitlines()[2].replace("\\", "")

    shown = head()
    assert "| top-1 % |" in shown and "| NC1 |" in shown and "| train_loss |" in shown
    assert "test_top1" not in shown and "test_uniform" not in shown
    assert "test_top1 %" in head("--split", "train")  # the measures are of another split


def test_runs_without_measures(tmp_path, capsys):
    for seed in (0, 1):
        write_run(tmp_path / "r" / f"{seed}", seed=seed, measures=False)
    said = call(capsys, tmp_path / "r", "--out", tmp_path / "t.csv")
    assert "test_top1 %" in said.out and "NC1" not in said.out
    assert "eval_nc.py computes" in said.err
    assert "top1_mean" not in read_csv(tmp_path / "t.csv")[0]
    # With measures of one run, no mean is of fewer runs than n.
    write_run(tmp_path / "r" / "2", seed=2)
    said = call(capsys, tmp_path / "r", "--out", tmp_path / "t.csv")
    (row,) = read_csv(tmp_path / "t.csv")
    assert row["n"] == "3" and row["nc1_mean"] == "" and row["test_top1_mean"]
    assert f"{tmp_path / 'r' / '0'}" in said.err and "test_top1 %" in said.out


def test_names_are_no_markup(tmp_path, capsys):
    directory = write_run(tmp_path / "=a|b*", loss="CE")
    edit_config(directory, run_name="=a|b*")
    call(capsys, directory, "--by", "run_name", "--out", tmp_path / "t.csv")
    assert read_csv(tmp_path / "t.csv")[0]["run_name"] == "'=a|b*"
    call(capsys, directory, "--by", "run_name", "--out", tmp_path / "t.md")
    assert r"| =a\|b\* | 1 |" in (tmp_path / "t.md").read_text()


def test_long_values_are_short_and_stay_apart():
    texts = [f"model_weights/ResNet18_digits_BCE_SGD_seed{i}_20260101-000000" for i in range(12)]
    short = shorten_apart(texts)
    assert len(set(short)) == 12 and max(map(len, short)) <= 28
    assert all(f"{i}" in each for i, each in enumerate(short))
    assert shorten_apart(["a", "b", "a"]) == ["a", "b", "a"]
    assert len(shorten_apart(texts[:1] * 2)[0]) == 28


def test_wide_tables_are_cut_into_blocks():
    header, cells = ["k", "a", "b"], [["x", "11", "22"]]
    assert format_blocks(header, cells, 1, 5) == "k   a\n-  --\nx  11\n\nk   b\n-  --\nx  22"
    assert format_blocks(header, cells, 1, 9).startswith("k   a   b\n")


def read_points(figure, column):
    """Means and deviations of the first curve of a panel of `draw_training_curves`."""
    axis = figure.axes[list(PANELS).index(column)]
    (low, high), line = axis.collections[0].get_paths()[0].get_extents().intervaly, axis.lines[0]
    return line.get_ydata(), low, high


def test_curves_have_a_band_over_seeds(grid, tmp_path, capsys, monkeypatch):
    figures = []
    save = style.save_figure
    monkeypatch.setattr(style, "save_figure", lambda f, p: (figures.append(f), save(f, p)))
    paths = [directory for directory, _ in grid]
    call(capsys, *paths, "--plot", "--out", tmp_path / "t.md")
    for name in ("t.png", "t_nc.png"):
        Image.open(tmp_path / name).verify()
    ours = [directory for directory, s in grid if (s["loss"], s["lr"]) == ("CE", 0.02)]
    values = [[read_value(d, "test_loss", epoch) for d in ours] for epoch in (1, 2, 3)]
    means, deviations = np.mean(values, axis=1), np.std(values, axis=1, ddof=1)
    drawn, low, high = read_points(figures[0], "test_loss")
    assert drawn == pytest.approx(means)
    assert low == pytest.approx(min(means - deviations))
    assert high == pytest.approx(max(means + deviations))
    texts = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert texts[:2] == ["CE, lr 0.02, 3 runs", "BCE, lr 0.02, 3 runs"]


def test_curves_of_runs_without_measures(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = call(capsys, write_run(tmp_path / "r", measures=False), "--plot")
    assert "wrote compare.png" in said.out
    Image.open("compare.png").verify()
    assert not (tmp_path / "compare_nc.png").exists()


# --- What is left out, and what is refused ---


def test_runs_are_left_out_in_a_line_each_reason(tmp_path, capsys):
    runs = tmp_path / "runs"
    for i, epochs in enumerate((3, 3, 5)):
        write_run(runs / f"r{i}", epochs, seed=i)
    write_run(runs / "group" / "inner")
    write_run(runs / "damaged")
    (runs / "damaged" / "config.json").write_text("{")
    (write_run(runs / "unborn") / "metrics.csv").unlink()
    with open(runs / "r0" / "metrics.csv", "a") as file:
        file.write("4,0.1,half")
    said = call(capsys, runs, runs / "r1", "--out", tmp_path / "t.csv", "--by", "model")
    assert read_csv(tmp_path / "t.csv")[0]["n"] == "3"  # r1 counts once
    words = ["holds 1 runs", "damaged", "unborn", "line 5 is skipped", "differ: 3 to 5"]
    for word in words:
        assert sum(word in line for line in said.err.splitlines()) == 1, (word, said.err)
    said = call(capsys, runs, "--checkpoint", 4)
    assert "1 run, epoch 4" in said.out and "no epoch 4 in metrics.csv: " in said.err
    assert "no epoch 9" in read_refusal(capsys, compare.main, runs, "--checkpoint", 9)


def test_unfinished_runs_and_twins_are_named(tmp_path, capsys):
    for name in ("a", "b"):
        edit_config(write_run(tmp_path / name), epochs=7)
    said = call(capsys, tmp_path / "a", tmp_path / "b")
    assert f"{tmp_path / 'a'} (3 of 7)" in said.err
    assert "equal in all settings and the seed" in said.err


def test_other_data_is_another_row(tmp_path, capsys):
    for seed in range(4):
        directory = write_run(tmp_path / "r" / f"{seed}", seed=seed)
        content = json.loads((directory / "config.json").read_text())
        content["data"] = {"classes": [["a", "b"], ["c", "d"]][seed // 2]}
        (directory / "config.json").write_text(json.dumps(content))
    call(capsys, tmp_path / "r", "--out", tmp_path / "t.csv")
    rows = read_csv(tmp_path / "t.csv")
    assert [(row["dataset"], row["n"]) for row in rows] == [("digits", "2"), ("digits (2)", "2")]
    # Folders have the names of their directories, also one that is called as a known data set.
    for i, name in enumerate(("pets", "digits")):
        edit_config(tmp_path / "r" / f"{2 * i}", dataset="folder", data_dir=f"/data/{name}")
    call(capsys, tmp_path / "r", "--out", tmp_path / "t.csv")
    found = [(row["dataset"], row["n"]) for row in read_csv(tmp_path / "t.csv")]
    assert found == [("digits", "1"), ("digits (2)", "2"), ("pets", "1")]


def test_mistakes(grid, tmp_path, capsys):
    directory = grid[0][0]
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "epoch_001.pth").touch()

    def refused(*words):
        return read_refusal(capsys, compare.main, *words)

    assert "config.json" in refused(weights)
    assert "does not exist" in refused(tmp_path / "none")
    assert "is not a directory" in refused(weights / "epoch_001.pth")
    assert "did you mean weight_decay?" in refused(directory, "--by", "weight_decai")
    assert "name the runs before --by" in refused("--by", "lr", directory, "--", directory)
    assert "did you mean nc1?" in refused(directory, "--sort", "nc_1")
    assert "all rows have the same model" in refused(directory, "--sort", "model")
    assert "must end in .csv or .md" in refused(directory, "--out", tmp_path / "t.txt")
    assert "is not a directory" in refused(directory, "--out", tmp_path / "none" / "t.csv")
    assert "the number of an epoch" in refused(directory, "--checkpoint", "first")
    assert "did you mean test?" in refused(directory, "--split", "tset")
    assert_mistake(run("compare.py", weights), "config.json")


# --- Speed ---

PROBE = """
import sys, time
sys.argv = sys.argv[1:]
import compare
status = compare.main(sys.argv)
assert not {"torch", "numpy"} & sys.modules.keys()
print(time.process_time())
"""


def test_fifty_runs_need_no_torch_and_little_time(tmp_path):
    first = write_run(tmp_path / "r0", 100)
    for i in range(1, 50):
        copy = tmp_path / f"r{i}"
        copy.mkdir()
        for file in first.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        edit_config(copy, seed=i)
    command = [sys.executable, "-c", PROBE, tmp_path]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "50 runs" in ended.stdout
    assert float(ended.stdout.splitlines()[-1]) < 2  # seconds of processor time; it takes 0.5
