"""NC1–NC4 against loops, scipy in float64 and what is known exactly."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from metrics import checks
from metrics.neural_collapse import compute_neural_collapse
from tests.metrics.cases import (
    FEATURE_MISTAKES,
    SHAPES,
    assert_close,
    change_arguments,
    collapsed_case,
    random_case,
    reference,
    sizes_up_to,
    with_entry,
)


@pytest.mark.parametrize(("num_classes", "dim"), SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_equals_the_formulas(num_classes, dim, offset):
    case = random_case(num_classes, dim, sizes_up_to(1000, num_classes), offset=offset)
    assert_close(compute_neural_collapse(*case), reference(*case))


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


def test_the_bias_is_subtracted_and_none_is_zero():
    features, labels, weight, bias = random_case(4, 6, [30] * 4)
    with_bias = compute_neural_collapse(features, labels, weight, 5 * bias)["nc4"]
    assert with_bias == reference(features, labels, weight, 5 * bias)["nc4"]
    assert with_bias != reference(features, labels, weight, -5 * bias)["nc4"]
    without = compute_neural_collapse(features, labels, weight)
    assert without == compute_neural_collapse(features, labels, weight, torch.zeros(4))


def test_chunks_change_nothing(monkeypatch):
    case = random_case(4, 6, [7, 30, 1, 50], offset=10)
    whole = compute_neural_collapse(*case)
    monkeypatch.setattr(checks, "CPU_CHUNK", 18)
    assert_close(compute_neural_collapse(*case), whole, 1e-12)


def test_neither_inputs_nor_gradients_are_touched():
    features, labels, weight, bias = random_case(3, 4, [5] * 3)
    before = features.clone()
    ours = compute_neural_collapse(features.requires_grad_(), labels, weight.requires_grad_(), bias)
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


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("shift", [0, 1, 100])
def test_collapse_in_float32_is_within_its_rounding(num_classes, shift):
    case = collapsed_case(num_classes, num_classes + 28, shift=shift)
    ours = compute_neural_collapse(*(t.float() if t.is_floating_point() else t for t in case))
    rounding = 1e-6 * (1 + shift)
    assert 0 <= ours["nc1"] <= 1e-10
    assert all(ours[key] <= rounding for key in ("nc2", "nc2_h", "nc3"))
    assert ours["nc4"] == 0


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *FEATURE_MISTAKES,
        ({"weight": lambda t: t[:, 1:]}, "weight must be"),
        ({"weight": lambda t: t[0]}, "weight must be"),
        ({"weight": lambda t: t[:1]}, "at least 2"),
        ({"weight": with_entry(torch.nan)}, "weight not finite"),
        ({"bias": lambda t: t[1:]}, "bias must be"),
        ({"bias": with_entry(torch.inf)}, "bias not finite"),
    ],
)
def test_mistakes_are_named(changes, words):
    arguments = change_arguments(**changes)
    with pytest.raises(ValueError, match=words):
        compute_neural_collapse(**arguments)


def test_a_mistaken_number_of_classes_is_named():
    features, labels, weight, bias = random_case(3, 4, [5, 6, 7])
    with pytest.raises(ValueError, match="3 classes, num_classes is 4"):
        compute_neural_collapse(features, labels, weight, bias, num_classes=4)
    assert compute_neural_collapse(features, labels, weight, bias, 3)["nc1"] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same():
    case = random_case(10, 64, sizes_up_to(1000, 10), offset=1e4)
    ours = compute_neural_collapse(*(t.cuda() for t in case))
    assert_close(ours, reference(*case))
