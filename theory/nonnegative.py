"""The exact minimum over features that are not negative, as they are after a ReLU.

At the minimum of theory/minimum.py class means have negative inner products. Features after a ReLU,
or means of such, can't. Their minimum has orthogonal class means of different lengths. With the
scores s_k [K] of the samples of class k and c_k = √(n_k λ_W λ_H) it is the minimum of a convex
problem in which the classes meet in the biases alone:

    min over s, b of  Σ_k (n_k/N) L(s_k − b, t_k) + Σ_k c_k ‖s_k‖ + λ_b/2 ‖b‖²

docs/theory.md proves it, and when: if the gradients of the data term in s_k and in s_l have no
positive inner product for two classes, or only a small one. So it is if no class is much smaller
than others, and with BCE if the decay of its bias is weak. With a strong one and classes of one
size the minimum of theory/minimum.py has no negative inner products.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from theory.convex import LARGEST_GAP, SEARCH, Solution, UncertainError, polish
from theory.factors import FactoredProblem
from theory.groups import NOTHING, Blocks, Groups
from theory.minimum import Prediction, describe, predict
from theory.problem import Problem

VANISHED = 1e-5  # relative to the largest; shorter features are 0 but for rounding
START = 5.0  # the positive scores at the start


class _Rays:
    """The problem as a smooth function of a flat point: s_k = r_k v_k / c_k, and the biases.

    c_k ‖s_k‖ is the least ½ (r_k² + ‖v_k‖²), so all curvatures are about 1.
    """

    def __init__(self, problem: Problem) -> None:
        count = problem.num_classes
        self.groups = Groups(np.array(problem.class_sizes), np.ones(count), np.arange(count))
        self.factored = FactoredProblem(problem, self.groups)
        self.prices = problem.price * self.factored.roots
        self._decay = problem.weight_decay_bias
        self._bias_scale = np.sqrt(problem.price)  # beside that of the factored problem

    def start(self) -> np.ndarray:
        """Return a point of scores that fit the labels."""
        count, roots = len(self.groups), np.sqrt(START * self.prices)
        directions = roots * (np.eye(count) - 1 / count)
        return np.concatenate([roots, directions.ravel(), np.zeros(self.factored.bias_size)])

    def read_scores(self, point: np.ndarray) -> Blocks:
        """Return the scores, a column for each class."""
        lengths, directions, _ = self._split(point)
        return self._wrap(directions * lengths / self.prices)

    def read_bias(self, point: np.ndarray) -> np.ndarray:
        """Return the biases [K]."""
        return self._spread(self._split(point)[2])

    def evaluate(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the objective at a point and its gradient."""
        lengths, directions, _ = self._split(point)
        bias = self.read_bias(point)
        data, slopes, bias_slopes = self.factored.evaluate_data(self.read_scores(point), bias)
        norms = (np.vdot(lengths, lengths) + np.vdot(directions, directions)) / 2
        value = data + norms + self._decay * (bias**2).sum() / 2
        scaled = slopes.between / self.prices
        to_lengths = (scaled * directions).sum(axis=0) + lengths
        to_directions = scaled * lengths + directions
        to_bias = self._gather(bias_slopes + self._decay * bias)
        return value, np.concatenate([to_lengths, to_directions.ravel(), to_bias])

    def multiply_hessian(self, point: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Return the Hessian of the objective at a point times a direction."""
        lengths, directions, _ = self._split(point)
        to_lengths, to_directions, to_bias = self._split(direction)
        scores, bias, spread = self.read_scores(point), self.read_bias(point), self._spread(to_bias)
        moved = (to_directions * lengths + directions * to_lengths) / self.prices
        slopes = self.factored.evaluate_data(scores, bias)[1].between / self.prices
        curved, bias_curved = self.factored.curve_data(scores, bias, self._wrap(moved), spread)
        scaled = curved.between / self.prices
        of_lengths = (scaled * directions + slopes * to_directions).sum(axis=0) + to_lengths
        of_directions = scaled * lengths + slopes * to_lengths + to_directions
        of_bias = self._gather(bias_curved + self._decay * spread)
        return np.concatenate([of_lengths, of_directions.ravel(), of_bias])

    def bound_gap(self, scores: Blocks, bias: np.ndarray) -> tuple[float, float, float]:
        """Return the objective, its data term, and a bound on its distance from the minimum.

        With the gradients g_k of the data term in s_k and P the objective the excess is at most

            Σ_k (⟨g_k, s_k⟩ + c_k ‖s_k‖) + max(0, ν − 1) P + ‖∇_b‖ ‖b − b*‖

        over all features h ≥ 0. ν² is the largest eigenvalue of max(0, g_k·g_l)/(c_k c_l).
        """
        data, slopes, bias_slopes = self.factored.evaluate_data(scores, bias)
        scaled = slopes.between / self.prices
        inner = scaled.T @ scaled
        norm = np.sqrt(np.linalg.eigvalsh(np.maximum(inner, 0.0))[-1])
        prices = self.prices @ np.linalg.norm(scores.between, axis=0)
        value = data + prices + self._decay * (bias**2).sum() / 2
        bound = max(0.0, np.vdot(slopes.between, scores.between) + prices)
        bound += max(0.0, norm - 1) * value
        bound += self.factored.bound_bias_term(bias_slopes + self._decay * bias, bias, value)
        return float(value), data, float(bound)

    def _split(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count = len(self.groups)
        rest = point[count:]
        return point[:count], rest[: count**2].reshape(count, count), rest[count**2 :]

    def _spread(self, bias: np.ndarray) -> np.ndarray:
        return self.factored.spread(bias / self._bias_scale)

    def _gather(self, slopes: np.ndarray) -> np.ndarray:
        return self.factored.gather(slopes) / self._bias_scale

    def _wrap(self, matrix: np.ndarray) -> Blocks:
        return Blocks(self.groups.copies, np.zeros(len(matrix)), matrix)


def predict_nonnegative(problem: Problem) -> Prediction:
    """Return the exact minimum of a problem over features h ≥ 0, of K or more dimensions.

    Takes about 0.05 s for 10 classes and 0.5 s for 100.

    Raises:
        theory.convex.UncertainError: the minimum was not found to a relative gap of 1e-6. So it is
            where class means of different lengths overlap at the minimum.
    """
    if problem.is_balanced and (free := _find_free(problem)) is not None:
        return free
    rays = _Rays(problem)
    with threadpool_limits(1, "blas"):
        options = {**SEARCH, "maxcor": 30}
        found = minimize(rays.evaluate, rays.start(), jac=True, method="L-BFGS-B", options=options)
        point, _ = polish(rays, found.x)
    scores, bias = rays.read_scores(point), rays.read_bias(point)
    norms = np.linalg.norm(scores.between, axis=0)
    is_left = norms > max(NOTHING, VANISHED * norms.max())
    scores = replace(scores, between=scores.between * is_left)
    value, data_loss, bound = rays.bound_gap(scores, bias)
    if not bound / value <= LARGEST_GAP:
        raise UncertainError(
            "orthogonal class means are certified to be the minimum only to a relative gap of "
            f"{bound / value:.1e}"
        )
    solution = Solution(rays.groups, scores, bias, value, data_loss, bound / value)
    prediction = describe(problem, solution, _compute_grams(problem, scores))
    return replace(prediction, min_feature_dim=max(1, int((prediction.feature_norms > 0).sum())))


def _find_free(problem: Problem) -> Prediction | None:
    """Return the minimum over features of any sign of classes of one size, if h ≥ 0 can have it.

    Vectors a e_k + b (1, …, 1) with a, b ≥ 0 have any equal lengths and equal inner products ≥ 0.
    """
    free = predict(problem)
    if free.feature_gram.beside.min() < -NOTHING * free.feature_gram.diagonal.max():
        return None
    return replace(free, min_feature_dim=problem.num_classes)


def _compute_grams(problem: Problem, scores: Blocks) -> tuple[Blocks, Blocks]:
    """Return W Wᵀ and the class means' inner products: ‖h_k‖² = √(λ_W/(λ_H n_k)) ‖s_k‖."""
    norms = np.linalg.norm(scores.between, axis=0)
    ratio = np.sqrt(problem.weight_decay / problem.feature_decay_rate)
    squares = ratio * norms / np.sqrt(problem.class_sizes)
    shares = np.divide(1.0, squares, out=np.zeros_like(squares), where=squares > 0)
    return (
        replace(scores, between=(scores.between * shares) @ scores.between.T),
        replace(scores, between=np.diag(squares)),
    )
