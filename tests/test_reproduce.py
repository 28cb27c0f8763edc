"""reproduce.py: the grids, their reports, interrupted grids, and jobs through submitit."""

import os
import signal
import statistics
import sys
import time
from pathlib import Path

import pytest

import reproduce
from args import parse_train_args
from figures.accuracy import accuracy_figure
from reproduction import published
from reproduction.experiments import EXPERIMENTS, SCALES
from reproduction.grid import drawn_epochs, grid
from reproduction.launch import Command, Outcome, run_here, run_submitted
from reproduction.results import (
    Result,
    collect,
    losses_compared,
    report_table,
    report_tables,
    run_values,
)
from tests.helpers import assert_mistake, run, start
from theory.minimum import predict
from utils.files import read_csv, write_csv

SMOKE = ["--gpu_id", "-1", "--epochs", 1]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_run_of_every_grid_is_a_command_of_train(name, scale):
    runs = grid(name, scale, seeds=2)
    assert len({run.name for run in runs}) == len(runs)
    for gridded in runs:
        settings = vars(parse_train_args([*gridded.flags(), "--run_name", gridded.name]))
        for key, value in gridded.settings.items():
            assert settings[key] == value


def test_the_papers_grids():
    table = grid("table-cifar", "full")
    assert len(table) == 3 * 2 * 2 * 2 * 2
    assert len({tuple(run.published(EXPERIMENTS["table-cifar"]).items()) for run in table}) > 40
    for gridded in table:
        top1, uniform = gridded.published(EXPERIMENTS["table-cifar"]).values()
        assert 50 < top1 < 97 and uniform <= top1
        settings = gridded.settings
        assert (settings["epochs"], settings["lr"]) == (100, 0.01)
    assert len(grid("bias-mean", "full")) == 3 * 2 * 2 * 2 * 9
    assert len(grid("bias-decay", "full")) == 3 * 2 * 2 * 2 * 6
    assert len(grid("imagenet", "full")) == 6
    # t-SNE is drawn of runs that the curves have trained
    curves = {run.name for run in grid("nc-curves", "full")}
    assert {run.name for run in grid("tsne", "full")} < curves


def test_published_numbers():
    assert published.ACCURACY["cifar100", "ResNet50", "BCE", "AdamW", "DA1"] == (75.3, 68.8)
    assert published.ACCURACY["cifar10", "DenseNet121", "CE", "SGD", "DA1+DA2"] == (86.7, 81.5)
    assert published.find_scores(10, "CE", 0.05) == (5.7, -0.6, None)
    assert published.find_scores(10, "BCE", 0.123) == (None, None, None)
    # The figures show what the exact theory says, to what can be read off them.
    for (classes, loss, decay), shown in published.SCORE_FIGURES.items():
        exact = predict(loss, classes, 128 / classes, 5e-4, 5e-4, decay or 0.0)
        computed = (exact.positive_score, exact.negative_score, exact.bias)
        for ours, theirs in zip(computed, shown, strict=True):
            assert theirs is None or ours == pytest.approx(theirs, abs=0.25)


def fake_run(directory, name, top1, uniform):
    (directory / name).mkdir(parents=True)
    row = {"epoch": 1, "test_top1": top1, "test_uniform": uniform, "seconds": 1.0}
    write_csv(directory / name / "metrics.csv", list(row), [row])


