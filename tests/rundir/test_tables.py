"""Tables are read as they are, damaged rows are skipped with a few words each."""

import math

import pytest

from rundir.tables import choose_epoch, read_history, read_measures


def write(directory, name, text):
    (directory / name).write_bytes(text.encode())
    return directory


def test_rows_that_are_damaged_are_skipped(tmp_path):
    text = "epoch,lr,note\n1,0.1,2\n2,0.1\n3,zero,4\nx,1,1\n4,,5\n4,7,7\n-1,1,1\n5,nan,1e-3\n6,0"
    found = read_history(write(tmp_path, "metrics.csv", text))
    assert found.columns == ["epoch", "lr", "note"]
    assert list(found.rows) == [1, 4, 5]
    assert found.rows[1] == {"epoch": 1, "lr": 0.1, "note": 2}
    assert found.rows[4] == {"epoch": 4, "lr": None, "note": 5}
    assert math.isnan(found.rows[5]["lr"]) and found.rows[5]["note"] == 0.001
    assert [fault.split(" is")[0] for fault in found.faults] == [
        f"line {number}" for number in (3, 4, 5, 7, 8, 10)
    ]
    assert "it has 2 cells for 3 columns" in found.faults[0]
    assert "its lr is 'zero'" in found.faults[1]


def test_rows_of_both_splits(tmp_path):
    text = "epoch,split,nc1\n1,train,3\n1,test,4\n2,both,5\n"
    found = read_measures(write(tmp_path, "nc_metrics.csv", text))
    assert {key: row["nc1"] for key, row in found.rows.items()} == {(1, "train"): 3, (1, "test"): 4}
    assert found.columns == ["epoch", "nc1"] and "'both'" in found.faults[0]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\0\0\xff"])
def test_what_is_no_table_is_a_fault(tmp_path, text):
    found = read_history(write(tmp_path, "metrics.csv", text))
    assert not found.rows and len(found.faults) == 1 and "epoch" in found.faults[0]


def test_a_missing_table_is_empty(tmp_path):
    assert not read_history(tmp_path).rows and not read_history(tmp_path).faults


def test_the_first_of_equal_epochs_is_the_best():
    scores = {1: 5.0, 2: 9.0, 3: math.nan, 4: 9.0, 10: None, 9: 1.0}
    rows = {epoch: {"test_top1": score} for epoch, score in scores.items()}
    assert choose_epoch(rows, "best") == 2
    assert choose_epoch(rows, "last") == 10
    assert choose_epoch(rows, "4") == 4
    assert choose_epoch(rows, "5") is choose_epoch({}, "last") is choose_epoch({}, "best") is None
    assert choose_epoch({1: {}}, "best") is None
