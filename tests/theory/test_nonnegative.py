"""The minimum over features that are not negative, against a search on weights and features."""

import numpy as np
import pytest
from scipy.optimize import minimize

from theory.convex import UncertainError
from theory.losses import EXACT_LOSSES
from theory.minimum import predict
from theory.nonnegative import predict_nonnegative
from theory.problem import Problem

TAIL = [120, 92, 71, 55, 43, 33, 25, 20, 15, 12]


def search(problem, dimension=24):
    """Minimise over all weights, features h ≥ 0, one for each class, and biases by L-BFGS-B."""
    sizes, count = np.array(problem.class_sizes), problem.num_classes
    shares, loss = sizes / sizes.sum(), EXACT_LOSSES[problem.loss]
    targets = problem.other_target + (problem.own_target - problem.other_target) * np.eye(count)
    cut = count * dimension

    def read(point):
        biases = point[2 * cut :]
        spread = biases if len(biases) == count else np.full(count, biases.sum())
        return point[:cut].reshape(count, -1), point[cut : 2 * cut].reshape(count, -1), spread

    def objective(point):
        weight, features, bias = read(point)
        logits = features @ weight.T - bias
        values, slopes = loss.evaluate(logits)
        squares = (targets**2).sum(axis=1) / 2 if loss.adds_squares else 0.0
        data = shares @ (values - (targets * logits).sum(axis=1) + squares)
        slopes = shares[:, None] * (slopes - targets)
        decays = problem.weight_decay, problem.feature_decay_rate, problem.weight_decay_bias
        norms = (weight**2).sum(), (sizes[:, None] * features**2).sum(), (bias**2).sum()
        to_bias = decays[2] * bias - slopes.sum(axis=0)
        if len(point) - 2 * cut < count:
            to_bias = to_bias.sum(keepdims=True)[: len(point) - 2 * cut]
        to_weight = slopes.T @ features + decays[0] * weight
        to_features = slopes @ weight + decays[1] * sizes[:, None] * features
        gradient = np.concatenate([to_weight.ravel(), to_features.ravel(), to_bias])
        return data + np.dot(decays, norms) / 2, gradient

    generator, biases = np.random.default_rng(0), problem.count_biases(count)
    start = 0.5 * generator.standard_normal(2 * cut + biases)
    start[cut : 2 * cut] = np.abs(start[cut : 2 * cut])
    bounds = [(None, None)] * cut + [(0, None)] * cut + [(None, None)] * biases
    options = {"maxiter": 20_000, "maxfun": 30_000, "maxcor": 40, "ftol": 1e-16, "gtol": 1e-9}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return found.fun, *read(found.x)


@pytest.mark.parametrize(
    "problem",
    [
        Problem("BCE", TAIL, 5e-4, 5e-4),
        Problem("BCE", TAIL, 1e-3, 3e-4, smoothing=0.1, bias_mode="unified"),
        Problem("CE", [6, 6, 6, 4], 5e-4, 5e-4, smoothing=0.2, bias_mode="none"),
        Problem("CE", [8, 8, 8, 5, 5], 5e-4, 5e-3, weight_decay_bias=1e-3),
        Problem("MSE", [20, 18, 15], 1e-3, 2e-3),
        Problem("BCE", [140] * 5 + [28] * 5, 6.5e-3, 6.5e-3),  # the small classes vanish
    ],
    ids=lambda problem: f"{problem.loss}{problem.num_classes}{problem.bias_mode}",
)
def test_a_search_on_features_finds_it(problem):
    predicted = predict_nonnegative(problem)
    value, weight, features, bias = search(problem)
    assert predicted.gap < 1e-9
    assert predicted.loss_value == pytest.approx(value, rel=1e-9)
    scores = features @ weight.T
    if problem.bias_level_is_free:
        bias = bias - bias.mean()
    pairs = {
        "positive_scores": np.diag(scores),
        "negative_scores": (scores.sum(axis=1) - np.diag(scores)) / (len(scores) - 1),
        "biases": bias,
        "weight_norms": np.linalg.norm(weight, axis=1),
        "feature_norms": np.linalg.norm(features, axis=1),
    }
    for name, found in pairs.items():
        np.testing.assert_allclose(getattr(predicted, name), found, atol=2e-4, err_msg=name)
    grams = predicted.weight_gram, predicted.feature_gram
    for gram, rows in zip(grams, (weight, features), strict=True):
        np.testing.assert_allclose(gram.expand(predicted.group_of), rows @ rows.T, atol=2e-3)
    assert predicted.loss_value > predict(problem).loss_value
    assert predicted.min_feature_dim == (features.max(axis=1) > 1e-3).sum()


