"""NC1–NC4 and feature properties against loops, scipy in float64 and what is known exactly."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.spatial.distance import cdist

from metrics import checks
from metrics.neural_collapse import compute_neural_collapse
from metrics.properties import compute_feature_properties

PROPERTIES = ("compactness", "distinctiveness")


def sizes_up_to(largest, num_classes):
    return [round(largest ** (k / (num_classes - 1))) for k in range(num_classes)]


def random_case(num_classes, dim, sizes, *, offset=0.0, far=0.0, seed=0):
    """Normal features about normal class means; `far` moves the first class alone."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(num_classes), sizes))
    means = rng.normal(size=(num_classes, dim)) + offset
    means[0] += far
    features = means[labels] + rng.normal(size=(len(labels), dim))
    weight, bias = rng.normal(size=(num_classes, dim)), rng.normal(size=num_classes)
    # Else the common offset decides every prediction.
    bias += weight @ np.full(dim, offset)
    return tuple(torch.from_numpy(a) for a in (features, labels, weight, bias))


def simplex(num_classes, dim, seed=0):
    """A simplex ETF [K, dim] in a random rotation."""
    rng = np.random.default_rng(seed)
    corners = np.eye(num_classes) - 1 / num_classes
    _, _, basis = scipy.linalg.svd(corners)
    rotation = scipy.linalg.qr(rng.normal(size=(dim, dim)))[0][:, : num_classes - 1]
    return corners @ basis[: num_classes - 1].T @ rotation.T


