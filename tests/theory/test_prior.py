"""The bias at which scores of 0 have the least loss, against Newton's method on the losses."""

import math

import pytest
import torch

from objective import LOSSES
from theory.prior import find_prior_biases
from utils.registry import load_function

LONG_TAIL = [40, 25, 10, 3, 1]


def minimise_at_zero_scores(loss, sizes, smoothing, bias_mode):
    """The biases with the least mean loss of the logits −b, by Newton's method in float64."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    compute = load_function(LOSSES[loss].function)

    def objective(bias):
        logits = -bias.expand(len(labels), len(sizes))
        return compute(logits, labels, smoothing)

    count = 1 if bias_mode == "unified" else len(sizes)
    bias = torch.zeros(count, dtype=torch.float64)
    for _ in range(50):
        slope = torch.autograd.functional.jacobian(objective, bias)
        curvature = torch.autograd.functional.hessian(objective, bias)
        bias = bias - torch.linalg.pinv(curvature, rtol=1e-10) @ slope  # CE does not see a shift
    assert slope.abs().max() < 1e-12
    return bias.expand(len(sizes)).tolist()


KINDS = [(loss, bias_mode) for loss in ("BCE", "MSE") for bias_mode in ("diverse", "unified")]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(("loss", "bias_mode"), [*KINDS, ("CE", "diverse")])
def test_prior_minimises_the_loss_of_scores_of_0(loss, bias_mode, smoothing):
    for sizes in ([7] * 4, LONG_TAIL):
        found = find_prior_biases(loss, sizes, smoothing, bias_mode)
        expected = minimise_at_zero_scores(loss, sizes, smoothing, bias_mode)
        assert found == pytest.approx(expected, abs=1e-9)


def test_equal_classes_have_one_value_exactly():
    for classes in (2, 10, 1000):
        assert find_prior_biases("BCE", [123] * classes) == [math.log(classes - 1)] * classes
        assert find_prior_biases("CE", [123] * classes, 0.1) == [0.0] * classes
    assert find_prior_biases("CE", LONG_TAIL, bias_mode="unified") == [0.0] * 5


def test_a_class_without_samples_has_a_prior_with_smoothing_or_mse_alone():
    for loss in ("BCE", "CE"):
        with pytest.raises(ValueError, match="class 1 has 0 of 6 samples"):
            find_prior_biases(loss, [5, 0, 1])
        assert all(map(math.isfinite, find_prior_biases(loss, [5, 0, 1], 0.1)))
    assert find_prior_biases("MSE", [5, 0, 1]) == pytest.approx([-5 / 6, 0, -1 / 6])
    with pytest.raises(ValueError, match="loss is 'Brier'"):
        find_prior_biases("Brier", [1, 1])
