"""train_speed.py: its loops run, and what it prints and writes holds together."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch

from args import Settings
from benchmarks import bench as bench_module
from benchmarks import train_speed
from benchmarks.bench import KINDS, Bench, list_loops, list_means
from benchmarks.images import load_images
from benchmarks.loops import prepare_step
from benchmarks.matrix_rate import count_operations
from benchmarks.train_report import build_bench, format_report, list_references
from benchmarks.turns import Timing, Turn, describe_backend, plan_turn
from input_pipeline.loader import BatchLoader
from tests.helpers import assert_mistake, run
from training.meter import Meter
from utils.errors import UserError
from utils.files import read_csv
from utils.registry import load_function

CPU = torch.device("cpu")
SMALL = ["--model", "mlp", "--img_size", "8", "--num_images", "64", "--batch_size", "16"]
SMALL += ["--num_classes", "4", "--steps", "1", "--rounds", "2", "--gpu_id", "-1"]


@pytest.fixture
def bench(tmp_path):
    args = train_speed.build_parser().parse_args([*SMALL, "--num_workers", "0"])
    return build_bench(args, CPU).replace_settings(save_dir=str(tmp_path))


def start_loop(kind, bench):
    return load_function(KINDS[kind].function)(bench, load_images(bench), CPU)


@pytest.mark.slow
def test_table_and_file_of_results_agree(tmp_path):
    flags = [*SMALL, "--loops", "a", "b", "d", "--stream", "--num_workers", 1]
    result = run("benchmarks/train_speed.py", *flags, "--json", tmp_path / "speed.json")
    assert result.returncode == 0, result.stderr
    assert "64 images read from files" in result.stdout
    written = json.loads((tmp_path / "speed.json").read_text())
    assert written["settings"]["precision"] in ("fp32", "bf16")  # resolved
    assert list(written["loops"]) == ["(a) conventional", "(b) train.py", "(d) batches"]
    modes = [loop["backend"].split(",")[0] for loop in written["loops"].values()]
    assert modes == ["cudnn.benchmark off", *["cudnn.benchmark on"] * 2]
    assert "(a) in fp32, 1 worker, cudnn.benchmark off" in result.stdout
    for name, loop in written["loops"].items():
        assert loop["images_per_second"] == pytest.approx(16_000 / loop["ms_per_step"], rel=1e-6)
        line = next(line for line in result.stdout.splitlines() if line.startswith(name))
        assert line.split()[2] == f"{loop['images_per_second']:.1f}"


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "e"])
def test_every_loop_goes_on_epoch_after_epoch(bench, kind, optimizer):
    loop = start_loop(kind, bench.replace_settings(optimizer=optimizer))
    for _ in range(9):  # an epoch has four steps
        next(loop)
    loop.close()


def test_loop_e_trains_tests_and_saves_and_ends_with_its_state_saved(bench):
    loop = start_loop("e", dataclasses.replace(bench, steps=3))
    for _ in range(2):
        next(loop)
    loop.close()
    run_dir = Path(bench.settings.save_dir) / "epochs"
    rows = read_csv(run_dir / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(0 <= float(row["test_top1"]) <= 100 for row in rows)
    facts = json.loads((run_dir / "config.json").read_text())["data"]
    assert (facts["train_size"], facts["test_size"]) == (3 * 16, 9)  # a fifth of the training set
    for name in ("last.pth", "epoch_001.pth", "epoch_002.pth", "best_model.pth"):
        assert (run_dir / name).stat().st_size


def test_an_error_in_loop_e_reaches_the_table(bench):
    loop = start_loop("e", bench.replace_settings(save_dir="/dev/null"))
    with pytest.raises(UserError, match="cannot create /dev/null"):
        next(loop)


def test_a_turn_of_loop_e_is_an_epoch(bench):
    bench = dataclasses.replace(bench, steps=3)
    (loop,) = list_loops(bench, ["e"])
    assert plan_turn(loop, load_images(bench), CPU) == Turn(untimed=0, timed=1, steps=3)


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


def test_only_conventional_loops_have_the_defaults_of_torch(bench):
    loops = list_loops(bench, list(KINDS))
    assert [loop.kind for loop in loops if not loop.bench.ours] == ["a2", "a"]
    assert [loop.kind for loop in loops if not loop.bench.keep_memory] == ["a2", "a"]


def test_conventional_loops_have_two_workers_and_all(bench, monkeypatch):
    monkeypatch.setattr(bench_module, "count_usable_cores", lambda: 16)
    counts = [loop.bench.settings.num_workers for loop in list_loops(bench, ["a2", "a", "b"])]
    assert counts == [2, 16, 0]
    (given,) = list_loops(bench, ["a"], 5)
    assert given.bench.settings.num_workers == 5
    assert bench_module.list_default_kinds() == list(KINDS)
    monkeypatch.setattr(bench_module, "count_usable_cores", lambda: 2)
    assert bench_module.list_default_kinds() == ["a", "b", "c", "d", "e"]


def test_the_modes_of_a_process_are_named(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert describe_backend() == "cudnn.benchmark off, TF32 in convolutions"
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert describe_backend() == "cudnn.benchmark on, TF32 in nothing"


def test_the_table_fits_100_columns(bench):
    loops = list_loops(bench, list(KINDS), 0)
    timings = {loop.name: Timing(128, 123.4, 0.0, "", [12.345], 54321.0) for loop in loops}
    timings["(d) batches"].seconds = [0.0005]
    report = format_report(timings, list_references(loops, timings))
    assert max(map(len, report.splitlines())) <= 100
    assert report.splitlines()[0].split("  ")[0] == "loop"
    assert "× (a2)" in report and "compiling" not in report


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
        ("cuda", "bf16", ["tf32", "bf16", "channels_last", "graphs", "compile"]),
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
        assert len(changed) == 1


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
        ("ResNet18", "cpu", "graphs"),
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
        (["--loops", "d", "--graphs"], "--graphs"),
        (["--loops", "c", "--graphs"], "GPU"),
        (["--what_helps", "memory", "--graphs"], "--graphs"),
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
