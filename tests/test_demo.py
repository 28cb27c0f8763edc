"""The demo's building blocks, and the demo itself for one epoch."""

import importlib

import pytest

import demo
from metrics import MEASURES
from tests.helpers import assert_mistake, run
from utils.console import format_table
from utils.errors import UserError


def write_run(directory, rows, evaluated):
    directory.mkdir()
    header = "epoch,train_top1,seconds\n"
    (directory / "metrics.csv").write_text(header + "".join(f"{row}\n" for row in rows))
    keys = [name for name in demo.LISTED if MEASURES[name].split == "train"]
    keys += [name for name in demo.LISTED if MEASURES[name].split == "test"]
    lines = [",".join(["epoch", "split", *keys])]
    for epoch, split, first in evaluated:
        lines.append(",".join([epoch, split, *(str(first + i) for i in range(len(keys)))]))
    (directory / "nc_metrics.csv").write_text("\n".join(lines) + "\n")


def test_the_comparison_shows_the_last_epoch_and_all_seconds(tmp_path):
    rows = [("1", "train", 50), ("2", "test", 20), ("2", "train", 70)]
    write_run(tmp_path / "a", ["1,50,1.5", "2,99.123,2.25"], rows)
    found = dict(
        line.rsplit(maxsplit=1) for line in demo.compare({"CE": tmp_path / "a"}).splitlines()
    )
    assert found["top-1 accuracy % (training set)"] == "99.12"
    assert found["top-1 accuracy % (test set)"] == "30.00"  # the eleventh of the test row
    assert found["NC1 (training set)"] == "70"
    assert found["seconds"] == "3.8"
    assert found["run directory"] == str(tmp_path / "a")


def test_a_run_without_an_epoch_is_named(tmp_path):
    write_run(tmp_path / "a", [], [])
    with pytest.raises(UserError, match="holds no evaluated epoch"):
        demo.compare({"CE": tmp_path / "a"})


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [(",29\n", ",\n", "has no uniform_accuracy of epoch 1, test"), ("test", "tset", "1, test")],
)
def test_a_cell_or_a_row_that_is_not_there_is_named(tmp_path, old, new, named):
    write_run(tmp_path / "a", ["1,50,1.5"], [("1", "train", 50), ("1", "test", 18)])
    path = tmp_path / "a" / "nc_metrics.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=named):
        demo.compare({"CE": tmp_path / "a"})


def test_columns_are_aligned():
    lines = format_table(["name", "x"], [["a", "1.00"], ["long name", "10.00"]]).splitlines()
    assert lines == ["name           x", "---------  -----", "a           1.00", "long name  10.00"]


@pytest.mark.slow
def test_one_epoch_of_the_demo(tmp_path, monkeypatch, capsys):
    def run_in_process(command):
        script, *flags = map(str, command)
        return importlib.import_module(script.removesuffix(".py")).main(flags)

    monkeypatch.setattr(demo, "run_script", run_in_process)  # five times the imports saved
    flags = ["--model", "MLP", "--epochs", 1, "--save_dir", tmp_path, "--gpu_id", -1]
    assert demo.main([*map(str, flags)]) == 0
    said = capsys.readouterr().out
    table = said[said.index("after the last epoch") :]
    assert str(tmp_path / "demo_CE") in table
    assert "uniform accuracy" in table
    for name in ("demo.png", "demo_scores.png", "demo_CE/nc_curves_overlay.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert str(tmp_path / name) in table
    assert (tmp_path / "demo_tsne" / "tsne.gif").read_bytes().startswith(b"GIF8")


@pytest.mark.slow
def test_mistakes(tmp_path):
    assert_mistake(run("demo.py", "--epochs", 0), "--epochs")
    (tmp_path / "demo_CE").mkdir()
    (tmp_path / "demo_CE" / "notes.txt").touch()
    assert_mistake(run("demo.py", "--epochs", 1, "--save_dir", tmp_path), "not a run directory")
