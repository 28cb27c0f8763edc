"""The minimum of the convex problem of the scores, with a proof: a bound on its distance.

L-BFGS on the factors, from a coarse solution to the fine one, and Newton's steps at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, minres
from threadpoolctl import threadpool_limits

from theory.factors import FactoredProblem
from theory.groups import Blocks, Groups, drop_small, group_classes, refine
from theory.problem import Problem

LARGEST_GAP = 1e-6  # relative; no prediction is given above it
ENOUGH = 1e-11  # relative; Newton's steps stop there
LEVELS = (1, 32)  # groups of the coarse solutions
ESCAPES = 6  # descents from a saddle
STEP = 0.1  # a singular value that was missing at a saddle
NOISE = 1e-4  # relative, on the factors of a coarse solution
SMALL = 300  # groups up to which Newton's steps are taken whatever the gap
NEWTON_STEPS, NEWTON_PRODUCTS = 6, 400
SEARCH = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 0.0, "gtol": 1e-12}


class UncertainError(ArithmeticError):
    """The minimum could not be found to `LARGEST_GAP`."""


@dataclass(frozen=True)
class Solution:
    """A minimum of the problem of the scores.

    Attributes:
        groups: the classes in groups.
        scores: Z; rows are classes, columns samples of a class.
        bias: [G], of the classes of each group.
        value: the objective.
        data_loss: its data term.
        gap: a bound on (value − minimum)/value.
    """

    groups: Groups
    scores: Blocks
    bias: np.ndarray
    value: float
    data_loss: float
    gap: float


def solve(problem: Problem, groups: Groups | None = None) -> Solution:
    """Solve the problem of the scores.

    Args:
        problem: the problem.
        groups: groups of classes of one size each; by default the largest possible.

    Raises:
        UncertainError: the bound on the relative distance from the minimum is above `LARGEST_GAP`.
    """
    groups = groups or group_classes(problem.class_sizes)
    scores = Blocks(np.array([problem.num_classes]), np.ones(1), np.full((1, 1), -0.1))
    bias, chosen = np.zeros(1), np.zeros(len(groups), dtype=int)
    for count in LEVELS:
        if 2 * count > len(groups):
            break
        merged, coarser = groups.merge(count)
        # From the last, coarser level to this one: by way of the groups that have one number each.
        firsts = np.searchsorted(coarser, np.arange(len(merged)))
        scores, bias = _descend(problem, merged, scores, bias, chosen[firsts])
        chosen = coarser
    scores, bias = _descend(problem, groups, scores, bias, chosen)
    return certify(problem, groups, scores, bias)


def certify(problem: Problem, groups: Groups, scores: Blocks, bias: np.ndarray) -> Solution:
    """Return a point of the problem as its solution, with the bound on its distance.

    Raises:
        UncertainError: the bound, relative to the objective, is above `LARGEST_GAP`.
    """
    factored = FactoredProblem(problem, groups)
    value, data_loss, bound = factored.bound_gap(scores, bias)
    gap = bound / value
    if not gap <= LARGEST_GAP:
        raise UncertainError(
            f"its loss is certified to a relative gap of {gap:.1e} only, {LARGEST_GAP:g} is needed"
        )
    return Solution(groups, scores, bias, value, data_loss, gap)


def _descend(
    problem: Problem, groups: Groups, scores: Blocks, bias: np.ndarray, chosen: np.ndarray
) -> tuple[Blocks, np.ndarray]:
    """Minimise over the scores and biases of groups, from those of coarser groups.

    Args:
        problem: the problem.
        groups: the groups, merged or not.
        scores, bias: of the coarser groups.
        chosen: the coarser group of each of the groups, int [G].
    """
    factored = FactoredProblem(problem, groups)
    is_small = len(groups) <= SMALL
    options = {**SEARCH, "maxcor": 20 if is_small else 10}
    scores, bias = refine(scores, groups, chosen), bias[chosen]
    # Threads that wait for each other take longer than such products.
    with threadpool_limits(1 if is_small else None, "blas"):
        for _ in range(ESCAPES):
            start = factored.join(scores, bias, NOISE)
            found = minimize(factored.evaluate, start, jac=True, method="L-BFGS-B", options=options)
            point, gap = polish(factored, found.x)
            scores, bias = factored.read_scores(point), factored.read_bias(point)
            if gap <= LARGEST_GAP:
                break
            scores = factored.leave_saddle(scores, bias, STEP)
    return drop_small(scores, factored.roots), bias


class SmoothProblem(Protocol):
    """A convex problem of the scores as a smooth function of a flat point."""

    groups: Groups

    def evaluate(self, point: np.ndarray) -> tuple[float, np.ndarray]: ...

    def multiply_hessian(self, point: np.ndarray, direction: np.ndarray) -> np.ndarray: ...

    def read_scores(self, point: np.ndarray) -> Blocks: ...

    def read_bias(self, point: np.ndarray) -> np.ndarray: ...

    def bound_gap(self, scores: Blocks, bias: np.ndarray) -> tuple[float, float, float]: ...


def polish(factored: SmoothProblem, point: np.ndarray) -> tuple[np.ndarray, float]:
    """Improve a point by Newton's steps while its gradient falls; return it and its gap.

    The rounding of the objective stops L-BFGS when the gradient is about 1e-8. The steps look at
    the gradient alone. Rotations of the factors change nothing, so the Hessian is singular: MINRES
    returns the shortest step.
    """
    _, gradient = factored.evaluate(point)
    gap, enough = _compute_gap(factored, point), ENOUGH
    if len(factored.groups) > SMALL:
        enough = LARGEST_GAP / 2
    for _ in range(NEWTON_STEPS):
        if gap <= enough:
            break
        here = point
        hessian = LinearOperator(
            (len(point), len(point)),
            matvec=lambda direction, here=here: factored.multiply_hessian(here, direction),
        )
        step, _ = minres(hessian, -gradient, rtol=1e-8, maxiter=NEWTON_PRODUCTS)
        _, next_gradient = factored.evaluate(point + step)
        if not np.linalg.norm(next_gradient) < np.linalg.norm(gradient):
            break
        point, gradient = point + step, next_gradient
        gap = _compute_gap(factored, point)
    return point, gap


def _compute_gap(factored: SmoothProblem, point: np.ndarray) -> float:
    value, _, bound = factored.bound_gap(factored.read_scores(point), factored.read_bias(point))
    return bound / value
