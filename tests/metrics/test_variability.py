"""Class-distance normalised variance and effective rank against numpy, pair by pair."""

import math

import numpy as np
import pytest
import torch

from metrics import checks
from metrics.features import HostFeatures
from metrics.variability import compute_variability
from tests.metrics.cases import (
    FEATURE_MISTAKES,
    SHAPES,
    assert_close,
    change_arguments,
    collapsed_case,
    random_case,
    simplex,
    sizes_up_to,
)


def compute_rank(features):
    """From numpy's singular values of the features minus their mean."""
    scales = np.linalg.svd(features - features.mean(0), compute_uv=False)
    shares = scales / scales.sum()
    shares = shares[shares > 0]
    return math.exp(-(shares * np.log(shares)).sum())


def reference_variability(features, labels, num_classes):
    features, labels = features.double().numpy(), labels.numpy()
    means = [features[labels == k].mean(0) for k in range(num_classes)]
    variances = [
        np.square(features[labels == k] - means[k]).sum(1).mean() for k in range(num_classes)
    ]
    pairs = [
        (variances[j] + variances[k]) / (2 * np.square(means[j] - means[k]).sum())
        for j in range(num_classes)
        for k in range(num_classes)
        if j != k
    ]
    return {"cdnv": np.mean(pairs), "effective_rank": compute_rank(features)}


@pytest.mark.parametrize(("num_classes", "dim"), SHAPES)
@pytest.mark.parametrize(("largest", "offset"), [(1000, 0.0), (1000, 1e4), (2, 0.0)])
def test_equals_the_formulas(num_classes, dim, largest, offset):
    """Also with one sample in a class, and with fewer samples than features."""
    largest = min(largest, 60) if num_classes == 100 else largest
    sizes = sizes_up_to(largest, num_classes)
    features, labels, *_ = random_case(num_classes, dim, sizes, offset=offset)
    expected = reference_variability(features, labels, num_classes)
    assert_close(compute_variability(features, labels), expected)


def test_two_near_class_means_among_distant_ones():
    """Distances from a Gram matrix would lose all digits of the near pair's."""
    features, labels, *_ = random_case(10, 20, [50] * 10, far=1e4)
    features[labels == 9] = features[labels == 8] + 1e-6 * torch.randn(20, dtype=torch.float64)
    ours = compute_variability(features, labels)["cdnv"]
    expected = reference_variability(features, labels, 10)["cdnv"]
    assert ours == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("noise", [1e-2, 1e-5, 1e-8, 1e-11])
@pytest.mark.parametrize("filled", [3, 20, 64])
def test_the_rank_of_almost_collapsed_features(noise, filled):
    """Noise in some of the directions, also less than a Gram matrix of the features shows."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4000) % 10
    features = torch.from_numpy(simplex(10, 64))[labels]
    random = {"generator": generator, "dtype": torch.float64}
    basis = torch.linalg.qr(torch.randn(64, 64, **random)).Q[:filled]
    features += noise * torch.randn(4000, filled, **random) @ basis
    ours = compute_variability(features, labels)
    expected = compute_rank(features.numpy())
    assert ours["effective_rank"] == pytest.approx(expected, rel=max(1e-5 * noise, 1e-12))
    assert ours["cdnv"] == pytest.approx(filled * noise**2 / 2, rel=0.05, abs=0)


@pytest.mark.parametrize("filled", [5, 40])
def test_directions_without_features_add_nothing(filled):
    """Eigenvalues of rounding would give up to 1e-8 of the largest singular value each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3000) % 5
    values = torch.randn(3000, filled, generator=generator, dtype=torch.float64)
    features = values @ torch.randn(filled, 200, generator=generator, dtype=torch.float64)
    rank = compute_variability(features, labels)["effective_rank"]
    assert rank == pytest.approx(compute_rank(features.numpy()), rel=1e-9)


