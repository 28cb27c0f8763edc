"""Accuracies against brute force."""

import numpy as np
import pytest
import torch

from metrics import checks
from metrics.accuracy import (
    compare_bias_signs,
    compute_group_accuracies,
    compute_uniform_accuracy,
    count_correct,
    count_correct_by_class,
)


def brute_force(logits, labels):
    """The largest share over all thresholds that matter: every logit is tried."""
    best = 0
    for t in logits.flatten().tolist():
        served = 0
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
            rest = [z for k, z in enumerate(row) if k != label]
            served += row[label] > t >= max(rest)
        best = max(best, served)
    return best / len(labels)


def served_by(logits, labels, t):
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.clone().scatter_(1, labels[:, None], -torch.inf).amax(1)
    return ((own > t) & (others <= t)).double().mean().item()


@pytest.mark.parametrize("k", [2, 3, 10])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_uniform_accuracy_equals_brute_force(k, ties, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(40, k, generator=generator)
    if ties:
        logits = (2 * logits).round()
    labels = torch.randint(k, (40,), generator=generator)
    logits[torch.arange(30), labels[:30]] += 1
    accuracy, threshold = compute_uniform_accuracy(logits, labels)
    assert accuracy == brute_force(logits, labels)
    assert served_by(logits, labels, threshold) == accuracy
    top1 = (logits.argmax(1) == labels).double().mean().item()
    assert accuracy <= top1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_uniform_accuracy_of_any_dtype(dtype):
    logits = torch.tensor([[3.0, 1.0], [1.0, 2.0], [0.5, 0.0]], dtype=dtype)
    accuracy, threshold = compute_uniform_accuracy(logits, torch.tensor([0, 1, 0]))
    assert (accuracy, threshold) == (2 / 3, 1.0)


def test_uniform_accuracy_by_chunks_of_many_samples(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(7, (3000,), generator=generator)
    logits = torch.randn(3000, 7, generator=generator) + 2 * torch.eye(7)[labels]
    whole = compute_uniform_accuracy(logits, labels)
    monkeypatch.setattr(checks, "CPU_CHUNK", 100)
    assert compute_uniform_accuracy(logits, labels.to(torch.uint8)) == whole
    assert served_by(logits, labels, whole[1]) == whole[0]


def test_nothing_correct_has_no_threshold():
    accuracy, threshold = compute_uniform_accuracy(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    assert accuracy == 0
    assert threshold != threshold


def test_correct_counts_against_sorting():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(50, 8, generator=generator)
    labels = torch.randint(8, (50,), generator=generator)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    expected = [(ranks < 1).sum().item(), (ranks < 5).sum().item()]
    assert count_correct(logits, labels).tolist() == expected


def test_correct_counts_by_class_against_a_loop():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(200, 9, generator=generator).round()  # with ties
    labels = torch.randint(8, (200,), generator=generator)  # none of the last class
    order = logits.topk(5, dim=1).indices.tolist()
    expected = [[0] * 9, [0] * 9]
    for ranked, label in zip(order, labels.tolist(), strict=True):
        expected[0][label] += ranked[0] == label
        expected[1][label] += label in ranked
    counts = count_correct_by_class(logits, labels)
    assert counts.tolist() == expected
    assert counts.sum(dim=1).tolist() == count_correct(logits, labels).tolist()


def test_groups_are_of_more_than_100_of_20_to_100_and_of_fewer_images():
    sizes = [500, 101, 100, 20, 19, 1]
    correct, counts = torch.tensor([8, 6, 5, 1, 3, 0]), torch.tensor([10, 10, 10, 10, 5, 5])
    expected = {"many": 14 / 20, "medium": 6 / 20, "few": 3 / 10}
    assert compute_group_accuracies(correct, counts, sizes) == expected
    empty = {"many": None, "medium": 23 / 50, "few": None}
    assert compute_group_accuracies(correct, counts, [50] * 6) == empty
    with pytest.raises(ValueError, match="one length"):
        compute_group_accuracies(correct, counts, sizes[1:])


def test_groups_of_a_balanced_test_set_are_mean_class_accuracies():
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(12).repeat(20)
    logits = torch.randn(240, 12, generator=generator) + 2 * torch.eye(12)[labels]
    sizes = [300 * 0.6**k for k in range(12)]
    found = compute_group_accuracies(
        count_correct_by_class(logits, labels)[0], labels.bincount(), sizes
    )
    hits = (logits.argmax(1) == labels).double()
    accuracies = [hits[labels == k].mean().item() for k in range(12)]
    groups = {"many": range(0, 3), "medium": range(3, 6), "few": range(6, 12)}
    for name, group in groups.items():
        assert found[name] == pytest.approx(np.mean([accuracies[k] for k in group]))


def test_top5_of_three_classes_is_everything():
    assert count_correct(torch.randn(6, 3), torch.zeros(6, dtype=torch.int64))[1] == 6


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), "must be"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), "must be"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "empty"),
        (torch.zeros(1, 2), torch.tensor([2]), "from 0 to 1"),
        (torch.zeros(1, 2), torch.tensor([-1]), "from 0 to 1"),
        (torch.zeros(1, 2), torch.tensor([0.0]), "integers"),
        (torch.zeros(1, 2), torch.tensor([True]), "integers"),
        (torch.tensor([[0.0, torch.nan]]), torch.tensor([0]), "not finite"),
        (torch.tensor([[0.0, torch.inf]]), torch.tensor([1]), "not finite"),
    ],
)
def test_mistakes_are_named(logits, labels, words):
    with pytest.raises(ValueError, match=words):
        compute_uniform_accuracy(logits, labels)


def test_the_two_signs_of_a_bias_are_compared():
    torch.manual_seed(0)
    features, weight, bias = torch.randn(900, 5), torch.randn(4, 5), torch.randn(4)
    labels = (features @ weight.T + bias).argmax(dim=1)
    subtracted, added, errors = compare_bias_signs(features, labels, weight, bias)
    assert added == 1
    assert subtracted == pytest.approx(
        ((features @ weight.T - bias).argmax(dim=1) == labels).double().mean().item()
    )
    missed = round(900 * (1 - subtracted))
    assert errors == pytest.approx(missed / missed**0.5)
    assert compare_bias_signs(features, labels, weight, -bias)[::2] == (1, -errors)
