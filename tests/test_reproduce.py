"""reproduce.py: interrupted grids, runs that fail, mistakes, and what --dry_run prints."""

import dataclasses
import shlex
import signal
import sys
from types import SimpleNamespace

import pytest

import reproduce
from args import parse_settings
from objective import OPTIMIZERS
from reproduction import EXPERIMENTS
from reproduction.cost import Case, Figures, Pace, name_case
from reproduction.flags import parse_flags
from reproduction.grid import build_grid
from reproduction.launch import Outcome
from reproduction.pictures import Call
from reproduction.work import Work
from tests.helpers import assert_mistake, read_refusal, run, start
from theory.balanced import find_balanced_minimum
from utils.errors import UserError
from utils.files import read_csv, write_json

SMOKE = ["--gpu_id", "-1", "--epochs", 1]


def fail(message):
    raise UserError(message)


@pytest.fixture(autouse=True)
def measure_nothing(monkeypatch):
    """Steps are measured by a process of its own, which takes seconds to start."""
    pace = Pace(step=1e-5, test=1e-6, evaluation=1e-6)
    case = Case((50_000, 10_000), 1000, 1000, pace, "all networks")

    def answer(runs, command, place, data_dir, *, timed):
        return Figures({name_case(run.settings): case for run in runs}, "CPU")

    monkeypatch.setattr("reproduction.cost.ask", answer)


def list_flags(directory, *flags):
    words = [*SMOKE, "--save_dir", directory / "runs", "--out", directory / "out", *flags]
    return [str(word) for word in words]


@pytest.mark.slow
def test_a_grid_is_interrupted_and_goes_on(tmp_path, capsys):
    process = start("reproduce.py", "imagenet", *list_flags(tmp_path))
    lines = [process.stdout.readline()]
    while "[1/2]" not in lines[-1] and process.poll() is None:
        lines.append(process.stdout.readline())
    beginnings = (
        "2 runs, 0 finished, 2 to train; run ",
        "disk: up to ",
        "time: about ",
        "measured",
    )
    assert all(line.startswith(begin) for line, begin in zip(lines, beginnings, strict=False))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143, err
    assert err.strip() == reproduce.STOP_MESSAGE
    assert not (tmp_path / "out" / "report.md").exists()
    assert reproduce.main(["imagenet", *list_flags(tmp_path)]) == 0
    assert "2 runs, 1 finished, 1 to train" in capsys.readouterr().out
    report = (tmp_path / "out" / "report.md").read_text()
    for gridded in build_grid("imagenet", "smoke", overrides={"epochs": 1}):
        row = read_csv(tmp_path / "runs" / gridded.name / "metrics.csv")[-1]
        assert f"| {float(row['test_top1']):.2f} |" in report
        assert gridded.name in report
    assert "76.74" in report  # the paper's
    assert "python reproduce.py imagenet --scale smoke --epochs 1" in report
    assert (tmp_path / "out" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert reproduce.main(["imagenet", *list_flags(tmp_path)]) == 0
    assert "2 runs, 2 finished, 0 to train" in capsys.readouterr().out


@pytest.mark.slow
def test_score_figures_and_a_run_that_fails(tmp_path, monkeypatch):
    smaller = {"smoke": {"weight_decay_bias": (0.5, 5e-6), "optimizer": ("SGD",)}}
    entry = dataclasses.replace(EXPERIMENTS["bias-decay"], smaller=smaller, losses=("CE",))
    monkeypatch.setitem(EXPERIMENTS, "bias-decay", entry)
    bad, good = build_grid("bias-decay", "smoke", overrides={"epochs": 1})[:2]
    run_all = reproduce.run_here

    def run_with_a_failure(commands, places):
        commands[bad.name] = [sys.executable, "-c", "import sys; sys.exit('it is broken')"]
        return run_all(commands, places)

    monkeypatch.setattr(reproduce, "run_here", run_with_a_failure)
    assert reproduce.main(["bias-decay", *list_flags(tmp_path)]) == 2
    assert f"{bad.name}: it is broken" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "scores_MLP_digits.png").exists()
    rows = [row for row in read_csv(tmp_path / "out" / "results.csv") if row["mean"]]
    exact = find_balanced_minimum("CE", 10, 3.2, 5e-4, 5e-4, good.settings.weight_decay_bias)
    assert rows[0]["measure"] == "positive_mean"
    assert float(rows[0]["predicted"]) == pytest.approx(exact.positive_score)


