"""Decision scores against loops and numpy."""

import numpy as np
import pytest
import torch

from metrics import checks
from metrics.scores import (
    compute_bias_statistics,
    compute_decision_scores,
    compute_score_statistics,
)


def scored_case(num_samples, num_classes, *, offset=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(num_samples, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(num_classes, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(num_classes, (num_samples,), generator=generator)
    return (features + offset).to(dtype), labels, weight.to(dtype)


def scores_by_loops(features, labels, weight):
    features, weight = features.double().numpy(), weight.double().numpy()
    positive, negative = [], []
    for h, y in zip(features, labels.tolist(), strict=True):
        positive.append(weight[y] @ h)
        negative.append([weight[j] @ h for j in range(len(weight)) if j != y])
    return np.array(positive), np.array(negative)


@pytest.mark.parametrize("chunk", [1, 50, 1 << 19])
@pytest.mark.parametrize("num_classes", [2, 3, 20])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scores_equal_those_of_loops(monkeypatch, chunk, num_classes, dtype):
    monkeypatch.setattr(checks, "CPU_CHUNK", chunk)
    case = scored_case(60, num_classes, dtype=dtype)
    ours, expected = compute_decision_scores(*case), scores_by_loops(*case)
    statistics = compute_score_statistics(*case)
    for name, scores, truth in zip(("positive", "negative"), ours, expected, strict=True):
        assert scores.dtype == torch.float64
        assert scores.numpy() == pytest.approx(truth, rel=1e-12, abs=1e-12)
        for key, value in {
            "mean": truth.mean(), "std": truth.std(), "min": truth.min(), "max": truth.max(),
        }.items():  # fmt: skip
            assert statistics.pop(f"{name}_{key}") == pytest.approx(value, rel=1e-10, abs=1e-12)
    assert not statistics


def test_score_statistics_of_scores_far_from_zero(monkeypatch):
    """Σx² − (Σx)²/n would leave about one digit of the standard deviation here."""
    monkeypatch.setattr(checks, "CPU_CHUNK", 50)
    features, labels, weight = scored_case(500, 4, offset=1e7)
    weight = 1 + 1e-7 * weight
    ours = compute_score_statistics(features, labels, weight)
    positive, negative = scores_by_loops(features, labels, weight)
    assert ours["positive_std"] == pytest.approx(positive.std(), rel=1e-7)
    assert ours["negative_std"] == pytest.approx(negative.std(), rel=1e-7)


def test_scores_do_not_carry_gradients():
    features, labels, weight = scored_case(5, 3)
    positive, negative = compute_decision_scores(features.requires_grad_(), labels, weight)
    assert not positive.requires_grad
    assert not negative.requires_grad


@pytest.mark.parametrize("function", [compute_decision_scores, compute_score_statistics])
@pytest.mark.parametrize(
    ("features", "labels", "weight", "words"),
    [
        (torch.zeros(3), torch.tensor([0, 1, 0]), torch.zeros(2, 4), "features must be"),
        (torch.zeros(3, 4), torch.tensor([0, 1]), torch.zeros(2, 4), "labels"),
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(2, 4), "empty"),
        (torch.zeros(2, 4), torch.tensor([0, 2]), torch.zeros(2, 4), "from 0 to 1"),
        (torch.zeros(2, 4), torch.tensor([0.0, 1.0]), torch.zeros(2, 4), "integers"),
        (torch.zeros(2, 4), torch.tensor([0, 1]), torch.zeros(2, 5), "weight must be"),
        (torch.zeros(2, 4), torch.tensor([0, 0]), torch.zeros(1, 4), "at least 2"),
        (torch.full((2, 4), torch.inf), torch.tensor([0, 1]), torch.zeros(2, 4), "features not"),
        (torch.zeros(2, 4), torch.tensor([0, 1]), torch.full((2, 4), torch.nan), "weight not"),
    ],
)
def test_mistakes_in_scores_are_named(function, features, labels, weight, words):
    with pytest.raises(ValueError, match=words):
        function(features, labels, weight)


def test_bias_statistics_are_those_of_numpy():
    bias = torch.randn(12, generator=torch.Generator().manual_seed(0))
    values = bias.double().numpy()
    expected = {"mean": values.mean(), "std": values.std(), "min": values.min()}
    expected |= {"max": values.max()}
    found = compute_bias_statistics(bias)
    assert found == pytest.approx({f"bias_{key}": value for key, value in expected.items()})
