"""The minimum for any classes: check values, closed forms, the certificate and L-BFGS."""

import math
import time

import numpy as np
import pytest
import torch

from metrics.neural_collapse import compute_neural_collapse
from metrics.properties import compute_feature_properties
from theory import convex
from theory.balanced import find_balanced_minimum
from theory.convex import UncertainError, certify, solve
from theory.factors import FactoredProblem
from theory.groups import Blocks, Groups, group_classes, refine
from theory.minimiser import FeatureModel, minimise
from theory.minimum import describe, predict
from theory.problem import Problem, divide_batch


def cut_tail(num_classes, factor, batch_size=128):
    """n_k of a batch whose class shares are ∝ factor^(−k/(K−1))."""
    return divide_batch(batch_size, factor ** (-np.arange(num_classes) / (num_classes - 1)))


# B = 128, λ_W = λ_H = 5e-4, λ_b = 0, K = 10: positive scores and biases (CE: centred) by class.
CHECK_VALUES = [
    (
        "CE",
        10,
        "4.75 5.07 5.33 5.53 5.69 5.81 5.91 5.99 6.05 6.09",
        "-1.49 -1.03 -0.63 -0.29 0.00 0.26 0.50 0.71 0.90 1.08",
    ),
    (
        "BCE",
        10,
        "7.95 8.52 8.96 9.29 9.54 9.73 9.88 9.99 10.07 10.13",
        "3.26 4.00 4.60 5.09 5.50 5.84 6.13 6.38 6.61 6.81",
    ),
    (
        "BCE",
        100,
        "6.34 8.05 9.04 9.61 9.94 10.13 10.22 10.27 10.28 10.26",
        "1.24 3.34 4.67 5.56 6.19 6.66 7.04 7.36 7.65 7.93",
    ),
]


@pytest.mark.parametrize(("loss", "factor", "positive", "biases"), CHECK_VALUES)
def test_the_check_values_of_a_long_tail(loss, factor, positive, biases):
    found = predict(Problem(loss, cut_tail(10, factor), 5e-4, 5e-4))
    assert [f"{value:.2f}" for value in found.positive_scores] == positive.split()
    assert [
        f"{value + 0.0:.2f}".replace("-0.00", "0.00") for value in found.biases
    ] == biases.split()
    assert found.gap < 1e-10


DECAYS = [(5e-4, 5e-4, 0.0), (1e-3, 2e-3, 1e-2), (5e-4, 1e-3, 0.5)]


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("loss", ["CE", "BCE"])
def test_equal_classes_have_the_closed_form(loss, decays):
    """By the general solution, with the classes as groups of their own and as one group."""
    closed = find_balanced_minimum(loss, 6, 12.8, *decays)
    problem = Problem(loss, [12.8] * 6, *decays)
    single = Groups(np.full(6, 12.8), np.ones(6), np.arange(6))
    for groups in (group_classes(problem.class_sizes), single):
        found = describe(problem, solve(problem, groups))
        assert found.loss_value == pytest.approx(closed.loss_value, rel=1e-12)
        assert found.positive_scores == pytest.approx(closed.positive_score, abs=1e-8)
        assert found.negative_scores == pytest.approx(closed.negative_score, abs=1e-8)
        assert found.biases == pytest.approx(closed.bias or 0.0, abs=1e-8)
        assert found.weight_norm_squared == pytest.approx(closed.weight_norm_squared, rel=1e-8)
        assert found.min_feature_dim == closed.min_feature_dim
    exact = predict(problem)
    assert exact.positive_score == pytest.approx(closed.positive_score, rel=1e-14)
    assert exact.negative_score == pytest.approx(closed.negative_score, rel=1e-14)
    assert exact.bias == (None if closed.bias is None else pytest.approx(closed.bias, rel=1e-14))
    assert exact.loss_value == pytest.approx(closed.loss_value, rel=1e-13)
    assert exact.gap < 1e-11


def test_squared_errors_without_a_bias_shrink_the_singular_values():
    """min ½ ‖Z − I‖²_F/K + c √n ‖Z‖_*: soft thresholding gives Z = (1 − κ) I."""
    found = predict(Problem("MSE", [20] * 5, 1e-3, 2e-3, bias_mode="none"))
    kappa = 5 * math.sqrt(20 * 1e-3 * 2e-3)
    assert found.positive_scores == pytest.approx(1 - kappa, abs=1e-9)
    assert found.negative_scores == pytest.approx(0, abs=1e-9)
    assert found.data_loss == pytest.approx(kappa**2 / 2, rel=1e-7)
    # An orthogonal frame: not the simplex ETF.
    assert found.collapse["nc2"] == pytest.approx(math.sqrt(2 - 2 * math.sqrt(4 / 5)), abs=1e-8)


