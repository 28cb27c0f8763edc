"""eval_scores.py: the numbers behind the violins, the pictures, and what is refused."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import eval_scores
import train
from args import Settings
from input_pipeline.longtail import compute_tail_sizes
from metrics.scores import compute_decision_scores
from rundir.config import Versions
from rundir.rebuild import Rebuilder
from rundir.trained import TrainedRun, open_run
from tests.helpers import assert_mistake, run
from theory.balanced import find_balanced_minimum
from theory.minimum import predict
from theory.problem import Problem, divide_batch
from utils.files import read_csv

TINY = ["--model", "MLP", "--width", 32, "--depth", 1, "--sample_size", 20, "--gpu_id", -1]
TINY += ["--test_sample_size", 5, "--sep_decay", "--lr", 0.02, "--batch_size", 100]


def make(directory, name, *flags):
    words = [*TINY, "--epochs", 2, *flags, "--save_dir", directory, "--run_name", name]
    assert train.main([str(word) for word in words]) == 0
    return directory / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs")
    return [
        make(directory, f"{loss}_{mean}", "--loss", loss, "--bias_init_mean", mean)
        for loss in ("CE", "BCE")
        for mean in (0, 4)
    ]


def draw(capsys, *words, status=0):
    assert eval_scores.main([*map(str, words), "--gpu_id", "-1"]) == status
    return capsys.readouterr()


def panels(path):
    """How many panels an SVG has: each has its own pair of axes."""
    return path.read_text().count('id="axes_')


def test_the_numbers_drawn_are_those_of_the_runs(runs, tmp_path, capsys):
    said = draw(capsys, *reversed(runs), "--out", tmp_path / "s.svg")
    assert panels(tmp_path / "s.svg") == 2
    rows = read_csv(tmp_path / "s.csv")
    assert [(row["panel"], row["x"]) for row in rows[::3]] == [
        ("CE, SGD", "0"),
        ("CE, SGD", "4"),
        ("BCE, SGD", "0"),
        ("BCE, SGD", "4"),
    ]
    run_ = open_run(runs[3])
    rebuilder = Rebuilder(torch.device("cpu"), ["train"])
    extracted = rebuilder.extract(run_, runs[3] / "epoch_002.pth", "train")
    fc = rebuilder.model(run_).fc
    direct = compute_decision_scores(extracted.features, extracted.labels, fc.weight.detach())
    exact = find_balanced_minimum("BCE", 10, 10, 5e-4, 5e-4, 0)
    positive, bias, negative = rows[-3:]
    for row, values in ((positive, direct[0]), (bias, fc.bias.detach()), (negative, direct[1])):
        assert float(row["mean"]) == pytest.approx(values.double().mean().item(), rel=1e-9)
        assert float(row["max"]) == pytest.approx(values.max().item(), rel=1e-6)
        assert float(row["predicted"]) == getattr(exact, row["kind"])
    assert rows[1]["predicted"] == ""  # CE leaves the bias free
    assert str(tmp_path / "s.svg") in said.out
    outlines = read_csv(tmp_path / "s_outlines.csv")
    assert {row["kind"] for row in outlines} == {"positive_score", "bias", "negative_score"}


@pytest.mark.parametrize("ending", [".png", ".pdf"])
def test_pictures(runs, tmp_path, capsys, ending):
    path = tmp_path / f"s{ending}"
    options = ["--by", "run", "--split", "test", "--checkpoint", 1, "--out", path]
    draw(capsys, *runs[:2], *options)
    if ending == ".png":
        Image.open(path).verify()
    else:
        assert path.read_bytes().startswith(b"%PDF")
    assert float(read_csv(tmp_path / "s.csv")[0]["count"]) == 50  # the test set


def test_a_long_tail_has_ranges_and_numbers_of_the_classes(tmp_path, capsys):
    flags = ["--loss", "CE", "--imbalance_factor", 10, "--smoothing", 0.1]
    said = draw(capsys, make(tmp_path, "lt", *flags), "--out", tmp_path / "s.png").out
    assert "pred. min" in said and "s_classes.csv" in said
    sizes = compute_tail_sizes(20, 10, 10)
    exact = predict(Problem("CE", divide_batch(sum(sizes), sizes), 5e-4, 5e-4, 0.0, 0.1))
    classes = read_csv(tmp_path / "s_classes.csv")
    assert [float(row["predicted_positive"]) for row in classes] == exact.positive_scores.tolist()
    assert [row["class"] for row in classes] == [str(k) for k in range(10)]
    positive, bias, negative = read_csv(tmp_path / "s.csv")
    level = float(bias["mean"])  # it is free
    scores = exact.scores.expand(exact.group_of)
    others = scores[~torch.eye(10, dtype=torch.bool).numpy()]
    spreads = (positive, exact.positive_scores), (bias, exact.biases + level), (negative, others)
    for row, values in spreads:
        ends = [float(row[f"predicted_{end}"]) for end in ("min", "max")]
        assert ends == pytest.approx([values.min(), values.max()], rel=1e-9)
    assert float(positive["predicted"]) == exact.positive_score
    assert bias["predicted"] == ""


def test_a_run_without_a_bias(runs, tmp_path, capsys):
    unbiased = make(tmp_path, "unbiased", "--bias_mode", "none")
    draw(capsys, unbiased, runs[2], "--by", "run", "--out", tmp_path / "s.png")
    kinds = [row["kind"] for row in read_csv(tmp_path / "s.csv") if "unbiased" in row["run"]]
    assert kinds == ["positive_score", "negative_score"]


def test_seeds_share_a_panel(runs, tmp_path, capsys):
    flags = ["--loss", "CE", "--bias_init_mean", 4]
    seeded = make(tmp_path, "seeded", *flags, "--seed", 1)
    draw(capsys, *runs[:2], seeded, "--out", tmp_path / "s.svg")
    assert [row["x"] for row in read_csv(tmp_path / "s.csv")][::3] == [
        "0",
        "4, seed 0",
        "4, seed 1",
    ]
    twin = make(tmp_path, "twin", *flags)
    draw(capsys, *runs[:2], twin, "--by", "seed", "--out", tmp_path / "t.svg")
    names = [row["x"] for row in read_csv(tmp_path / "t.csv")][::3]
    assert names[0] == "0, bias_init_mean 0" and "twin" in names[2]
    assert len(set(names)) == 3


def make_trained(**values):
    """A run that has settings alone."""
    return TrainedRun(Path(f"{values}"), Settings(**values), {}, "", Versions())


def order(by, *values):
    """The names on the x axis, in their order, of runs that differ in one setting."""
    runs = [make_trained(**{by: value}) for value in values]
    runs, _ = eval_scores.sort_runs(runs, [run.directory for run in runs], by)
    assert eval_scores.find_swept(runs) == by
    return eval_scores.name_places(runs, by)


def test_any_setting_can_be_the_x_axis():
    assert order("lr", 0.1, 0.00123456789, 2.0, 0.02) == ["0.00123456789", "0.02", "0.1", "2"]
    assert order("epochs", 9, 100, 10) == ["9", "10", "100"]
    assert order("width", 64, None, 8) == ["-", "8", "64"]
    assert order("step_milestones", [10, 2], [9, 20], None) == ["-", "9-20", "10-2"]
    assert order("sep_decay", True, False) == ["off", "on"]
    assert order("schedule", "step", "constant") == ["constant", "step"]
    ordered = ["-1", "0", "10", "prior", "predicted"]
    assert order("bias_init_mean", "predicted", 10.0, "prior", 0.0, -1.0) == ordered
    assert order("weight_decay_bias", 0.1, 0.5, 0.0) == ["0.5", "0.1", "0"]  # as in the paper


def test_the_x_axis_shows_what_differs_within_a_panel():
    sgd, adam = {"optimizer": "SGD", "lr": 0.1}, {"optimizer": "AdamW", "lr": 0.01}
    starts = [make_trained(**own, bias_init_mean=mean) for own in (sgd, adam) for mean in (0, 4)]
    assert eval_scores.find_swept(starts) == "bias_init_mean"  # each panel has one lr
    both = [*starts, make_trained(**sgd, bias_init_mean=4, smoothing=0.1)]
    assert eval_scores.find_swept(both) == "bias_init_mean,smoothing"
    assert eval_scores.find_hidden(both, "bias_init_mean") == ["smoothing"]
    three = [*both, make_trained(**sgd, bias_init_mean=4, batch_size=8, epoch_save_step=3)]
    assert eval_scores.find_swept(three) == "run" and not eval_scores.find_hidden(three, "run")
    assert eval_scores.find_hidden(three, "smoothing") == ["bias_init_mean", "batch_size"]


def test_several_settings_share_the_x_axis(runs, tmp_path, capsys):
    draw(capsys, *runs, "--by", "SEED,bias_init_mean", "--out", tmp_path / "s.svg")
    rows = read_csv(tmp_path / "s.csv")
    assert [row["x"] for row in rows[::3]] == ["0, 0", "0, 4"] * 2
    assert eval_scores.label_axis("seed,bias_init_mean") == "seed, initial mean of the bias"


def test_an_unknown_setting_is_answered_with_the_nearest():
    result = run("eval_scores.py", "r", "--out", "s.png", "--by", "bias_mean")
    assert_mistake(result, "did you mean bias_init_mean?")
    assert_mistake(run("eval_scores.py", "r", "--out", "s.png", "--by", "run,lr"), "run stands")


def test_mistakes(runs, tmp_path, capsys):
    picture = ["--out", tmp_path / "s.png"]

    def refused(*words):
        said = draw(capsys, *words, status=2)
        assert said.err.count("\n") == 1, said.err
        return said.err

    assert "does not exist" in refused(tmp_path / "none", *picture)
    assert "config.json" in refused(tmp_path, *picture)
    assert "must end in .png" in refused(runs[0], "--out", tmp_path / "s.txt")
    assert "--checkpoint 'first'" in refused(runs[0], "--checkpoint", "first", *picture)
    assert "no checkpoint of epoch 9" in refused(runs[0], "--checkpoint", 9, *picture)
    assert "named twice" in refused(runs[0], runs[0], *picture)
    colours = ["red", "blue", "green"]
    for split in ("train", "test"):
        for number, colour in enumerate(colours):
            (tmp_path / "images" / split / colour).mkdir(parents=True)
            for i in range(4):
                image = Image.new("RGB", (8, 8), colour)
                image.save(tmp_path / "images" / split / colour / f"{number}{i}.png")
    flags = ["--dataset", "folder", "--data_dir", tmp_path / "images", "--num_workers", 0]
    flags += ["--sample_size", 4, "--test_sample_size", 4]
    three = make(tmp_path, "three", *flags)
    assert "different class counts" in refused(runs[0], three, *picture)
    assert not (tmp_path / "s.png").exists()
    weights = tmp_path / "three" / "epoch_002.pth"
    weights.write_bytes(b"PK cut")
    assert str(weights) in refused(three, *picture)
    assert_mistake(run("eval_scores.py", runs[0]), "--out")
