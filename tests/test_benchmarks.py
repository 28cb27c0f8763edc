"""The benchmarks run, and what they write holds together."""

import argparse
import itertools
import json
import re

import pytest
import torch

from benchmarks import eval_speed, train_speed
from benchmarks.loops import LOOPS
from tests.conftest import assert_mistake, run
from tests.test_train import SMALL as SMALL_RUN
from tests.test_train import trained

CPU = torch.device("cpu")


SMALL = ["--model", "MLP", "--img_size", 8, "--num_images", 64, "--batch_size", 16]
SMALL += ["--num_classes", 4, "--steps", 1, "--rounds", 2, "--gpu_id", -1]


def test_train_speed(tmp_path):
    flags = [*SMALL, "--loops", "b", "d", "--stream", "--num_workers", 1]
    result = run("benchmarks/train_speed.py", *flags, "--json", tmp_path / "speed.json")
    assert result.returncode == 0, result.stderr
    assert "64 images read from files" in result.stdout
    loops = json.loads((tmp_path / "speed.json").read_text())["loops"]
    assert list(loops) == ["(b) train.py", "(d) batches"]
    for name, loop in loops.items():
        assert loop["images_per_second"] == pytest.approx(16_000 / loop["ms_per_step"], rel=1e-6)
        line = next(line for line in result.stdout.splitlines() if line.startswith(name))
        assert line.split()[2] == f"{loop['images_per_second']:.1f}"


@pytest.fixture
def settings():
    args = train_speed.parser().parse_args([str(flag) for flag in SMALL])
    return train_speed.complete(args, CPU)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("kind", list(LOOPS))
def test_every_loop_goes_on_epoch_after_epoch(settings, kind, optimizer):
    settings.optimizer, settings.num_workers = optimizer, 0
    loop = LOOPS[kind](settings, train_speed.load(settings), CPU)
    for _ in range(9):  # an epoch has four steps
        next(loop)


def test_floating_point_operations_by_hand(settings):
    """Six layers of 1,024: backward is twice as much as forward, but images have no gradient."""
    products = 192 * 1024 + 5 * 1024**2 + 1024 * 4
    assert train_speed.flops_per_step(settings) == 16 * 2 * (3 * products - 192 * 1024)


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
    for args.precision, order in (
        ("bf16", ["+ bf16", "+ compiled"]),
        ("fp32", ["+ compiled", "+ bf16"]),
    ):
        found = train_speed.means(args, CPU)
        names = ["float32", "+ kept memory", "+ channels_last", *order]
        assert [loop.name for loop in found] == names
        for before, after in itertools.pairwise(found):
            changed = {key for key in after.settings if before.settings[key] != after.settings[key]}
            changed |= {"keep"} if before.keep_memory != after.keep_memory else set()
            assert len(changed) == 1
    args.model = "ViT"
    assert "+ channels_last" not in [loop.name for loop in train_speed.means(args, CPU)]


def test_eval_speed(tmp_path):
    run_dir = trained(tmp_path, *SMALL_RUN, "--epochs", 1, "--test_sample_size", 5)
    flags = ["--load_path", run_dir, "--rounds", 1, "--gpu_id", -1]
    result = run("benchmarks/eval_speed.py", *flags)
    assert result.returncode == 0, result.stderr
    assert "MLP on digits, 250 images" in result.stdout
    for name in eval_speed.WAYS:
        row = re.search(rf"^{name} +([\d.]+) +(\d+) ", result.stdout, re.MULTILINE)
        seconds, rate = map(float, row.groups())
        assert 250 / (seconds + 0.001) < rate < 250 / max(seconds - 0.001, 1e-9)


def test_mistakes(tmp_path):
    assert_mistake(run("benchmarks/train_speed.py", "--model", "LeNet"), "LeNet")
    assert_mistake(run("benchmarks/eval_speed.py", "--load_path", tmp_path), str(tmp_path))