def test_unequal_squared_errors_without_a_bias():
    """Classes do not see each other: Z_kk is the root of π (z − 1) + c √n = 0, where positive."""
    sizes = np.array([40, 20, 8, 0.005])
    found = predict(Problem("MSE", sizes, 1e-3, 2e-3, bias_mode="none"))
    shares = sizes / sizes.sum()
    expected = np.maximum(0, 1 - math.sqrt(2e-6) * np.sqrt(sizes) / shares)
    assert found.positive_scores == pytest.approx(expected, abs=1e-8)
    assert expected[-1] == 0
    assert found.min_feature_dim == 3


@pytest.mark.parametrize("loss", ["CE", "BCE"])
def test_smoothed_equal_classes_have_three_numbers(loss):
    """The closed form's objective with targets t_y = 1 − s + s/K and t_j = s/K."""
    s, classes, n, decay = 0.2, 5, 8.0, 1e-3
    found = predict(Problem(loss, [n] * classes, decay, decay, 0.0, s))
    own, other = 1 - s + s / classes, s / classes
    assert np.ptp(found.positive_scores) == 0
    positive, negative = found.positive_score, found.negative_score
    logits = np.array([positive] + [negative] * 4) - found.biases
    # Stationarity in the amplitude and in the bias.
    kappa = classes * decay * math.sqrt(n)
    mean = np.exp(logits) / np.exp(logits).sum() if loss == "CE" else 1 / (1 + np.exp(-logits))
    assert own - mean[0] + mean[1] - other == pytest.approx(kappa, rel=1e-9)
    assert mean.sum() == pytest.approx(1, abs=1e-12)


SETTINGS = [
    (loss, sizes, decay_bias, smoothing, mode)
    for loss in ("CE", "BCE", "MSE")
    for sizes, decay_bias, smoothing, mode in (
        ((9, 4, 4, 1.5), 0.0, 0.0, "diverse"),
        ((12, 3, 0.7), 5e-3, 0.1, "diverse"),
        ((5, 5, 2), 0.3, 0.0, "unified"),
        ((6, 2, 2, 2, 1), 0.0, 0.2, "none"),
    )
]


@pytest.mark.parametrize(("loss", "sizes", "decay_bias", "smoothing", "mode"), SETTINGS)
def test_the_minimum_over_features_agrees(loss, sizes, decay_bias, smoothing, mode):
    """L-BFGS on W, H and b of single samples knows nothing of scores, groups and norms."""
    problem = Problem(loss, sizes, 3e-3, 8e-3, decay_bias, smoothing, mode)
    exact = predict(problem)
    found = minimise(FeatureModel(problem, len(sizes) + 2), bias_init_mean=1.0)
    assert exact.loss_value == pytest.approx(found.loss_value, rel=1e-9)
    assert exact.loss_value <= found.loss_value * (1 + 1e-12)
    biases = found.bias - (found.bias.mean() if problem.bias_level_is_free else 0)
    assert exact.biases == pytest.approx(biases, abs=1e-4)
    features, labels = found.features, found.labels
    scores = features @ found.weight.T
    for k in range(len(sizes)):
        own = scores[labels == k]
        assert own[:, k] == pytest.approx(exact.positive_scores[k], abs=1e-4)
        others = np.delete(own, k, axis=1).mean(axis=1)
        assert others == pytest.approx(exact.negative_scores[k], abs=1e-4)
        norms = np.linalg.norm(features[labels == k], axis=1)
        assert norms == pytest.approx(exact.feature_norms[k], abs=1e-4)
    assert np.linalg.norm(found.weight, axis=1) == pytest.approx(exact.weight_norms, abs=1e-4)
    tensors = [torch.from_numpy(a.copy()) for a in (features, labels, found.weight, found.bias)]
    measured = compute_neural_collapse(*tensors) | compute_feature_properties(*tensors[:2])
    assert measured["nc1"] < 1e-6
    for name, value in exact.collapse.items():
        assert measured[name] == pytest.approx(value, abs=2e-4), name


@pytest.mark.parametrize("loss", ["CE", "BCE", "MSE"])
def test_permuted_classes_have_permuted_values(loss):
    sizes = np.array([9, 4, 4, 1.5, 4])
    order = np.array([3, 1, 0, 4, 2])
    straight = predict(Problem(loss, sizes, 2e-3, 1e-3, 1e-3))
    permuted = predict(Problem(loss, sizes[order], 2e-3, 1e-3, 1e-3))
    for name in ("positive_scores", "negative_scores", "biases", "weight_norms", "feature_norms"):
        values = getattr(straight, name)
        assert getattr(permuted, name) == pytest.approx(values[order], abs=1e-9), name
        assert values[1] == values[2] == values[4]
    assert permuted.loss_value == pytest.approx(straight.loss_value, rel=1e-12)