def test_a_run_with_other_settings_is_refused(tmp_path, capsys):
    last = build_grid("imagenet", "smoke", overrides={"epochs": 1})[-1]
    stored = last.settings.replace(lr=0.25, run_name=last.name)
    (tmp_path / "runs" / last.name).mkdir(parents=True)
    write_json(
        tmp_path / "runs" / last.name / "config.json",
        {"settings": stored.values(), "data": {}},
    )
    assert reproduce.main(["imagenet", *list_flags(tmp_path)]) == 2
    assert "--lr 0.25" in capsys.readouterr().err
    assert len(list((tmp_path / "runs").iterdir())) == 1  # nothing has begun


@pytest.mark.slow
def test_the_theory_replaces_a_result_of_the_smoke_scale(tmp_path):
    write_json(tmp_path / "report.json", {"experiment": "tsne", "scale": "smoke"})
    assert reproduce.main(["theory", "--out", str(tmp_path)]) == 0
    rows = read_csv(tmp_path / "results.csv")
    assert {row["classes"] for row in rows} == {"10"}
    for row in rows:
        if row["predicted"]:
            assert float(row["mean"]) == pytest.approx(float(row["predicted"]), abs=1e-3)
    assert "![CE_bias_decay_K10](CE_bias_decay_K10.png)" in (tmp_path / "report.md").read_text()


def test_scripts_are_called(monkeypatch):
    statuses = {"good": 0, "odd": 1, "bad": 2, "stopped": 143}
    monkeypatch.setattr(reproduce, "call_script", lambda name, flags: statuses[name])
    assert reproduce.call_scripts([Call("good", []), Call("odd", [], accepted=(0, 1))]) == 1
    with pytest.raises(UserError, match=r"bad\.py failed with status 2"):
        reproduce.call_scripts([Call("bad", [])])
    with pytest.raises(SystemExit) as stop:
        reproduce.call_scripts([Call("stopped", [])])
    assert stop.value.code == 143


def test_failures_are_explained():
    assert reproduce.explain_failure(Outcome(143)) == "stopped"
    assert "not finite" in reproduce.explain_failure(Outcome(3))
    assert reproduce.explain_failure(Outcome(2, "train.py: error: no disk")) == "no disk"
    assert reproduce.explain_failure(Outcome(9)) == "exit status 9"