def collapsed_case(num_classes, dim, *, scale=1.0, shift=0.0, seed=0):
    """Features at the corners of an ETF moved by `shift`, class k with k + 1 samples."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(num_classes), np.arange(num_classes) + 1))
    corners = simplex(num_classes, dim, seed)
    centre = shift * rng.normal(size=dim)
    features, weight = scale * corners[labels] + centre, 3 * corners
    return tuple(torch.from_numpy(a) for a in (features, labels, weight, weight @ centre))


def reference(features, labels, weight, bias):
    """The formulas of paper.md, sections 2 and 3, as they stand."""
    features, labels, weight, bias = (t.numpy() for t in (features, labels, weight, bias))
    num_classes, dim = weight.shape
    means = np.stack([features[labels == k].mean(0) for k in range(num_classes)])
    centre = means.mean(0)
    within = np.zeros((dim, dim))
    for k in range(num_classes):
        deviations = features[labels == k] - means[k]
        within += deviations.T @ deviations / len(features)
    centred = (means - centre).T
    rank = min(num_classes - 1, dim)
    values, vectors = scipy.linalg.eigh(centred @ centred.T / num_classes)
    inverse = vectors[:, -rank:] / values[-rank:] @ vectors[:, -rank:].T

    target = (np.eye(num_classes) - 1 / num_classes) / math.sqrt(num_classes - 1)

    def distance(gram):
        return scipy.linalg.norm(gram / scipy.linalg.norm(gram) - target)

    nearest = cdist(features, means).argmin(1)
    return {
        "nc1": np.trace(within @ inverse) / num_classes,
        "nc2": distance(weight @ weight.T),
        "nc2_h": distance(centred.T @ centred),
        "nc3": distance(weight @ centred),
        "nc4": (nearest != (features @ weight.T - bias).argmax(1)).mean(),
    }


def reference_properties(features, labels, num_classes):
    """From the cosines of all pairs, one pair of classes after the other."""
    features, labels = features.double().numpy(), labels.numpy()
    groups = [features[labels == k] for k in range(num_classes)]
    centre = np.mean([group.mean(0) for group in groups], axis=0)
    groups = [group - centre for group in groups]
    cosines = [[1 - cdist(a, b, "cosine").mean() for b in groups] for a in groups]
    own = np.trace(cosines)
    others = np.sum(cosines) - own
    return {
        "compactness": own / num_classes,
        "distinctiveness": 1 - others / (num_classes * (num_classes - 1)),
    }


def assert_close(ours, expected, relative=1e-8):
    assert ours == pytest.approx(expected, rel=relative, abs=1e-11)


SHAPES = [
    (2, 1), (2, 2), (2, 5), (3, 1), (3, 2), (3, 3), (3, 7), (10, 4), (10, 9), (10, 10), (10, 11),
    (10, 64), (100, 30), (100, 100), (100, 150),
]  # fmt: skip


@pytest.mark.parametrize(("num_classes", "dim"), SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_equals_the_formulas(num_classes, dim, offset):
    case = random_case(num_classes, dim, sizes_up_to(1000, num_classes), offset=offset)
    assert_close(compute_neural_collapse(*case), reference(*case))


@pytest.mark.parametrize(("num_classes", "dim"), SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_properties_equal_the_mean_cosines(num_classes, dim, offset):
    largest = 1000 if num_classes < 100 else 60
    case = random_case(num_classes, dim, sizes_up_to(largest, num_classes), offset=offset)
    expected = reference_properties(*case[:2], num_classes)
    assert_close(compute_feature_properties(*case[:2]), expected)


def test_one_class_far_from_the_others():
    features, labels, weight, bias = random_case(10, 20, [50] * 10, far=1e4)
    ours = compute_neural_collapse(features, labels, weight, bias)
    expected = reference(features, labels, weight, bias)
    # The reference squares M's condition number; NC1 of least squares does not.
    means = np.stack([features[labels == k].numpy().mean(0) for k in range(10)])
    deviations = features.numpy() - means[labels.numpy()]
    inverse = scipy.linalg.pinv((means - means.mean(0)).T, rtol=1e-12)
    expected["nc1"] = np.square(deviations @ inverse.T).sum() / len(features)
    assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_dtype_is_taken_at_its_exact_values(dtype):
    features, labels, weight, bias = random_case(5, 12, [40] * 5)
    features, weight, bias = (t.to(dtype) for t in (features, weight, bias))
    doubles = (features.double(), labels, weight.double(), bias.double())
    assert_close(compute_neural_collapse(features, labels.int(), weight, bias), reference(*doubles))
    expected = reference_properties(features, labels, 5)
    assert_close(compute_feature_properties(features, labels.to(torch.uint8)), expected)


def test_the_bias_is_subtracted_and_none_is_zero():
    features, labels, weight, bias = random_case(4, 6, [30] * 4)
    with_bias = compute_neural_collapse(features, labels, weight, 5 * bias)["nc4"]
    assert with_bias == reference(features, labels, weight, 5 * bias)["nc4"]
    assert with_bias != reference(features, labels, weight, -5 * bias)["nc4"]
    without = compute_neural_collapse(features, labels, weight)
    assert without == compute_neural_collapse(features, labels, weight, torch.zeros(4))


def test_chunks_change_nothing(monkeypatch):
    case = random_case(4, 6, [7, 30, 1, 50], offset=10)
    whole = compute_neural_collapse(*case) | compute_feature_properties(*case[:2])
    monkeypatch.setattr(checks, "CPU_CHUNK", 18)
    assert_close(
        compute_neural_collapse(*case) | compute_feature_properties(*case[:2]), whole, 1e-12
    )


def test_neither_inputs_nor_gradients_are_touched():
    features, labels, weight, bias = random_case(3, 4, [5] * 3)
    before = features.clone()
    ours = compute_neural_collapse(features.requires_grad_(), labels, weight.requires_grad_(), bias)
    ours |= compute_feature_properties(features, labels)
    assert torch.equal(features, before)
    assert all(type(value) is float for value in ours.values())


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("room", [-1, 0, 28])
@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1e-3, 10), (1e4, 1), (1, 1e4)])
def test_collapse_in_float64(num_classes, room, scale, shift):
    case = collapsed_case(num_classes, num_classes + room, scale=scale, shift=shift)
    ours = compute_neural_collapse(*case)
    assert all(0 <= ours[key] <= 1e-10 for key in ("nc1", "nc2", "nc2_h", "nc3"))
    assert ours["nc4"] == 0
    properties = compute_feature_properties(*case[:2])
    assert properties["compactness"] == pytest.approx(1, abs=1e-10)
    expected = 1 + 1 / (num_classes - 1)
    assert properties["distinctiveness"] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("shift", [0, 1, 100])
def test_collapse_in_float32_is_within_its_rounding(num_classes, shift):
    case = collapsed_case(num_classes, num_classes + 28, shift=shift)
    ours = compute_neural_collapse(*(t.float() if t.is_floating_point() else t for t in case))
    rounding = 1e-6 * (1 + shift)
    assert 0 <= ours["nc1"] <= 1e-10
    assert all(ours[key] <= rounding for key in ("nc2", "nc2_h", "nc3"))
    assert ours["nc4"] == 0
    properties = compute_feature_properties(case[0].float(), case[1])
    assert properties["compactness"] == pytest.approx(1, abs=1e-10)
    expected = 1 + 1 / (num_classes - 1)
    assert properties["distinctiveness"] == pytest.approx(expected, abs=rounding)


def test_nc1_of_almost_collapsed_float32_features_is_their_spread():
    """Where a pseudo-inverse of Σ_B in floating point gives huge or negative numbers."""
    features, labels, weight, _ = collapsed_case(10, 64, shift=5)
    noise = 1e-4 * torch.randn(features.shape, dtype=features.dtype)
    # Σ_B of the ETF is I/K on its K−1 dimensions.
    expected = 9 * 1e-8
    nc1 = compute_neural_collapse((features + noise).float(), labels, weight)["nc1"]
    assert nc1 == pytest.approx(expected, rel=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0, 1e4])
def test_two_equal_class_means_count_once(dtype, offset):
    """NC1 then is that of the remaining directions; equal only after summing in another order."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 500, 8, generator=generator, dtype=torch.float64) + offset
    features = features.to(dtype)
    features[3] = features[2][torch.randperm(500, generator=generator)]
    labels = torch.arange(4).repeat_interleave(500)
    ours = compute_neural_collapse(features.flatten(0, 1), labels, torch.eye(4, 8))
    means = features.double().mean(1)
    inverse = scipy.linalg.pinv((means - means.mean(0)).T.numpy(), rtol=1e-6)
    deviations = (features.double() - means[:, None]).flatten(0, 1).numpy()
    expected = np.square(deviations @ inverse.T).sum() / 2000
    assert ours["nc1"] == pytest.approx(expected, rel=1e-8)