@pytest.mark.parametrize("loss", ["CE", "BCE", "MSE"])
@pytest.mark.parametrize("mode", ["diverse", "unified", "none"])
def test_the_certificate_bounds_the_excess_of_perturbed_points(loss, mode):
    """Beyond the minimum the bound is never below the true excess, and 0 only at the minimum."""
    problem = Problem(loss, [9, 4, 4, 1.5], 2e-3, 1e-3, 1e-2, 0.1, mode)
    groups = group_classes(problem.class_sizes)
    best, factored = solve(problem), FactoredProblem(problem, groups)
    generator = np.random.default_rng(5)
    for size in (1e-6, 1e-4, 1e-2, 1.0):
        for _ in range(20):
            within = best.scores.within + size * generator.standard_normal(3)
            between = best.scores.between + size * generator.standard_normal((3, 3))
            steps = generator.standard_normal({"diverse": 3, "unified": 1, "none": 0}[mode])
            bias = best.bias + (size * steps if len(steps) else 0.0)
            scores = Blocks(groups.copies, np.where(groups.copies > 1, within, 0.0), between)
            value, _, bound = factored.bound_gap(scores, bias)
            assert value - best.value > 0
            assert bound >= (value - best.value) * (1 - 1e-9)
    assert factored.bound_gap(best.scores, best.bias)[2] < 1e-10 * best.value
    with pytest.raises(UncertainError, match="relative gap of"):
        certify(problem, groups, scores, bias)


def test_the_gap_is_that_of_all_classes_one_by_one():
    """The bound of groups is the bound of docs/theory.md, computed with K × K matrices."""
    problem = Problem("BCE", [9, 4, 4, 1.5], 2e-3, 1e-3, 1e-2)
    best = solve(problem)
    scores = Blocks(best.groups.copies, best.scores.within * 1.1, best.scores.between + 0.05)
    value, _, bound = FactoredProblem(problem, best.groups).bound_gap(scores, best.bias)
    dense, bias = scores.expand(best.groups.members), best.bias[best.groups.members]
    sizes = np.array(problem.class_sizes)
    shares, price = sizes / sizes.sum(), problem.price
    logits = dense - bias[:, None]
    losses = np.logaddexp(0, logits).sum(axis=0) - np.diag(logits)
    slopes = (1 / (1 + np.exp(-logits)) - np.eye(4)) * shares
    nuclear = np.linalg.svd(dense * np.sqrt(sizes), compute_uv=False).sum()
    total = shares @ losses + price * nuclear + 1e-2 * bias @ bias / 2
    assert value == pytest.approx(total, rel=1e-12)
    spectral = np.linalg.svd(slopes / np.sqrt(sizes), compute_uv=False)[0]
    expected = np.vdot(slopes, dense) + price * nuclear + max(0, spectral / price - 1) * total
    assert bound >= expected
    slope = np.linalg.norm(-slopes.sum(axis=1) + 1e-2 * bias)
    assert bound - expected >= slope * np.linalg.norm(bias - best.bias[best.groups.members])


@pytest.mark.parametrize("mode", ["diverse", "unified", "none"])
@pytest.mark.parametrize("loss", ["CE", "BCE", "MSE"])
def test_gradient_and_hessian_of_the_factors(loss, mode):
    problem = Problem(loss, [9, 4, 4, 1.5, 1.5, 1.5], 2e-2, 1e-2, 1e-2, 0.1, mode)
    factored = FactoredProblem(problem, group_classes(problem.class_sizes))
    generator = np.random.default_rng(2)
    point = generator.standard_normal(18 + 3 + factored.bias_size)
    direction = generator.standard_normal(point.shape)
    _, gradient = factored.evaluate(point)
    up, down = (factored.evaluate(point + side * 1e-5 * direction) for side in (1, -1))
    assert gradient @ direction == pytest.approx((up[0] - down[0]) / 2e-5, rel=1e-6)
    product = factored.multiply_hessian(point, direction)
    assert product == pytest.approx((up[1] - down[1]) / 2e-5, abs=1e-7)


