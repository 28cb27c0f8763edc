"""What a grid is about to take: hours and bytes against sums by hand, and the refusals."""

import dataclasses
import json
import sys

import pytest

from reproduction import EXPERIMENTS
from reproduction.checks import (
    check_data,
    explain_confirmation,
    needs_confirmation,
    refuse_cost,
    refuse_lost_checkpoints,
)
from reproduction.cost import (
    Case,
    Figures,
    add_up,
    ask,
    count_written,
    estimate_cost,
    format_seconds,
    list_unevaluated,
    name_case,
    read_figures,
)
from reproduction.grid import build_grid
from reproduction.places import Place, divide_machine
from reproduction.work import Work
from utils.errors import UserError
from utils.files import write_csv

EPOCHS = 4
LINES = [
    {"case": 0, "images": [100, 10], "weights": 1000, "trained": 900},
    {"device": "CPU (2 threads): no CUDA", "cuda": False, "starting": 3.0},
    {"case": 0, "step": 0.5, "test": 0.1, "evaluation": 0.2, "network": "MLP"},
]


def plan(tmp_path, name="nc-curves", scale="smoke", **options):
    """The runs of an experiment, of EPOCHS epochs, under tmp_path."""
    runs = build_grid(name, scale, overrides={"epochs": EPOCHS}, **options)
    return Work(name, scale, runs, tmp_path / "runs", tmp_path / "out")


def write_epochs(work, run, count):
    """Let a run have trained some epochs."""
    work.locate(run).mkdir(parents=True, exist_ok=True)
    write_csv(work.locate(run) / "metrics.csv", ["epoch"], [{"epoch": i} for i in range(count)])


def read(work, lines=LINES, complaint=""):
    names = list(dict.fromkeys(name_case(run.settings) for run in work.runs))
    return read_figures(names, map(json.dumps, lines), complaint)


def count(work, jobs=1, free=10**9, timed=True, figures=None, gpu_ids=(None,)):
    figures = read(work) if figures is None else figures
    return add_up(work, figures, divide_machine(jobs, gpu_ids), free, timed=timed)


def test_hours_are_those_of_what_is_left(tmp_path):
    work = plan(tmp_path)  # {CE, BCE} × {SGD, AdamW}
    finished, begun, *_ = work.runs
    write_epochs(work, finished, EPOCHS)
    write_epochs(work, begun, 1)
    rows = [{"epoch": e, "split": "train"} for e in range(1, EPOCHS + 1)]
    write_csv(work.locate(finished) / "nc_metrics.csv", ["epoch", "split"], rows)
    cost = count(work)
    assert (cost.runs, cost.finished, cost.begun, cost.to_do) == (4, 1, 1, 3)
    epoch = 100 * 0.5 + 10 * 0.1
    assert cost.training == pytest.approx((3 + 3 * epoch) + 2 * (3 + 4 * epoch))
    # 4 checkpoints on both splits, of the finished run on the test set alone.
    assert cost.evaluation == pytest.approx(0.2 * (4 * 10 + 3 * 4 * (100 + 10)))


def test_runs_at_a_time_divide_the_hours(tmp_path):
    work = plan(tmp_path)
    run = 3 + EPOCHS * (100 * 0.5 + 10 * 0.1)
    assert count(work, jobs=2).training == pytest.approx(2 * run)
    assert count(work, jobs=3).training == pytest.approx(4 * run / 3)
    assert count(work, jobs=9).training == pytest.approx(run)  # no shorter than a run
    assert "with 2 runs at a time, if they do not slow each other" in (
        count(work, jobs=2).describe_time()
    )
    apart = count(work, jobs=2, gpu_ids=[0, 1]).describe_time()
    assert apart.endswith("with 2 runs at a time")
    for each in work.runs[1:]:
        write_epochs(work, each, EPOCHS)
    assert count(work, jobs=2).training == pytest.approx(run)  # only one is left


def test_what_is_assumed_of_several_processes_is_said(tmp_path):
    work, figures = plan(tmp_path), read(plan(tmp_path))
    on_cpu = add_up(work, figures, divide_machine(1, [-1], 2), 10**9, timed=True)
    assert on_cpu.training == count(work).training  # the cores are the same
    assert "the 2 processes of a run are taken to be as fast as one" in on_cpu.describe_time()
    figures = dataclasses.replace(figures, cuda=True)
    on_gpus = add_up(work, figures, divide_machine(1, [None], 2), 10**9, timed=True)
    assert on_gpus.describe_time().endswith("whose exchange of gradients is not counted")


