"""What a grid gave: seeds together, beside the paper's numbers, as tables and as a picture."""

import statistics
from dataclasses import replace

import pytest

from metrics import MEASURES
from reproduction import EXPERIMENTS, OVER_EPOCHS, published
from reproduction.checks import refuse_other_classes
from reproduction.grid import build_grid
from reproduction.pictures import (
    draw_accuracies,
    draw_curves,
    draw_scores,
    draw_tsne,
    list_evaluations,
)
from reproduction.readings import read_values
from reproduction.report import Report, build_report, format_report, format_tables_plainly
from reproduction.results import (
    Result,
    collect_results,
    compare_losses,
    format_results,
    format_tables,
    list_rows,
)
from reproduction.work import Work
from utils.console import format_markdown
from utils.errors import UserError
from utils.files import write_csv, write_json


def write_metrics(directory, top1, uniform):
    directory.mkdir(parents=True)
    row = {"epoch": 1, "test_top1": top1, "test_uniform": uniform, "seconds": 1.0}
    write_csv(directory / "metrics.csv", list(row), [row])


def plan(tmp_path, name, scale="smoke", failed=(), **options):
    runs = build_grid(name, scale, **options)
    return Work(name, scale, runs, tmp_path, tmp_path / "out", failed=dict(failed))


def build_report_of(work, results):
    """A report without the records of the runs."""
    return Report(work, "", results, [], [])


@pytest.fixture
def table(tmp_path):
    """The paper's table for one network and data set, three seeds, the first run failed."""
    options = {"seeds": 3, "datasets": ["cifar10"], "models": ["ResNet18"]}
    first = build_grid("table-cifar", "full", **options)[0].name
    work = plan(tmp_path, "table-cifar", "full", failed={first: "diverged"}, **options)
    for i, run in enumerate(work.runs):
        write_metrics(work.locate(run), 90 + i % 7, 80 + i % 5)
    return work


def test_seeds_are_averaged_and_compared_with_the_paper(table):
    results = collect_results(table)
    assert len(results) == len(table.runs) / 3
    assert results[0].missing == [f"{table.runs[0].name}: diverged"]
    header, cells = format_results(results, table.experiment.measures)
    title = MEASURES["top1"].heading
    first = header.index(title)
    assert header[first : first + 3] == [title, f"{title} paper", "difference"]
    for i, result in enumerate(results):
        seeds = [90 + k % 7 for k in range(3 * i + (i == 0), 3 * i + 3)]
        mean, std = statistics.fmean(seeds), statistics.stdev(seeds)
        paper = published.ACCURACY[tuple(result.labels.values())][0]
        ours = f"{mean:.2f} ± {std:.2f}"
        assert cells[i][first : first + 3] == [ours, f"{paper:.2f}", f"{mean - paper:+.2f}"]


def test_numbers_of_other_networks_and_data_are_context(tmp_path):
    work = plan(tmp_path, "table-cifar", "full", datasets=["mnist"], models=["ResNet18", "MLP"])
    for run in work.runs:
        write_metrics(work.locate(run), 90, 80)
    results = collect_results(work)
    header, cells = format_results(results, work.experiment.measures)
    assert "difference" not in header
    first = header.index(f"{MEASURES['top1'].heading} paper (ResNet18, CIFAR10)")
    assert cells[0][first - 1 : first + 1] == ["90.00", "92.80"]
    compared, gaps = compare_losses(results, work.experiment.measures, "BCE", "CE")
    assert gaps[0][compared.index(header[first])] == "+0.40"  # 93.2 − 92.8
    row = list_rows(results, work.experiment.measures)[0]
    assert (row["paper"], row["context"], row["context_of"]) == (None, 92.8, "ResNet18, CIFAR10")
    text = format_tables_plainly(build_report_of(work, results))
    assert "under `paper (ResNet18, CIFAR10)` are context" in text


@pytest.mark.parametrize(
    ("name", "scale", "options", "held"),
    [
        ("tsne", "full", {"overrides": {"lr_SGD": 0.1}}, False),
        ("table-cifar", "full", {"overrides": {"lr_SGD": 0.01}}, True),
        ("table-cifar", "full", {"overrides": {"epochs": 100}}, True),
        ("table-cifar", "full", {"overrides": {"epochs": 5}}, False),
        ("table-cifar", "full", {"overrides": {"sample_size": 50}}, False),
        ("table-cifar", "cpu", {"datasets": ["cifar10"], "models": ["ResNet18"]}, False),
        ("long-tail", "full", {}, False),  # the paper's network is not known
        ("nc-curves", "full", {}, True),
    ],
)
def test_runs_that_are_the_papers(tmp_path, name, scale, options, held):
    work = plan(tmp_path, name, scale, **options)
    assert {work.is_papers(run) for run in work.runs} == {held}


