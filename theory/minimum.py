"""The exact minimum of the unconstrained-feature model: scores, biases, norms and collapse.

Classes of one size with hard labels have a closed form (theory/balanced.py). Everywhere else the
convex problem of the scores is solved (theory/convex.py). Both come with a bound on how far the
objective is from its minimum. docs/theory.md derives them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from theory.balanced import SOLVERS, BalancedMinimum, find_balanced_minimum
from theory.convex import Solution, certify, solve
from theory.factors import compute_gram_matrices
from theory.geometry import count_rank, measure_collapse
from theory.groups import Blocks, average, group_classes
from theory.problem import Problem


@dataclass(frozen=True, eq=False)
class Prediction:
    """The minimum of a problem. Scores are W h; the bias is not subtracted.

    Attributes:
        problem: the problem.
        positive_scores: [K], w_k·h of the samples of class k.
        negative_scores: [K], the mean of w_j·h over j ≠ k, for the samples of class k.
        biases: [K]. If `problem.bias_level_is_free`, a number added to all is as good: these have
            the mean 0. Zeros without a bias.
        weight_norms: [K], ‖w_k‖.
        feature_norms: [K], ‖h_k‖.
        loss_value: the minimum, regularisation included.
        data_loss: the same without regularisation.
        weight_norm_squared: ‖W‖²_F.
        gap: loss_value exceeds the minimum by at most this share of itself.
        min_feature_dim: the smallest d that this minimum needs.
        collapse: NC1, NC2, NC2_h, NC3, compactness and distinctiveness by name; see
            `theory.geometry.measure_collapse`.
        group_of: int [K], the group of each class: the classes of one size.
        scores: Z in blocks of these groups.
        weight_gram: W Wᵀ in these blocks.
        feature_gram: the class means' inner products in these blocks.
    """

    problem: Problem
    positive_scores: np.ndarray
    negative_scores: np.ndarray
    biases: np.ndarray
    weight_norms: np.ndarray
    feature_norms: np.ndarray
    loss_value: float
    data_loss: float
    weight_norm_squared: float
    gap: float
    min_feature_dim: int
    collapse: dict[str, float | None]
    group_of: np.ndarray = field(repr=False)
    scores: Blocks = field(repr=False)
    weight_gram: Blocks = field(repr=False)
    feature_gram: Blocks = field(repr=False)

    @property
    def positive_score(self) -> float:
        """The mean positive score over the samples."""
        return self._average(self.positive_scores)

    @property
    def negative_score(self) -> float:
        """The mean negative score over the samples."""
        return self._average(self.negative_scores)

    @property
    def bias(self) -> float | None:
        """The mean of the biases; None where their level is free, and without a bias."""
        if self.problem.bias_level_is_free or self.problem.bias_mode == "none":
            return None
        return float(self.biases.mean())

    @property
    def others(self) -> np.ndarray:
        """The negative scores, one for each pair of groups of which there is a pair of classes."""
        apart = self.scores.between[~np.eye(len(self.scores.copies), dtype=bool)]
        return np.concatenate([apart, self.scores.beside[self.scores.copies > 1]])

    def count_mean_directions(self) -> int:
        """Count the directions in which the class means differ from their mean: K − 1 or fewer."""
        centred = self.feature_gram.centre().mirror().centre()
        return count_rank(centred, np.ones(len(centred.copies)))

    def _average(self, values: np.ndarray) -> float:
        return average(values, np.asarray(self.problem.class_sizes))


def predict(problem: Problem) -> Prediction:
    """Return the exact minimum of a problem for features of enough dimensions.

    Takes about 0.03 s for 10 sizes of classes, 2 s for 100 and minutes for 1,000 on one core;
    classes of one size count once.

    Raises:
        theory.convex.UncertainError: the minimum was not found to a relative gap of 1e-6, as it can
            happen with decays below 1e-6.
    """
    return describe(problem, _solve_exactly(problem) or solve(problem))


def find_closed_form(problem: Problem) -> BalancedMinimum | None:
    """Return the minimum in closed form; None where there is none."""
    is_known = problem.loss in SOLVERS and problem.smoothing == 0
    if not (is_known and problem.is_balanced and problem.bias_mode != "none"):
        return None
    return find_balanced_minimum(
        problem.loss,
        problem.num_classes,
        problem.class_sizes[0],
        problem.weight_decay,
        problem.feature_decay_rate,
        problem.weight_decay_bias,
    )


def _solve_exactly(problem: Problem) -> Solution | None:
    """Return the solution in closed form, with its gap; None where there is none."""
    closed = find_closed_form(problem)
    if closed is None:
        return None
    groups = group_classes(problem.class_sizes)
    within = np.array([closed.positive_score - closed.negative_score])
    scores = Blocks(groups.copies, within, np.full((1, 1), -closed.common_shift))
    return certify(problem, groups, scores, np.array([closed.bias or 0.0]))


def describe(
    problem: Problem, solution: Solution, grams: tuple[Blocks, Blocks] | None = None
) -> Prediction:
    """Return the prediction that belongs to a solution of the problem of the scores.

    Args:
        problem: the problem.
        solution: its solution.
        grams: W Wᵀ and the class means' inner products; by default those of the cheapest factors.
    """
    groups, scores = solution.groups, solution.scores
    weight_gram, feature_gram = grams or compute_gram_matrices(problem, groups, scores)
    copies, members = groups.copies, groups.members
    bias = solution.bias
    if problem.bias_level_is_free:
        bias = bias - copies @ bias / copies.sum()
    sums = copies @ scores.between - scores.diagonal  # of each sample's negative scores
    norms = {
        name: np.sqrt(np.maximum(gram.diagonal, 0.0))
        for name, gram in (("weights", weight_gram), ("features", feature_gram))
    }
    return Prediction(
        problem=problem,
        positive_scores=scores.diagonal[members],
        negative_scores=(sums / (copies.sum() - 1))[members],
        biases=bias[members],
        weight_norms=norms["weights"][members],
        feature_norms=norms["features"][members],
        loss_value=solution.value,
        data_loss=solution.data_loss,
        weight_norm_squared=float(copies @ weight_gram.diagonal),
        gap=solution.gap,
        min_feature_dim=count_rank(scores, np.sqrt(groups.sizes)),
        collapse=measure_collapse(scores, weight_gram, feature_gram),
        group_of=members,
        scores=scores,
        weight_gram=weight_gram,
        feature_gram=feature_gram,
    )
