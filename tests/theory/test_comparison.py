"""Predicted and found minimum side by side: what counts as a difference."""

import math

import numpy as np
import pytest

from theory.comparison import COLLAPSE_QUANTITIES, QUANTITIES, collect_expected, compare
from theory.minimiser import FeatureModel, minimise
from theory.minimum import predict
from theory.problem import Problem

EQUAL = (3, 3, 3, 3)


def compare_at(loss="BCE", weight_decay_bias=0.1, sizes=EQUAL, dim=5, collapse=None, **options):
    """The minima of a problem; the found one has the predicted measures unless they are given."""
    problem = Problem(loss, sizes, 1e-3, 1e-3, weight_decay_bias, **options)
    predicted = predict(problem)
    found = minimise(FeatureModel(problem, dim), bias_init_mean=2.0)
    values = {name: predicted.collapse[name] for name in COLLAPSE_QUANTITIES} | (collapse or {})
    return compare(problem, predicted, found, values)


@pytest.mark.parametrize("sizes", [EQUAL, (6, 3, 3, 0.5)])
def test_every_quantity_is_predicted_measured_and_shown(sizes):
    minima = compare_at(sizes=sizes)
    assert set(QUANTITIES) <= set(minima.expected) & set(minima.measured)
    rows = minima.list_rows()
    for quantity in QUANTITIES.values():
        assert any(row[0].startswith(quantity.title) for row in rows)
    assert {len(row) for row in rows} == {4}
    assert minima.find_largest_difference()[0] < 1e-4
    assert [row[0] for row in minima.list_class_rows()] == (
        ["0-3"] if sizes == EQUAL else ["0", "1-2", "3"]
    )


@pytest.mark.parametrize("value", [0.25, math.inf])
def test_the_largest_difference_is_named(value):
    minima = compare_at(collapse={"nc3": value})
    assert minima.find_largest_difference() == (pytest.approx(value), "nc3")


def test_a_nan_is_no_agreement():
    minima = compare_at(collapse={"nc1": math.nan, "nc3": 7.0})
    assert minima.find_largest_difference() == (math.inf, "nc1")


@pytest.mark.parametrize(("part", "name"), [("own", "positive_score"), ("other", "negative_score")])
def test_every_score_of_every_sample_counts(part, name):
    minima = compare_at(sizes=(6, 3, 3, 0.5))
    found = minima.found
    (sample,) = np.flatnonzero(found.labels == 3)
    row = 3 if part == "own" else 1
    found.weight[row] += 0.5 * found.features[sample] / np.square(found.features[sample]).sum()
    difference, where = minima.find_largest_difference()
    assert difference >= 0.5 - 1e-4
    assert where.startswith(name) or part == "own"
    assert minima.class_differences[name][3] == pytest.approx(0.5, abs=1e-4)


def test_differences_of_large_norms_are_relative():
    minima = compare_at()
    norm = minima.expected["weight_norm_squared"]
    assert norm > 1
    minima.measured["weight_norm_squared"] = 1.5 * norm
    assert minima.find_largest_difference() == (pytest.approx(0.5), "weight_norm_squared")


def test_a_free_level_of_the_bias_does_not_count():
    minima = compare_at("CE", 0.0, (6, 3, 3, 0.5))
    assert minima.expected["bias"] is None
    assert abs(minima.measured["bias"]) > 1
    assert sum(minima.measured["biases"]) == pytest.approx(0, abs=1e-9)
    minima.measured["biases"][2] += 0.5
    assert minima.find_largest_difference() == (pytest.approx(0.5, abs=1e-4), "bias of class 2")


def test_nothing_is_claimed_where_the_theory_does_not_apply():
    minima = compare_at(dim=3)
    assert "needs d >= 4" in minima.objection
    assert set(minima.expected.values()) == {None}
    problem, found = minima.problem, minima.found
    uncertain = compare(problem, None, found, dict.fromkeys(COLLAPSE_QUANTITIES, 0.0), "why")
    assert uncertain.objection == "why" and uncertain.expected == minima.expected
    assert uncertain.expected.keys() == collect_expected(problem, predict(problem)).keys()


def test_collapse_is_not_claimed_where_all_features_coincide():
    problem = Problem("CE", [1] * 4, 0.4, 0.4, 0.1)  # κ > 1
    found = minimise(FeatureModel(problem, 5))
    collapse = dict.fromkeys(COLLAPSE_QUANTITIES, math.nan)
    minima = compare(problem, predict(problem), found, collapse)
    assert {minima.expected[name] for name in COLLAPSE_QUANTITIES} == {None}
    assert minima.find_largest_difference()[0] < 1e-3
