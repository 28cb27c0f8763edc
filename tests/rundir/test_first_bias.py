"""The bias at which --bias_init_mean predicted and prior start a run."""

import json

import pytest
import torch

import train
from args import complete, parse_settings
from rundir.first_bias import find_first_bias
from rundir.weights import load
from tests.helpers import SMALL, read_refusal, train_here
from utils.errors import UserError

LONG_TAIL = [10 ** (6 - k / 9) for k in range(10)]
STILL = ["--epochs", 1, "--lr", 1e-30, "--min_lr", 0]  # the bias stays where it begins


def find(start, sizes, *flags, dim=512):
    words = ["--bias_init_mean", start, "--sep_decay", *map(str, flags)]
    return find_first_bias(complete(parse_settings(words)), sizes, dim)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("BCE", [3.26, 4.00, 4.60, 5.09, 5.50, 5.84, 6.13, 6.38, 6.61, 6.81]),
        ("CE", [-1.49, -1.03, -0.63, -0.29, 0.00, 0.26, 0.50, 0.71, 0.90, 1.08]),
    ],
)
def test_a_long_tail_begins_at_its_minimum(loss, expected):
    """As L-BFGS in the factors found it for a batch of 128; CE's free level is that of mean 0."""
    assert find("predicted", LONG_TAIL, "--loss", loss) == pytest.approx(expected, abs=0.006)


def test_equal_values_are_one_number():
    assert find("predicted", [9] * 10, "--loss", "CE") == 0.0
    assert find("prior", [9] * 10, "--smoothing", 0.1) == pytest.approx(2.1972245773)  # ln 9
    assert isinstance(find("predicted", LONG_TAIL, "--bias_mode", "unified"), float)
    assert find("prior", LONG_TAIL, "--loss", "MSE", "--bias_mode", "unified") == -0.1


def test_a_run_begins_there_and_records_it(tmp_path, capsys):
    flags = [*SMALL, *STILL, "--sep_decay", "--bias_init_mean"]
    predicted = train_here(tmp_path, *flags, "Predicted", "--imbalance_factor", 4, name="p")
    config = json.loads((predicted / "config.json").read_text())
    sizes, values = config["data"]["class_sizes"], config["network"]["first_bias"]["values"]
    assert config["settings"]["bias_init_mean"] == "predicted"
    assert (sizes[0], sizes[-1]) == (20, 5)
    assert values == pytest.approx(find("predicted", sizes, "--batch_size", 32))
    state = load(predicted / "epoch_001.pth")
    assert state["fc.bias"].tolist() == pytest.approx(values)
    assert "the biases begin at" in (predicted / "train_log.txt").read_text()

    flags = [*flags, "prior", "--bias_mode", "unified"]
    prior = train_here(tmp_path, *flags, "--imbalance_factor", 4, name="q")
    config = json.loads((prior / "config.json").read_text())
    assert config["network"] == {"first_bias": {"values": pytest.approx(2.1972245773)}}
    other = load(prior / "epoch_001.pth")
    assert other["fc.bias"].tolist() == pytest.approx([2.1972245773])
    assert torch.equal(other["fc.weight"], state["fc.weight"])  # all else is drawn as before

    for path in (*predicted.glob("*.pth"), predicted / "metrics.csv"):
        path.unlink()
    train_here(tmp_path, "--resume", name="p")  # killed before the first state
    assert torch.equal(load(predicted / "epoch_001.pth")["fc.bias"], state["fc.bias"])
    again = ["--resume", "--run_name", "p", "--save_dir", tmp_path, "--bias_init_mean", 3]
    assert "with --bias_init_mean predicted, not 3" in read_refusal(capsys, train.main, *again)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["predicted", "--sep_decay", "--width", 5], "needs 9 features, MLP has 5"),
        (["prior", "--loss", "CE", "--smoothing", 0.1], "classes of one size"),
    ],
)
def test_what_the_data_decide_is_refused_before_a_directory_is_made(tmp_path, capsys, flags, words):
    new = ["--gpu_id", -1, "--save_dir", tmp_path / "new", "--bias_init_mean"]
    assert words in read_refusal(capsys, train.main, *SMALL, *new, *flags)
    assert not (tmp_path / "new").exists()


def test_what_is_not_certain_is_refused():
    tiny = ["--weight_decay", 1e-12, "--feature_decay_rate", 1e-12]
    with pytest.raises(UserError, match="certified to a relative gap"):
        find("predicted", [32, 16, 8, 4], *tiny)
    for start in ("predicted", "prior"):
        with pytest.raises(UserError, match=f"{start}: .*class.*use"):
            find(start, [3, 0, 1])
