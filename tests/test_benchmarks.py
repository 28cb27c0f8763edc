"""The benchmarks run, and what they write holds together."""

import json

import pytest

from tests.conftest import assert_mistake, run


def test_train_speed(tmp_path):
    flags = ["--model", "MLP", "--img_size", 8, "--num_images", 64, "--batch_size", 16]
    flags += [
        "--loops",
        "a",
        "b",
        "--steps",
        1,
        "--rounds",
        2,
        "--gpu_id",
        -1,
        "--json",
        tmp_path / "speed.json",
    ]
    result = run("benchmarks/train_speed.py", *flags)
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "speed.json").read_text())
    loops = written["loops"]
    assert set(loops) == {"a", "b"}
    for loop in loops.values():
        assert loop["images_per_second"] == pytest.approx(16_000 / loop["ms_per_step"], rel=1e-6)


def test_mistakes(tmp_path):
    assert_mistake(run("benchmarks/train_speed.py", "--model", "LeNet"), "LeNet")
