"""The losses against torch's own, float64 and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from objective import LOSSES
from objective.decay import compute_decay
from objective.losses import binary_cross_entropy, cross_entropy, mean_squared_error
from utils.registry import load_function

N, K = 7, 5


def compute(name, *values):
    return load_function(LOSSES[name].function)(*values)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(N, K, generator=generator, dtype=torch.float64)
    hard = torch.randint(K, (N,), generator=generator)
    soft = torch.rand(N, K, generator=generator, dtype=torch.float64)
    return logits, hard, soft / soft.sum(1, keepdim=True)


def smoothed(targets, s):
    onehot = F.one_hot(targets, K).double() if targets.ndim == 1 else targets
    return (1 - s) * onehot + s / K


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("s", [0.0, 0.1])
def test_values_against_torch_in_float64(batch, kind, s):
    logits, hard, soft = batch
    targets = hard if kind == "hard" else soft
    t = smoothed(targets, s)
    expected_ce = -(t * F.log_softmax(logits, 1)).sum(1).mean()
    expected_bce = F.binary_cross_entropy_with_logits(logits, t, reduction="none").sum(1).mean()
    expected_mse = ((logits - t) ** 2).sum() / (2 * N)
    torch.testing.assert_close(cross_entropy(logits, targets, s), expected_ce)
    torch.testing.assert_close(binary_cross_entropy(logits, targets, s), expected_bce)
    torch.testing.assert_close(mean_squared_error(logits, targets, s), expected_mse)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_follows_float64(batch, name):
    logits, hard, _ = batch
    exact = compute(name, logits, hard, 0.05)
    assert compute(name, logits.float(), hard, 0.05).item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_low_precision_logits_are_computed_in_float32(batch, name):
    logits, hard, _ = batch
    loss = compute(name, logits.bfloat16(), hard)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, compute(name, logits.bfloat16().float(), hard))


@pytest.mark.parametrize("z", [-1e4, -300.0, -89.0, 0.0, 89.0, 300.0, 1e4])
@pytest.mark.parametrize("label", [0, 1])
def test_bce_neither_overflows_nor_loses_its_gradient(z, label):
    logits = torch.tensor([[z, -50.0]], requires_grad=True)
    loss = binary_cross_entropy(logits, torch.tensor([label]))
    loss.backward()
    # softplus(x) = max(x, 0) + log1p(exp(−|x|)), in Python's float64
    expected = sum(
        max(x, 0) + math.log1p(math.exp(-abs(x)))
        for x in ((-z if label == 0 else z), (-50.0 if label == 0 else 50.0))
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    sigma = 1 / (1 + math.exp(-z)) if z > -700 else 0.0
    assert logits.grad[0, 0].item() == pytest.approx(sigma - (label == 0), abs=1e-6)
    assert torch.isfinite(logits.grad).all()


def test_bce_keeps_the_small_gradients_of_confident_samples():
    logits = torch.tensor([[15.0, -15.0]], requires_grad=True)
    binary_cross_entropy(logits, torch.tensor([0])).backward()
    tail = 1 / (1 + math.exp(15))
    assert logits.grad[0].tolist() == pytest.approx([-tail, tail], rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_by_finite_differences(batch, name):
    logits, hard, soft = batch
    logits = logits.requires_grad_()
    for targets in (hard, soft):
        assert torch.autograd.gradcheck(lambda z, t=targets: compute(name, z, t, 0.1), (logits,))


def test_regularisation_is_that_of_problem_1():
    features, weight, bias = torch.ones(3, 2), 2 * torch.ones(4, 2), 3 * torch.ones(4)
    # λ_W/2·8·4 + λ_H/2·6·1 + λ_b/2·4·9
    assert compute_decay(features, weight, bias, 0.1, 0.01, 0.001).item() == pytest.approx(
        0.05 * 32 + 0.005 * 6 + 0.0005 * 36
    )
