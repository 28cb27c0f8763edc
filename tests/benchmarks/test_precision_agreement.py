"""precision_agreement.py: its table by hand, and its mistakes."""

import pytest

from benchmarks import precision_agreement
from benchmarks.precision_agreement import COMPARED, format_rows
from tests.helpers import assert_mistake, run


def test_differences_are_in_units_of_the_larger_deviation():
    found = {
        "fp32": [dict.fromkeys(COMPARED, value) for value in (1.0, 3.0)],
        "bf16": [dict.fromkeys(COMPARED, value) for value in (5.0, 5.0)],
    }
    rows = format_rows(found)
    assert [len(row) for row in rows] == [4] * len(COMPARED)
    assert rows[0] == ["top-1 %", "2.00 ± 1.41", "5.00 ± 0.00", "+2.12"]


def test_without_any_deviation_there_is_no_unit():
    found = {name: [dict.fromkeys(COMPARED, 1.0)] * 2 for name in ("fp32", "bf16")}
    assert {row[-1] for row in format_rows(found)} == {"–"}


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--precisions", "fp32", "FP32"], "fp32"),
        (["--", "--seed", "3"], "--seed"),
        (["--", "--precision=bf16"], "--precision"),
        (["--seeds", "1"], "--seeds"),
    ],
)
def test_mistakes(capsys, flags, word):
    with pytest.raises(SystemExit) as stopped:
        precision_agreement.main(flags)
    assert stopped.value.code == 2
    assert word in capsys.readouterr().err


@pytest.mark.slow
def test_a_precision_that_the_device_lacks_ends_in_the_line_of_train():
    flags = ["--precisions", "fp16", "fp32", "--gpu_id", -1, "--", "--dataset", "digits"]
    assert_mistake(run("benchmarks/precision_agreement.py", *flags), "fp16")