def test_blocks_are_the_matrices_that_they_stand_for():
    groups = group_classes([3, 8, 3, 3, 8, 1])
    generator = np.random.default_rng(0)
    within, between = generator.random(3), generator.standard_normal((3, 3))
    blocks = Blocks(groups.copies, np.where(groups.copies > 1, within, 0.0), between)
    dense = blocks.expand(groups.members)
    assert groups.copies.tolist() == [2, 3, 1]
    assert np.diag(dense) == pytest.approx(blocks.diagonal[groups.members])
    assert dense[1, 4] == pytest.approx(blocks.beside[0])
    assert blocks.norm() == pytest.approx(np.linalg.norm(dense))
    centred = dense @ (np.eye(6) - 1 / 6)
    assert blocks.centre().expand(groups.members) == pytest.approx(centred)
    assert blocks.mirror().expand(groups.members) == pytest.approx(dense.T)
    values = [*np.linalg.svd(blocks.orthonormal(), compute_uv=False), *within[[0, 1, 1]]]
    assert np.linalg.svd(dense, compute_uv=False) == pytest.approx(sorted(values)[::-1])
    merged, chosen = groups.merge(2)
    coarse = Blocks(merged.copies, np.array([0.7, 0.2]), generator.standard_normal((2, 2)))
    fine = refine(coarse, groups, chosen)
    assert fine.expand(groups.members) == pytest.approx(coarse.expand(merged.members))


@pytest.mark.parametrize("loss", ["CE", "BCE", "MSE"])
def test_classes_of_one_size_coincide_where_their_share_is_small(loss):
    """n ≤ N² λ_W λ_H/(1 − s)²: no other quantity counts (docs/theory.md)."""
    for smoothing in (0.0, 0.3):
        limit = 50 * 50 * 4e-3 * 1e-2 / (1 - smoothing) ** 2
        for factor, distinct in ((0.98, False), (1.02, True)):
            size = limit * factor
            sizes = [20.0, 50 - 20.0 - 3 * size, size, size, size]
            problem = Problem(loss, sizes, 4e-3, 1e-2, 1e-4, smoothing)
            gram = predict(problem).weight_gram.expand(group_classes(sizes).members)
            apart = gram[2, 2] - 2 * gram[2, 3] + gram[3, 3]
            assert bool(apart > 1e-3) is distinct
            assert distinct or apart < 1e-9


def test_a_small_minimum_near_full_collapse_is_found():
    """The coarse groups vanish there, which is a saddle of the finer ones."""
    sizes = cut_tail(10, 10)
    for loss in ("CE", "BCE", "MSE"):
        found = predict(Problem(loss, sizes, 0.04, 0.04))
        zero = FactoredProblem(found.problem, group_classes(sizes))
        nothing = Blocks(np.ones(10), np.zeros(10), np.zeros((10, 10)))
        assert found.loss_value < zero.bound_gap(nothing, found.biases)[0] - 1e-9
        assert 1e-4 < found.weight_norms.max() < 3


def test_where_all_rows_are_0_nothing_has_a_direction():
    found = predict(Problem("BCE", [50, 38, 29, 10, 5], 0.2, 0.2))
    assert not found.weight_norms.any()
    assert set(found.collapse.values()) == {None}
    assert found.min_feature_dim == 1


def test_a_class_mean_at_the_centre_has_no_direction():
    found = predict(Problem("CE", [50, 50, 50, 10, 10], 0.02, 0.05))
    assert found.weight_norms[-1] == 0 < found.weight_norms[0]
    assert found.collapse["compactness"] is None
    assert found.collapse["nc2_h"] > 0.1


def test_seconds_on_one_core_and_certified_gaps():
    started = time.process_time()
    for loss in ("CE", "BCE", "MSE"):
        assert predict(Problem(loss, cut_tail(100, 100), 5e-4, 5e-4)).gap <= 1e-6
    assert time.process_time() - started < 30  # about 4 s on a server's core


def test_a_prediction_that_cannot_be_certified_is_refused(monkeypatch):
    monkeypatch.setattr(convex, "SEARCH", {"maxiter": 3})
    monkeypatch.setattr(convex, "NEWTON_STEPS", 0)
    with pytest.raises(UncertainError, match="1e-06 is needed"):
        solve(Problem("BCE", [9, 4, 1], 2e-3, 1e-3))


GOOD = {
    "loss": "BCE",
    "class_sizes": (3.0, 1.5),
    "weight_decay": 1e-3,
    "feature_decay_rate": 1e-3,
    "weight_decay_bias": 0.1,
    "smoothing": 0.1,
    "bias_mode": "diverse",
}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("loss", "bce", "loss is 'bce'"),
        ("class_sizes", (3,), "class_sizes has 1 values"),
        ("class_sizes", (3, 0), r"class_sizes\[1\] is 0"),
        ("class_sizes", (3, math.inf), r"class_sizes\[1\] is inf"),
        ("weight_decay", 0, "weight_decay is 0"),
        ("feature_decay_rate", math.nan, "feature_decay_rate is nan"),
        ("weight_decay_bias", -1, "weight_decay_bias is -1"),
        ("smoothing", 1.0, "smoothing is 1.0"),
        ("bias_mode", "shared", "bias_mode is 'shared'"),
    ],
)
def test_values_out_of_range_are_named(name, value, words):
    with pytest.raises(ValueError, match=words):
        Problem(**{**GOOD, name: value})
