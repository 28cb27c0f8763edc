"""Compactness and distinctiveness against the cosines of all pairs."""

import pytest
import torch

from metrics import checks
from metrics.properties import compute_feature_properties
from tests.metrics.cases import (
    FEATURE_MISTAKES,
    SHAPES,
    assert_close,
    change_arguments,
    collapsed_case,
    random_case,
    reference_properties,
    sizes_up_to,
)


@pytest.mark.parametrize(("num_classes", "dim"), SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_properties_equal_the_mean_cosines(num_classes, dim, offset):
    largest = 1000 if num_classes < 100 else 60
    case = random_case(num_classes, dim, sizes_up_to(largest, num_classes), offset=offset)
    expected = reference_properties(*case[:2], num_classes)
    assert_close(compute_feature_properties(*case[:2]), expected)


def test_a_feature_at_the_mean_is_the_zero_vector():
    features = torch.tensor([[-1.0, 0], [0, 0], [0, 0], [1, 0]]) + 7
    ours = compute_feature_properties(features, torch.tensor([0, 1, 1, 2]))
    assert ours["compactness"] == pytest.approx(2 / 3, abs=1e-15)
    assert ours["distinctiveness"] == pytest.approx(4 / 3, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_dtype_is_taken_at_its_exact_values(dtype):
    features, labels, *_ = random_case(5, 12, [40] * 5)
    features = features.to(dtype)
    expected = reference_properties(features, labels, 5)
    assert_close(compute_feature_properties(features, labels.to(torch.uint8)), expected)


def test_chunks_change_nothing(monkeypatch):
    features, labels, *_ = random_case(4, 6, [7, 30, 1, 50], offset=10)
    whole = compute_feature_properties(features, labels)
    monkeypatch.setattr(checks, "CPU_CHUNK", 18)
    assert_close(compute_feature_properties(features, labels), whole, 1e-12)


def test_neither_inputs_nor_gradients_are_touched():
    features, labels, *_ = random_case(3, 4, [5] * 3)
    before = features.clone()
    ours = compute_feature_properties(features.requires_grad_(), labels)
    assert torch.equal(features, before)
    assert all(type(value) is float for value in ours.values())


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("room", [-1, 28])
@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 10), (1e4, 1), (1, 1e4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_collapse(num_classes, room, scale, shift, dtype):
    case = collapsed_case(num_classes, num_classes + room, scale=scale, shift=shift)
    ours = compute_feature_properties(case[0].to(dtype), case[1])
    # Rounding of the features, against the distance of the class means from each other.
    rounding = 1e-10 if dtype == torch.float64 else 1e-6 * (1 + shift / scale)
    assert ours["compactness"] == pytest.approx(1, abs=1e-10)
    expected = 1 + 1 / (num_classes - 1)
    assert ours["distinctiveness"] == pytest.approx(expected, abs=rounding)


@pytest.mark.parametrize("offset", [0, 3, 1e4])
def test_no_difference_between_the_classes(offset):
    features, labels = torch.full((150, 6), offset + 0.1), torch.arange(3).repeat(50)
    assert compute_feature_properties(features, labels) == {"compactness": 0, "distinctiveness": 1}


@pytest.mark.parametrize(("changes", "words"), FEATURE_MISTAKES)
def test_mistakes_are_named(changes, words):
    arguments = change_arguments(**changes)
    with pytest.raises(ValueError, match=words):
        compute_feature_properties(arguments["features"], arguments["labels"], 3)


def test_a_mistaken_number_of_classes_is_named():
    features, labels, *_ = random_case(3, 4, [5, 6, 7])
    with pytest.raises(ValueError, match="no samples of class 3"):
        compute_feature_properties(features, labels, num_classes=4)
    with pytest.raises(ValueError, match="num_classes is 1"):
        compute_feature_properties(features, labels, num_classes=1)
    with pytest.raises(ValueError, match="num_classes is 1"):
        compute_feature_properties(features, 0 * labels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same():
    features, labels, *_ = random_case(10, 64, sizes_up_to(1000, 10), offset=1e4)
    ours = compute_feature_properties(features.cuda(), labels.cuda())
    assert_close(ours, reference_properties(features, labels, 10))