def test_collinear_class_means_are_one_direction():
    """In float32 the other directions hold nothing but the rounding of the features."""
    generator = torch.Generator().manual_seed(0)
    line = torch.randn(16, generator=generator, dtype=torch.float64)
    noise = torch.randn(200, 16, generator=generator, dtype=torch.float64) / 100
    noise = torch.cat([noise, -noise])
    features = torch.stack([k * line + noise for k in (-1, 0.3, 0.7)]).flatten(0, 1)
    labels = torch.arange(3).repeat_interleave(400)
    along = (noise @ line).square().mean() / line.dot(line)
    between = line.dot(line) * (1 + 0.09 + 0.49) / 3
    expected = (along / between / 3).item()
    for dtype, relative in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        nc1 = compute_neural_collapse(features.to(dtype), labels, torch.eye(3, 16))["nc1"]
        assert nc1 == pytest.approx(expected, rel=relative)


@pytest.mark.parametrize("offset", [0, 3, 1e4])
def test_no_difference_between_the_classes(offset):
    noise = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(3).repeat(50)
    weight = torch.eye(3, 6)
    spread = compute_neural_collapse((noise + offset).repeat_interleave(3, 0), labels, weight)
    point = compute_neural_collapse(torch.full((150, 6), offset + 0.1), labels, weight)
    assert spread["nc1"] == math.inf
    assert point["nc1"] == 0
    for ours in (spread, point):
        assert math.isnan(ours["nc2_h"])
        assert math.isnan(ours["nc3"])
        assert ours["nc4"] == 0
    unit_means = compute_feature_properties(torch.full((150, 6), offset + 0.1), labels)
    assert unit_means == {"compactness": 0, "distinctiveness": 1}


def test_no_weight_has_no_angles():
    features, labels, weight, _ = random_case(3, 4, [5] * 3)
    ours = compute_neural_collapse(features, labels, 0 * weight)
    assert math.isnan(ours["nc2"])
    assert math.isnan(ours["nc3"])
    assert ours["nc2_h"] > 0


@pytest.mark.parametrize("seed", range(20))
def test_nc1_is_never_negative(seed):
    case = random_case(10, 5 + seed, [2] * 10, offset=100, seed=seed)
    features, labels, weight, bias = case
    squeezed = (features - 100) * torch.logspace(0, -12, 5 + seed, dtype=torch.float64)
    for some in (features, features.half(), squeezed, squeezed.float(), squeezed + 100):
        assert compute_neural_collapse(some, labels, weight, bias)["nc1"] >= 0


def test_equally_near_class_means_leave_the_choice_to_the_classifier():
    # Samples at 0 lie between the class means −1 and 1; those at ±2 do not.
    features = torch.tensor([[0.0], [-2.0], [2.0], [0.0]])
    labels = torch.tensor([0, 0, 1, 1])
    for sign, expected in ((1.0, 0.0), (-1.0, 0.5)):
        weight = sign * torch.tensor([[-1.0], [1.0]])
        for bias in ([0.0, 0.5], [0.5, 0.0]):
            ours = compute_neural_collapse(features, labels, weight, torch.tensor(bias))
            assert ours["nc4"] == expected