def test_mistakes(tmp_path, capsys):
    part = ("--only", "loss=CE", "--data_dir", tmp_path)

    def refuse(*words):
        assert reproduce.main([*map(str, words)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "no effect" in refuse("theory", "--epochs", 3)
    flags_of_runs = ("--seeds", 3), ("--jobs", 2), ("--gpu_ids", 0, 1), ("--gpus_per_run", 2)
    for flags in flags_of_runs:
        line = refuse("theory", *flags)
        assert f"{flags[0]} has no effect here: theory trains nothing" in line
    assert "no effect" in refuse("tsne", "--slurm", "partition=gpu")
    assert "at least 34 images, the runs have 32" in refuse("tsne", "--gpus_per_run", 17)
    assert "--data_dir" in refuse("imagenet", "--scale", "full")
    assert "--data_dir" in refuse("tsne", "--dataset", "folder")
    assert "--min_lr" in refuse("tsne", "--lr_SGD", 1e-9)
    assert "--lr_AdamW has no effect here: no run uses AdamW" in refuse("tsne", "--lr_AdamW", 1)
    assert "has optimizer SGD" in refuse("tsne", "--only", "optimizer=AdamW")
    assert "--only has no effect" in refuse("theory", "--only", "loss=CE")
    folder = ("--dataset", "folder", "--data_dir", tmp_path, "--copy_of", "cifar10")
    assert "it is for --dataset folder" in refuse("nc-curves", "--copy_of", "cifar10")
    assert "no published numbers for tsne" in refuse("tsne", *folder)
    assert "by their size" in refuse("imagenet", *folder)
    assert "are of cifar100" in refuse("long-tail", *folder)
    (tmp_path / "report.json").write_text('{"experiment": "tsne", "scale": "cpu"}')
    assert "give another --out" in refuse("imagenet", "--out", tmp_path)
    assert "give another --out" in refuse("tsne", "--scale", "cpu", *part, "--out", tmp_path)
    assert_mistake(run("reproduce.py", "table-mnist"), "table-mnist", "nc-curves")


def test_flags_of_image_files_reach_the_runs_and_shape_their_names(capsys, tmp_path):
    flags = ["imagenet", "--scale", "full", "--data_dir", tmp_path, "--models", "ResNet50"]
    own = ["--skip_corrupt", "--resize_first", "--cache_dir", "/c", "--num_workers", "3"]
    assert reproduce.main([*map(str, flags), *own, "--dry_run"]) == 0
    first = capsys.readouterr().out.splitlines()[0].split()
    assert set(own) <= set(first)
    name = first[first.index("--run_name") + 1]
    assert name == "ResNet50_folder_CE_SGD_RRC_every90_resized_skipcorrupt_s0"


def test_dry_run(capsys):
    assert reproduce.main(["table-cifar", "--scale", "full", "--dry_run", "--seeds", "2"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 96
    assert all(line.startswith("python train.py --model ") for line in lines)
    settings = parse_settings(shlex.split(lines[-1])[2:])
    assert (settings.resume, settings.force, settings.seed) == (True, True, 1)
    assert reproduce.main(["theory", "--dry_run"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 4
    assert all(line.startswith("python verify_theory.py --loss ") for line in lines)


def test_dry_run_says_on_stderr_what_the_runs_would_take(tmp_path, monkeypatch, capsys):
    flags = ["table-cifar", "--dry_run", "--save_dir", str(tmp_path)]
    assert reproduce.main([*flags, "--scale", "full"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 48
    lines = err.strip().splitlines()
    assert all(line.startswith("# ") for line in lines)
    assert lines[0].startswith("# 48 runs, 0 finished, 48 to train")
    assert lines[2] == "# time: about 41 min on CPU: 41 min of training"  # 4800 × (0.5 + 0.01) s
    assert "--yes" in lines[-1]
    assert reproduce.main([*flags, "--scale", "full", "--launcher", "slurm"]) == 0
    assert "--yes" not in capsys.readouterr().err
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    assert reproduce.main(flags) == 0
    assert "too little room" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_takes_too_much_is_refused_before_it_begins(tmp_path, monkeypatch, capsys):
    flags = ["table-cifar", "--save_dir", tmp_path / "runs", "--out", tmp_path / "out"]
    line = read_refusal(capsys, reproduce.main, *flags, "--scale", "full")
    assert "full scale without CUDA takes about 41 min on CPU: give --yes" in line
    monkeypatch.setattr(reproduce, "check_data", lambda runs, data_dir: fail("no data"))
    line = read_refusal(capsys, reproduce.main, *flags, "--scale", "full", "--yes")
    assert line.endswith("no data")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    assert "100 bytes free" in read_refusal(capsys, reproduce.main, *flags)
    assert not (tmp_path / "runs").exists()


def test_a_folder_without_a_test_set_is_found_once(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()  # the process that measures lists the folder
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
    flags = ["imagenet", "--dataset", "folder", "--data_dir", tmp_path, "--gpu_id", -1]
    out = ["--save_dir", tmp_path / "runs", "--out", tmp_path / "out"]
    line = read_refusal(capsys, reproduce.main, *flags, *out)
    assert "holds neither test/<class>/* nor val/<class>/*" in line
    assert not (tmp_path / "runs").exists()


def test_dry_run_names_the_devices(capsys):
    def list_devices(*flags):
        assert reproduce.main(["imagenet", "--dry_run", *flags]) == 0
        commands = map(shlex.split, capsys.readouterr().out.strip().splitlines())
        settings = [parse_settings(words[2:]) for words in commands]
        return [s.gpu_id if "gpu_id" in s.model_fields_set else None for s in settings]

    assert list_devices() == [None, None]
    assert list_devices("--gpu_id", "-1") == [-1, -1]
    assert list_devices("--gpu_ids", "2", "5") == [2, 5]


def test_dry_run_of_several_processes(monkeypatch, capsys):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    torchrun = "python -m torch.distributed.run --standalone --nproc_per_node=2 train.py"

    def list_commands(*flags):
        assert reproduce.main(["imagenet", "--dry_run", "--gpus_per_run", "2", *flags]) == 0
        out, err = capsys.readouterr()
        return [(*line.partition(" --model")[::2], line[-11:]) for line in out.splitlines()], err

    (first, *_), _ = list_commands("--gpu_id", "3")
    assert (first[0], first[-1]) == (torchrun, " --gpu_id 3")
    (first, second, *_), _ = list_commands("--gpu_ids", "0", "1", "5", "4")
    assert (first[0], first[-1]) == (f"CUDA_VISIBLE_DEVICES=0,1 {torchrun}", " --gpu_id 0")
    assert (second[0], second[-1]) == (f"CUDA_VISIBLE_DEVICES=5,4 {torchrun}", " --gpu_id 0")
    (first, *_), err = list_commands("--launcher", "slurm")
    assert first[0] == "python train.py"
    assert "# a job starts its command 2 times as one run" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--only", "loss"], "'loss' is not of the form KEY=VALUE"),
        (["--slurm", "gpu"], "'gpu' is not of the form KEY=VALUE"),
        (["--gpu_id", "0", "--gpu_ids", "1"], "not allowed with argument --gpu_id"),
        (["--gpu_ids", "1", "0", "1"], "1 is named twice"),
        (["--gpu_ids", "0", "-1"], "'-1' must be at least 0"),
        (["--gpu_ids", "0", "2", "3", "--jobs", "1"], "with --jobs 1 no run uses 2 3"),
        (["--gpu_ids", "0", "--launcher", "slurm"], "SLURM gives each job GPUs of its own"),
        (["--gpus_per_run", "0"], "must be at least 1"),
        (["--gpu_ids", "0", "1", "2", "--gpus_per_run", "2"], "3 GPUs cannot be divided into runs"),
        (["--gpu_ids", "0", "1", "--gpus_per_run", "4"], "2 GPUs cannot be divided into runs"),
        (
            ["--gpu_ids", "0", "1", "2", "3", "--gpus_per_run", "2", "--jobs", "1"],
            "with --jobs 1 no run uses 2 3",
        ),
        (["--slurm", "nodes=two", "--launcher", "slurm"], "nodes=two is not a whole number"),
        (
            ["--slurm", "nodes=2", "--launcher", "slurm", "--gpus_per_run", "9"],
            "--gpus_per_run 9 cannot be divided by nodes=2",
        ),
        (
            ["--slurm", "gpus_per_task=1", "--launcher", "slurm", "--gpus_per_run", "8"],
            "gpus_per_task follows from --gpus_per_run",
        ),
    ],
)
def test_flags_that_do_not_parse(capsys, flags, words):
    assert words in read_refusal(capsys, reproduce.main, "tsne", *flags)


def test_jobs_follow_the_devices():
    assert parse_flags(["tsne"]).jobs == 1
    assert parse_flags(["tsne", "--gpu_ids", "0", "3"]).jobs == 2
    assert parse_flags(["tsne", "--gpu_ids", "0", "3", "--jobs", "5"]).jobs == 5
    pairs = ["tsne", "--gpu_ids", "0", "1", "2", "3", "--gpus_per_run", "2"]
    assert parse_flags(pairs).jobs == 2


def test_a_gpu_that_cannot_be_used_is_refused_once(tmp_path, monkeypatch, capsys):
    def refuse(flag, numbers):
        raise UserError(f"{flag} {numbers}")

    monkeypatch.setattr("utils.device.check_gpus", refuse)
    flags = ["--save_dir", tmp_path / "runs", "--out", tmp_path / "out"]
    both = read_refusal(capsys, reproduce.main, "imagenet", *flags, "--gpu_ids", 0, 7)
    assert "--gpu_ids [0, 7]" in both
    assert "--gpu_id [7]" in read_refusal(capsys, reproduce.main, "imagenet", *flags, "--gpu_id", 7)
    four = [*flags, "--gpus_per_run", 4]
    line = read_refusal(capsys, reproduce.main, "imagenet", *four, "--gpu_id", 1)
    assert "--gpus_per_run 4 needs GPU range(1, 5)" in line
    assert not (tmp_path / "runs").exists()


def test_the_threads_of_a_run_that_began(tmp_path):
    gridded = build_grid("imagenet", "smoke", overrides={"epochs": 1})[0]
    work = Work("imagenet", "smoke", [gridded], tmp_path, tmp_path)
    assert work.find_threads(gridded) is None
    work.locate(gridded).mkdir()
    for device, threads in [
        ("CPU (3 threads)", 3),
        ("2 processes, the first on CPU (16 threads): no CUDA device found", 16),
        ("GPU 0 (CPU (2 threads))", None),
        (None, None),
    ]:
        content = {"settings": gridded.settings.values(), "data": {}, "environment": {}}
        content["environment"]["device"] = device
        write_json(work.locate(gridded) / "config.json", content)
        assert work.find_threads(gridded) == threads


def test_every_optimizer_has_its_learning_rate(capsys):
    rates = {name: 0.003 + 0.001 * i for i, name in enumerate(OPTIMIZERS)}
    flags = [word for name, rate in rates.items() for word in (f"--lr_{name}", str(rate))]
    assert reproduce.main(["table-cifar", "--dry_run", *flags]) == 0
    for line in capsys.readouterr().out.strip().splitlines():
        settings = parse_settings(shlex.split(line)[2:])
        assert settings.lr == rates[settings.optimizer]


def test_dry_run_of_a_part(capsys):
    both = ["--only", "optimizer=SGD", "augment=DA1", "--only", "seed=1"]
    assert reproduce.main(["table-cifar", "--dry_run", "--seeds", "2", *both]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    found = [parse_settings(shlex.split(line)[2:]) for line in lines]
    names = ("optimizer", "augment", "seed", "loss")
    assert [tuple(s.values(list(names)).values()) for s in found] == [
        ("SGD", "DA1", 1, loss) for loss in ("CE", "BCE")
    ]


def test_the_command_of_a_report_is_the_one_that_was_given():
    words = (
        "tsne --scale cpu --dataset digits --models MLP ViT --only loss=CE loss=BCE --epochs 3 "
        "--lr_SGD 0.5 --seeds 2"
    )
    place = ["--data_dir", "/data/images/", "--jobs", "2", "--gpu_ids", "0", "1", "--out", "x"]
    args = parse_flags([*words.split(), *place])
    command = reproduce.format_command(args)
    assert command == f"python reproduce.py {words} --data_dir images"
