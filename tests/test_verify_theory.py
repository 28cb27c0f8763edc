"""verify_theory.py: the command, what it prints and writes, and how it fails."""

import json
import subprocess
import sys

import pytest
from PIL import Image

import verify_theory
from tests.helpers import ROOT, assert_mistake, run
from theory.balanced import find_balanced_minimum
from theory.minimum import predict
from theory.problem import Problem, divide_batch
from theory.setting import SWEEPS

SMALL = ["--num_classes", 4, "--samples_per_class", 3]


def verify(capsys, *flags):
    status = verify_theory.main([str(word) for word in flags])
    return status, capsys.readouterr()


@pytest.mark.parametrize(("loss", "decay"), [("CE", 0), ("CE", 0.5), ("BCE", 0), ("BCE", 5e-4)])
def test_prediction_and_minimum_agree(capsys, tmp_path, loss, decay):
    path = tmp_path / "out.json"
    flags = [*SMALL, "--loss", loss, "--weight_decay_bias", decay, "--bias_init_mean", 3]
    status, said = verify(capsys, *flags, "--json", path)
    assert status == 0, said.out
    assert "agree: largest difference" in said.out
    content = json.loads(path.read_text())
    keys = {"positive_score", "negative_score", "bias", "loss_value", "nc1", "nc2", "nc2_h", "nc3"}
    assert keys <= content["predicted"].keys()
    assert keys | {"positive_score_min", "bias_max"} <= content["found"].keys()
    exact = find_balanced_minimum(loss, 4, 3, 5e-4, 5e-4, decay)
    assert content["predicted"]["positive_score"] == pytest.approx(exact.positive_score, rel=1e-14)
    assert content["found"]["loss_value"] == pytest.approx(exact.loss_value, rel=1e-6)
    if loss == "CE" and decay == 0:
        assert content["predicted"]["bias"] is None
        assert content["found"]["bias"] == pytest.approx(3, abs=0.5)  # where it started


def test_the_classifiers_nc2_is_predicted_in_the_shifted_regime(capsys, tmp_path):
    path = tmp_path / "out.json"
    assert verify(capsys, *SMALL, "--weight_decay_bias", 0.5, "--json", path)[0] == 0
    content = json.loads(path.read_text())
    assert content["predicted"]["nc2"] > 0.5
    assert content["found"]["nc2"] == pytest.approx(content["predicted"]["nc2"], abs=1e-6)


UNEQUAL = [6, 3, 3, 0.5]
TAIL = ["--samples_per_class", 4, "--imbalance_factor", 8]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--loss", "CE", *TAIL], Problem("CE", divide_batch(16, [8, 4, 2, 1]), 5e-4, 5e-4)),
        (["--smoothing", 0.1], Problem("BCE", UNEQUAL, 5e-4, 5e-4, 0.0, 0.1)),
        (
            ["--loss", "MSE", "--bias_mode", "none"],
            Problem("MSE", UNEQUAL, 5e-4, 5e-4, 0.0, 0.0, "none"),
        ),
        (
            ["--bias_mode", "unified", "--weight_decay_bias", 0.01],
            Problem("BCE", UNEQUAL, 5e-4, 5e-4, 0.01, 0.0, "unified"),
        ),
    ],
)
def test_classes_targets_losses_and_kinds_of_bias(capsys, tmp_path, flags, problem):
    path = tmp_path / "out.json"
    sizes = [] if "--imbalance_factor" in flags else ["--class_sizes", *UNEQUAL]
    status, said = verify(capsys, "--num_classes", 4, *sizes, *flags, "--json", path)
    assert status == 0, said.out
    content = json.loads(path.read_text())
    assert content["settings"]["class_sizes"] == pytest.approx(list(problem.class_sizes))
    exact = predict(problem)
    expected, found = content["predicted"], content["found"]
    assert expected["gap"] == exact.gap <= 1e-6
    for name in ("positive_scores", "negative_scores", "biases"):
        assert expected[name] == getattr(exact, name).tolist()
        assert found[name] == pytest.approx(expected[name], abs=1e-4)
    assert found["loss_value"] == pytest.approx(exact.loss_value, rel=1e-9)
    assert len(set(problem.class_sizes)) == said.out.partition("difference\n")[2].count(" | ") // (
        2 if "none" in flags else 3
    )


def test_classes_whose_means_have_become_equal_agree(capsys):
    """The least rests of a direction that has vanished would count as within-class variability."""
    sizes = [3, 3, 2, 1, 1, 1, 1]
    decays = ["--weight_decay", 0.1, "--feature_decay_rate", 0.1]
    status, said = verify(capsys, "--loss", "CE", "--class_sizes", *sizes, *decays)
    assert status == 0, said.out
    assert predict(Problem("CE", sizes, 0.1, 0.1)).count_mean_directions() == 2