def test_seeds_are_averaged_and_held_against_the_paper(tmp_path):
    runs = grid("table-cifar", "full", seeds=3, datasets=["cifar10"], models=["ResNet18"])
    values = {run.name: (90 + i % 7, 80 + i % 5) for i, run in enumerate(runs)}
    for name, pair in values.items():
        fake_run(tmp_path, name, *pair)
    experiment = EXPERIMENTS["table-cifar"]
    paper = {run.name: run.published(experiment) for run in runs}
    results = collect(runs, tmp_path, experiment.measures, paper, {runs[0].name: "diverged"})
    assert len(results) == len(runs) / 3
    assert results[0].missing == [f"{runs[0].name}: diverged"]
    header, cells = report_table(results, experiment.measures)
    assert header[5:8] == ["A %", "A % paper", "difference"]
    for i, result in enumerate(results):
        seeds = [values[run.name][0] for run in runs[3 * i + (i == 0) : 3 * i + 3]]
        mean, std = statistics.fmean(seeds), statistics.stdev(seeds)
        labels = tuple(result.labels[key] for key in ("dataset", "model", "loss"))
        top1 = published.ACCURACY[*labels, result.labels["optimizer"], result.labels["augment"]][0]
        assert cells[i][5:8] == [f"{mean:.2f} ± {std:.2f}", f"{top1:.2f}", f"{mean - top1:+.2f}"]
    header, cells = losses_compared(results, experiment.measures)
    ce, bce = (next(r for r in results if r.labels["loss"] == loss) for loss in ("CE", "BCE"))
    assert cells[0][header.index("A %")] == f"{bce.mean('top1') - ce.mean('top1'):+.2f}"
    assert cells[0][header.index("A_Uni % paper")] == "+6.70"  # 91.9 − 85.2
    figure = accuracy_figure(results)
    assert len(figure.axes) == 2
    assert len(figure.axes[0].get_yticks()) == 4


def test_empty_cells_have_no_value(tmp_path):
    fake_run(tmp_path, "r", 90, 80)
    rows = [{"epoch": i, "split": "train", "nc1": i, "nc2": None} for i in (1, 2)]
    rows[-1]["nc1"] = None
    write_csv(tmp_path / "r" / "nc_metrics.csv", list(rows[0]), rows)
    measures = ["nc1", "nc2", "nc2_mean", "nc3", "positive"]
    assert run_values(tmp_path / "r", measures) == ({}, {})


def test_wide_reports_are_split():
    measures = EXPERIMENTS["nc-curves"].measures
    values = {measure: [1.0] for measure in measures}
    tables = report_tables([Result({"loss": "CE"}, values, {})], measures)
    assert sum(len(header) - 1 for header, _ in tables) == len(measures)
    assert max(len(header) for header, _ in tables) <= 10


def test_drawn_epochs():
    assert drawn_epochs(100) == "6-13"
    assert drawn_epochs(3) == "2-3"


def smoke(directory, *words):
    flags = [*SMOKE, "--save_dir", directory / "runs", "--out", directory / "out", *words]
    return [str(word) for word in flags]


