"""The table that eval_nc.py prints: which rows it has."""

import pytest

from metrics import MEASURES
from metrics.report import Evaluated, format_rows


def make_run(name, top1, splits=("train", "test"), full_name=""):
    """A run whose top-1 by split is a list over its epochs."""
    rows = {
        (epoch, split): {**dict.fromkeys(MEASURES, 0.0), "top1": value}
        for split in splits
        for epoch, value in enumerate(top1[split], start=1)
    }
    epochs = sorted({epoch for epoch, _ in rows})
    return Evaluated(name, epochs, rows, full_name)


def read_rows(text):
    """(run, epoch, split) of each row."""
    table = text.split("\n\n")[0].splitlines()[2:]
    return [tuple(cell.strip() for cell in row.split("  ") if cell.strip())[:3] for row in table]


@pytest.mark.parametrize(
    ("top1", "splits", "expected"),
    [
        # The test set decides for both splits.
        (
            {"train": [9, 8, 7, 6], "test": [1, 3, 3, 2]},
            ("train", "test"),
            [("2 best", "train"), ("2 best", "test"), ("4 last", "train"), ("4 last", "test")],
        ),
        (
            {"train": [9, 8, 7], "test": [1, 3, 2]},
            ("train",),
            [("2 best", "train"), ("3 last", "train")],
        ),
        ({"train": [9, 8, 7]}, ("train",), [("1 best", "train"), ("3 last", "train")]),
        ({"test": [1, 2, 3]}, ("test",), [("3 best, last", "test")]),
        ({"test": [1, None, 0]}, ("test",), [("1 best", "test"), ("3 last", "test")]),
        ({"test": [None, None]}, ("test",), [("2 last", "test")]),
        ({"train": [1], "test": [1]}, ("train", "test"), [("1", "train"), ("1", "test")]),
    ],
)
def test_the_last_and_the_best_checkpoint_are_shown(top1, splits, expected):
    text = format_rows([make_run("run", top1, tuple(top1))], splits)
    assert [row[1:] for row in read_rows(text)] == expected
    hidden = sum(len(top1[split]) for split in splits) - len(expected)
    assert (f"{hidden} more row" in text) == (hidden > 0)
    assert ("--all_rows" in text) == (hidden > 0)


def test_all_rows_are_those_of_all_runs():
    runs = [make_run(name, {"train": [1, 2, 3], "test": [3, 2, 1]}) for name in "ab"]
    text = format_rows(runs, ("train", "test"), all_rows=True)
    assert read_rows(text) == [
        (name, epoch, split)
        for name in "ab"
        for epoch in ("1 best", "2", "3 last")
        for split in ("train", "test")
    ]
    assert "--all_rows" not in text


def test_a_split_ends_at_its_own_last_row():
    run = make_run("a", {"train": [1, 2], "test": [3, 2, 1]})
    assert [row[1:] for row in read_rows(format_rows([run], ("train", "test")))] == [
        ("1 best", "train"),
        ("1 best", "test"),
        ("2 last", "train"),
        ("3 last", "test"),
    ]


def test_full_names_stand_below():
    runs = [
        make_run("CE, SGD", {"test": [1]}, ("test",), "a_long_name"),
        make_run("b", {"test": [1]}, ("test",)),
    ]
    assert format_rows(runs, ("test",)).split("\n\n")[1:] == ["CE, SGD: a_long_name"]
