"""The exact minimum that a run approaches, and the runs for which none is claimed."""

import pytest

from args import complete, parse_settings
from rundir.prediction import predict_run
from theory.minimum import predict


def settings(*flags):
    return complete(parse_settings([str(flag) for flag in flags]))


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--sep_decay", "--loss", "MSE"],
        ["--sep_decay", "--smoothing", 0.1],
        ["--sep_decay", "--augment", "DA1+DA2"],
        ["--sep_decay", "--bias_mode", "none"],
        ["--sep_decay", "--fixed_etf"],
        ["--sep_decay", "--weight_decay", 0],
    ],
)
def test_no_prediction_is_claimed_for_other_runs(flags):
    assert predict_run(settings(*flags), [100] * 10, 512) is None


def test_a_run_is_predicted_by_its_batch():
    flags = ["--sep_decay", "--batch_size", 64, "--weight_decay_bias", 5e-4, "--augment", "DA1"]
    found = predict_run(settings(*flags), [100] * 10, 512)
    assert found == predict("BCE", 10, 6.4, 5e-4, 5e-4, 5e-4)
    assert found.regime == "shifted"
    assert predict_run(settings(*flags), [100] * 10, 9) is None  # no room for the shift
    assert predict_run(settings(*flags), [100] * 9 + [60], 512) is None  # imbalanced
    small = predict_run(settings(*flags), [3] * 10, 512)  # no batch of 64 exists
    assert small == predict("BCE", 10, 3, 5e-4, 5e-4, 5e-4)