def test_a_folder_is_the_papers_by_its_size(tmp_path):
    work = plan(tmp_path, "imagenet", "full", models=["ResNet50"])
    run = work.runs[0]
    assert not work.is_papers(run)
    assert work.describe_paper(run) == "ResNet50, ImageNet-1K"
    work.locate(run).mkdir()
    for train, held in [(1_281_167, True), (1000, False)]:
        data = {"num_classes": 1000, "train_size": train, "test_size": 50_000}
        content = {"settings": run.settings.values(), "data": data}
        write_json(work.locate(run) / "config.json", content)
        assert work.is_papers(run) == held


def plan_copy(directory, overrides):
    """A folder of two classes with a run of the paper's table, which calls it a copy of CIFAR10."""
    for path in ("train/a/x.jpg", "train/b/y.jpg", "test/a/x.jpg", "test/b/y.jpg"):
        file = directory / "photos" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    options = {"datasets": ["folder"], "models": ["DenseNet121"], "overrides": overrides}
    work = plan(directory, "table-cifar", "full", copy_of="cifar10", **options)
    ces = [run for run in work.runs if run.settings.loss == "CE"]
    work = replace(work, runs=ces[:1], data_dir=str(directory / "photos"))
    run = work.runs[0]
    write_metrics(work.locate(run), 82.1, 59.1)
    facts = {"num_classes": 10, "train_size": 40_000, "test_size": 10_000}
    content = {"settings": run.settings.values(), "data": facts}
    write_json(work.locate(run) / "config.json", content)
    return work


def test_the_papers_numbers_stand_beside_a_copy_of_its_data(tmp_path):
    work = plan_copy(tmp_path, {"epochs": 10, "lr_SGD": 0.05})
    results = collect_results(work)
    header, cells = format_results(results, work.experiment.measures)
    assert header[-4:] == [
        "top-1 %",
        "top-1 % paper (CIFAR10, lr 0.01, epochs 100)",
        "uniform %",
        "uniform % paper (CIFAR10, lr 0.01, epochs 100)",
    ]
    assert cells == [
        ["photos", "DenseNet121", "CE", "SGD", "DA1", "82.10", "87.90", "59.10", "78.80"]
    ]
    report = format_report(build_report(work, "", results, []))
    assert (
        "- Differs from the paper's runs: data: photos, image files (.jpg) that --copy_of calls a "
        "copy of CIFAR10, normalised by their own mean and standard deviation, 40,000 and 10,000 "
        "images, not 50,000 and 10,000; lr 0.05, not 0.01; epochs 10, not 100." in report
    )


def test_a_copy_with_the_papers_settings_is_still_not_its_data(tmp_path):
    work = plan_copy(tmp_path, {})
    assert work.describe_paper(work.runs[0]) == "CIFAR10"
    assert not work.is_papers(work.runs[0])
    with pytest.raises(UserError, match="has 2 classes, not 10"):
        refuse_other_classes(work, "cifar10")


def test_a_folder_is_named_by_its_directory(tmp_path):
    work = replace(plan(tmp_path, "imagenet", "full"), data_dir="/x/a|b/")
    work = replace(work, failed={run.name: "" for run in work.runs})
    assert {result.labels["dataset"] for result in collect_results(work)} == {"a|b"}
    assert format_markdown(["a|b"], [["c"]]).splitlines()[0] == r"| a\|b |"


def test_losses_are_compared(table):
    results = collect_results(table)
    header, cells = compare_losses(results, table.experiment.measures, "BCE", "CE")
    ce, bce = (next(r for r in results if r.labels["loss"] == loss) for loss in ("CE", "BCE"))
    gap = bce.mean("top1") - ce.mean("top1")
    assert cells[0][header.index(MEASURES["top1"].heading)] == f"{gap:+.2f}"
    uniform = f"{MEASURES['uniform_accuracy'].heading} paper"
    assert cells[0][header.index(uniform)] == "+6.70"  # 91.9 − 85.2
    assert compare_losses(results, table.experiment.measures, "MSE", "CE") is None
    assert compare_losses(results, ["positive_mean"], "BCE", "CE") is None


def test_rows_have_full_precision(table):
    rows = list_rows(collect_results(table), table.experiment.measures)
    row = next(row for row in rows if row["measure"] == "uniform_accuracy")
    assert (row["seeds"], row["mean"], row["paper"]) == (2, 81.5, 85.2)
    assert row["std"] == statistics.stdev([81, 82])
    assert row["predicted"] is None


def test_accuracies_are_drawn(table):
    table.out.mkdir()
    drawing = draw_accuracies(table)
    assert drawing.calls == ()
    assert [path.read_bytes()[:4] for path in drawing.pictures] == [b"\x89PNG"]