def test_the_process_that_measures_has_the_threads_of_a_whole_run(tmp_path, monkeypatch):
    echo = (
        "import json, os, sys; r = json.load(sys.stdin); "
        'sys.exit(f\'{r["processes"]} {r["gpu_id"]} {os.environ["OMP_NUM_THREADS"]}\')'
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    place = Place(0, 3, 4, processes=2, gpu_ids=(4, 6))
    figures = ask(plan(tmp_path).runs, [sys.executable, "-c", echo], place, "data", timed=True)
    assert figures.problem == "2 0 6"


def test_bytes_are_those_of_what_is_left(tmp_path):
    work = plan(tmp_path)  # SGD keeps 1 number for a parameter, AdamW 2
    sgd, adamw = (1000 + buffers * 900 for buffers in (1, 2))
    cost = count(work)
    spare = cost.needed - 4 * EPOCHS * 1000 - 2 * (sgd + adamw)
    assert adamw <= spare <= adamw + 2000  # last.pth is written beside the old one
    assert count(work, jobs=2).needed == cost.needed + spare
    run = work.runs[0]
    write_epochs(work, run, 2)
    directory = work.locate(run)
    (directory / "epoch_001.pth").write_bytes(b"x" * 1000)
    (directory / "best_model.pth").hardlink_to(directory / "epoch_001.pth")
    (directory / "last.pth").write_bytes(b"x" * 1900)
    assert count_written(directory) == 2900
    assert count(work).needed == cost.needed - 2900
    for run in work.runs:
        write_epochs(work, run, EPOCHS)
    assert count(work).needed == 0


def test_a_table_keeps_the_best_weights_alone(tmp_path):
    """And last.pth; nc-curves keeps every epoch, and a score figure the last."""
    for name, kept in [("table-cifar", "best"), ("nc-curves", "all"), ("bias-decay", 1)]:
        work = plan(tmp_path, name)
        assert {run.settings.keep_checkpoints for run in work.runs} == {kept}
        assert ("--keep_checkpoints" in work.runs[0].flags()) == (kept != "all")
        assert "keep" not in work.runs[0].name
    tsne = plan(tmp_path, "tsne").runs[0]  # shared with nc-curves
    assert tsne.settings.keep_checkpoints == "all"


def test_what_is_said(tmp_path):
    work = plan(tmp_path)
    write_epochs(work, work.runs[0], 1)
    lines = count(work, free=5 * 10**9).describe(work.save_dir)
    assert lines[0].startswith("4 runs, 0 finished, 4 to train, 1 of them begun; run directories")
    assert lines[1] == f"disk: up to {count(work).needed / 1000:.1f} kB to write, 5.0 GB free"
    assert lines[2].startswith("time: about 19 min on CPU (2 threads): 13 min of training, 6 min")
    assert lines[3] == "measured: MLP: 2 images/s in training, 10 in a test pass"
    elsewhere = count(work, timed=False).describe(work.save_dir)
    assert "on other machines" in elsewhere[2]
    for run in work.runs:
        write_epochs(work, run, EPOCHS)
    done = count(work, timed=False, figures=Figures()).describe(work.save_dir)
    assert done == [f"4 runs, 4 finished, 0 to train; run directories under {work.save_dir}"]


def test_what_is_not_known_is_said(tmp_path):
    work = plan(tmp_path, models=["MLP", "ViT"])
    figures = read(work, [*LINES, {"case": 1, "unknown": "no size"}])
    cost = count(work, figures=figures)
    assert cost.describe_time().endswith("of evaluation; not counted: no size")
    assert "(no size), 1.0 GB free" in cost.describe(work.save_dir)[1]
    silent = count(work, figures=read(work, [], "Traceback\nRuntimeError: broken"))
    assert silent.describe_time() == "unknown (RuntimeError: broken)"
    assert silent.missing == ""  # the runs will say it
    unmeasured = {"case": 0, "unmeasured": "out of memory"}
    half = count(work, figures=read(work, [LINES[0], LINES[1], unmeasured], "late"))
    assert half.describe_time() == "unknown (out of memory; late)"
    assert half.needed > 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (89, "89 s"),
        (1800, "30 min"),
        (2.25 * 3600, "2.2 h"),
        (30 * 3600, "30 h"),
        (3700 * 3600, "3,700 h (154 days)"),
    ],
)
def test_times(seconds, text):
    assert format_seconds(seconds) == text


