"""Equinorm, equiangularity and self-duality against loops over rows and pairs."""

import math

import numpy as np
import pytest
import torch

from metrics.features import HostFeatures
from metrics.geometry import compute_geometry
from tests.metrics.cases import (
    FEATURE_MISTAKES,
    SHAPES,
    assert_close,
    change_arguments,
    collapsed_case,
    random_case,
    sizes_up_to,
    with_entry,
)


def reference_geometry(features, labels, weight):
    features, labels, weight = (t.double().numpy() for t in (features, labels, weight))
    num_classes = len(weight)
    means = np.stack([features[labels == k].mean(0) for k in range(num_classes)])
    means -= means.mean(0)
    found = {"self_duality": math.sqrt(np.square(scale(weight) - scale(means)).sum())}
    for name, rows in (("means", means), ("classifier", weight)):
        lengths = [math.sqrt(row @ row) for row in rows]
        cosines = [
            rows[j] @ rows[k] / lengths[j] / lengths[k]
            for j in range(num_classes)
            for k in range(num_classes)
            if j != k
        ]
        found[f"equinorm_{name}"] = np.std(lengths) / np.mean(lengths)
        found[f"equiangularity_{name}"] = np.std(cosines)
        gaps = [abs(cosine + 1 / (num_classes - 1)) for cosine in cosines]
        found[f"maximal_angle_{name}"] = np.mean(gaps)
    return found


def scale(matrix):
    return matrix / math.sqrt(np.square(matrix).sum())


@pytest.mark.parametrize(("num_classes", "dim"), SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_equals_the_formulas(num_classes, dim, offset):
    largest = 1000 if num_classes < 100 else 60
    sizes = sizes_up_to(largest, num_classes)
    features, labels, weight, _ = random_case(num_classes, dim, sizes, offset=offset)
    expected = reference_geometry(features, labels, weight)
    assert_close(compute_geometry(features, labels, weight), expected)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("room", [-1, 28])
@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 10), (1e4, 1), (1, 1e4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_are_0_at_collapse(num_classes, room, scale, shift, dtype):
    case = collapsed_case(num_classes, num_classes + room, scale=scale, shift=shift)
    ours = compute_geometry(case[0].to(dtype), case[1], case[2])
    rounding = 1e-10 if dtype == torch.float64 else 1e-6 * (1 + shift / scale)
    assert len(ours) == 7
    assert all(0 <= value <= rounding for value in ours.values())


def test_values_by_hand():
    """Means (±1, 0) and (0, ±2) minus their mean 0; W is M turned by a quarter and scaled."""
    features = torch.tensor([[1.0, 0], [-1, 0], [0, 2], [0, -2]])
    weight = 3 * torch.tensor([[0.0, 1], [0, -1], [-2, 0], [2, 0]])
    ours = compute_geometry(features, torch.arange(4), weight)
    # Of the 6 pairs two are opposite and four are at right angles.
    expected = {
        "equinorm": 0.5 / 1.5,
        "equiangularity": math.sqrt(1 / 3 - 1 / 9),
        "maximal_angle": (2 * (2 / 3) + 4 * (1 / 3)) / 6,
    }
    expected = {f"{k}_{rows}": v for k, v in expected.items() for rows in ("means", "classifier")}
    assert ours == pytest.approx({**expected, "self_duality": math.sqrt(2)})
    opposed = compute_geometry(features, torch.arange(4), -5 * features)
    assert opposed["self_duality"] == pytest.approx(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0, 3, 1e4])
def test_what_has_no_direction_is_nan(offset, dtype):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(500, 6, generator=generator, dtype=torch.float64) + offset
    # The means are equal, but only to the rounding of sums in several orders.
    features = torch.cat([noise[torch.randperm(500, generator=generator)] for _ in range(3)])
    labels = torch.arange(3).repeat_interleave(500)
    ours = compute_geometry(features.to(dtype), labels, torch.eye(3, 6))
    undefined = {name for name, value in ours.items() if math.isnan(value)}
    assert undefined == {name for name in ours if not name.endswith("_classifier")}
    ours = compute_geometry(torch.randn(1500, 6, generator=generator), labels, torch.zeros(3, 6))
    undefined = {name for name, value in ours.items() if math.isnan(value)}
    assert undefined == {name for name in ours if not name.endswith("_means")}
    # One mean at the middle of the two others, to rounding, has the length 0 and no angle.
    step = torch.randn(1, 7, generator=generator, dtype=torch.float64)
    features = (torch.cat([-step, 0 * step, step]) + offset).to(dtype)
    ours = compute_geometry(features, torch.arange(3), torch.eye(3, 7))
    precision = 1e-2 if dtype == torch.float32 else 1e-9
    assert ours["equinorm_means"] == pytest.approx(math.sqrt(2 / 9) / (2 / 3), rel=precision)
    assert math.isnan(ours["equiangularity_means"])
    assert math.isnan(ours["maximal_angle_means"])
    assert ours["self_duality"] > 0


def test_features_on_the_host_arrays_and_lists():
    features, labels, weight, _ = random_case(3, 4, [6, 7, 1])
    expected = reference_geometry(features, labels, weight)
    for given in (HostFeatures(features, features.device), features.numpy(), features.tolist()):
        assert_close(compute_geometry(given, labels.numpy(), weight.tolist()), expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *FEATURE_MISTAKES,
        ({"weight": lambda t: t[:, 1:]}, "weight must be"),
        ({"weight": lambda t: t[:1]}, "at least 2"),
        ({"weight": with_entry(torch.nan)}, "weight not finite"),
    ],
)
def test_mistakes_are_named(changes, words):
    arguments = change_arguments(**changes)
    del arguments["bias"]
    with pytest.raises(ValueError, match=words):
        compute_geometry(**arguments)
