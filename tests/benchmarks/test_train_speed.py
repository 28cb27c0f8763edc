"""train_speed.py: its loops run, and what it prints and writes holds together."""

import dataclasses
import itertools
import json

import pytest
import torch

from args import Settings
from benchmarks import train_speed
from benchmarks.bench import KINDS, Bench, list_loops, list_means
from benchmarks.images import load_images
from benchmarks.loops import prepare_step
from benchmarks.matrix_rate import count_operations
from benchmarks.train_report import build_bench
from input_pipeline.loader import BatchLoader
from tests.helpers import assert_mistake, run
from training.meter import Meter
from utils.errors import UserError
from utils.registry import load_function

CPU = torch.device("cpu")
SMALL = ["--model", "mlp", "--img_size", "8", "--num_images", "64", "--batch_size", "16"]
SMALL += ["--num_classes", "4", "--steps", "1", "--rounds", "2", "--gpu_id", "-1"]


@pytest.fixture
def bench():
    args = train_speed.build_parser().parse_args([*SMALL, "--num_workers", "0"])
    return build_bench(args, CPU)


def start_loop(kind, bench):
    return load_function(KINDS[kind].function)(bench, load_images(bench), CPU)


@pytest.mark.slow
def test_table_and_file_of_results_agree(tmp_path):
    flags = [*SMALL, "--loops", "b", "d", "--stream", "--num_workers", 1]
    result = run("benchmarks/train_speed.py", *flags, "--json", tmp_path / "speed.json")
    assert result.returncode == 0, result.stderr
    assert "64 images read from files" in result.stdout
    written = json.loads((tmp_path / "speed.json").read_text())
    assert written["settings"]["precision"] in ("fp32", "bf16")  # resolved
    assert list(written["loops"]) == ["(b) train.py", "(d) batches"]
    for name, loop in written["loops"].items():
        assert loop["images_per_second"] == pytest.approx(16_000 / loop["ms_per_step"], rel=1e-6)
        line = next(line for line in result.stdout.splitlines() if line.startswith(name))
        assert line.split()[2] == f"{loop['images_per_second']:.1f}"


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_loop_goes_on_epoch_after_epoch(bench, kind, optimizer):
    loop = start_loop(kind, bench.replace_settings(optimizer=optimizer))
    for _ in range(9):  # an epoch has four steps
        next(loop)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_every_turn_of_loop_b_has_its_share_of_the_batches_work(bench, monkeypatch, steps):
    done = []
    prepare, count = BatchLoader._prepare, Meter._count
    monkeypatch.setattr(BatchLoader, "_prepare", lambda *a: done.append("prepared") or prepare(*a))
    monkeypatch.setattr(Meter, "_count", lambda *a: done.append("counted") or count(*a))
    loop = start_loop("b", dataclasses.replace(bench, steps=steps, num_images=64 * 16))
    next(loop), next(loop)  # as before the first turn
    for _ in range(3):
        done.clear()
        for _ in range(steps):
            next(loop)
        assert done.count("prepared") == 1 and "counted" in done


def test_floating_point_operations_by_hand(bench):
    """Six layers of 1,024: backward is twice as much as forward, but images have no gradient."""
    products = 192 * 1024 + 5 * 1024**2 + 1024 * 4
    assert count_operations(bench) == 16 * 2 * (3 * products - 192 * 1024)


def test_only_the_conventional_loop_frees_its_memory(bench):
    loops = list_loops(bench, list(KINDS))
    assert [loop.bench.keep_memory for loop in loops] == [False, True, True, True]


@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
def test_the_layout_of_a_bench_is_that_of_its_network(bench, layout):
    bench = dataclasses.replace(bench, layout=layout).replace_settings(model="ResNet18")
    model, _ = prepare_step(bench, load_images(bench), CPU)
    last = model.layer4[-1].conv2.weight
    assert last.is_contiguous(memory_format=getattr(torch, layout))


def list_for(model, precision, device, *asked):
    settings = Settings().replace(model=model, precision=precision, img_size=32)
    return list_means(Bench(settings, 1, 64, 10), asked, on_gpu=device == "cuda")


def list_facts(bench):
    facts = {field.name: getattr(bench, field.name) for field in dataclasses.fields(bench)}
    return {**facts.pop("settings").values(), **facts}


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cuda", "bf16", ["tf32", "bf16", "channels_last", "compile", "graphs"]),
        ("cpu", "bf16", ["memory", "channels_last", "bf16", "compile"]),
        ("cpu", "fp32", ["memory", "channels_last", "compile", "bf16"]),
    ],
)
def test_what_helps_adds_one_means_after_the_other(device, precision, expected):
    found = list_for("ResNet18", precision, device)
    assert [loop.name for loop in found] == ["float32", *[f"+ {name}" for name in expected]]
    assert {loop.kind for loop in found} == {"c"}
    for before, after in itertools.pairwise(found):
        facts = list_facts(before.bench), list_facts(after.bench)
        changed = {key for key in facts[1] if facts[0][key] != facts[1][key]}
        # compile is without CUDA graphs, which are on by default.
        assert len(changed) == 1 or changed == {"compile", "graphs"}


def test_what_helps_takes_the_means_that_are_named():
    names = [loop.name for loop in list_for("ResNet18", "bf16", "cpu", "bf16", "memory")]
    assert names == ["float32", "+ memory", "+ bf16"]
    assert "+ channels_last" not in [loop.name for loop in list_for("ViT", "bf16", "cpu")]


@pytest.mark.parametrize(
    ("model", "device", "name"),
    [
        ("ViT", "cpu", "channels_last"),
        ("ResNet18", "cpu", "tf32"),
        ("ResNet18", "cuda", "memory"),
        ("ResNet18", "cuda", "graphs"),
    ],
)
def test_what_helps_refuses_means_without_effect(model, device, name):
    with pytest.raises(UserError, match=f"--what_helps {name} "):
        list_for(model, "bf16", device, name)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--loops", "d", "d"], "twice"),
        (["--loops", "d", "--compile"], "--compile"),
        (["--what_helps", "memory", "--precision", "bf16"], "--precision"),
        (["--data_dir", ".", "--num_classes", "4"], "--num_classes"),
        (["--augment", "DA1+DA2"], "--augment"),
    ],
)
def test_flags_without_effect_are_mistakes(capsys, flags, word):
    assert train_speed.main([*flags, "--gpu_id", "-1"]) == 2
    assert word in capsys.readouterr().err


def test_too_few_images_are_a_mistake(capsys):
    assert train_speed.main([*SMALL, "--batch_size", "65"]) == 2
    assert "64 images" in capsys.readouterr().err


def test_an_unknown_model_is_a_mistake():
    assert_mistake(run("benchmarks/train_speed.py", "--model", "LeNet"), "LeNet")
