"""The exact minimum that a run approaches, and the runs for which none is claimed."""

import numpy as np
import pytest

from args import complete, parse_settings
from rundir.prediction import predict_run
from theory.minimum import predict
from theory.problem import Problem


def settings(*flags):
    return complete(parse_settings([str(flag) for flag in flags]))


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--sep_decay", "--augment", "DA1+DA2"],
        ["--sep_decay", "--fixed_etf"],
        ["--sep_decay", "--weight_decay", 0],
        ["--sep_decay", "--feature_decay_rate", 0],
        ["--sep_decay", "--freeze_backbone"],
    ],
)
def test_no_prediction_is_claimed_for_other_runs(flags):
    assert predict_run(settings(*flags), [100] * 10, 512) is None


def test_a_run_is_predicted_by_its_batch():
    flags = ["--sep_decay", "--batch_size", 64, "--weight_decay_bias", 5e-4, "--augment", "DA1"]
    found = predict_run(settings(*flags), [100] * 10, 512)
    assert found.problem == Problem("BCE", [6.4] * 10, 5e-4, 5e-4, 5e-4)
    assert found.positive_score == predict(found.problem).positive_score
    assert found.min_feature_dim == 10
    assert predict_run(settings(*flags), [100] * 10, 9) is None  # no room for the shift
    small = predict_run(settings(*flags), [3] * 10, 512)  # no batch of 64 exists
    assert small.problem == Problem("BCE", [3] * 10, 5e-4, 5e-4, 5e-4)


def test_targets_sizes_and_kind_of_bias_count():
    flags = ["--sep_decay", "--batch_size", 64, "--loss", "MSE", "--smoothing", 0.1]
    found = predict_run(settings(*flags, "--bias_mode", "unified"), [200, 100, 20], 512)
    expected = Problem("MSE", [40, 20, 4], 5e-4, 5e-4, 0.0, 0.1, "unified")
    assert found.positive_scores == pytest.approx(predict(expected).positive_scores)
    assert np.ptp(found.positive_scores) > 1e-3
