"""The theory against its published setting, minima found by scipy, and the free model's minimum."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime, minimize, minimize_scalar

from metrics.neural_collapse import compute_neural_collapse
from objective import LOSSES
from objective.decay import compute_decay
from theory.balanced import find_balanced_minimum, is_separated_by_theorem2, solve_theorem2
from theory.losses import EXACT_LOSSES
from theory.minimiser import FeatureModel, minimise
from theory.problem import Problem
from utils.registry import load_function

# K, n, λ_W, λ_H, λ_b of BCE, in each regime.
ETF = [
    (10, 12.8, 5e-4, 5e-4, 0.0),
    (10, 12.8, 5e-4, 5e-4, 1e-4),
    (4, 3, 1e-2, 5e-3, 1e-3),
    (2, 1, 1e-3, 2e-2, 0.3),  # b = 0: between two classes nothing pulls the bias
    (50, 1.28, 5e-4, 2e-4, 1e-5),
]
SHIFTED = [
    (10, 12.8, 5e-4, 5e-4, 5e-4),
    (10, 12.8, 5e-4, 5e-4, 0.5),
    (100, 1.28, 5e-4, 5e-4, 5e-4),
    (4, 3, 1e-3, 5e-3, 1.0),
    (3, 20, 1e-3, 2e-4, 0.1),
]


def build_model(loss, class_sizes, feature_dim, *decays):
    return FeatureModel(Problem(loss, class_sizes, *decays), feature_dim)


def price(num_classes, samples_per_class, weight_decay, feature_decay_rate):
    return num_classes * math.sqrt(samples_per_class * weight_decay * feature_decay_rate)


def bce_objective(setting, amplitude, bias, shift):
    """The objective of BCE in three variables (docs/theory.md)."""
    num_classes, *decays, weight_decay_bias = setting
    return (
        np.logaddexp(0, bias + shift - amplitude)
        + (num_classes - 1) * np.logaddexp(0, -amplitude / (num_classes - 1) - bias - shift)
        + price(num_classes, *decays) * (amplitude + abs(shift))
        + weight_decay_bias * num_classes * bias**2 / 2
    )


def bce_minimum(setting):
    """(a, b, s) by bounded minimisation, the shift as the difference of two numbers ≥ 0."""

    def objective(point):
        amplitude, bias, up, down = point
        cost = price(*setting[:4])
        smooth = bce_objective(setting, amplitude, bias, up - down)
        return smooth + cost * (up + down - abs(up - down))

    best = minimize(
        objective,
        [1.0, 0.0, 0.5, 0.5],
        method="L-BFGS-B",
        bounds=[(0, None), (None, None), (0, None), (0, None)],
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 10_000, "maxfun": 100_000},
    )
    amplitude, bias, up, down = best.x
    return best.fun, amplitude, bias, up - down


def amplitude_of(prediction):
    """a of the scores a − s and −a/(K−1) − s."""
    share = (prediction.num_classes - 1) / prediction.num_classes
    return (prediction.positive_score - prediction.negative_score) * share


# The published setting of docs/theory.md: a mini-batch of 128 with λ_W = λ_H = 5e-4.
TABLE = [
    (10, "CE", 0.0, "5.679", "-0.631", None),
    (10, "CE", 5e-4, "5.679", "-0.631", "0.000"),
    (10, "BCE", 0.0, "9.393", "-1.044", "5.281"),
    (10, "BCE", 5e-4, "7.810", "-2.052", "3.578"),
    (10, "BCE", 0.5, "4.236", "-5.626", "0.004"),
    (100, "CE", 0.0, "7.346", "-0.074", None),
    (100, "CE", 0.5, "7.346", "-0.074", "0.000"),
    (100, "BCE", 0.0, "10.199", "-0.103", "7.374"),
    (100, "BCE", 5e-4, "3.967", "-5.652", "1.131"),
    (100, "BCE", 0.5, "2.837", "-6.782", "0.001"),
]


@pytest.mark.parametrize("row", TABLE)
def test_the_table_of_the_published_setting_to_its_printed_digits(row):
    num_classes, loss, weight_decay_bias, positive, negative, bias = row
    found = find_balanced_minimum(
        loss, num_classes, 128 / num_classes, 5e-4, 5e-4, weight_decay_bias
    )
    assert f"{found.positive_score:.3f}" == positive
    assert f"{found.negative_score:.3f}" == negative
    assert (None if found.bias is None else f"{found.bias:.3f}") == bias


@pytest.mark.parametrize("setting", ETF + SHIFTED)
def test_bce_is_the_minimum_of_the_reduced_problem(setting):
    found = find_balanced_minimum("BCE", *setting)
    amplitude = amplitude_of(found)
    at_prediction = bce_objective(setting, amplitude, found.bias, found.common_shift)
    assert found.loss_value == pytest.approx(at_prediction, rel=1e-12)
    value, *point = bce_minimum(setting)
    assert found.loss_value == pytest.approx(value, rel=1e-8)
    assert found.loss_value <= value + 1e-14
    assert [amplitude, found.bias, found.common_shift] == pytest.approx(point, abs=2e-3)


@pytest.mark.parametrize("setting", ETF + SHIFTED)
def test_no_step_from_the_bce_minimum_goes_down(setting):
    """The problem is convex, so that a local minimum is the minimum; slope errors show at once."""
    found = find_balanced_minimum("BCE", *setting)
    point = np.array([amplitude_of(found), found.bias, found.common_shift])
    lowest = bce_objective(setting, *point)
    steps = np.random.default_rng(0).standard_normal((300, 3))
    for size in (1e-1, 1e-3, 1e-5):
        values = [bce_objective(setting, *(point + size * step)) for step in steps]
        assert min(values) >= lowest - 2e-15


@pytest.mark.parametrize("setting", ETF)
def test_the_etf_regime(setting):
    found = find_balanced_minimum("BCE", *setting)
    assert (found.regime, found.common_shift) == ("etf", 0)
    assert found.min_feature_dim == setting[0] - 1
    assert setting[4] * abs(found.bias) <= price(*setting[:4]) / setting[0]
    assert found.negative_score == pytest.approx(-found.positive_score / (setting[0] - 1))


@pytest.mark.parametrize("setting", SHIFTED)
def test_the_shifted_regime(setting):
    found = find_balanced_minimum("BCE", *setting)
    assert found.regime == "shifted"
    assert found.common_shift > 0
    assert found.min_feature_dim == setting[0]
    stuck = price(*setting[:4]) / setting[0] / setting[4]
    assert found.bias == pytest.approx(stuck, rel=1e-14)


@pytest.mark.parametrize(
    "setting", [(10, 12.8, 5e-4, 5e-4), (4, 3, 1e-2, 5e-3), (30, 2, 1e-3, 1e-3)]
)
def test_the_boundary_between_the_regimes(setting):
    low, high = 1e-9, 1.0
    assert find_balanced_minimum("BCE", *setting, low).regime == "etf"
    assert find_balanced_minimum("BCE", *setting, high).regime == "shifted"
    for _ in range(100):
        middle = math.sqrt(low * high)
        if find_balanced_minimum("BCE", *setting, middle).regime == "etf":
            low = middle
        else:
            high = middle
    assert high == pytest.approx(low, rel=1e-13)
    below, above = (
        find_balanced_minimum("BCE", *setting, low),
        find_balanced_minimum("BCE", *setting, high),
    )
    coupling = price(*setting) / setting[0]
    # The bias reaches the bound there, and neither it nor the scores jump.
    assert low * below.bias == pytest.approx(coupling, rel=1e-10)
    assert above.bias == pytest.approx(below.bias, rel=1e-10)
    assert above.common_shift == pytest.approx(0, abs=1e-9)
    assert above.positive_score == pytest.approx(below.positive_score, rel=1e-9)
    assert above.loss_value == pytest.approx(below.loss_value, rel=1e-11)
    for factor in (1.01, 2, 100):
        past = find_balanced_minimum("BCE", *setting, high * factor)
        assert past.bias == pytest.approx(coupling / (high * factor), rel=1e-14)
        assert past.common_shift > 0
        assert find_balanced_minimum("BCE", *setting, low / factor).regime == "etf"
        # The data see b + s, which stays, and so does the amplitude.
        assert past.bias + past.common_shift == pytest.approx(below.bias, rel=1e-9)
        assert amplitude_of(past) == pytest.approx(amplitude_of(below), rel=1e-9)
        assert past.data_loss == pytest.approx(below.data_loss, rel=1e-9)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("samples_per_class", [0.128, 1, 4])
def test_ces_closed_form(num_classes, samples_per_class):
    setting = num_classes, samples_per_class, 7e-4, 3e-4
    found = find_balanced_minimum("CE", *setting, 0.1)
    cost = price(*setting)

    def objective(amplitude):
        gap = amplitude * num_classes / (num_classes - 1)
        return math.log1p((num_classes - 1) * math.exp(-gap)) + cost * amplitude

    best = minimize_scalar(objective, bounds=(0, 50), method="bounded", options={"xatol": 1e-10})
    assert found.positive_score == pytest.approx(best.x, abs=1e-5)
    assert found.negative_score == pytest.approx(-found.positive_score / (num_classes - 1))
    assert found.loss_value == pytest.approx(best.fun, rel=1e-12)
    assert found.loss_value == pytest.approx(objective(found.positive_score), rel=1e-12)
    assert found.data_loss == pytest.approx(found.loss_value - cost * found.positive_score)
    norm = cost * found.positive_score / setting[2]
    assert found.weight_norm_squared == pytest.approx(norm)
    assert (found.regime, found.common_shift) == ("etf", 0)


def test_ces_bias_is_free_without_decay_and_0_with():
    free, decayed = (find_balanced_minimum("CE", 10, 5, 1e-3, 1e-3, decay) for decay in (0, 0.5))
    assert (free.bias, free.bias_separates) == (None, None)
    assert (decayed.bias, decayed.bias_separates) == (0, True)
    assert free.loss_value == decayed.loss_value
    assert free.positive_score == decayed.positive_score


@pytest.mark.parametrize("loss", ["CE", "BCE"])
@pytest.mark.parametrize("decay", [0.25, 0.4])  # with K = 4, n = 1: κ = 1 and 1.6
def test_collapse_to_zero_from_kappa_1_on(loss, decay):
    found = find_balanced_minimum(loss, 4, 1, decay, decay, 1e-3)
    assert found.regime == "etf"
    assert (found.positive_score, found.negative_score, found.weight_norm_squared) == (0, 0, 0)
    if loss == "CE":
        assert found.loss_value == pytest.approx(math.log(4))
    else:
        # Only the bias is left: σ(b) = 3 σ(−b) but for its decay.
        assert found.bias == pytest.approx(math.log(3), rel=0.02)
        assert found.bias_separates is False
    model = build_model(loss, [1] * 4, 5, decay, decay, 1e-3)
    lowest = minimise(model)
    assert lowest.loss_value == pytest.approx(found.loss_value, rel=1e-6)
    if decay > 0.25:  # at κ = 1 the minimum is flat to fourth order
        assert np.abs(lowest.weight).max() < 1e-6


@pytest.mark.parametrize("loss", ["CE", "BCE"])
def test_the_amplitude_vanishes_as_kappa_comes_to_1(loss):
    amplitudes = [
        find_balanced_minimum(loss, 5, 1, kappa / 5, kappa / 5, 0).positive_score
        for kappa in (0.9, 0.99, 0.999, 0.9999)
    ]
    assert amplitudes == sorted(amplitudes, reverse=True)
    assert 0 < amplitudes[-1] < 2e-3


def test_a_shift_is_possible_without_an_amplitude():
    """κ ≥ 1 with a bias that costs more: the scores are all equal, none 0."""
    setting = (50, 1, 0.03, 0.03, 1.0)
    found = find_balanced_minimum("BCE", *setting)
    assert found.regime == "shifted"
    assert found.positive_score == found.negative_score < 0
    value, *point = bce_minimum(setting)
    assert found.loss_value == pytest.approx(value, rel=1e-9)
    assert [0, found.bias, found.common_shift] == pytest.approx(point, abs=1e-4)


@pytest.mark.parametrize("weight_decay_bias", [0.0, 1e-3, 0.7])
def test_two_classes(weight_decay_bias):
    """Scores ±a, bias 0; a logistic regression on 2a with CE, on a twice with BCE."""
    cost = price(2, 3, 1e-3, 2e-3)
    bce = find_balanced_minimum("BCE", 2, 3, 1e-3, 2e-3, weight_decay_bias)
    assert bce.regime == "etf"
    assert bce.bias == pytest.approx(0, abs=1e-12)
    assert bce.positive_score == pytest.approx(math.log(2 / cost - 1))  # 2 σ(−a) = κ
    assert bce.negative_score == pytest.approx(-bce.positive_score)
    ce = find_balanced_minimum("CE", 2, 3, 1e-3, 2e-3, weight_decay_bias)
    assert ce.positive_score == pytest.approx(math.log(2 / cost - 1) / 2)  # 2 σ(−2a) = κ


@pytest.mark.parametrize("loss", ["CE", "BCE"])
def test_fractional_samples_per_class(loss):
    """n enters by n λ_H alone, at the minimum of ⌈n⌉ samples with λ_H n/⌈n⌉."""
    found = find_balanced_minimum(loss, 5, 1.28, 2e-3, 3e-3, 0.01)
    same = find_balanced_minimum(loss, 5, 2, 2e-3, 3e-3 * 1.28 / 2, 0.01)
    assert found.loss_value == pytest.approx(same.loss_value, rel=1e-12)
    assert found.weight_norm_squared == pytest.approx(same.weight_norm_squared, rel=1e-12)
    lowest = minimise(build_model(loss, [1.28] * 5, 6, 2e-3, 3e-3, 0.01))
    assert lowest.loss_value == pytest.approx(found.loss_value, rel=1e-8)
    assert lowest.positive_scores == pytest.approx(found.positive_score, abs=1e-4)


@pytest.mark.parametrize("setting", ETF + SHIFTED)
def test_theorem_2(setting):
    num_classes, *decays, weight_decay_bias = setting
    bias = solve_theorem2(*setting)
    cost = price(num_classes, *decays)
    # Its amplitude is the best for that bias without a shift: found here on its own.
    best = minimize_scalar(
        lambda a: bce_objective(setting, a, bias, 0.0),
        bounds=(0, 60),
        method="bounded",
        options={"xatol": 1e-12},
    )
    low, high = 0.0, 100.0
    for _ in range(200):  # the slope in a, κ − σ(b − a) − σ(−a/(K−1) − b), rises
        middle = (low + high) / 2
        wrong = 1 / (1 + math.exp(middle - bias)) + 1 / (
            1 + math.exp(middle / (num_classes - 1) + bias)
        )
        low, high = (low, middle) if cost > wrong else (middle, high)
    assert low == pytest.approx(best.x, abs=1e-4)
    right = (num_classes - 1) / (num_classes * (1 + math.exp(bias + low / (num_classes - 1))))
    right -= 1 / (num_classes * (1 + math.exp(low - bias)))
    assert weight_decay_bias * bias == pytest.approx(right, abs=1e-12)
    found = find_balanced_minimum("BCE", *setting)
    if found.regime == "etf":
        assert bias == pytest.approx(found.bias, abs=1e-11)
        assert low == pytest.approx(found.positive_score, abs=1e-9)
    else:
        assert bias > 1.05 * found.bias
        assert weight_decay_bias * bias > cost / num_classes
        # The theorem's point is the best without a shift, and dearer than that with one.
        assert bce_objective(setting, low, bias, 0.0) > found.loss_value + 1e-9


def test_condition_3_against_the_bias_of_equation_2():
    generator = np.random.default_rng(3)
    seen = {True: 0, False: 0}
    for _ in range(300):
        num_classes = int(generator.integers(2, 60))
        amplitude = float(generator.uniform(0.01, 12))
        weight_decay_bias = float(generator.choice([0, 10 ** generator.uniform(-5, 0)]))
        low, high = -100.0, 100.0
        for _ in range(100):
            bias = (low + high) / 2
            right = (num_classes - 1) / (1 + math.exp(bias + amplitude / (num_classes - 1)))
            right = (right - 1 / (1 + math.exp(amplitude - bias))) / num_classes
            low, high = (low, bias) if weight_decay_bias * bias > right else (bias, high)
        separates = -amplitude / (num_classes - 1) < bias < amplitude
        assert is_separated_by_theorem2(num_classes, amplitude, weight_decay_bias) is separates
        seen[separates] += 1
    assert min(seen.values()) > 30


@pytest.mark.parametrize("setting", ETF + SHIFTED)
def test_bias_separates_follows_from_the_scores(setting):
    found = find_balanced_minimum("BCE", *setting)
    assert found.bias_separates is (found.negative_score < found.bias < found.positive_score)
    if found.regime == "etf":
        separates = is_separated_by_theorem2(setting[0], found.positive_score, setting[4])
        assert found.bias_separates is separates


def predicted_point(prediction, samples_per_class, dim, seed=0):
    """W, H, b of the predicted minimum as the flat vector of the model, in a random basis.

    The scores Z = α (I − 11ᵀ/K) − s 11ᵀ with α the gap of the scores; W and H share its singular
    values evenly but for a factor, that ‖W‖² sets.
    """
    num_classes, shift = prediction.num_classes, prediction.common_shift
    gap = prediction.positive_score - prediction.negative_score
    scores = gap * (np.eye(num_classes) - 1 / num_classes) - shift
    assert np.diag(scores) == pytest.approx(prediction.positive_score)
    left, values, right = np.linalg.svd(scores)
    rank = num_classes if shift else num_classes - 1
    root = np.sqrt(values[:rank])
    factor = math.sqrt(prediction.weight_norm_squared / values.sum())
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.standard_normal((dim, rank)))[0].T
    weight = factor * left[:, :rank] * root @ basis
    class_means = right[:rank].T * root @ basis / factor
    features = np.repeat(class_means, samples_per_class, axis=0)
    bias = np.full(num_classes, 0.7 if prediction.bias is None else prediction.bias)
    return np.concatenate([weight.ravel(), features.ravel(), bias])


@pytest.mark.parametrize("loss", ["CE", "BCE"])
@pytest.mark.parametrize("weight_decay_bias", [0.0, 1e-5, 5e-3, 0.8])
@pytest.mark.parametrize(("num_classes", "count"), [(2, 3), (4, 1), (10, 7)])
@pytest.mark.parametrize("extra", [0, 9])
def test_the_predicted_point_is_stationary(loss, weight_decay_bias, num_classes, count, extra):
    decays = 7e-4, 2e-3, weight_decay_bias
    found = find_balanced_minimum(loss, num_classes, count, *decays)
    dim = num_classes + extra
    model = build_model(loss, [count] * num_classes, dim, *decays)
    point = predicted_point(found, count, dim)
    value, gradient = model.evaluate(point)
    assert value == pytest.approx(found.loss_value, rel=1e-10)
    assert np.abs(gradient).max() <= 1e-9
    weight, features, _ = model.split(point)
    assert decays[0] * np.vdot(weight, weight) == pytest.approx(
        decays[1] * np.vdot(features, features)
    )


def test_the_etf_regime_needs_one_dimension_less():
    found = find_balanced_minimum("BCE", 5, 2, 1e-3, 1e-3, 0)
    model = build_model("BCE", [2] * 5, found.min_feature_dim, 1e-3, 1e-3, 0)
    value, gradient = model.evaluate(predicted_point(found, 2, 4))
    assert value == pytest.approx(found.loss_value, rel=1e-10)
    assert np.abs(gradient).max() <= 1e-9
    # Without that dimension the shifted regime's minimum is out of reach.
    shifted = find_balanced_minimum("BCE", 5, 2, 1e-3, 1e-3, 0.5)
    assert shifted.min_feature_dim == 5
    lowest = minimise(build_model("BCE", [2] * 5, 4, 1e-3, 1e-3, 0.5))
    assert lowest.loss_value > shifted.loss_value + 1e-3


@pytest.mark.parametrize("loss", ["CE", "BCE"])
def test_the_models_gradient_against_finite_differences(loss):
    model = build_model(loss, [2, 1, 3], 4, 0.03, 0.02, 0.1)  # classes need not be balanced
    point = 2 * model.draw_start(1, 0.5)
    _, gradient = model.evaluate(point)
    numeric = approx_fprime(point, lambda x: model.evaluate(x)[0], 1e-7)
    assert gradient == pytest.approx(numeric, abs=1e-6)


def test_the_theory_covers_the_losses_that_the_registry_marks():
    covered = [name for name, loss in LOSSES.items() if loss.has_exact_minimum]
    assert covered == list(EXACT_LOSSES)


@pytest.mark.parametrize("loss", EXACT_LOSSES)
def test_the_models_loss_and_gradient_are_those_of_training(loss):
    decays = 0.03, 0.02, 0.1
    model = build_model(loss, [4, 2, 3], 5, *decays)
    point = 3 * model.draw_start(2, -0.5)
    weight, features, bias = (torch.tensor(part, requires_grad=True) for part in model.split(point))
    labels = torch.from_numpy(model.labels)
    total = load_function(LOSSES[loss].function)(features @ weight.T - bias, labels)
    # In float32, as in training: equal to about 1e-7.
    total = total + compute_decay(features, weight, bias, *decays)
    total.backward()
    value, gradient = model.evaluate(point)
    assert value == pytest.approx(total.item(), rel=1e-6)
    expected = torch.cat([part.grad.ravel() for part in (weight, features, bias)])
    assert gradient == pytest.approx(expected.numpy(), abs=1e-6)


def drawn_settings(count=40):
    """loss, (K, n, λ_W, λ_H, λ_b), d: sizes and decays log-uniform, λ_b = 0 in a third."""
    generator = np.random.default_rng(11)

    def log_uniform(low, high):
        return float(np.exp(generator.uniform(math.log(low), math.log(high))))

    settings = []
    for index in range(count):
        num_classes = min(50, int(log_uniform(2, 51)))
        samples_per_class = min(20, int(log_uniform(1, 21)))
        decays = log_uniform(1e-4, 5e-2), log_uniform(1e-4, 5e-2)
        weight_decay_bias = (0.0, log_uniform(1e-5, 1), float(generator.uniform(0, 1)))[index % 3]
        dim = num_classes + int(generator.integers(0, 8))
        setting = num_classes, samples_per_class, *decays, weight_decay_bias
        settings.append((("CE", "BCE", "BCE")[index // 3 % 3], setting, dim))
    # The ends of the ranges, and κ just on either side of 1.
    settings[-4:] = [
        ("BCE", (20, 20, 1e-3, 1e-3, 0.1), 20),
        ("CE", (50, 1, 1e-4, 1e-4, 0.0), 50),
        ("BCE", (20, 1, 4.7e-2, 5e-2, 1e-3), 25),
        ("CE", (20, 1, 4.7e-2, 5e-2, 1.0), 20),
    ]
    return settings


@pytest.mark.slow
def test_prediction_and_minimisation_agree_on_drawn_settings():
    regimes, near_1 = [], 0
    for seed, (loss, setting, dim) in enumerate(drawn_settings()):
        num_classes, count, *decays = setting
        expected = find_balanced_minimum(loss, *setting)
        found = minimise(build_model(loss, [count] * num_classes, dim, *decays), seed=seed)
        assert found.loss_value == pytest.approx(expected.loss_value, rel=1e-4), setting
        assert found.positive_scores == pytest.approx(expected.positive_score, abs=1e-3), setting
        assert found.negative_scores == pytest.approx(expected.negative_score, abs=1e-3), setting
        if expected.bias is None:
            assert np.ptp(found.bias) <= 1e-3, setting
        else:
            assert found.bias == pytest.approx(expected.bias, abs=1e-3), setting
        regimes.append((loss, expected.regime))
        near_1 += 0.5 < price(*setting[:4]) < 1
    assert len(regimes) == 40
    assert regimes.count(("BCE", "shifted")) >= 3
    assert regimes.count(("BCE", "etf")) >= 3
    assert near_1 >= 3


def test_ces_bias_keeps_the_mean_it_starts_with():
    found = minimise(build_model("CE", [3] * 4, 5, 1e-2, 1e-2, 0), bias_init_mean=5.0)
    assert np.ptp(found.bias) < 1e-5
    assert found.bias.mean() == pytest.approx(5, abs=1 / math.sqrt(5))


@pytest.mark.parametrize(
    ("loss", "weight_decay_bias", "regime"),
    [("CE", 0.0, "etf"), ("BCE", 0.0, "etf"), ("BCE", 0.5, "shifted")],
)
def test_the_found_features_collapse(loss, weight_decay_bias, regime):
    assert find_balanced_minimum(loss, 6, 4, 5e-3, 5e-3, weight_decay_bias).regime == regime
    found = minimise(build_model(loss, [4] * 6, 8, 5e-3, 5e-3, weight_decay_bias), starts=2)
    assert found.gradient_norm < 1e-7
    assert found.iterations > 0
    arrays = found.features, found.labels, found.weight, found.bias
    metrics = compute_neural_collapse(*map(torch.from_numpy, arrays))
    assert metrics["nc1"] < 1e-8
    assert metrics["nc2_h"] < 1e-4
    assert metrics["nc3"] < 1e-4
    assert metrics["nc4"] == 0
    # Past the boundary the rows of W share a mean: W is an ETF no more.
    expected = find_balanced_minimum(loss, 6, 4, 5e-3, 5e-3, weight_decay_bias)
    etf = (expected.positive_score - expected.negative_score) * math.sqrt(5)
    cosine = etf / math.hypot(etf, 6 * expected.common_shift)
    assert metrics["nc2"] == pytest.approx(math.sqrt(2 - 2 * cosine), abs=1e-4)
    assert (metrics["nc2"] > 0.3) is (regime == "shifted")


def test_the_lowest_of_several_starts_is_kept():
    model = build_model("BCE", [2] * 3, 4, 1e-2, 1e-2, 0.1)
    alone = [minimise(model, seed=seed).loss_value for seed in (5, 6, 7)]
    assert minimise(model, seed=5, starts=3).loss_value == min(alone)
    assert minimise(model, seed=5).loss_value == alone[0]  # the same seed, the same result


GOOD = {
    "loss": "BCE",
    "num_classes": 4,
    "samples_per_class": 3,
    "weight_decay": 1e-3,
    "feature_decay_rate": 1e-3,
    "weight_decay_bias": 0.1,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss", "MSE"),
        ("loss", "bce"),
        ("num_classes", 1),
        ("num_classes", 2.5),
        ("num_classes", math.nan),
        ("num_classes", math.inf),
        ("samples_per_class", 0),
        ("samples_per_class", math.inf),
        ("weight_decay", 0),
        ("weight_decay", -1e-3),
        ("feature_decay_rate", 0.0),
        ("feature_decay_rate", math.nan),
        ("weight_decay_bias", -0.1),
        ("weight_decay_bias", math.nan),
        ("weight_decay_bias", math.inf),
    ],
)
def test_values_out_of_range_are_named(name, value):
    wrong = {**GOOD, name: value}
    with pytest.raises(ValueError, match=f"^{name} is {value!r}"):
        find_balanced_minimum(**wrong)
    del wrong["loss"]
    if name != "loss":
        with pytest.raises(ValueError, match=f"^{name} is {value!r}"):
            solve_theorem2(**wrong)
    if name in ("num_classes", "weight_decay_bias"):
        with pytest.raises(ValueError, match=f"^{name} is {value!r}"):
            is_separated_by_theorem2(wrong["num_classes"], 1.0, wrong["weight_decay_bias"])


@pytest.mark.parametrize("loss", ["CE", "BCE"])
@pytest.mark.parametrize("decay", [1e-12, 1e-6, 10.0])
@pytest.mark.parametrize("num_classes", [2, 1000, 21_841])
def test_extreme_settings_are_finite(loss, decay, num_classes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for weight_decay_bias in (0.0, 1e-12, 1e3):
            found = find_balanced_minimum(loss, num_classes, 0.01, decay, decay, weight_decay_bias)
            assert math.isfinite(found.loss_value)
            assert math.isfinite(found.positive_score)
            assert found.positive_score >= found.negative_score
