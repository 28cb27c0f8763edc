"""The benchmarks of training and evaluation run, and what they write holds together."""

import dataclasses
import itertools
import json
import re

import pytest
import torch

from benchmarks import eval_speed, train_speed
from benchmarks.loops import LOOPS
from input_pipeline.loader import BatchLoader
from tests.helpers import SMALL as SMALL_RUN
from tests.helpers import assert_mistake, run, train_here
from training.meter import Meter
from utils.errors import UserError

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
def bench():
    args = train_speed.build_parser().parse_args([str(flag) for flag in SMALL])
    return train_speed.build_bench(args, CPU)


def with_settings(bench, *, num_images=64, steps=1, **values):
    settings = bench.task.settings.replace(num_workers=0, **values)
    task = dataclasses.replace(bench.task, settings=settings, steps=steps)
    return dataclasses.replace(bench, task=task, num_images=num_images)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("kind", list(LOOPS))
def test_every_loop_goes_on_epoch_after_epoch(bench, kind, optimizer):
    bench = with_settings(bench, optimizer=optimizer)
    loop = LOOPS[kind](bench.task, train_speed.load_data(bench), CPU)
    for _ in range(9):  # an epoch has four steps
        next(loop)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_every_turn_of_loop_b_has_its_share_of_the_batches_work(bench, monkeypatch, steps):
    bench = with_settings(bench, num_images=64 * 16, steps=steps)
    done = []
    prepare, count = BatchLoader._prepare, Meter._count
    monkeypatch.setattr(BatchLoader, "_prepare", lambda *a: done.append("prepared") or prepare(*a))
    monkeypatch.setattr(Meter, "_count", lambda *a: done.append("counted") or count(*a))
    loop = LOOPS["b"](bench.task, train_speed.load_data(bench), CPU)
    next(loop), next(loop)  # as before the first turn
    for _ in range(3):
        done.clear()
        for _ in range(steps):
            next(loop)
        assert done.count("prepared") == 1 and "counted" in done


def test_floating_point_operations_by_hand(bench):
    """Six layers of 1,024: backward is twice as much as forward, but images have no gradient."""
    products = 192 * 1024 + 5 * 1024**2 + 1024 * 4
    assert train_speed.count_flops(bench) == 16 * 2 * (3 * products - 192 * 1024)


def what_helps(model, precision, device, *named):
    return train_speed.list_means(model, precision, named, torch.device(device))


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cuda", "bf16", ["tf32", "bf16", "channels_last", "compile", "graphs"]),
        ("cpu", "bf16", ["memory", "channels_last", "bf16", "compile"]),
        ("cpu", "fp32", ["memory", "channels_last", "compile", "bf16"]),
    ],
)
def test_what_helps_adds_one_means_after_the_other(device, precision, expected):
    found = what_helps("ResNet18", precision, device)
    assert [loop.name for loop in found] == ["float32", *[f"+ {name}" for name in expected]]
    for before, after in itertools.pairwise(found):
        keys = {"graphs": True, **before.changes}, {"graphs": True, **after.changes}
        changed = {key for key in keys[1] if keys[0][key] != keys[1][key]}
        changed |= {"memory"} if before.keep_memory != after.keep_memory else set()
        # compile is without CUDA graphs, which are on by default.
        assert len(changed) == 1 or changed == {"compile", "graphs"}


def test_what_helps_takes_the_means_that_are_named():
    names = [loop.name for loop in what_helps("ResNet18", "bf16", "cpu", "bf16", "memory")]
    assert names == ["float32", "+ memory", "+ bf16"]
    assert "+ channels_last" not in [loop.name for loop in what_helps("ViT", "bf16", "cpu")]
    for model, device, name in (
        ("ViT", "cpu", "channels_last"),
        ("ResNet18", "cpu", "tf32"),
        ("ResNet18", "cuda", "memory"),
        ("ResNet18", "cuda", "graphs"),
    ):
        with pytest.raises(UserError, match=f"--what_helps {name} "):
            what_helps(model, "bf16", device, name)


def test_eval_speed(tmp_path):
    run_dir = train_here(tmp_path, *SMALL_RUN, "--epochs", 1, "--test_sample_size", 5)
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
    assert_mistake(run("benchmarks/train_speed.py", "--loops", "d", "d"), "twice")
    assert_mistake(run("benchmarks/train_speed.py", "--loops", "d", "--compile"), "--compile")
    for flags, word in (
        (["--precisions", "fp32", "fp32"], "fp32"),
        (["--", "--seed", 3], "--seed"),
        (["--", "--precision=bf16"], "--precision"),
    ):
        assert_mistake(run("benchmarks/precision_agreement.py", *flags), word)
    assert_mistake(run("benchmarks/eval_speed.py", "--load_path", tmp_path), str(tmp_path))