def test_nc4_of_equal_logits_takes_the_first_class():
    features, labels = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
    assert compute_neural_collapse(features, labels, torch.zeros(2, 1))["nc4"] == 0.5


def test_features_of_zero_have_equal_logits():
    """Dead units: whatever reference is subtracted inside, the first class is predicted."""
    features, labels, weight, _ = random_case(4, 6, [30] * 4, offset=1)
    features[labels == 3] = 0
    assert compute_neural_collapse(features, labels, weight)["nc4"] == pytest.approx(
        reference(features, labels, weight, torch.zeros(4))["nc4"]
    )


def test_a_feature_at_the_mean_is_the_zero_vector():
    features = torch.tensor([[-1.0, 0], [0, 0], [0, 0], [1, 0]]) + 7
    ours = compute_feature_properties(features, torch.tensor([0, 1, 1, 2]))
    assert ours["compactness"] == pytest.approx(2 / 3, abs=1e-15)
    assert ours["distinctiveness"] == pytest.approx(4 / 3, abs=1e-15)


def changed(**changes):
    """Arguments with mistakes put in."""
    features, labels, weight, bias = random_case(3, 4, [5, 6, 7])
    arguments = {"features": features, "labels": labels, "weight": weight, "bias": bias}
    return arguments | {key: change(arguments[key]) for key, change in changes.items()}


def with_entry(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": with_entry(torch.nan)}, "features not finite: row 17 "),
        ({"features": with_entry(-torch.inf)}, "features not finite: row 17 "),
        ({"features": with_entry(1e200)}, "features are too large"),
        ({"features": lambda t: t[0]}, "features must be"),
        ({"features": lambda t: t[:, :0]}, "features must be"),
        ({"features": lambda t: t[1:]}, "features must be"),
        ({"features": lambda t: t.long()}, "features must be floating point"),
        ({"features": lambda t: t[:0], "labels": lambda t: t[:0]}, "empty"),
        ({"labels": lambda t: t[:, None]}, "labels"),
        ({"labels": lambda t: t.double()}, "labels must be integers from 0 to 2"),
        ({"labels": lambda t: t > 0}, "labels must be integers from 0 to 2"),
        ({"labels": lambda t: t - 1}, "labels must be integers from 0 to 2"),
        ({"labels": lambda t: t + 1}, "labels must be integers from 0 to 2"),
        ({"labels": lambda t: t.clamp(max=1)}, "labels: no samples of class 2 "),
        ({"weight": lambda t: t[:, 1:]}, "weight must be"),
        ({"weight": lambda t: t[0]}, "weight must be"),
        ({"weight": lambda t: t[:1]}, "at least 2"),
        ({"weight": with_entry(torch.nan)}, "weight not finite"),
        ({"bias": lambda t: t[1:]}, "bias must be"),
        ({"bias": with_entry(torch.inf)}, "bias not finite"),
    ],
)
def test_mistakes_are_named(changes, words):
    arguments = changed(**changes)
    with pytest.raises(ValueError, match=words):
        compute_neural_collapse(**arguments)
    if set(changes) <= {"features", "labels"}:
        with pytest.raises(ValueError, match=words):
            compute_feature_properties(arguments["features"], arguments["labels"], 3)


def test_mistaken_numbers_of_classes_are_named():
    features, labels, weight, bias = random_case(3, 4, [5, 6, 7])
    with pytest.raises(ValueError, match="3 classes, num_classes is 4"):
        compute_neural_collapse(features, labels, weight, bias, num_classes=4)
    with pytest.raises(ValueError, match="no samples of class 3"):
        compute_feature_properties(features, labels, num_classes=4)
    with pytest.raises(ValueError, match="num_classes is 1"):
        compute_feature_properties(features, labels, num_classes=1)
    with pytest.raises(ValueError, match="num_classes is 1"):
        compute_feature_properties(features, 0 * labels)
    assert compute_neural_collapse(features, labels, weight, bias, 3)["nc1"] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same():
    case = random_case(10, 64, sizes_up_to(1000, 10), offset=1e4)
    ours = compute_neural_collapse(*(t.cuda() for t in case))
    assert_close(ours, reference(*case))
    properties = compute_feature_properties(case[0].cuda(), case[1].cuda())
    assert_close(properties, reference_properties(*case[:2], 10))
