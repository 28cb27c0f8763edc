"""verify_theory.py: the command, what it prints and writes, and how it fails."""

import json
import subprocess
import sys

import pytest
from PIL import Image

import verify_theory
from tests.helpers import ROOT, assert_mistake, run
from theory.balanced import find_balanced_minimum
from theory.setting import SWEEPS

SMALL = ["--num_classes", 4, "--samples_per_class", 3]


def verify(capsys, *flags):
    status = verify_theory.main([str(word) for word in flags])
    return status, capsys.readouterr()


@pytest.mark.parametrize("loss", ["CE", "BCE"])
@pytest.mark.parametrize("decay", [0, 5e-4, 0.5])
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
    assert content["predicted"]["positive_score"] == exact.positive_score
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


def test_a_disagreement_ends_with_status_1(capsys):
    status, said = verify(capsys, *SMALL, "--tolerance", 1e-14)
    assert status == 1
    assert "DISAGREE" in said.out


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--weight_decay_bias", 0.5, "--feature_dim", 3], "needs d >= 4, and d = 3"),
        (["--feature_dim", 2], "needs d >= 3, and d = 2"),
        (["--imbalance_factor", 3], "imbalanced"),
    ],
)
def test_where_the_theory_does_not_apply_it_claims_nothing(capsys, tmp_path, flags, reason):
    path = tmp_path / "out.json"
    status, said = verify(capsys, *SMALL, *flags, "--json", path)
    assert status == 4
    assert reason in said.out
    assert set(json.loads(path.read_text())["predicted"].values()) == {None}


@pytest.mark.parametrize("sweep", ["bias_decay", "bias_init_mean"])
def test_a_sweep_is_drawn_and_agrees(capsys, tmp_path, sweep):
    path = tmp_path / "sweep.png"
    status, said = verify(capsys, *SMALL, "--sweep", sweep, "--plot", path)
    assert status == 0
    assert len(said.out.splitlines()) == 3 + len(SWEEPS[sweep].values) + 2
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
        (["--samples_per_class", 1, "--imbalance_factor", 3], "all classes have one sample"),
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
    assert_mistake(run("verify_theory.py", "--loss", "MSE"), "CE, BCE")


def test_mistakes_between_flags_are_found_without_torch():
    code = "import sys, verify_theory as v; print(v.main(sys.argv[1:]), 'torch' in sys.modules)"
    flags = ["--sweep", "bias_init_mean", "--bias_init_mean", "1"]
    result = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert result.stdout == "2 False\n", result.stderr