def test_a_disagreement_ends_with_status_1(capsys):
    status, said = verify(capsys, *SMALL, "--tolerance", 1e-14)
    assert status == 1
    assert "DISAGREE" in said.out


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--weight_decay_bias", 0.5, "--feature_dim", 3], "needs d >= 4, and d = 3"),
        (["--feature_dim", 2], "needs d >= 3, and d = 2"),
    ],
)
def test_where_the_theory_does_not_apply_it_claims_nothing(capsys, tmp_path, flags, reason):
    path = tmp_path / "out.json"
    status, said = verify(capsys, *SMALL, *flags, "--json", path)
    assert status == 4
    assert reason in said.out
    assert set(json.loads(path.read_text())["predicted"].values()) == {None}


def test_a_minimum_that_is_not_certified_is_not_claimed(capsys, monkeypatch):
    monkeypatch.setattr("theory.convex.LARGEST_GAP", 0.0)
    status, said = verify(capsys, "--class_sizes", 3, 2, 1)
    assert status == 4
    assert "no prediction: " in said.out


@pytest.mark.parametrize(
    ("sweep", "classes"), [("bias_decay", ["--class_sizes", 6, 3, 1]), ("bias_init_mean", SMALL)]
)
def test_a_sweep_is_drawn_and_agrees(capsys, tmp_path, sweep, classes):
    path = tmp_path / "sweep.png"
    status, said = verify(capsys, *classes, "--sweep", sweep, "--plot", path)
    assert status == 0
    assert len(said.out.splitlines()) == 3 + len(SWEEPS[sweep].values) + 2
    assert ("regime" in said.out) == (classes is SMALL)
    Image.open(path).verify()


def test_a_sweep_beyond_the_theory_claims_nothing_there(capsys, tmp_path):
    flags = [*SMALL, "--sweep", "bias_decay", "--feature_dim", 3, "--plot", tmp_path / "s.png"]
    assert verify(capsys, *flags, "--json", tmp_path / "s.json")[0] == 4
    points = json.loads((tmp_path / "s.json").read_text())["points"]
    claimed = [point["predicted"]["positive_score"] is not None for point in points]
    regimes = [
        find_balanced_minimum("BCE", 4, 3, 5e-4, 5e-4, point["value"]).regime for point in points
    ]
    assert claimed == [regime == "etf" for regime in regimes]
    assert 0 < sum(claimed) < len(points)


def test_a_flat_direction_is_named(capsys):
    status, said = verify(capsys, *SMALL, "--loss", "CE", "--weight_decay_bias", 1e-12)
    assert status == 1
    assert "the objective is flat there" in said.out


def test_one_setting_can_be_drawn(capsys, tmp_path):
    assert verify(capsys, *SMALL, "--plot", tmp_path / "one.pdf")[0] == 0
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sweep", "bias_decay", "--weight_decay_bias", 1], "--weight_decay_bias has no effect"),
        (["--plot", "x.txt"], "must end in .png"),
        (["--plot", "."], "not the name of a file"),
        (["--class_sizes", 1, 2, "--num_classes", 3], "--class_sizes has 2 values"),
        (["--class_sizes", 1], "must have 2 to 1000"),
        (["--class_sizes", 1, 2, "--samples_per_class", 3], "--samples_per_class has no effect"),
        (["--class_sizes", 1, 2, "--imbalance_factor", 1], "--imbalance_factor has no effect"),
        (["--bias_mode", "none", "--weight_decay_bias", 0], "--weight_decay_bias has no effect"),
        (["--bias_mode", "none", "--sweep", "bias_decay"], "--sweep has no effect"),
        (["--json", "no/x.json"], "not a directory"),
        (["--weight_decay", 1e-150, "--feature_decay_rate", 1e-150], "between 1e-200 and 1e200"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    status, said = verify(capsys, *flags)
    assert status == 2
    assert words in said.err
    assert said.err.count("\n") == 1


def test_a_mistake_at_the_command_line():
    assert_mistake(run("verify_theory.py", "--loss", "MSF"), "CE, BCE, MSE")


def test_mistakes_between_flags_are_found_without_torch():
    code = "import sys, verify_theory as v; print(v.main(sys.argv[1:]), 'torch' in sys.modules)"
    flags = ["--sweep", "bias_init_mean", "--bias_init_mean", "1"]
    result = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert result.stdout == "2 False\n", result.stderr
