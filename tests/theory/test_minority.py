"""The thresholds of minority collapse against their equations, the minimum and L-BFGS."""

import math

import numpy as np
import pytest

from theory.minimiser import FeatureModel, minimise
from theory.minority import TwoGroups, find_merging_ratio, find_vanishing_ratio
from theory.problem import Problem

LOSSES = ["CE", "BCE", "MSE"]


def divide(loss, total, majority, minority, *decays, smoothing=0.0):
    classes = majority + minority
    sizes = [total / classes] * classes
    return TwoGroups(Problem(loss, sizes, *decays, smoothing=smoothing), majority)


def compute_cosine(prediction, gram="weight_gram"):
    """The cosine between two classes of the last group."""
    blocks = getattr(prediction, gram)
    return blocks.beside[-1] / blocks.diagonal[-1]


@pytest.mark.parametrize(
    ("loss", "classes", "merging", "vanishing"),
    [
        ("CE", 10, 6_249, 12_452),
        ("BCE", 10, 6_249, 6_314),
        ("MSE", 10, 6_249, 12_498),
        ("CE", 4, 15_624, 31_234),
        ("BCE", 4, 15_624, 31_186),
        ("BCE", 100, 624, 625),
    ],
)
def test_the_published_setting(loss, classes, merging, vanishing):
    groups = divide(loss, 128, classes // 2, classes // 2, 5e-4, 5e-4)
    assert find_merging_ratio(groups) == pytest.approx(merging, abs=1e-6)
    assert find_vanishing_ratio(groups) == pytest.approx(vanishing, abs=0.6)


@pytest.mark.parametrize("loss", LOSSES)
def test_merging_and_vanishing_are_seen_in_the_minimum(loss):
    groups = divide(loss, 60, 3, 4, 6e-3, 3e-3)
    merging, vanishing = find_merging_ratio(groups), find_vanishing_ratio(groups)
    assert 5 < merging < vanishing
    before, between = groups.predict(merging * 0.99), groups.predict((merging + vanishing) / 2)
    almost, after = groups.predict(vanishing * 0.99), groups.predict(vanishing * 1.01)
    for gram in ("weight_gram", "feature_gram"):
        assert compute_cosine(before, gram) < 1 - 1e-3
        assert compute_cosine(between, gram) == pytest.approx(1, abs=1e-6)
    norms = [each.weight_norms[-1] for each in (before, between, almost, after)]
    assert norms == sorted(norms, reverse=True)
    assert norms[2] > 5e-3
    assert norms[3] < 1e-6
    assert after.feature_norms[-1] < 1e-6
    # The large classes are a simplex ETF of their own then.
    assert after.weight_gram.beside[0] / after.weight_gram.diagonal[0] == pytest.approx(-1 / 2)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_equations_of_the_vanishing_point(loss):
    """docs/theory.md, with the probabilities read off a minimum just beyond the threshold."""
    groups = divide(loss, 60, 3, 4, 6e-3, 3e-3)
    ratio = find_vanishing_ratio(groups)
    exact = groups.predict(ratio * (1 + 1e-6))
    sizes = np.array(exact.problem.class_sizes)
    small, rare = sizes[-1], 4 * sizes[-1] / 60  # n_2, and the share of all small classes
    large, small_bias = exact.biases[0], exact.biases[-1]
    threshold = 60**2 * 6e-3 * 3e-3
    if loss == "CE":
        likely = 3 * math.exp(-large) / (3 * math.exp(-large) + 4 * math.exp(-small_bias))
        left = small * 7 / 3 * likely**2 / (1 - rare)
    elif loss == "BCE":
        probability = 1 / (1 + math.exp(large))
        left = small * ((1 - rare) + 3 * 4 * probability**2 / (1 - rare))
    else:
        left = small * 7 / 3 * (1 - rare)
    assert left == pytest.approx(threshold, rel=1e-5)


def test_smoothing_moves_the_merging():
    plain = divide("BCE", 60, 3, 4, 6e-3, 3e-3)
    smooth = divide("BCE", 60, 3, 4, 6e-3, 3e-3, smoothing=0.2)
    shares = [1 / (3 * find_merging_ratio(each) + 4) for each in (plain, smooth)]
    assert shares[1] == pytest.approx(shares[0] / 0.8**2)
    assert compute_cosine(smooth.predict(find_merging_ratio(smooth) * 0.98)) < 1 - 1e-4
    assert compute_cosine(smooth.predict(find_merging_ratio(smooth) * 1.02)) > 1 - 1e-6


@pytest.mark.parametrize("loss", ["CE", "BCE"])
def test_l_bfgs_on_features_sees_both_thresholds(loss):
    groups = divide(loss, 40, 2, 3, 2e-2, 2e-2)
    merging, vanishing = find_merging_ratio(groups), find_vanishing_ratio(groups)
    cosines, norms = [], []
    for ratio in (0.8 * merging, merging + 0.6 * (vanishing - merging), 1.25 * vanishing):
        found = minimise(FeatureModel(groups.problem(ratio), 6))
        rows = found.weight[-3:]
        norms.append(np.linalg.norm(rows, axis=1).max())
        cosines.append(rows[0] @ rows[1] / np.linalg.norm(rows[0]) / np.linalg.norm(rows[1]))
        exact = groups.predict(ratio)
        assert found.loss_value == pytest.approx(exact.loss_value, rel=1e-9)
        assert norms[-1] == pytest.approx(exact.weight_norms[-1], abs=2e-3)
    assert cosines[0] < 0.99
    assert cosines[1] == pytest.approx(1, abs=1e-3)
    assert norms[2] < 1e-3


def test_where_nothing_distinguishes_the_classes():
    groups = divide("BCE", 128, 5, 5, 0.2, 0.2)
    assert find_merging_ratio(groups) < 1
    assert find_vanishing_ratio(groups) == pytest.approx(1)
