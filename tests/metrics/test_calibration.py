"""Calibration error and likelihood against sums over samples, and scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import log_loss

from metrics.calibration import compute_calibration, score_probabilities, summarise_calibration


def reference_error(logits, labels):
    """Sample by sample, with exact bounds of the bins."""
    bins = {}
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        total = math.fsum(math.exp(z - max(row)) for z in row)
        hit = row.index(max(row)) == label
        bins.setdefault(math.ceil(15 / total), []).append((1 / total, hit))
    gaps = [abs(sum(hit - confidence for confidence, hit in part)) for part in bins.values()]
    return sum(gaps) / len(labels)


@pytest.mark.parametrize(("num_classes", "scale"), [(2, 1), (3, 5), (10, 3), (100, 5), (10, 0.1)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_equals_the_formulas(num_classes, scale, dtype):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (500,), generator=generator)
    logits = scale * torch.randn(500, num_classes, generator=generator)
    logits[torch.arange(500), labels] += scale
    logits = logits.to(dtype)
    ours = compute_calibration(logits, labels)
    assert ours["ece"] == pytest.approx(reference_error(logits, labels), abs=1e-12)
    shares = logits.double().softmax(1)
    expected = log_loss(labels, shares, labels=range(num_classes))
    assert ours["nll"] == pytest.approx(expected, rel=1e-9)
    assert compute_calibration(logits.numpy(), labels.tolist()) == ours


def test_a_network_that_knows_its_confidence_has_no_error():
    """Of ten samples with the probability 0.7 seven are right; those of 1 are all right."""
    rows = [[math.log(0.7), math.log(0.3)]] * 10 + [[50.0, 0.0]] * 5
    logits = torch.tensor(rows, dtype=torch.float64)
    labels = torch.tensor([0] * 7 + [1] * 3 + [0] * 5)
    ours = compute_calibration(logits, labels)
    assert ours["ece"] == pytest.approx(0, abs=1e-12)
    assert ours["nll"] == pytest.approx(-(7 * math.log(0.7) + 3 * math.log(0.3)) / 15)
    wrong = compute_calibration(logits, 1 - labels)
    assert wrong["ece"] == pytest.approx((10 * 0.4 + 5) / 15)
    assert wrong["nll"] == pytest.approx(-(3 * math.log(0.7) + 7 * math.log(0.3) - 250) / 15)


@pytest.mark.parametrize("bound", range(1, 15))
def test_a_bin_ends_with_its_upper_bound(bound):
    edge = bound / 15
    for other, expected in ((1e-9, abs(1 - edge) + edge), (-1e-9, abs(1 - 2 * edge))):
        confidences = torch.tensor([edge, edge + other], dtype=torch.float64)
        ours = summarise_calibration(confidences, confidences, torch.tensor([True, False]))
        assert ours["ece"] == pytest.approx(expected / 2, abs=1e-8)


def test_extreme_logits_and_ties():
    logits = torch.tensor([[1e30, -1e30, 0], [0, 0, 0], [-1e4, -1e4, -2e4]])
    nll, confidences, hits = score_probabilities(logits, torch.tensor([0, 1, 0]))
    assert nll.tolist() == pytest.approx([0, math.log(3), math.log(2)])
    assert confidences.tolist() == pytest.approx([1, 1 / 3, 1 / 2])
    assert hits.tolist() == [True, False, True]  # the first of equal logits is predicted


def test_mistakes_are_named():
    logits, labels = torch.randn(4, 3), torch.arange(4) % 3
    for changed, given, words in (
        (logits[0], labels, "logits must be"),
        (logits, labels + 1, "labels must be integers from 0 to 2"),
        (logits.log(), labels, "logits not finite"),
        (logits[:0], labels[:0], "empty"),
    ):
        with pytest.raises(ValueError, match=words):
            compute_calibration(changed, given)
