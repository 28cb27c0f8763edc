"""Minority collapse: two groups of classes, one of which has far fewer samples.

With m_1 classes of n_1 samples each and m_2 ≥ 2 of n_2 = n_1/R, two things happen as R grows:

1. The rows of the small classes **merge**: they become equal, and so do their features. This is at
   n_2 = N² λ_W λ_H/(1 − s)², for every loss of the form A(z) − t·z with a symmetric A.
2. They **vanish**: they are 0 from there on, and no image of these classes is told from another.

Minority collapse is Fang et al.'s (PNAS 2021). Hong and Ling (arXiv 2309.09725) prove a sharp
threshold for two groups under CE. docs/theory.md proves the first for all losses here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq, minimize

from theory.factors import FactoredProblem
from theory.groups import Blocks, Groups
from theory.minimum import Prediction, predict
from theory.problem import Problem

FARTHEST = 1e9  # the largest ratio of class sizes that is looked at


@dataclass(frozen=True)
class TwoGroups:
    """A problem with two groups of classes, for any ratio of their sizes.

    Attributes:
        model: the problem at any ratio; its class sizes count only by their number and sum.
        majority: m_1, the number of large classes. The m_2 ≥ 2 others are small.
    """

    model: Problem
    majority: int

    @property
    def minority(self) -> int:
        """m_2, the number of small classes."""
        return self.model.num_classes - self.majority

    def problem(self, ratio: float) -> Problem:
        """Return the problem in which a large class is `ratio` times the size of a small one."""
        small = self.model.total / (self.majority * ratio + self.minority)
        sizes = [small * ratio] * self.majority + [small] * self.minority
        return replace(self.model, class_sizes=sizes)

    def predict(self, ratio: float) -> Prediction:
        """Return the minimum at a ratio above 1."""
        return predict(self.problem(ratio))


def find_merging_ratio(groups: TwoGroups) -> float:
    """Return the ratio from which on the rows of the small classes are equal.

    n_2 = N/(m_1 R + m_2) is N² λ_W λ_H/(1 − s)² there. Below 1: they are equal at every ratio.
    """
    model = groups.model
    product = model.weight_decay * model.feature_decay_rate
    classes = (1 - model.smoothing) ** 2 / (model.total * product)  # N/n_2
    return (classes - groups.minority) / groups.majority


def find_vanishing_ratio(groups: TwoGroups) -> float | None:
    """Return the ratio from which on the rows of the small classes are 0; None if there is none.

    There the scores between the groups, and between a group and itself as a whole, are 0 and stay
    so: the gradient in them, scaled by 1/√n, has a spectral norm of at most √(λ_W λ_H).
    """
    low = max(1.0, find_merging_ratio(groups)) * (1 + 1e-12)
    if measure_excess(groups, low) <= 0:
        return low
    if measure_excess(groups, FARTHEST) > 0:
        return None
    root = brentq(
        lambda log: measure_excess(groups, math.exp(log)),
        math.log(low),
        math.log(FARTHEST),
        xtol=1e-13,
    )
    return math.exp(root)


def measure_excess(groups: TwoGroups, ratio: float) -> float:
    """Return ‖G̃‖_2/√(λ_W λ_H) − 1 at the best point without scores between the groups.

    Only the amplitude within the large classes and the biases are left there. Not above 0: it is
    the minimum of the whole problem, past the merging.
    """
    problem = groups.problem(ratio)
    sizes = np.array([problem.class_sizes[0], problem.class_sizes[-1]])
    copies = np.array([groups.majority, groups.minority], dtype=float)
    factored = FactoredProblem(
        problem, Groups(sizes, copies, np.repeat([0, 1], copies.astype(int)))
    )
    scores, bias = _minimise_within(factored)
    between = factored.scale_gradient(factored.evaluate_data(scores, bias)[1])[0]
    return float(np.linalg.svd(between, compute_uv=False)[0] / problem.price - 1)


def _minimise_within(factored: FactoredProblem) -> tuple[Blocks, np.ndarray]:
    """Minimise over the amplitude of the first group and the biases; all other scores are 0."""
    point = np.zeros(2 * 4 + 2 + factored.bias_size)
    free = np.r_[8, 10 : len(point)]

    def evaluate(values: np.ndarray) -> tuple[float, np.ndarray]:
        point[free] = values
        value, gradient = factored.evaluate(point)
        return value, gradient[free]

    def multiply(values: np.ndarray, direction: np.ndarray) -> np.ndarray:
        point[free] = values
        whole = np.zeros_like(point)
        whole[free] = direction
        return factored.multiply_hessian(point, whole)[free]

    start = np.zeros(len(free))
    start[0] = 1.0
    found = minimize(
        evaluate, start, jac=True, method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-14}
    ).x
    for _ in range(20):  # Newton's steps to the rounding of the gradient
        _, gradient = evaluate(found)
        hessian = np.stack([multiply(found, unit) for unit in np.eye(len(found))])
        step = np.linalg.lstsq(hessian, -gradient, rcond=1e-13)[0]
        _, further = evaluate(found + step)
        if not np.linalg.norm(further) < np.linalg.norm(gradient):
            break
        found = found + step
    point[free] = found
    return factored.read_scores(point), factored.read_bias(point)
