"""The unconstrained-feature model, minimised: problem (1) over W, H and b as free variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logsumexp


@dataclass(frozen=True)
class Found:
    """A minimum that L-BFGS arrived at, all float64.

    Attributes:
        weight: [K, d].
        features: [N, d].
        labels: int64 [N].
        bias: [K].
        loss_value: the objective, regularisation included.
        gradient_norm: the largest entry of its gradient in absolute value.
        iterations: of L-BFGS.
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

    Args:
        loss: "CE" or "BCE".
        class_sizes: how many samples each of the K classes has.
        feature_dim: d.
        weight_decay, feature_decay, bias_decay: λ_W, λ_H, λ_b. For n that is no whole number, give
            ⌈n⌉ samples per class and λ_H n/⌈n⌉: as the samples of a class coincide at the minimum,
            their share of the regularisation is all that n decides.
    """

    def __init__(
        self,
        loss: str,
        class_sizes: Sequence[int],
        feature_dim: int,
        weight_decay: float,
        feature_decay: float,
        bias_decay: float,
    ) -> None:
        self.loss = loss
        self.labels = np.repeat(np.arange(len(class_sizes)), class_sizes)
        self.one_hot = np.eye(len(class_sizes))[self.labels]
        self.dim = feature_dim
        self.decays = weight_decay, feature_decay, bias_decay

    @property
    def num_classes(self) -> int:
        return self.one_hot.shape[1]

    def start(self, seed: int, bias_mean: float) -> np.ndarray:
        """A random point: standard normal over √d, the biases uniform in bias_mean ± 1/√d."""
        generator = np.random.default_rng(seed)
        scale = 1 / math.sqrt(self.dim)
        rows = self.num_classes + len(self.labels)
        factors = generator.standard_normal(rows * self.dim) * scale
        return np.concatenate(
            [factors, bias_mean + generator.uniform(-scale, scale, self.num_classes)]
        )

    def split(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """W [K, d], H [N, d] and b [K] as views of a flat point."""
        matrices = point[: -self.num_classes].reshape(-1, self.dim)
        return (
            matrices[: self.num_classes],
            matrices[self.num_classes :],
            point[-self.num_classes :],
        )

    def value_and_gradient(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        weight, features, bias = self.split(point)
        data_loss, slopes = self._data_term(features @ weight.T - bias)
        weight_decay, feature_decay, bias_decay = self.decays
        decay = (
            weight_decay * np.vdot(weight, weight)
            + feature_decay * np.vdot(features, features)
            + bias_decay * np.vdot(bias, bias)
        )
        gradient = np.empty_like(point)
        of_weight, of_features, of_bias = self.split(gradient)
        of_weight[:] = slopes.T @ features + weight_decay * weight
        of_features[:] = slopes @ weight + feature_decay * features
        of_bias[:] = bias_decay * bias - slopes.sum(axis=0)
        return data_loss + decay / 2, gradient

    def _data_term(self, logits: np.ndarray) -> tuple[float, np.ndarray]:
        """The mean loss and its gradient in the logits [N, K]."""
        own = np.vdot(self.one_hot, logits)
        if self.loss == "CE":
            logs = logsumexp(logits, axis=1, keepdims=True)
            value, probabilities = logs.sum() - own, np.exp(logits - logs)
        else:
            value, probabilities = np.logaddexp(0, logits).sum() - own, expit(logits)
        count = len(logits)
        return value / count, (probabilities - self.one_hot) / count


def minimise(problem: Problem, *, bias_mean: float = 0.0, seed: int = 0, starts: int = 1) -> Found:
    """The lowest of the minima that L-BFGS reaches from `starts` random points (seed, seed + 1, …).

    The problem has no local minima but global ones, so that one start is enough; more confirm it.
    """
    options = {"maxiter": 100_000, "maxfun": 200_000, "maxcor": 50, "ftol": 0.0, "gtol": 1e-10}
    results = [
        minimize(
            problem.value_and_gradient,
            problem.start(seed + k, bias_mean),
            jac=True,
            method="L-BFGS-B",
            options=options,
        )
        for k in range(starts)
    ]
    best = min(results, key=lambda result: result.fun)
    weight, features, bias = problem.split(best.x)
    _, gradient = problem.value_and_gradient(best.x)
    return Found(
        weight,
        features,
        problem.labels,
        bias,
        float(best.fun),
        float(np.abs(gradient).max()),
        int(best.nit),
    )
