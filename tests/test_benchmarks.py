"""The benchmarks run, and what they write holds together."""

import argparse
import itertools
import json

import pytest
import torch

from benchmarks import train_speed
from tests.conftest import assert_mistake, run

CPU = torch.device("cpu")


SMALL = ["--model", "MLP", "--img_size", 8, "--num_images", 64, "--batch_size", 16]
SMALL += ["--num_classes", 4, "--steps", 1, "--rounds", 2, "--gpu_id", -1]


def test_train_speed(tmp_path):
    """Streamed from files: that has all of what images in memory need, and decoding."""
    flags = [*SMALL, "--stream", "--num_workers", 1, "--json", tmp_path / "speed.json"]
    result = run("benchmarks/train_speed.py", *flags)
    assert result.returncode == 0, result.stderr
    assert "64 images read from files" in result.stdout
    written = json.loads((tmp_path / "speed.json").read_text())
    loops = written["loops"]
    names = ["(a) conventional", "(b) train.py", "(c) ceiling", "(d) batches"]
    assert list(loops) == names
    for name, loop in loops.items():
        assert loop["images_per_second"] == pytest.approx(16_000 / loop["ms_per_step"], rel=1e-6)
        assert f"{name}  {loop['images_per_second']:10.1f}"[-8:] in result.stdout
    # Six layers of 1,024: backward is twice as much as forward, but images have no gradient.
    products = 192 * 1024 + 5 * 1024**2 + 1024 * 4
    assert written["matrix"]["(c) ceiling"]["flops"] == 16 * 2 * (3 * products - 192 * 1024)


def test_what_helps_adds_one_means_after_the_other():
    args = argparse.Namespace(model="ResNet18")
    found = train_speed.means(args, torch.device("cuda"))
    assert [loop.name for loop in found] == [
        "float32", "+ tf32", "+ bf16", "+ channels_last", "+ compiled", "+ CUDA graphs"
    ]  # fmt: skip
    for before, after in itertools.pairwise(found):
        keys = {"graphs": True, **before.settings}, {"graphs": True, **after.settings}
        changed = {key for key in keys[1] if keys[0].get(key) != keys[1][key]}
        expected = {"compile", "graphs"} if after.name == "+ compiled" else changed
        assert changed == expected and changed
    args.model = "ViT"
    assert "+ channels_last" not in [loop.name for loop in train_speed.means(args, CPU)]


def test_mistakes(tmp_path):
    assert_mistake(run("benchmarks/train_speed.py", "--model", "LeNet"), "LeNet")
