"""The lines of epochs: within 100 columns for the longest values, aligned, and named."""

import pytest

from training.table import HEADING_EVERY, EpochTable

ROW = {
    "epoch": 37,
    "lr": 0.00812,
    "train_loss": 0.12345,
    "train_top1": 96.5151,
    "train_top5": 99.0,
    "test_loss": 12.3456,
    "test_top1": 91.0,
    "test_top5": 98.0,
    "test_uniform": 89.123,
    "seconds": 12.34,
    "images_per_second": 4067.4,
}


def test_every_value_stands_under_its_heading():
    heading, line = EpochTable(100).format(ROW, left=5025)
    values = "37/100 8.12e-03 0.1235 96.52 12.35 91.00 89.12 12.3 4067 1:23:45"
    assert line.split() == values.split()
    names = ("epoch", "lr", "train loss", "top-1 %", "test loss", "uniform %", "seconds", "left")
    ends = {heading.index(name) + len(name) for name in names}
    assert all(line[end - 1] != " " and line[end : end + 1] in (" ", "") for end in ends)


@pytest.mark.parametrize("epochs", [9, 100, 9999, 123_456])
@pytest.mark.parametrize("average", [False, True])
def test_no_line_is_longer_than_100_columns(epochs, average):
    longest = {
        **ROW,
        "epoch": epochs,
        "lr": 1.2345e-05,
        "train_loss": 1.23456e-05,
        "train_top1": 100.0,
        "test_loss": 123_456_789.0,
        "test_top1": 100.0,
        "test_uniform": 100.0,
        "seconds": 999_999.9,
        "images_per_second": 9_999_999.0,
    }
    if average:
        longest["ema_test_top1"] = 100.0
    heading, line = EpochTable(epochs).format(longest, left=359_999)
    assert len(heading) == len(line) <= 100
    assert line.split()[-1] == "99:59:59"
    shown = ["1.23e-05", "1.23e-05", "100.00", "1.23e+08", "100.00", "100.00"]
    assert line.split()[1 : 1 + len(shown)] == shown
    assert ("ema top-1 %" in heading) == average


def test_the_heading_comes_again_now_and_then():
    table = EpochTable(100)
    counts = [len(list(table.format(ROW, left=1))) for _ in range(HEADING_EVERY + 1)]
    assert counts == [2] + [1] * (HEADING_EVERY - 1) + [2]
