"""The unconstrained-feature model, minimised: problem (1) over W, H and b as free variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from theory.losses import EXACT_LOSSES

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


class Problem:
    """Problem (1) for given class sizes, as a function of one flat vector.

    For a fractional n, give ⌈n⌉ samples per class and λ_H n/⌈n⌉. The minimum is the same: the
    samples of a class coincide there, and n decides only their share of the regularisation.

    Args:
        loss: a name of `theory.losses.EXACT_LOSSES`.
        class_sizes: the samples of each of the K classes.
        feature_dim: d.
        weight_decay: λ_W.
        feature_decay_rate: λ_H.
        weight_decay_bias: λ_b.

    Raises:
        KeyError: the loss is unknown.
    """

    def __init__(
        self,
        loss: str,
        class_sizes: Sequence[int],
        feature_dim: int,
        weight_decay: float,
        feature_decay_rate: float,
        weight_decay_bias: float,
    ) -> None:
        self.loss = EXACT_LOSSES[loss]
        self.labels = np.repeat(np.arange(len(class_sizes)), class_sizes)
        self.one_hot = np.eye(len(class_sizes))[self.labels]
        self.feature_dim = feature_dim
        self.weight_decay = weight_decay
        self.feature_decay_rate = feature_decay_rate
        self.weight_decay_bias = weight_decay_bias

    @property
    def num_classes(self) -> int:
        """The number of classes K."""
        return self.one_hot.shape[1]

    def draw_start(self, seed: int, bias_init_mean: float) -> np.ndarray:
        """Return a random point: normal over √d, the biases uniform in bias_init_mean ± 1/√d."""
        generator = np.random.default_rng(seed)
        scale = 1 / math.sqrt(self.feature_dim)
        rows = self.num_classes + len(self.labels)
        factors = generator.standard_normal(rows * self.feature_dim) * scale
        bias = bias_init_mean + generator.uniform(-scale, scale, self.num_classes)
        return np.concatenate([factors, bias])

    def split(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return W [K, d], H [N, d] and b [K] as views of a flat point."""
        matrices = point[: -self.num_classes].reshape(-1, self.feature_dim)
        weight, features = matrices[: self.num_classes], matrices[self.num_classes :]
        return weight, features, point[-self.num_classes :]

    def evaluate(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the objective at a flat point and its gradient, of the point's shape."""
        weight, features, bias = self.split(point)
        data_loss, slopes = self._evaluate_data_loss(features @ weight.T - bias)
        decay = (
            self.weight_decay * np.vdot(weight, weight)
            + self.feature_decay_rate * np.vdot(features, features)
            + self.weight_decay_bias * np.vdot(bias, bias)
        )
        gradient = np.empty_like(point)
        weight_gradient, features_gradient, bias_gradient = self.split(gradient)
        weight_gradient[:] = slopes.T @ features + self.weight_decay * weight
        features_gradient[:] = slopes @ weight + self.feature_decay_rate * features
        bias_gradient[:] = self.weight_decay_bias * bias - slopes.sum(axis=0)
        return data_loss + decay / 2, gradient

    def _evaluate_data_loss(self, logits: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the mean loss and its gradient in the logits [N, K]."""
        own = np.vdot(self.one_hot, logits)
        total, probabilities = self.loss.evaluate(logits)
        count = len(logits)
        return (total - own) / count, (probabilities - self.one_hot) / count


def minimise(
    problem: Problem, *, bias_init_mean: float = 0.0, seed: int = 0, starts: int = 1
) -> FoundMinimum:
    """Return the lowest minimum that L-BFGS reaches from `starts` random points.

    Every local minimum of the problem is global: one start is enough, and more confirm it.

    Args:
        problem: what to minimise.
        bias_init_mean: the mean of the biases at the random points.
        seed: the seed of the first point; the others have seed + 1, seed + 2, …
        starts: the number of points, at least 1.
    """
    results = [
        minimize(
            problem.evaluate,
            problem.draw_start(seed + k, bias_init_mean),
            jac=True,
            method="L-BFGS-B",
            options=SEARCH,
        )
        for k in range(starts)
    ]
    best = min(results, key=lambda result: result.fun)
    weight, features, bias = problem.split(best.x)
    _, gradient = problem.evaluate(best.x)
    return FoundMinimum(
        weight=weight,
        features=features,
        labels=problem.labels,
        bias=bias,
        loss_value=float(best.fun),
        gradient_norm=float(np.abs(gradient).max()),
        iterations=int(best.nit),
    )
