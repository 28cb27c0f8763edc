"""Distributions of scores against numpy and scipy."""

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde

from metrics.distributions import BINS, compute_distribution, compute_score_distributions
from metrics.scores import compute_decision_scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distributions_are_those_of_all_scores(dtype, monkeypatch):
    torch.manual_seed(0)
    features = torch.randn(700, 6, dtype=dtype) + 3
    labels, weight = torch.randint(9, (700,)), torch.randn(9, 6, dtype=dtype)
    monkeypatch.setattr("metrics.checks.CPU_CHUNK", 500)  # many chunks
    found = compute_score_distributions(features, labels, weight)
    for ours, values in zip(found, compute_decision_scores(features, labels, weight), strict=True):
        values = values.numpy().ravel()
        assert ours.count == values.size
        direct = values.mean(), values.std(), values.min(), values.max()
        assert (ours.mean, ours.std, ours.min, ours.max) == pytest.approx(direct, rel=1e-12)
        counts, _ = np.histogram(values, BINS, (values.min(), values.max()))
        # An edge's last digit may put a value into the bin beside it.
        assert np.abs(np.cumsum(counts) - ours.histogram.cumsum(0).numpy()).max() <= 2
        width = (values.max() - values.min()) / BINS
        for share in (0.05, 0.5, 0.95):
            direct = np.quantile(values, share, method="inverted_cdf")
            assert ours.find_quantile(share) == pytest.approx(direct, abs=width)


def test_the_outline_is_a_kernel_density():
    values = torch.cat([torch.randn(400) - 3, torch.randn(100)]).double()
    grid, density = compute_distribution(values).trace_outline()
    bandwidth = len(values) ** -0.2 * values.std(correction=0) / values.std()
    expected = gaussian_kde(values.numpy(), bw_method=bandwidth.item())(grid.numpy())
    np.testing.assert_allclose(density, expected, atol=2e-4)
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=0.01)


def test_equal_values_are_one_point():
    found = compute_distribution(torch.full((7,), 2.5))
    assert (found.mean, found.std, found.find_quantile(0.5)) == (2.5, 0, 2.5)
    grid, _ = found.trace_outline()
    assert grid.tolist() == [2.5]


def test_memory_does_not_grow_with_the_number_of_scores(monkeypatch):
    """No tensor of a size near N·K is ever made."""
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return result

    features, labels = torch.randn(20_000, 4), torch.randint(300, (20_000,))
    monkeypatch.setattr("metrics.checks.CPU_CHUNK", 30_000)
    with Sizes():
        _, negative = compute_score_distributions(features, labels, torch.randn(300, 4))
    assert negative.count == 20_000 * 299
    assert largest <= 80_000  # the features themselves