def test_empty_cells_have_no_value(tmp_path):
    write_metrics(tmp_path / "r", 90, 80)
    rows = [{"epoch": i, "split": "train", "nc1": i, "nc2": None} for i in (1, 2)]
    rows[-1]["nc1"] = None
    write_csv(tmp_path / "r" / "nc_metrics.csv", list(rows[0]), rows)
    measures = ["nc1", "nc2", f"nc2{OVER_EPOCHS}", "nc3", "positive_mean"]
    assert read_values(tmp_path / "r", measures) == ({}, {})


def test_the_last_epoch_counts_and_the_mean_over_epochs(tmp_path):
    write_metrics(tmp_path / "r", 90, 80)
    rows = [{"epoch": i, "split": "train", "nc2": i, "top1": 10} for i in (1, 2)]
    rows.append({"epoch": 2, "split": "test", "nc2": 50, "top1": 20})
    write_csv(tmp_path / "r" / "nc_metrics.csv", list(rows[0]), rows)
    values, predicted = read_values(tmp_path / "r", ["nc2", f"nc2{OVER_EPOCHS}", "top1"])
    assert values == {"nc2": 2.0, f"nc2{OVER_EPOCHS}": 1.5, "top1": 90.0}
    assert predicted == {}


def test_a_damaged_cell_is_named(tmp_path):
    write_metrics(tmp_path / "r", "x", 80)
    with pytest.raises(UserError, match="test_top1 is 'x'"):
        read_values(tmp_path / "r", ["top1"])


def test_wide_reports_are_split():
    measures = EXPERIMENTS["nc-curves"].measures
    values = {measure: [1.0] for measure in measures}
    tables = format_tables([Result({"loss": "CE"}, values, {})], measures)
    assert sum(len(header) - 1 for header, _ in tables) == len(measures)
    assert max(len(header) for header, _ in tables) <= 10


def test_pictures_of_scores_by_network_and_data_set(tmp_path):
    options = {"datasets": ["digits"], "models": ["MLP", "ViT"], "overrides": {"epochs": 3}}
    work = plan(tmp_path, "bias-decay", **options)
    (measuring,) = list_evaluations(work)
    assert measuring.script == "eval_nc"
    assert measuring.flags[-4:] == ["--checkpoints", "last", "--gpu_id", "-1"]
    drawing = draw_scores(work)
    assert [path.name for path in drawing.pictures] == [
        "scores_MLP_digits.png",
        "scores_ViT_digits.png",
    ]
    for call, model in zip(drawing.calls, ("MLP", "ViT"), strict=True):
        runs = [str(work.locate(run)) for run in work.runs if run.settings.model == model]
        assert call.flags[: len(runs)] == runs
        assert call.flags[len(runs) :][:2] == ["--by", "weight_decay_bias"]


def test_pictures_of_an_earlier_tsne_are_outdated(tmp_path):
    (tmp_path / "out").mkdir()
    old = tmp_path / "out" / "tsne_epoch_013.png"
    old.touch()
    work = plan(tmp_path, "tsne", seeds=2, overrides={"epochs": 3})
    drawing = draw_tsne(work)
    assert drawing.outdated == [old]
    (call,) = drawing.calls
    assert call.flags[:2] == [str(work.locate(run)) for run in work.runs if run.settings.seed == 0]
    assert call.flags[2:4] == ["--checkpoints", "2-3"]
    assert [path.name for path in drawing.pictures] == ["tsne_epoch_003.png", "tsne.gif"]


def test_pictures_of_a_part(tmp_path):
    work = plan(tmp_path, "tsne", seeds=2, overrides={"epochs": 3})
    second = replace(work, runs=[run for run in work.runs if run.settings.seed == 1])
    (call,) = draw_tsne(second).calls
    assert call.flags[:2] == [str(work.locate(run)) for run in second.runs]
    work = plan(tmp_path, "nc-curves")
    assert "--out" in list_evaluations(work)[0].flags
    single = replace(work, runs=work.runs[:1])
    assert "--out" not in list_evaluations(single)[0].flags  # eval_nc.py refuses it for one run
    single.out.mkdir()
    (single.out / "nc_curves_overlay.png").touch()
    single.locate(single.runs[0]).mkdir()
    (single.locate(single.runs[0]) / "nc_curves.png").write_bytes(b"curves")
    drawing = draw_curves(single)
    assert drawing.pictures[0].read_bytes() == b"curves"
    assert drawing.outdated == [single.out / "nc_curves_overlay.png"]


def test_a_report_names_runs_without_a_result(tmp_path):
    runs = build_grid("imagenet", "smoke")
    failed = {run.name: "it is broken" for run in runs}
    work = plan(tmp_path, "imagenet", failed=failed)
    text = format_tables_plainly(build_report(work, "", collect_results(work), []))
    assert f"{runs[0].name}: it is broken" in text