@pytest.mark.parametrize(
    ("loss", "decay", "count"),
    [("BCE", 0.0, 10), ("BCE", 1e-4, 10), ("CE", 0.0, 10), ("CE", 0.0, 100)],
)
def test_classes_of_one_size_leave_three_numbers(loss, decay, count):
    size, rate = 128 / count, 5e-4

    def objective(point):
        own, other, bias = point
        z = np.full(count, other - bias)
        z[0] = own - bias
        data = EXACT_LOSSES[loss].evaluate(z[None])[0][0] - z[0]
        price = count * rate * np.sqrt(size * (own**2 + (count - 1) * other**2))
        return data + price + decay * count * bias**2 / 2

    options = {"xatol": 1e-10, "fatol": 1e-15, "maxiter": 20_000, "maxfev": 20_000}
    found = minimize(objective, [5.0, -0.5, 1.0], method="Nelder-Mead", options=options)
    predicted = predict_nonnegative(Problem(loss, [size] * count, rate, rate, decay))
    assert predicted.loss_value == pytest.approx(found.fun, rel=1e-10)
    assert predicted.positive_score == pytest.approx(found.x[0], abs=1e-4)
    assert predicted.negative_score == pytest.approx(found.x[1], abs=1e-4)
    assert predicted.min_feature_dim == count
    angles = predicted.feature_gram.expand(predicted.group_of)
    assert not (angles - np.diag(np.diag(angles))).any()


@pytest.mark.parametrize("decay", [4.7e-4, 4.95e-4, 0.5])
def test_a_strong_decay_of_the_bias_makes_class_means_of_one_size_overlap(decay):
    """Up to about 4.87e-4 they are orthogonal; beyond, the minimum over any sign is allowed."""
    problem = Problem("BCE", [12.8] * 10, 5e-4, 5e-4, decay)
    predicted = predict_nonnegative(problem)
    value, _, features, bias = search(problem)
    assert predicted.loss_value == pytest.approx(value, rel=1e-8)
    np.testing.assert_allclose(predicted.biases, bias, atol=1e-3)
    gram = predicted.feature_gram.expand(predicted.group_of)
    np.testing.assert_allclose(gram, features @ features.T, atol=5e-3)
    free = predict(problem).loss_value
    assert (predicted.loss_value == free) == (decay > 4.9e-4)


@pytest.mark.parametrize(
    "problem", [Problem("BCE", TAIL, 5e-4, 5e-4, 5e-3), Problem("CE", TAIL, 5e-4, 5e-4)]
)
def test_where_class_means_overlap_there_is_none(problem, monkeypatch):
    with pytest.raises(UncertainError, match="relative gap"):
        predict_nonnegative(problem)
    monkeypatch.setattr("theory.nonnegative.LARGEST_GAP", np.inf)
    assert search(problem)[0] < predict_nonnegative(problem).loss_value * (1 - 5e-6)


def test_strong_decays_leave_nothing():
    predicted = predict_nonnegative(Problem("CE", [3, 2, 1], 1.0, 1.0))
    assert not predicted.weight_norms.any() and not predicted.feature_norms.any()
    prior = -np.log(np.array([3, 2, 1]) / 6)
    np.testing.assert_allclose(predicted.biases, prior - prior.mean(), atol=1e-9)
    assert predicted.collapse["nc2"] is None and predicted.min_feature_dim == 1
