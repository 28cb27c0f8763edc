"""What counts as an array of numbers."""

import numpy as np
import pytest
import torch

from metrics.accuracy import compute_uniform_accuracy, count_correct, find_best_threshold
from metrics.checks import as_tensor
from metrics.features import HostFeatures
from metrics.neural_collapse import compute_neural_collapse
from metrics.properties import compute_feature_properties
from metrics.scores import compute_bias_statistics, compute_score_statistics
from tests.metrics.cases import random_case

BIG_ENDIAN = np.dtype(">f4")


def test_tensors_and_host_features_stay_what_they_are():
    tensor = torch.randn(3, 2)
    host = HostFeatures(tensor, tensor.device)
    assert as_tensor(tensor, "x") is tensor
    assert as_tensor(host, "x") is host


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int32", "int64"])
@pytest.mark.parametrize("writable", [True, False])
def test_an_array_is_not_copied_and_keeps_its_type(recwarn, dtype, writable):
    array = np.arange(6).reshape(3, 2).astype(dtype)
    array.flags.writeable = writable
    tensor = as_tensor(array, "x")
    assert tensor.numpy().dtype == dtype or dtype == "uint8"
    assert tensor.tolist() == array.tolist()
    assert np.shares_memory(tensor.numpy(), array) == (dtype != "uint8")
    assert not recwarn.list


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([[0.1, 2], [3, 4.0]], torch.float64),
        ([1, 2, 3], torch.int64),
        ((1, 0.5), torch.float64),
        (np.arange(6.0)[::-2], torch.float64),
        (np.arange(6, dtype=BIG_ENDIAN), torch.float64),
        (np.arange(6, dtype=np.longdouble), torch.float64),
        (np.arange(6, dtype=np.uint16), torch.int64),
        (np.arange(6).astype(">i2"), torch.int64),
    ],
)
def test_other_numbers_are_converted(values, dtype):
    tensor = as_tensor(values, "x")
    assert tensor.dtype == dtype
    assert tensor.tolist() == np.asarray(values).tolist()


@pytest.mark.parametrize("values", [[[1, 2], [3]], ["a"], None, [None, 1], [1j], {"a": 1}])
def test_what_is_no_array_of_numbers_is_named(values):
    with pytest.raises(ValueError, match="labels: no array of numbers") as refusal:
        as_tensor(values, "labels")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("convert", [lambda t: t.numpy(), lambda t: t.tolist()])
def test_functions_take_arrays_and_lists(convert):
    case = random_case(3, 4, [5, 6, 7])
    features, labels, weight, bias = map(convert, case)
    logits = convert(case[0] @ case[2].T)
    tensors = case[0] @ case[2].T, case[1]
    for compute, given, expected in (
        (compute_neural_collapse, (features, labels, weight, bias), case),
        (compute_feature_properties, (features, labels), case[:2]),
        (compute_score_statistics, (features, labels, weight), case[:3]),
        (compute_bias_statistics, (bias,), case[3:]),
        (compute_uniform_accuracy, (logits, labels), tensors),
        (find_best_threshold, (bias, [-9.0] * 3), (case[3], torch.full((3,), -9.0))),
    ):
        assert compute(*given) == compute(*expected)
    assert count_correct(logits, labels).tolist() == count_correct(*tensors).tolist()