def test_a_grid_is_interrupted_and_goes_on(tmp_path, capsys):
    process = start("reproduce.py", "imagenet", *smoke(tmp_path))
    first = ""
    while "[1/2]" not in first and process.poll() is None:
        first = process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143, err
    assert err.strip() == reproduce.STOPPED
    assert not (tmp_path / "out" / "report.md").exists()
    assert reproduce.main(["imagenet", *smoke(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "2 runs, 1 to train" in said
    report = (tmp_path / "out" / "report.md").read_text()
    for gridded in grid("imagenet", "smoke", overrides={"epochs": 1}):
        row = read_csv(tmp_path / "runs" / gridded.name / "metrics.csv")[-1]
        assert f"| {float(row['test_top1']):.2f} |" in report
        assert gridded.name in report
    assert "76.74" in report  # the paper's
    assert "python reproduce.py imagenet --scale smoke --epochs 1" in report
    assert (tmp_path / "out" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert reproduce.main(["imagenet", *smoke(tmp_path)]) == 0
    assert "2 runs, 0 to train" in capsys.readouterr().out


def test_score_figures_and_a_run_that_fails(tmp_path, capsys, monkeypatch):
    bad = grid("bias-decay", "smoke", overrides={"epochs": 1})[0].name
    run_all = reproduce.run_here

    def with_a_failure(commands, jobs):
        commands[bad] = [sys.executable, "-c", "import sys; sys.exit('it is broken')"]
        return run_all(dict([*commands.items()][:3]), jobs)

    monkeypatch.setattr(reproduce, "run_here", with_a_failure)
    monkeypatch.setattr(reproduce, "grid_of", lambda args: grid_of(args)[:3])
    grid_of = lambda args: grid("bias-decay", "smoke", overrides={"epochs": 1})  # noqa: E731
    assert reproduce.main(["bias-decay", *smoke(tmp_path)]) == 2
    report = (tmp_path / "out" / "report.md").read_text()
    assert f"{bad}: it is broken" in report
    assert (tmp_path / "out" / "scores_MLP_digits.png").exists()
    row = next(row for row in read_csv(tmp_path / "out" / "results.csv") if row["mean"])
    exact = predict("CE", 10, 3.2, 5e-4, 5e-4, 5e-6)
    assert float(row["predicted"]) == pytest.approx(exact.positive_score)
    monkeypatch.undo()
    assert reproduce.main(["theory", "--out", str(tmp_path / "out")]) == 0  # in place of a smoke


def test_commands_are_run_here(tmp_path):
    words = [sys.executable, "-c", "import sys; print('said', file=sys.stderr); sys.exit(3)"]
    commands = {"bad": words, "good": [sys.executable, "-c", ""]}
    assert dict(run_here(commands, 2)) == {"bad": Outcome(3, "said"), "good": Outcome(0)}


# Counts its starts; the first one waits for the stop.
PREEMPTED = """
import pathlib, signal, sys, time
starts = pathlib.Path(sys.argv[1])
count = len(starts.read_text()) if starts.exists() else 0
signal.signal(signal.SIGTERM, lambda *_: (starts.with_suffix(".saved").touch(), sys.exit(143)))
starts.write_text("x" * (count + 1))
if count == 0:
    time.sleep(60)
"""


def test_a_preempted_job_saves_and_is_requeued(tmp_path):
    submitit = pytest.importorskip("submitit")
    executor = submitit.AutoExecutor(folder=tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=10)
    starts = tmp_path / "starts"
    job = executor.submit(Command([sys.executable, "-c", PREEMPTED, str(starts)]))
    deadline = time.monotonic() + 60
    while not starts.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    # As SLURM does: the signal goes to the task, which is the child of the local controller.
    controller = job._process.pid
    (task,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(task), signal.SIGUSR2)
    assert job.result() == Outcome(0)
    assert starts.read_text() == "xx"
    assert (tmp_path / "starts.saved").exists()


def test_jobs_through_submitit(tmp_path):
    pytest.importorskip("submitit")
    write = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"
    commands = {name: [sys.executable, "-c", write, str(tmp_path / name)] for name in "ab"}
    commands["c"] = [sys.executable, "-c", "raise SystemExit('no')"]
    options = {"gpu": None, "minutes": 5, "extra": {}, "say": print}
    found = dict(run_submitted(commands, "local", 2, tmp_path / "jobs", **options))
    assert found == {"a": Outcome(0), "b": Outcome(0), "c": Outcome(1, "no")}
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists()


def test_mistakes(tmp_path, capsys):
    def refused(*words):
        assert reproduce.main([*map(str, words)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "no effect" in refused("theory", "--epochs", 3)
    assert "no effect" in refused("tsne", "--slurm", "partition=gpu")
    assert "--data_dir" in refused("imagenet", "--scale", "full")
    (tmp_path / "report.json").write_text('{"experiment": "tsne", "scale": "cpu"}')
    assert "give another --out" in refused("imagenet", "--out", tmp_path)
    assert_mistake(run("reproduce.py", "table-mnist"), "table-mnist", "nc-curves")


def test_dry_run(capsys):
    assert reproduce.main(["table-cifar", "--scale", "full", "--dry_run", "--seeds", "2"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 96
    assert all(line.startswith("python train.py --model ") for line in lines)
