"""Predicted and found minimum side by side: what counts as a difference."""

import math

import pytest

from theory.balanced import find_balanced_minimum
from theory.comparison import COLLAPSE_QUANTITIES, QUANTITIES, compare, compute_nc2
from theory.minimiser import FeatureModel, minimise
from theory.problem import Problem

ZEROS = dict.fromkeys(COLLAPSE_QUANTITIES, 0.0)


def compare_at(loss="BCE", weight_decay_bias=0.1, collapse=ZEROS, sizes=(3, 3, 3, 3), dim=5):
    decays = 1e-3, 1e-3, weight_decay_bias
    predicted = find_balanced_minimum(loss, 4, 3, *decays)
    found = minimise(FeatureModel(Problem(loss, sizes, *decays), dim), bias_init_mean=2.0)
    collapse = {**collapse, "nc2": compute_nc2(predicted)}
    return compare(predicted, found, collapse, sizes, dim)


def test_every_quantity_is_predicted_measured_and_shown():
    minima = compare_at()
    assert list(minima.expected) == list(QUANTITIES)
    assert set(QUANTITIES) <= set(minima.measured)
    rows = minima.list_rows()
    for quantity in QUANTITIES.values():
        assert any(row[0].startswith(quantity.title) for row in rows)
    assert {len(row) for row in rows} == {4}
    assert minima.find_largest_difference()[0] < 1e-4


@pytest.mark.parametrize("value", [0.25, math.inf])
def test_the_largest_difference_is_named(value):
    minima = compare_at(collapse={**ZEROS, "nc3": value})
    assert minima.find_largest_difference() == (value, "nc3")


def test_a_nan_is_no_agreement():
    minima = compare_at(collapse={**ZEROS, "nc1": math.nan, "nc3": 7.0})
    assert minima.find_largest_difference() == (math.inf, "nc1")


def test_scores_count_with_their_spread():
    minima = compare_at()
    minima.measured["positive_score_max"] = minima.expected["positive_score"] + 0.5
    difference, name = minima.find_largest_difference()
    assert (difference, name) == (pytest.approx(0.5), "positive_score")


def test_differences_of_large_norms_are_relative():
    minima = compare_at()
    norm = minima.expected["weight_norm_squared"]
    assert norm > 1
    minima.measured["weight_norm_squared"] = 1.5 * norm
    assert minima.find_largest_difference() == (pytest.approx(0.5), "weight_norm_squared")


def test_a_bias_without_prediction_needs_only_be_common():
    minima = compare_at("CE", 0.0)
    assert minima.expected["bias"] is None
    assert abs(minima.measured["bias"]) > 1
    assert minima.find_largest_difference()[0] < 1e-3
    minima.measured["bias_max"] = minima.measured["bias_min"] + 0.5
    assert minima.find_largest_difference() == (pytest.approx(0.5), "spread of the bias")


@pytest.mark.parametrize(
    ("changes", "words"), [({"sizes": (5, 3, 3, 2)}, "imbalanced"), ({"dim": 3}, "needs d >= 4")]
)
def test_nothing_is_claimed_where_the_theory_does_not_apply(changes, words):
    minima = compare_at(**changes)
    assert words in minima.objection
    assert set(minima.expected.values()) == {None}


def test_collapse_is_not_claimed_where_all_features_coincide():
    predicted = find_balanced_minimum("CE", 4, 1, 0.4, 0.4, 0.1)  # κ > 1
    found = minimise(FeatureModel(Problem("CE", [1] * 4, 0.4, 0.4, 0.1), 5))
    collapse = dict.fromkeys(COLLAPSE_QUANTITIES, math.nan)
    minima = compare(predicted, found, collapse, [1] * 4, 5)
    assert {minima.expected[name] for name in COLLAPSE_QUANTITIES} == {None}
    assert minima.find_largest_difference()[0] < 1e-3