def test_units_that_are_dead_or_constant_within_the_classes():
    features, labels, *_ = random_case(4, 9, [50] * 4)
    features[:, ::3] = 0
    features[:, 1] = labels.double()
    expected = reference_variability(features, labels, 4)
    assert_close(compute_variability(features, labels), expected)
    line = compute_variability(labels[:, None].double().expand(-1, 9), labels)
    assert line["effective_rank"] == pytest.approx(1)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("room", [-1, 28])
@pytest.mark.parametrize("per_class", [1, 4])
@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 10), (1e4, 1), (1, 1e4)])
def test_collapse(num_classes, room, per_class, scale, shift):
    corners = scale * simplex(num_classes, num_classes + room)
    labels = torch.arange(num_classes).repeat(per_class)
    ours = compute_variability(torch.from_numpy(corners)[labels] + shift, labels)
    assert 0 <= ours["cdnv"] < 1e-20 * (1 + shift / scale) ** 2
    assert ours["effective_rank"] == pytest.approx(num_classes - 1, rel=1e-10)


def test_collapse_with_classes_of_several_sizes_has_a_lower_rank():
    features, labels, *_ = collapsed_case(10, 30)
    rank = compute_variability(features.float(), labels)["effective_rank"]
    assert rank == pytest.approx(compute_rank(features.numpy()), rel=1e-5)
    assert 8 < rank < 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0, 3, 1e4])
def test_equal_class_means(dtype, offset):
    generator = torch.Generator().manual_seed(0)
    noise = (torch.randn(500, 6, generator=generator, dtype=torch.float64) + offset).to(dtype)
    # The means are equal, but only to the rounding of sums in several orders.
    spread = torch.cat([noise[torch.randperm(500, generator=generator)] for _ in range(3)])
    labels = torch.arange(3).repeat_interleave(500)
    assert compute_variability(spread, labels)["cdnv"] == math.inf
    # So are features of which every other one is the next number of float64.
    first = noise[:1].double()
    pair = torch.cat([first, torch.nextafter(first, first + 1)])
    point = compute_variability(pair.repeat(750, 1), labels)
    assert point["cdnv"] == 0
    assert math.isnan(point["effective_rank"])
    # Two classes are one point; the distance from the third counts, which has a variance.
    spread[labels < 2] = offset + 10
    half = compute_variability(spread, labels)["cdnv"]
    third = spread[labels == 2].double()
    variance, distance = (x - third.mean(0) for x in (third, offset + 10))
    expected = variance.square().sum(1).mean() / (2 * distance.square().sum()) * 2 / 3
    assert half == pytest.approx(expected.item(), rel=1e-10)


def test_features_of_any_kind_are_taken_at_their_exact_values():
    features, labels, *_ = random_case(3, 4, [6, 7, 1])
    expected = reference_variability(features, labels, 3)
    for given in (HostFeatures(features, features.device), features.numpy(), features.tolist()):
        assert_close(compute_variability(given, labels.tolist()), expected)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        rounded = features.to(dtype)
        expected = reference_variability(rounded, labels, 3)
        assert_close(compute_variability(rounded, labels), expected)


def test_chunks_change_nothing(monkeypatch):
    features, labels, *_ = random_case(4, 6, [7, 30, 1, 50], offset=10)
    whole = compute_variability(features, labels)
    monkeypatch.setattr(checks, "CPU_CHUNK", 18)
    assert_close(compute_variability(features, labels), whole, 1e-12)


@pytest.mark.parametrize(("changes", "words"), FEATURE_MISTAKES)
def test_mistakes_are_named(changes, words):
    arguments = change_arguments(**changes)
    with pytest.raises(ValueError, match=words):
        compute_variability(arguments["features"], arguments["labels"], 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same():
    features, labels, *_ = random_case(10, 64, sizes_up_to(1000, 10), offset=1e4)
    ours = compute_variability(features.cuda(), labels.cuda())
    assert_close(ours, reference_variability(features, labels, 10))
