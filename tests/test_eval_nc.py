"""eval_nc.py: the table against features extracted by hand, what is kept, and how it fails."""

import json
import math
import os
import re
import shutil

import pytest
import torch
from PIL import Image

import eval_nc
import eval_scores
import train
from input_pipeline.load import load_dataset
from metrics import MEASURES, Measure, features
from metrics.accuracy import compute_uniform_accuracy
from metrics.calibration import compute_calibration
from metrics.geometry import compute_geometry
from metrics.neural_collapse import compute_neural_collapse
from metrics.properties import compute_feature_properties
from metrics.scores import compute_decision_scores
from metrics.variability import compute_variability
from models import build_model
from rundir import building, crew, rebuild, weights
from rundir.checkpoints import find_best_epoch
from rundir.weights import load
from tests.helpers import (
    assert_mistake,
    read_refusal,
    read_table,
    run,
    train_here,
    train_run,
)
from tests.processes import run_job
from theory.balanced import find_balanced_minimum
from theory.minimum import predict
from theory.problem import Problem, divide_batch
from utils.files import read_csv, write_csv

DOCUMENTED = re.findall(  # in docs/measures.md
    r"\w+",
    "epoch,split,top1,top5,uniform_accuracy,uniform_threshold,nc1,nc2,nc2_h,nc3,nc4,compactness,"
    "distinctiveness,cdnv,equinorm_means,equinorm_classifier,equiangularity_means,"
    "equiangularity_classifier,maximal_angle_means,maximal_angle_classifier,self_duality,"
    "effective_rank,ece,nll,positive_mean,positive_std,positive_min,positive_max,negative_mean,"
    "negative_std,negative_min,negative_max,bias_mean,bias_std,bias_min,bias_max,"
    "predicted_positive,predicted_negative,predicted_bias,predicted_nc1,predicted_nc2,"
    "predicted_nc2_h,predicted_nc3,predicted_compactness,predicted_distinctiveness,top1_many,"
    "top1_medium,top1_few",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three epochs on digits with augmentation, which evaluation must leave out."""
    flags = ["--epochs", 3, "--augment", "DA1", "--bias_init_mean", 2]
    return train_run(tmp_path_factory.mktemp("runs"), "run", *flags)


@pytest.fixture
def run_dir(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def evaluate(capsys, *flags, status=0):
    """Run eval_nc.py within this process; returns what it printed."""
    command = [str(word) for word in ("--gpu_id", -1, "--load_path", *flags)]
    assert eval_nc.main(command) == status
    return capsys.readouterr()


def remove_columns(run_dir, removed):
    rows = list(read_table(run_dir).values())
    names = [name for name in rows[0] if name not in removed]
    write_csv(run_dir / "nc_metrics.csv", names, [{n: row[n] for n in names} for row in rows])


def test_the_table_is_that_of_features_extracted_by_hand(run_dir, capsys):
    evaluate(capsys, run_dir)
    rows = read_csv(run_dir / "nc_metrics.csv")
    header = (run_dir / "nc_metrics.csv").read_text().splitlines()[0].split(",")
    assert [name for name in header if name in DOCUMENTED] == DOCUMENTED
    assert [(row["epoch"], row["split"]) for row in rows] == [
        (epoch, split) for epoch in "123" for split in ("train", "test")
    ]
    data = load_dataset("digits", ".", sample_size=30)
    model = build_model("MLP", 10, (3, 8, 8), width=32, depth=2)
    model.load_state_dict(load(run_dir / "epoch_002.pth"))
    model.eval()
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (data.mean, data.std))
    for split in ("train", "test"):
        part = getattr(data, split)
        with torch.no_grad():
            pairs = [model(((x / 255 - mean) / std)[None]) for x in part.images]
        logits, features = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        weight, bias = model.fc.weight.detach(), model.fc.bias.detach()
        positive, negative = compute_decision_scores(features, part.labels, weight)
        expected = {
            **compute_neural_collapse(features, part.labels, weight, bias),
            **compute_feature_properties(features, part.labels),
            **compute_variability(features, part.labels),
            **compute_geometry(features, part.labels, weight),
            **compute_calibration(logits, part.labels),
            "top1": 100 * (logits.argmax(1) == part.labels).double().mean().item(),
            "uniform_accuracy": 100 * compute_uniform_accuracy(logits, part.labels)[0],
            "positive_mean": positive.mean().item(),
            "positive_std": positive.std(correction=0).item(),
            "negative_mean": negative.mean().item(),
            "negative_max": negative.max().item(),
            "bias_mean": bias.mean().item(),
            "bias_min": bias.min().item(),
        }
        expected["ece"] *= 100
        row = read_table(run_dir)[2, split]
        for key, value in expected.items():
            assert float(row[key]) == pytest.approx(value, rel=1e-4, abs=1e-6), (split, key)
    trained_row = read_csv(run_dir / "metrics.csv")[1]
    assert float(read_table(run_dir)[2, "test"]["top1"]) == float(trained_row["test_top1"])


def test_unchanged_rows_are_kept_and_changed_ones_computed_anew(run_dir, capsys):
    assert "6 evaluated, 0 unchanged" in evaluate(capsys, run_dir).out
    first = (run_dir / "nc_metrics.csv").read_bytes()
    assert "0 evaluated, 6 unchanged" in evaluate(capsys, run_dir).out
    assert (run_dir / "nc_metrics.csv").read_bytes() == first
    assert "6 evaluated, 0 unchanged" in evaluate(capsys, run_dir, "--force").out

    state = load(run_dir / "epoch_002.pth")
    state["fc.bias"] += 1
    torch.save(state, run_dir / "epoch_002.pth")
    before = read_table(run_dir)
    assert "2 evaluated, 4 unchanged" in evaluate(capsys, run_dir).out
    after = read_table(run_dir)
    shift = float(after[2, "train"]["bias_mean"]) - float(before[2, "train"]["bias_mean"])
    assert shift == pytest.approx(1, rel=1e-5)
    assert after[1, "train"] == before[1, "train"]


def test_two_processes_write_the_table_of_one(run_dir, tmp_path, capsys):
    (run_dir / "epoch_001.pth").write_bytes(b"cut off")
    weights = load(run_dir / "epoch_003.pth")
    torch.save(
        {name: values * torch.nan for name, values in weights.items()}, run_dir / "epoch_003.pth"
    )
    shutil.copytree(run_dir, tmp_path / "shared")
    alone = evaluate(capsys, run_dir, status=2)
    flags = ["--gpu_id", "-1", "--load_path", str(tmp_path / "shared")]
    (status, out, err), *others = run_job(2, eval_nc.main, flags)
    assert status == 2 and others == [(0, "", "")]
    assert err == alone.err.replace(str(run_dir), str(tmp_path / "shared"))
    assert (tmp_path / "shared" / "nc_curves.png").stat().st_size > 0
    ours, expected = read_table(tmp_path / "shared"), read_table(run_dir)
    assert list(ours) == list(expected) == [(2, "train"), (2, "test")]
    for key, row in expected.items():
        for name, cell in row.items():
            if name == "split" or not cell:
                assert ours[key][name] == cell
            else:
                assert float(ours[key][name]) == pytest.approx(float(cell), rel=1e-5), name
    (_, out, _), *_ = run_job(2, eval_nc.main, [*flags, "--checkpoints", "2"])
    assert "0 evaluated, 2 unchanged rows kept" in out


def test_an_interrupted_evaluation_goes_on(run_dir, capsys, monkeypatch):
    calls = []

    def measure_twice(*inputs):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return whole(*inputs)

    whole = crew.compute_measures
    monkeypatch.setattr(crew, "compute_measures", measure_twice)
    with pytest.raises(KeyboardInterrupt):
        evaluate(capsys, run_dir)
    assert len(read_table(run_dir)) == 2
    monkeypatch.setattr(crew, "compute_measures", whole)
    capsys.readouterr()
    assert "4 evaluated, 2 unchanged" in evaluate(capsys, run_dir).out


def test_a_row_without_its_fingerprint_is_computed_again(run_dir, capsys):
    """What a kill between the two files leaves."""
    evaluate(capsys, run_dir)
    prints = json.loads((run_dir / "nc_metrics.json").read_text())
    del prints["3 test"]
    (run_dir / "nc_metrics.json").write_text(json.dumps(prints))
    assert "1 evaluated, 5 unchanged" in evaluate(capsys, run_dir).out


def test_a_table_from_before_optional_columns_is_kept(run_dir, capsys):
    """They are missing, and in config.json the setting that came with them."""
    evaluate(capsys, run_dir)
    remove_columns(run_dir, [name for name in MEASURES if name.startswith(("top1_", "predicted_"))])
    config = json.loads((run_dir / "config.json").read_text())
    del config["settings"]["imbalance_factor"]
    (run_dir / "config.json").write_text(json.dumps(config))
    assert "0 evaluated, 2 unchanged" in evaluate(capsys, run_dir, "--checkpoints", "last").out
    assert len(read_table(run_dir)) == 6


def test_rows_from_before_later_measures_are_kept_and_counted(run_dir, capsys):
    evaluate(capsys, run_dir)
    rows = read_table(run_dir)
    later = [name for name, measure in MEASURES.items() if measure.later]
    remove_columns(run_dir, later)
    said = evaluate(capsys, run_dir).out
    assert "0 evaluated, 6 unchanged rows kept (6 from before some measures existed; " in said
    assert read_table(run_dir) == {
        k: {**row, **dict.fromkeys(later, "")} for k, row in rows.items()
    }
    said = evaluate(capsys, run_dir, "--force", "--checkpoints", "2", "--split", "test").out
    assert "1 evaluated, 0 unchanged rows kept\n" in said
    assert read_table(run_dir)[2, "test"] == rows[2, "test"]
    assert "unchanged rows kept (5 from before" in evaluate(capsys, run_dir).out


def test_a_damaged_row_is_computed_again_when_its_checkpoint_is_chosen(run_dir, capsys):
    evaluate(capsys, run_dir)
    path = run_dir / "nc_metrics.csv"
    whole, rows = path.read_bytes(), read_table(run_dir)
    path.write_text(path.read_text().replace(rows[2, "test"]["nc1"], "x") + "x,test\n")
    said = evaluate(capsys, run_dir, "--checkpoints", "3")
    assert "0 evaluated, 2 unchanged" in said.out
    assert said.err.count("\n") == 1
    assert "nc1 is 'x'" in said.err and "epoch 'x', 'test'" in said.err
    assert read_table(run_dir) == {**rows, (2, "test"): {**rows[2, "test"], "nc1": ""}}
    said = evaluate(capsys, run_dir)
    assert "1 evaluated, 5 unchanged" in said.out
    assert said.err == ""
    assert path.read_bytes() == whole


def test_a_measure_that_a_table_lacks_is_computed_where_the_checkpoint_is_there(run_dir, capsys):
    evaluate(capsys, run_dir)
    rows = read_table(run_dir)
    remove_columns(run_dir, ["nc3"])
    (run_dir / "epoch_001.pth").unlink()
    said = evaluate(capsys, run_dir)
    assert "4 evaluated, 0 unchanged" in said.out
    assert said.err == ""
    gone = {key: {**rows[key], "nc3": ""} for key in ((1, "train"), (1, "test"))}
    assert read_table(run_dir) == {**rows, **gone}
    assert "0 evaluated, 4 unchanged" in evaluate(capsys, run_dir).out
    Image.open(run_dir / "nc_curves.png").verify()


def measure_largest_feature(evaluation):
    return evaluation.extracted.features.max().item()


@pytest.mark.slow
def test_an_added_measure_gets_column_title_and_curve(run_dir, capsys, monkeypatch):
    """Rows of an old table are computed again when their checkpoint is chosen."""
    evaluate(capsys, run_dir)
    before = read_table(run_dir)
    entry = Measure(f"{__name__}:measure_largest_feature", "largest", digits=1, panel="largest")
    monkeypatch.setitem(MEASURES, "largest_feature", entry)
    drawn = []
    whole = eval_nc.save_figure
    monkeypatch.setattr(eval_nc, "save_figure", lambda f, path: drawn.append(f) or whole(f, path))
    said = evaluate(capsys, run_dir, "--checkpoints", "3")
    assert "2 evaluated, 0 unchanged" in said.out
    assert said.err == ""
    heading, _, row = said.out.strip().split("\n\n")[-1].splitlines()[:3]
    after = read_table(run_dir)
    assert heading.split()[-1] == "largest"
    assert row.split()[-1] == f"{float(after[3, 'train']['largest_feature']):.1f}"
    for key, cells in after.items():
        assert cells.pop("largest_feature") == "" or key[0] == 3
        assert cells == before[key]
    (axis,) = [axis for axis in drawn[0].axes if axis.get_title().startswith("largest")]
    assert len(axis.lines) == 1
    assert "4 evaluated, 2 unchanged" in evaluate(capsys, run_dir).out
    assert all(cells["largest_feature"] for cells in read_table(run_dir).values())


def test_a_file_that_is_no_table_is_not_overwritten(run_dir, capsys):
    (run_dir / "nc_metrics.csv").write_bytes(b"\xff\xfe")
    said = evaluate(capsys, run_dir)
    assert "6 evaluated" in said.out
    assert "moved to nc_metrics.csv.bad" in said.err
    assert said.err.count("\n") == 1
    assert (run_dir / "nc_metrics.csv.bad").read_bytes() == b"\xff\xfe"


def test_a_broken_checkpoint_is_named_and_the_others_evaluated(run_dir, capsys):
    content = (run_dir / "epoch_002.pth").read_bytes()
    (run_dir / "epoch_002.pth").write_bytes(content[: len(content) // 2])
    torch.save({"something": torch.zeros(3)}, run_dir / "epoch_003.pth")
    said = evaluate(capsys, run_dir, status=2)
    lines = said.err.strip().splitlines()
    assert len(lines) == 2
    assert "epoch_002.pth is damaged" in lines[0]
    assert "epoch_003.pth does not fit the model" in lines[1]
    assert set(read_table(run_dir)) == {(1, "train"), (1, "test")}


def test_each_checkpoint_is_opened_and_verified_once(run_dir, capsys, monkeypatch):
    opened, verified = [], []
    open_file, verify = weights.open_regular, weights.verify
    monkeypatch.setattr(
        weights, "open_regular", lambda path: opened.append(path.name) or open_file(path)
    )
    monkeypatch.setattr(
        weights, "verify", lambda file, path: verified.append(path.name) or verify(file, path)
    )
    for words in ("6 evaluated", "6 unchanged"):
        assert words in evaluate(capsys, run_dir).out
        assert opened == verified == [f"epoch_00{epoch}.pth" for epoch in (1, 2, 3)]
        opened.clear()
        verified.clear()


def test_a_file_that_holds_no_weights_is_named(run_dir, capsys):
    torch.save(None, run_dir / "epoch_001.pth")
    said = evaluate(capsys, run_dir, status=2)
    assert "epoch_001.pth holds a NoneType, not a state_dict" in said.err
    assert "4 evaluated, 0 unchanged rows kept, 1 checkpoint failed" in said.out


def test_a_run_whose_data_is_gone_is_one_line_and_all_its_checkpoints_failed(folder_run, capsys):
    shutil.rmtree(folder_run.parent.parent / "data")
    flip_a_weight(folder_run / "epoch_002.pth")
    lines = evaluate(capsys, folder_run, status=2).err.splitlines()
    assert len(lines) == 2
    assert "data" in lines[0] and "epoch_002.pth is damaged" in lines[1]


def flip_a_weight(path):
    """Change one bit of the first weight of a checkpoint, which torch.load does not notice."""
    weight = next(iter(torch.load(path, weights_only=True).values()))
    content = bytearray(path.read_bytes())
    content[content.index(weight.numpy().tobytes()) + 2] ^= 0x40
    path.write_bytes(content)
    assert not torch.equal(next(iter(torch.load(path, weights_only=True).values())), weight)


def test_a_flipped_bit_is_found_also_where_the_row_is_kept(run_dir, capsys):
    evaluate(capsys, run_dir)
    before = (run_dir / "nc_metrics.csv").read_bytes()
    flip_a_weight(run_dir / "epoch_002.pth")
    said = evaluate(capsys, run_dir, "--all_rows", status=2)
    assert "epoch_002.pth is damaged" in said.err
    assert "0 evaluated, 4 unchanged rows kept, 1 checkpoint failed" in said.out
    assert [line.split()[1] for line in said.out.splitlines() if line.startswith("run ")][1:] == [
        "1",
        "1",
        "3",
        "3",
    ]
    assert (run_dir / "nc_metrics.csv").read_bytes() == before


def test_a_checkpoint_of_another_run_or_epoch_is_refused(run_dir, tmp_path, capsys):
    other = train_run(tmp_path / "others", "other", "--epochs", 1)
    shutil.copy(other / "epoch_001.pth", run_dir / "epoch_001.pth")
    shutil.copy(run_dir / "epoch_003.pth", run_dir / "epoch_002.pth")
    said = evaluate(capsys, run_dir, status=2)
    assert "epoch_001.pth is a checkpoint of another run" in said.err
    assert "epoch_002.pth holds the weights of epoch 3" in said.err
    assert set(read_table(run_dir)) == {(3, "train"), (3, "test")}
    shutil.copy(run_dir / "epoch_003.pth", run_dir / "epoch_3.pth")
    assert "are both of epoch 3" in evaluate(capsys, run_dir, status=2).err


def test_the_epoch_of_the_best_model_stands_in_its_file(run_dir, capsys):
    """Neither a cut metrics.csv nor a kill between the two files can give it another epoch."""
    best = find_best_epoch(run_dir)
    rows = read_csv(run_dir / "metrics.csv")
    write_csv(
        run_dir / "metrics.csv", list(rows[0]), [row for row in rows if row["epoch"] != str(best)]
    )
    evaluate(capsys, run_dir, "--checkpoints", "best")
    assert set(read_table(run_dir)) == {(best, "train"), (best, "test")}


def test_the_best_model_of_an_earlier_version_must_fit_metrics_csv(run_dir, capsys):
    for path in run_dir.glob("*.pth"):
        torch.save(load(path), path)
    evaluate(capsys, run_dir, "--checkpoints", "best")
    (best,) = {epoch for epoch, _ in read_table(run_dir)}
    shutil.copy(run_dir / f"epoch_00{best % 3 + 1}.pth", run_dir / "best_model.pth")
    said = evaluate(capsys, run_dir, "--checkpoints", "best", status=2)
    assert f"shows epoch {best} as best, but best_model.pth holds other weights" in said.err


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run of three epochs with averages of its weights."""
    flags = ["--epochs", 3, "--ema", 0.8]
    return train_run(tmp_path_factory.mktemp("averaged"), "run", *flags)


def test_averages_are_evaluated_apart(averaged, tmp_path, capsys):
    """Their accuracies are those of training, and the rows of the weights stay as they are."""
    evaluate(capsys, averaged, "--checkpoints", "1,2")
    before = {path: path.read_bytes() for path in averaged.glob("nc_*")}
    assert "run (EMA)" in evaluate(capsys, averaged, "--ema").out
    assert before == {path: path.read_bytes() for path in before}
    assert (averaged / "nc_curves_ema.png").exists()
    rows = [row for row in read_csv(averaged / "nc_metrics_ema.csv") if row["split"] == "test"]
    trained = read_csv(averaged / "metrics.csv")
    for row, of_training in zip(rows, trained, strict=True):
        assert row["top1"] == of_training["ema_test_top1"]
        assert row["uniform_accuracy"] == of_training["ema_test_uniform"]
    command = [averaged, "--ema", "--split", "test", "--gpu_id", -1, "--out", tmp_path / "s.svg"]
    assert eval_scores.main([str(word) for word in command]) == 0
    scores = {row["kind"]: float(row["mean"]) for row in read_csv(tmp_path / "s.csv")}
    for kind, column in (("positive_score", "positive_mean"), ("bias", "bias_mean")):
        assert scores[kind] == pytest.approx(float(rows[-1][column]), rel=1e-6)
    assert "0 evaluated, 6 unchanged rows kept" in evaluate(capsys, averaged, "--ema").out


def test_averages_are_chosen_by_their_own_accuracy(averaged, tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(averaged, run_dir)
    rows = read_csv(run_dir / "metrics.csv")
    for row, of_average, of_weights in zip(rows, (50, 70, 70), (90, 10, 10), strict=True):
        row |= {"ema_test_top1": of_average, "test_top1": of_weights}
    write_csv(run_dir / "metrics.csv", list(rows[0]), rows)
    for path, flags in ((run_dir, ["--checkpoints", "best"]), (run_dir / "ema_002.pth", [])):
        (run_dir / "nc_metrics_ema.csv").unlink(missing_ok=True)
        evaluate(capsys, path, "--ema", "--split", "test", *flags)
        assert [row["epoch"] for row in read_csv(run_dir / "nc_metrics_ema.csv")] == ["2"]
    (run_dir / "ema_002.pth").unlink()
    said = evaluate(capsys, run_dir, "--ema", "--checkpoints", "best", status=2)
    assert "ema_002.pth, of the best ema_test_top1, is not there" in said.err


def test_an_average_is_never_taken_for_weights(averaged, run_dir, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    shutil.copytree(averaged, mixed)
    shutil.copy(mixed / "ema_001.pth", mixed / "epoch_001.pth")
    shutil.copy(mixed / "epoch_002.pth", mixed / "ema_002.pth")
    shutil.copy(mixed / "ema_001.pth", mixed / "best_model.pth")
    for flags, words in (
        (["--checkpoints", 1], "epoch_001.pth holds the average of epoch 1"),
        (["--checkpoints", 2, "--ema"], "ema_002.pth holds the weights of epoch 2"),
        (["--checkpoints", "best"], "best_model.pth holds an average"),
    ):
        assert words in evaluate(capsys, mixed, *flags, status=2).err
    for path, flags, words in (
        (averaged / "ema_001.pth", [], "--ema evaluates an average"),
        (averaged / "epoch_001.pth", ["--ema"], "ema_NNN.pth"),
        (run_dir, ["--ema"], "was trained without --ema"),
        (averaged, ["--ema", "--checkpoints", 7], "no checkpoint of epoch 7"),
    ):
        lines = evaluate(capsys, path, *flags, status=2).err.splitlines()
        assert len(lines) == 1 and words in lines[0]


def test_two_evaluations_of_one_run_keep_each_others_rows(run_dir, capsys, monkeypatch):
    """The second one begins and ends while the first has read the table, but not yet written."""
    compute = crew.compute_measures

    def compute_beside_another(evaluation):
        monkeypatch.setattr(crew, "compute_measures", compute)
        evaluate(capsys, run_dir, "--checkpoints", "3")
        return compute(evaluation)

    monkeypatch.setattr(crew, "compute_measures", compute_beside_another)
    evaluate(capsys, run_dir, "--checkpoints", "1-2")
    assert len(read_table(run_dir)) == 6
    assert "0 evaluated, 6 unchanged rows kept" in evaluate(capsys, run_dir).out


def test_weights_that_are_not_finite_are_named(run_dir, capsys):
    state = load(run_dir / "epoch_001.pth")
    next(value for key, value in state.items() if "weight" in key).fill_(torch.nan)
    torch.save(state, run_dir / "epoch_001.pth")
    said = evaluate(capsys, run_dir, "--split", "train", status=2)
    assert "epoch_001.pth, train set" in said.err
    assert "finite" in said.err
    assert set(read_table(run_dir)) == {(2, "train"), (3, "train")}


def test_bare_weights_of_another_program(run_dir, tmp_path, capsys):
    evaluate(capsys, run_dir)
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in run_dir.glob("epoch_*.pth"):
        shutil.copy(path, bare)
    flags = ["--model", "mlp", "--width", 32, "--depth", 2, "--dataset", "digits"]
    evaluate(capsys, bare, *flags, "--sample_size", 30)
    assert read_table(bare) == read_table(run_dir)

    for path in bare.glob("epoch_*.pth"):  # as torch.nn.Linear would have written them
        state = load(path)
        state["fc.bias"] *= -1
        torch.save(state, path)
    evaluate(capsys, bare, *flags, "--sample_size", 30, "--bias_added")
    assert read_table(bare) == read_table(run_dir)


def test_rows_of_bare_weights_depend_on_the_data_they_were_computed_from(run_dir, capsys):
    (run_dir / "config.json").unlink()
    flags = ["--model", "MLP", "--width", 32, "--depth", 2, "--dataset", "digits"]
    flags += ["--split", "test", "--checkpoints", "last"]
    evaluate(capsys, run_dir, *flags, "--test_sample_size", 5)
    few = read_table(run_dir)
    assert "1 evaluated" in evaluate(capsys, run_dir, *flags).out
    assert read_table(run_dir) != few


def test_force_leaves_the_rows_that_are_not_chosen(run_dir, capsys):
    evaluate(capsys, run_dir)
    evaluate(capsys, run_dir, "--checkpoints", "3", "--split", "test", "--force")
    assert len(read_table(run_dir)) == 6


def test_the_best_model_alone_is_enough(run_dir, capsys):
    for path in run_dir.glob("epoch_*.pth"):
        path.unlink()
    assert "2 evaluated" in evaluate(capsys, run_dir, "--checkpoints", "best").out


def test_missing_data_is_one_line_for_a_run(run_dir, tmp_path, capsys):
    config = json.loads((run_dir / "config.json").read_text())
    config["settings"] |= {"dataset": "folder", "data_dir": str(tmp_path / "gone")}
    (run_dir / "config.json").write_text(json.dumps(config))
    assert evaluate(capsys, run_dir, status=2).err.count("\n") == 1


@pytest.mark.parametrize("edit", [{"loss": ["x"]}, {"width": "a"}, {"dataset": None}])
def test_an_edited_config_is_one_line(run_dir, capsys, edit):
    config = json.loads((run_dir / "config.json").read_text())
    config["settings"] |= edit
    (run_dir / "config.json").write_text(json.dumps(config))
    error = evaluate(capsys, run_dir, status=2).err
    assert "config.json is damaged" in error
    assert error.count("\n") == 1


def test_several_runs_share_the_data_and_are_overlaid(run_dir, tmp_path, capsys, monkeypatch):
    other = train_run(tmp_path, "ce", "--epochs", 2, "--loss", "CE", "--optimizer", "AdamW")
    loads = []
    whole = rebuild.build_data
    monkeypatch.setattr(rebuild, "build_data", lambda *a, **kw: loads.append(a) or whole(*a, **kw))
    said = evaluate(capsys, run_dir, other, "--out", tmp_path / "pictures", "--all_rows")
    assert len(loads) == 1
    assert "0 unchanged" in said.out
    for path in (run_dir, other):
        Image.open(path / "nc_curves.png").verify()
    Image.open(tmp_path / "pictures" / "nc_curves_overlay.png").verify()
    lines = said.out.strip().split("\n\n")[-1].splitlines()
    assert len(lines) == 2 + 6 + 4  # header and rule, three and two epochs of two splits
    assert len({len(line) for line in lines}) == 1


def test_seeds_share_a_line_and_long_names_are_shortened(tmp_path, capsys, monkeypatch):
    flags = ["--epochs", 2, "--loss"]
    named = [("a" * 40, "CE", 0), ("b" * 40, "CE", 1), ("c", "BCE", 0)]
    runs = [train_run(tmp_path, name, *flags, loss, "--seed", s) for name, loss, s in named]
    drawn = []
    whole = eval_nc.draw_nc_curves
    monkeypatch.setattr(eval_nc, "draw_nc_curves", lambda c: drawn.append(c) or whole(c))
    said = evaluate(capsys, *runs)
    assert [(curve.name, len(curve.runs)) for curve in drawn[-1]] == [
        ("CE, SGD, 2 seeds", 2),
        ("BCE, SGD", 1),
    ]
    nc1 = [float(read_table(run)[2, "train"]["nc1"]) for run in runs[:2]]
    assert drawn[-1][0].list_points("nc1", "train").means[1] == pytest.approx(sum(nc1) / 2)
    assert "\nCE, SGD, seed 1 " in said.out
    assert f"\nCE, SGD, seed 1: {runs[1].name}\n" in said.out


def test_a_run_whose_features_do_not_fit_is_refused_before_the_work(run_dir, capsys, monkeypatch):
    monkeypatch.setattr(features, "SMALL", 0)
    monkeypatch.setattr(features, "read_available_memory", lambda: 1000)
    said = evaluate(capsys, run_dir, status=2)
    (line,) = said.err.splitlines()
    assert f"{run_dir}, train set: the features, 300 × 32 numbers, take" in line
    assert not (run_dir / "nc_metrics.csv").exists()


def test_precision(run_dir, tmp_path, capsys):
    evaluate(capsys, run_dir, "--checkpoints", "last")
    exact = read_table(run_dir)[3, "train"]
    said = evaluate(capsys, run_dir, "--checkpoints", "last", "--precision", "bf16")
    assert "2 evaluated" in said.out  # another precision is another row
    rough = read_table(run_dir)[3, "train"]
    assert rough["nc1"] != exact["nc1"]
    for key in ("nc1", "nc2", "compactness", "positive_mean"):
        assert float(rough[key]) == pytest.approx(float(exact[key]), rel=0.05)
    assert "no effect" in evaluate(capsys, run_dir, "--precision", "tf32", status=2).err


def test_rows_do_not_depend_on_the_batch(run_dir, capsys):
    evaluate(capsys, run_dir, "--checkpoints", "last")
    expected = read_table(run_dir)
    said = evaluate(capsys, run_dir, "--checkpoints", "last", "--batch_size", 37)
    assert "0 evaluated, 2 unchanged" in said.out
    evaluate(capsys, run_dir, "--checkpoints", "last", "--batch_size", 37, "--force")
    for key, row in read_table(run_dir).items():
        for name, cell in row.items():
            if cell and name != "split":
                assert float(cell) == pytest.approx(float(expected[key][name]), rel=1e-5), name


def test_mistakes(run_dir, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    mistakes = [
        ([run_dir, run_dir], "names a run twice"),
        ([run_dir, "--out", tmp_path], "--out has no effect"),
        ([run_dir, "--data_dir", tmp_path], "--data_dir has no effect"),
        ([tmp_path / "absent"], "does not exist"),
        ([tmp_path / "empty"], "neither a config.json nor weights"),
        ([run_dir, "--checkpoints", "7"], "no checkpoint of epoch 7"),
        ([run_dir, "--checkpoints", "first"], "--checkpoints"),
        ([run_dir, "--model", "ViT"], "--model has no effect here"),
    ]
    for flags, words in mistakes:
        assert words in evaluate(capsys, *flags, status=2).err
    (run_dir / "config.json").unlink()
    assert "give --model" in evaluate(capsys, run_dir, status=2).err
    flags = ["--model", "ResNet18", "--dataset", "digits", "--depth", 2]
    assert "--depth has no effect" in evaluate(capsys, run_dir, *flags, status=2).err


def test_a_config_that_does_not_match_the_data_is_refused(run_dir, capsys):
    config = json.loads((run_dir / "config.json").read_text())
    config["data"]["train_size"] = 299
    (run_dir / "config.json").write_text(json.dumps(config))
    said = evaluate(capsys, run_dir, "--checkpoints", "last", status=2)
    assert "the data set has changed" in said.err


@pytest.fixture(scope="module")
def long_tailed(tmp_path_factory):
    """A run on digits with 120 to 6 training images a class: many, medium and few."""
    flags = ["--sample_size", 120, "--imbalance_factor", 20, "--sep_decay", "--epochs", 3]
    return train_run(tmp_path_factory.mktemp("tails"), "lt", *flags, "--lr", 0.1)


TAIL = [math.floor(120 * 20 ** (-k / 9)) for k in range(10)]  # 120, 86, 61, … 8, 6


@pytest.fixture
def lt_dir(long_tailed, tmp_path):
    shutil.copytree(long_tailed, tmp_path / "lt")
    return tmp_path / "lt"


def test_accuracy_by_class_size_is_that_of_predictions_one_by_one(lt_dir, capsys):
    said = evaluate(capsys, lt_dir, "--checkpoints", "last")
    assert all(title in said.out for title in ("many %", "medium %", "few %"))
    assert "pred. pos." in said.out  # --sep_decay, and the theory is of any classes
    data = load_dataset("digits", ".", sample_size=120, imbalance_factor=20)
    model = build_model("MLP", 10, (3, 8, 8), width=32, depth=2)
    model.load_state_dict(load(lt_dir / "epoch_003.pth"))
    model.eval()
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (data.mean, data.std))
    for split in ("train", "test"):
        hits = {"many": [], "medium": [], "few": []}
        part = getattr(data, split)
        with torch.no_grad():
            for image, label in zip(part.images, part.labels.tolist(), strict=True):
                hit = model(((image / 255 - mean) / std)[None])[0].argmax().item() == label
                size = TAIL[label]
                hits["many" if size > 100 else "few" if size < 20 else "medium"].append(hit)
        row = read_table(lt_dir)[3, split]
        for name, group in hits.items():
            expected = 100 * sum(group) / len(group)
            assert float(row[f"top1_{name}"]) == pytest.approx(expected), (split, name)
        assert float(row["predicted_positive"]) > 0
    assert data.class_sizes == TAIL


def test_the_classes_of_a_long_tail_have_rows_of_their_own(lt_dir, capsys):
    """They add up to the row, and keep to the rules of the table."""
    said = evaluate(capsys, lt_dir)
    assert "nc_classes.png" in said.out and "\nlt: NC1 0, NC2 0." in said.out
    Image.open(lt_dir / "nc_classes.png").verify()
    rows = read_csv(lt_dir / "nc_classes.csv")
    assert [(r["epoch"], r["split"], r["class"]) for r in rows] == [
        (e, s, str(k)) for e in "123" for s in ("train", "test") for k in range(10)
    ]
    own = [{n: float(v) for n, v in r.items() if n != "split"} for r in rows[-20:-10]]
    row, sizes = read_table(lt_dir)[3, "train"], [each["class_size"] for each in own]
    assert sizes == TAIL
    exact = predict(Problem("BCE", divide_batch(32, TAIL), 5e-4, 5e-4))
    assert [each["predicted_bias"] for each in own] == exact.biases.tolist()
    for column, name in (("top1", "top1"), ("positive_mean", "positive_mean")):
        mean = sum(s * each[column] for s, each in zip(sizes, own, strict=True)) / sum(sizes)
        assert mean == pytest.approx(float(row[name]), rel=1e-6)
    for name, value in exact.collapse.items():
        assert float(row[f"predicted_{name}"]) == value
    first = (lt_dir / "nc_classes.csv").read_bytes()
    text = first.decode().replace("\n3,test,4,", "\n3,test,x,")
    (lt_dir / "nc_classes.csv").write_text(text)
    said = evaluate(capsys, lt_dir)
    assert "1 evaluated, 5 unchanged" in said.out and "'x'" in said.err
    assert (lt_dir / "nc_classes.csv").read_bytes() == first


def test_older_rows_get_the_prediction_of_today_without_an_evaluation(lt_dir, capsys, monkeypatch):
    """Rows of before: an earlier prediction, or none, no measures of collapse, no classes."""
    evaluate(capsys, lt_dir)
    rows = read_table(lt_dir)
    new = [name for name in MEASURES if name.startswith("predicted_")]
    old = {"predicted_positive": "9.39", "predicted_negative": "-1.04", "predicted_bias": ""}
    names = [name for name in next(iter(rows.values())) if name not in new or name in old]
    table = [{n: {**row, **old}[n] for n in names} for row in rows.values()]
    write_csv(lt_dir / "nc_metrics.csv", names, table)
    for name in ("nc_classes.csv", "nc_classes.json", "epoch_001.pth"):
        (lt_dir / name).unlink()
    monkeypatch.setattr(rebuild.Rebuilder, "model", None)  # no network is built
    said = evaluate(capsys, lt_dir)
    assert "0 evaluated, 4 unchanged rows kept (4 from before" in said.out
    assert "6 rows with a new exact prediction" in said.out
    assert read_table(lt_dir) == rows
    assert "new exact" not in evaluate(capsys, lt_dir).out
    assert not (lt_dir / "nc_classes.csv").exists()


def test_too_few_features_have_no_prediction_also_in_older_rows(tmp_path, capsys):
    flags = ["--sep_decay", "--weight_decay_bias", 0.5, "--width", 9, "--epochs", 1]
    run_dir = train_run(tmp_path, "narrow", *flags)
    evaluate(capsys, run_dir)
    rows = read_table(run_dir)
    assert {row["predicted_positive"] for row in rows.values()} == {""}
    table = [{**row, "predicted_positive": "1.0"} for row in rows.values()]
    write_csv(run_dir / "nc_metrics.csv", list(table[0]), table)
    assert "2 rows with a new exact prediction" in evaluate(capsys, run_dir).out
    assert read_table(run_dir) == rows


def test_the_test_split_alone_knows_the_tail(lt_dir, capsys):
    evaluate(capsys, lt_dir, "--checkpoints", "last")
    both = read_table(lt_dir)[3, "test"]
    assert (
        "1 evaluated"
        in evaluate(capsys, lt_dir, "--checkpoints", "last", "--split", "test", "--force").out
    )
    assert read_table(lt_dir)[3, "test"] == both
    assert float(both["predicted_positive"]) > 0


def test_bare_weights_of_a_long_tail(lt_dir, capsys):
    evaluate(capsys, lt_dir, "--checkpoints", "last", "--split", "test")
    expected = read_table(lt_dir)[3, "test"]
    (lt_dir / "config.json").unlink()
    flags = ["--model", "MLP", "--width", 32, "--depth", 2, "--dataset", "digits"]
    flags += ["--sample_size", 120, "--checkpoints", "last", "--split", "test"]
    assert "1 evaluated" in evaluate(capsys, lt_dir, *flags, "--imbalance_factor", 20).out
    found = read_table(lt_dir)[3, "test"]
    assert all(found[f"top1_{g}"] == expected[f"top1_{g}"] for g in ("many", "medium", "few"))
    said = evaluate(capsys, lt_dir, *flags).out  # the factor unknown: another row without groups
    assert "1 evaluated" in said
    assert "many %" not in said
    assert read_table(lt_dir)[3, "test"]["top1_many"] == ""


def test_another_tail_of_the_same_number_of_images_is_reported(lt_dir, capsys):
    config = json.loads((lt_dir / "config.json").read_text())
    sizes = config["data"]["class_sizes"]
    assert sizes == TAIL
    config["data"]["class_sizes"] = sizes[::-1]
    (lt_dir / "config.json").write_text(json.dumps(config))
    assert "class_sizes was [6," in evaluate(capsys, lt_dir, status=2).err


@pytest.mark.slow
def test_the_command_itself(run_dir):
    assert_mistake(run("eval_nc.py"), "--load_path")
    assert_mistake(run("eval_nc.py", "--load_path", run_dir, "--check", "all"), "--check")
    result = run("eval_nc.py", "--load_path", run_dir, "--gpu_id", -1, "--checkpoints", "last")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.parametrize("sep_decay", [True, False])
def test_the_prediction_of_a_run_with_sep_decay_is_shown(tmp_path, capsys, sep_decay):
    run_dir = train_run(tmp_path, "r", "--epochs", 1, *(["--sep_decay"] if sep_decay else []))
    capsys.readouterr()
    said = evaluate(capsys, run_dir).out
    row = read_csv(run_dir / "nc_metrics.csv")[0]
    if sep_decay:
        exact = find_balanced_minimum("BCE", 10, 3.2, 5e-4, 5e-4, 0)
        assert float(row["predicted_positive"]) == exact.positive_score
        assert float(row["predicted_negative"]) == exact.negative_score
        assert float(row["predicted_bias"]) == exact.bias
        assert "pred. pos." in said
    else:
        assert row["predicted_positive"] == ""
        assert "pred. pos." not in said
    assert "0 evaluated" in evaluate(capsys, run_dir).out


def test_rows_are_not_lost_where_their_replacement_fails(run_dir, tmp_path, capsys):
    """Bare weights, measured well, and then with the wrong network."""
    evaluate(capsys, run_dir)
    (run_dir / "config.json").unlink()
    flags = ["--dataset", "digits", "--sample_size", 30]
    evaluate(capsys, run_dir, "--model", "MLP", "--width", 32, "--depth", 2, *flags)
    before = (run_dir / "nc_metrics.csv").read_bytes()
    said = evaluate(capsys, run_dir, "--model", "ResNet18", *flags, status=2)
    assert (run_dir / "nc_metrics.csv").read_bytes() == before
    assert "top-1" not in said.out  # rows of another network are not shown as those asked for


@pytest.fixture
def folder_run(tmp_path):
    """A run on two classes of flat colours, one dark and one light, which it tells apart."""
    for split in ("train", "test"):
        for label, level in (("dark", 20), ("light", 230)):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for shift in range(6):
                path = tmp_path / "data" / split / label / f"{shift}.png"
                Image.new("RGB", (8, 8), (level + shift, level, level)).save(path)
    flags = ["--dataset", "folder", "--data_dir", tmp_path / "data", "--num_workers", 0]
    flags += ["--model", "MLP", "--width", 16, "--depth", 1, "--batch_size", 4, "--epochs", 3]
    flags += ["--lr", 3, "--loss", "CE"]
    return train_here(tmp_path / "runs", *flags)


def swap_classes(directory):
    os.rename(directory / "dark", directory / "third")
    os.rename(directory / "light", directory / "dark")
    os.rename(directory / "third", directory / "light")


def test_a_data_set_that_has_changed_is_noticed_where_every_row_is_kept(folder_run, capsys):
    """The classes change places: the counts and the names stay, and each label is wrong."""
    data = folder_run.parent.parent / "data"
    evaluate(capsys, folder_run)
    assert float(read_table(folder_run)[3, "test"]["top1"]) == 100
    shutil.copytree(data, data.with_name("moved"))  # a copy is the same, whatever its times
    assert "6 unchanged" in evaluate(capsys, folder_run, "--data_dir", data.with_name("moved")).out
    data.rename(data.with_name("away"))
    said = evaluate(capsys, folder_run)  # kept rows are shown where the data is not at hand
    assert "6 unchanged" in said.out and "not compared with the data set" in said.err
    data.with_name("away").rename(data)
    swap_classes(data / "test")
    said = evaluate(capsys, folder_run, status=2)
    assert "names, sizes or labels" in said.err or "contents of the files of the test" in said.err
    assert "100.00" not in said.out
    assert "6 unchanged" not in evaluate(capsys, folder_run, "--split", "train").out
    swap_classes(data / "train")
    command = ["--resume", "--save_dir", folder_run.parent, "--run_name", folder_run.name]
    line = read_refusal(capsys, train.main, *command)
    assert "the data set has changed" in line and "training set" in line


def test_rows_of_bare_weights_depend_on_the_contents_of_the_data(folder_run, capsys):
    (folder_run / "config.json").unlink()
    flags = ["--model", "MLP", "--width", 16, "--depth", 1, "--dataset", "folder"]
    data = folder_run.parent.parent / "data"
    flags += ["--checkpoints", "last", "--split", "test", "--data_dir", data]
    evaluate(capsys, folder_run, *flags)
    assert float(read_table(folder_run)[3, "test"]["top1"]) == 100
    swap_classes(data / "test")
    assert "1 evaluated" in evaluate(capsys, folder_run, *flags).out
    assert float(read_table(folder_run)[3, "test"]["top1"]) == 0


@pytest.mark.slow
def test_a_run_keeps_the_pixels_mean_and_std_of_its_training(run_dir, capsys, monkeypatch):
    """Its mean was computed with other rounding, and its images were resized by rule 1."""
    evaluate(capsys, run_dir, "--checkpoints", "1")
    expected = read_table(run_dir)
    config = json.loads((run_dir / "config.json").read_text())
    config["data"]["mean"] = [mean * (1 + 1e-9) for mean in config["data"]["mean"]]
    (run_dir / "config.json").write_text(json.dumps(config))
    evaluate(capsys, run_dir, "--checkpoints", "1")
    assert float(read_table(run_dir)[1, "test"]["nc1"]) == pytest.approx(
        float(expected[1, "test"]["nc1"]), rel=1e-4
    )
    asked = []

    def load(*words, pixels, **options):
        asked.append(pixels)
        return load_dataset(*words, pixels=pixels, **options)

    monkeypatch.setattr(building, "load_dataset", load)
    for versions, pixels in (({}, 1), ({"pixels": 2}, 2)):
        config["versions"] = {**config["versions"], "pixels": 1, **versions}
        (run_dir / "config.json").write_text(json.dumps(config))
        evaluate(capsys, run_dir, "--checkpoints", "1", "--force")
        assert asked.pop() == pixels
    config["versions"]["pixels"] = 99
    (run_dir / "config.json").write_text(json.dumps(config))
    assert "later version" in evaluate(capsys, run_dir, status=2).err


def test_a_run_of_an_older_definition_is_evaluated_as_it_was_trained(run_dir, capsys):
    """The MLP of version 1 had no biases in its hidden layers: the same network with zeros."""
    path = run_dir / "epoch_003.pth"
    state = load(path)
    biases = [key for key in state if re.fullmatch(r"layers\.\d\.0\.bias", key)]
    assert len(biases) == 2
    torch.save(state | {key: torch.zeros_like(state[key]) for key in biases}, path)
    evaluate(capsys, run_dir, "--checkpoints", "3")
    expected = read_table(run_dir)
    torch.save({key: value for key, value in state.items() if key not in biases}, path)
    assert "layers.0.0.bias" in evaluate(capsys, run_dir, "--checkpoints", "3", status=2).err
    config = json.loads((run_dir / "config.json").read_text())
    del config["versions"]
    (run_dir / "config.json").write_text(json.dumps(config))
    evaluate(capsys, run_dir, "--checkpoints", "3", "--force")
    assert read_table(run_dir) == expected
    command = ["--resume", "--save_dir", run_dir.parent, "--run_name", run_dir.name]
    assert "commit 14c9aae of this program goes on" in read_refusal(capsys, train.main, *command)


def test_checkpoints_that_were_not_kept_stay_in_the_table(tmp_path, capsys):
    flags = ["--epochs", 4, "--keep_checkpoints", 1, "--nc_every", 2, "--lr", 0.5]
    kept = train_run(tmp_path, "kept", *flags)
    tops = [float(row["test_top1"]) for row in read_csv(kept / "metrics.csv")]
    best = 1 + tops.index(max(tops))
    said = evaluate(capsys, kept, "--all_rows").out
    shown = {line.split()[1] for line in said.splitlines() if line.startswith("kept  ")}
    assert shown == {str(epoch) for epoch in {2, 4, best}}
    assert f"{best} best" in said
