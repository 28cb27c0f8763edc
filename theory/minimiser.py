"""The unconstrained-feature model, minimised: the problem over W, H and b as free variables."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from theory.groups import spread_bias
from theory.losses import EXACT_LOSSES
from theory.problem import Problem

FEATURE_NUMBERS = 50_000  # of all features; L-BFGS keeps 100 vectors as long as the point
SEARCH = {"maxiter": 100_000, "maxfun": 200_000, "maxcor": 50, "ftol": 0.0, "gtol": 1e-10}


@dataclass(frozen=True)
class FoundMinimum:
    """A minimum that L-BFGS arrived at, all float64.

    Attributes:
        weight: [K, d].
        features: [N, d].
        labels: int64 [N].
        bias: [K].
        loss_value: the objective, regularisation included.
        gradient_norm: the largest entry of its gradient in absolute value.
        iterations: the iterations of L-BFGS.
    """

    weight: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    bias: np.ndarray
    loss_value: float
    gradient_norm: float
    iterations: int

    @property
    def positive_scores(self) -> np.ndarray:
        """w_y·h of each sample, [N]."""
        return np.einsum("nd,nd->n", self.features, self.weight[self.labels])

    @property
    def negative_scores(self) -> np.ndarray:
        """w_j·h for j ≠ y, [N, K−1]."""
        scores = self.features @ self.weight.T
        others = np.arange(len(self.weight)) != self.labels[:, None]
        return scores[others].reshape(len(scores), -1)


class FeatureModel:
    """The problem over W, H and b themselves, as a function of one flat vector.

    Class k has m = ⌈n_k⌉ samples, each with the weight n_k/m in the loss and in the decay of the
    features. The minimum does not depend on m, because they coincide: where the features of all
    would be too many, m is at most max(2, FEATURE_NUMBERS/(K d)).

    Args:
        problem: the problem.
        feature_dim: d.
    """

    def __init__(self, problem: Problem, feature_dim: int) -> None:
        self.problem, self.feature_dim = problem, feature_dim
        self.loss = EXACT_LOSSES[problem.loss]
        sizes = np.asarray(problem.class_sizes)
        most = max(2, FEATURE_NUMBERS // (len(sizes) * feature_dim))
        counts = np.minimum(np.ceil(sizes), most).astype(int)
        self.labels = np.repeat(np.arange(len(sizes)), counts)
        self.sample_weights = (sizes / counts)[self.labels]
        one_hot = np.eye(len(sizes))[self.labels]
        smoothing = problem.smoothing
        self.targets = (1 - smoothing) * one_hot + smoothing / len(sizes)
        self.bias_size = problem.count_biases(len(sizes))

    def draw_start(self, seed: int, bias_init_mean: float) -> np.ndarray:
        """Return a random point: normal over √d, the biases uniform in bias_init_mean ± 1/√d."""
        generator = np.random.default_rng(seed)
        scale = 1 / math.sqrt(self.feature_dim)
        rows = self.problem.num_classes + len(self.labels)
        factors = generator.standard_normal(rows * self.feature_dim) * scale
        bias = bias_init_mean + generator.uniform(-scale, scale, self.bias_size)
        return np.concatenate([factors, bias])

    def split(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return W [K, d], H [N, d] and the biases as views of a flat point.

        There are K biases, one or none, as the problem's kind of bias has it.
        """
        num_classes, cut = self.problem.num_classes, len(point) - self.bias_size
        matrices = point[:cut].reshape(-1, self.feature_dim)
        return matrices[:num_classes], matrices[num_classes:], point[cut:]

    def read_bias(self, point: np.ndarray) -> np.ndarray:
        """Return the bias of each class, [K]."""
        return spread_bias(self.split(point)[2], self.problem.num_classes)

    def evaluate(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the objective at a flat point and its gradient, of the point's shape."""
        problem, weights = self.problem, self.sample_weights[:, None]
        weight, features, _ = self.split(point)
        bias = self.read_bias(point)
        data_loss, slopes = self._evaluate_data_loss(features @ weight.T - bias)
        decay = (
            problem.weight_decay * np.vdot(weight, weight)
            + problem.feature_decay_rate * np.vdot(weights * features, features)
            + problem.weight_decay_bias * np.vdot(bias, bias)
        )
        gradient = np.empty_like(point)
        weight_gradient, features_gradient, bias_gradient = self.split(gradient)
        weight_gradient[:] = slopes.T @ features + problem.weight_decay * weight
        features_gradient[:] = slopes @ weight + problem.feature_decay_rate * weights * features
        of_classes = problem.weight_decay_bias * bias - slopes.sum(axis=0)
        bias_gradient[:] = of_classes if self.bias_size > 1 else of_classes.sum()
        return data_loss + decay / 2, gradient

    def _evaluate_data_loss(self, logits: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the mean loss and its gradient in the logits [N, K]."""
        shares = self.sample_weights / self.sample_weights.sum()
        values, probabilities = self.loss.evaluate(logits)
        values = values - (self.targets * logits).sum(axis=1)
        if self.loss.adds_squares:
            values = values + (self.targets**2).sum(axis=1) / 2
        return float(shares @ values), shares[:, None] * (probabilities - self.targets)


def minimise(
    model: FeatureModel, *, bias_init_mean: float = 0.0, seed: int = 0, starts: int = 1
) -> FoundMinimum:
    """Return the lowest minimum that L-BFGS reaches from `starts` random points.

    Every local minimum of the problem is global: one start is enough, and more confirm it.

    Args:
        model: what to minimise.
        bias_init_mean: the mean of the biases at the random points.
        seed: the seed of the first point; the others have seed + 1, seed + 2, …
        starts: the number of points, at least 1.
    """
    results = []
    # Threads that wait for each other take longer than such products.
    with threadpool_limits(1, "blas"):
        for k in range(starts):
            start = model.draw_start(seed + k, bias_init_mean)
            results.append(
                minimize(model.evaluate, start, jac=True, method="L-BFGS-B", options=SEARCH)
            )
    best = min(results, key=lambda result: result.fun)
    weight, features, _ = model.split(best.x)
    _, gradient = model.evaluate(best.x)
    return FoundMinimum(
        weight=weight,
        features=features,
        labels=model.labels,
        bias=model.read_bias(best.x),
        loss_value=float(best.fun),
        gradient_norm=float(np.abs(gradient).max()),
        iterations=int(best.nit),
    )