def test_refusals_name_figures_and_remedies(tmp_path):
    def refuse(cost, work, confirmed=False):
        with pytest.raises(UserError) as refusal:
            refuse_cost(work, cost, confirmed=confirmed)
        assert "\n" not in str(refusal.value)
        return str(refusal.value)

    work = plan(tmp_path)
    cost = count(work)
    refuse_cost(work, cost, confirmed=False)
    line = refuse(dataclasses.replace(cost, free=cost.needed - 1), work)
    assert f"up to {cost.needed / 1000:.1f} kB are still to be written" in line
    assert "--save_dir" in line and "kB free" in line
    assert refuse(dataclasses.replace(cost, missing="no data"), work, True) == "no data"

    full = plan(tmp_path, "long-tail", "full")
    figures = read(full, [*LINES, *({**LINES[i], "case": k} for k in (1, 2) for i in (0, 2))])
    days = count(full, figures=figures)
    line = refuse(days, full)
    assert "--yes" in line and format_seconds(days.training + days.evaluation) in line
    assert "CPU (2 threads), no CUDA" in line
    refuse_cost(full, days, confirmed=True)
    refuse_cost(full, count(full, timed=False, figures=figures), confirmed=False)  # SLURM
    on_gpu = dataclasses.replace(figures, cuda=True)
    refuse_cost(full, count(full, figures=on_gpu), confirmed=False)
    nothing = count(full, figures=Figures(problem="broken"))
    assert needs_confirmation(full, nothing)
    assert "an unknown time on this machine" in explain_confirmation(nothing)
    for run in full.runs:
        write_epochs(full, run, EPOCHS)
    refuse_cost(full, count(full, figures=figures), confirmed=False)


def test_a_run_that_has_lost_what_will_be_measured_is_refused(tmp_path):
    work = plan(tmp_path)
    run = work.runs[0]
    write_epochs(work, run, 3)
    names = [f"epoch_00{i}.pth" for i in (1, 2, 3)]
    for name in names:
        (work.locate(run) / name).touch()
    refuse_lost_checkpoints(work)
    (work.locate(run) / names[2]).rename(work.locate(run) / f"{names[2]}.aside")
    refuse_lost_checkpoints(work)  # a resume will train it again
    for name in names[:2]:
        (work.locate(run) / name).unlink()
    with pytest.raises(UserError, match=r"lost epoch_001\.pth and 1 more, which nc-curves"):
        refuse_lost_checkpoints(work)
    tsne = plan(tmp_path, "tsne")  # needs epochs 2 to 4 of the same run
    with pytest.raises(UserError, match=r"lost epoch_002\.pth, which tsne"):
        refuse_lost_checkpoints(tsne)
    table = plan(tmp_path, "table-cifar")
    write_epochs(table, table.runs[0], EPOCHS)
    refuse_lost_checkpoints(table)


def test_data_is_looked_for_once(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "input_pipeline.load.identify_dataset",
        lambda name, root, **options: seen.append((name, options["imbalance_factor"])),
    )
    check_data(build_grid("long-tail", "full", seeds=2), str(tmp_path))
    check_data(build_grid("imagenet", "full"), str(tmp_path))
    assert seen == [("cifar100", 10), ("cifar100", 50), ("cifar100", 100)]


def test_every_experiment_names_epochs_that_are_saved(tmp_path):
    for name, experiment in EXPERIMENTS.items():
        for run in build_grid(name, "full")[:1]:
            work = Work(name, "full", [run], tmp_path, tmp_path)
            epochs = work.list_needed_epochs(run)
            assert list_unevaluated(work, run) == [
                (e, s) for e in epochs for s in ("train", "test")
            ]
            chosen = {"last": [100], "all": [*range(1, 101)], None: []}
            if experiment.epochs is None:
                assert epochs == chosen[experiment.checkpoints]
            else:
                assert epochs == list(range(6, 14))


def test_a_process_that_says_nothing(tmp_path):
    runs = plan(tmp_path).runs
    command = [sys.executable, "-c", "import sys; print('hello'); sys.exit('no torch here')"]
    figures = ask(runs, command, Place(0), "data", timed=True)
    assert figures == Figures(problem="no torch here")
    assert figures.find(runs[0]) == Case(problem="no torch here")


def test_nothing_is_asked_where_nothing_is_to_do(tmp_path):
    work = plan(tmp_path, "table-cifar")
    for run in work.runs:
        write_epochs(work, run, EPOCHS)
    cost = estimate_cost(work, [Place(0)], ["no such command"], "data", timed=True)
    assert (cost.to_do, cost.training, cost.evaluation, cost.unknown) == (0, 0.0, 0.0, ())
