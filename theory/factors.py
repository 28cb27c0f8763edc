"""The convex problem of the scores, in factors: smooth, and without bad local minima.

At a minimum the features of a class are equal. With the scores Z = W [h_1 … h_K] [K, K] and
Z̃ = Z diag(√n_k) what remains of theory/problem.py is convex:

    min over Z, b of  Σ_k (n_k/N) L(Z_:k − b, t_k) + c ‖Z̃‖_* + λ_b/2 ‖b‖²,   c = √(λ_W λ_H)

For CE this reduction is Hong and Ling's (arXiv 2309.09725). The nuclear norm of Z̃ is the minimum of
½ ‖A‖² + ½ ‖B‖² over A B = Z̃ (Srebro, Rennie, Jaakkola, 2004). A point holds A and B of the blocks
between groups (theory/groups.py), the roots of the singular values within groups, and the biases.
"""

from __future__ import annotations

import numpy as np

from theory.groups import Blocks, Groups, from_orthonormal, spread_bias
from theory.losses import EXACT_LOSSES
from theory.problem import Problem


class FactoredProblem:
    """The problem of the scores of G groups as a function of one flat vector.

    Args:
        problem: the problem.
        groups: its classes in groups, or coarser ones.
    """

    def __init__(self, problem: Problem, groups: Groups) -> None:
        self.problem, self.groups = problem, groups
        self.loss = EXACT_LOSSES[problem.loss]
        self.price = problem.price
        count, copies = len(groups), groups.copies
        self.shares = copies * groups.sizes / (copies * groups.sizes).sum()
        self.roots = np.sqrt(groups.sizes)
        # Z̃ of the blocks between groups, in an orthonormal basis, is `scale` times S.
        self.scale = np.sqrt(copies)[:, None] * np.sqrt(copies) * self.roots
        # How many other classes of group g a sample of group h sees.
        self.other_copies = np.repeat(copies[:, None], count, axis=1) - np.eye(count)
        self.bias_size = problem.count_biases(count)
        self.bias_scale = self._scale_bias()
        self._squares = 0.0
        if self.loss.adds_squares:
            own, other = problem.own_target, problem.other_target
            self._squares = (own**2 + (problem.num_classes - 1) * other**2) / 2

    def split(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return A [G, G], B [G, G], the roots [G] and the biases as views of a flat point."""
        count = len(self.groups)
        left, right = point[: 2 * count**2].reshape(2, count, count)
        rest = point[2 * count**2 :]
        return left, right, rest[:count], rest[count:]

    def join(self, scores: Blocks, bias: np.ndarray, noise: float = 0.0) -> np.ndarray:
        """Return a point that has these scores and biases [G].

        Args:
            scores: the scores Z.
            bias: the bias of each group's classes, [G].
            noise: what to add to the factors, relative to the largest, so that no direction is
                missing: a direction that is absent from both factors has no gradient.
        """
        point = np.zeros(2 * len(self.groups) ** 2 + len(self.groups) + self.bias_size)
        left, right, roots, biases = self.split(point)
        scaled = self.scale * scores.between
        from_left, values, from_right = np.linalg.svd(scaled)
        left[:] = from_left * np.sqrt(values)
        right[:] = np.sqrt(values)[:, None] * from_right
        roots[:] = np.sqrt(np.maximum(scores.within * self.roots, 0.0))
        if noise:
            size = noise * max(1e-3, np.sqrt(values[0]), roots.max())
            generator = np.random.default_rng(0)
            for factor in (left, right):
                factor += size * generator.standard_normal(factor.shape)
            roots[:] = np.where(self.groups.copies > 1, np.maximum(roots, size), 0.0)
        biases[:] = (
            bias if self.bias_size == len(bias) else bias[: self.bias_size]
        ) * self.bias_scale
        return point

    def read_scores(self, point: np.ndarray) -> Blocks:
        """Return the scores Z of a point."""
        left, right, roots, _ = self.split(point)
        return Blocks(self.groups.copies, roots**2 / self.roots, left @ right / self.scale)

    def read_bias(self, point: np.ndarray) -> np.ndarray:
        """Return the bias of the classes of each group, [G]."""
        return self.spread(self.split(point)[3])

    def _scale_bias(self) -> np.ndarray:
        """Return what a bias is multiplied by in a point, so that all curvatures are alike.

        At a minimum the gradient in Z̃ is c in size, and so the curvature of CE and BCE in a bias is
        about 2 c √n. The curvature of MSE is larger, but not along a bias and the scores that undo
        its change. That of the factors is c.
        """
        flat = 2 * self.roots + self.problem.weight_decay_bias / self.price
        curvatures = self.groups.copies * flat
        return np.sqrt(curvatures if self.bias_size > 1 else curvatures.sum(keepdims=True))[
            : self.bias_size
        ]

    def spread(self, bias: np.ndarray) -> np.ndarray:
        """Return the bias of the classes of each group, [G], of the scaled biases of a point."""
        return spread_bias(bias / self.bias_scale, len(self.groups))

    def gather(self, slopes: np.ndarray) -> np.ndarray:
        """Return the gradient in the scaled biases of a point, of that in the groups' biases."""
        if self.bias_size < len(slopes):
            slopes = slopes.sum(keepdims=True)[: self.bias_size]
        return slopes / self.bias_scale

    def evaluate_data(self, scores: Blocks, bias: np.ndarray) -> tuple[float, Blocks, np.ndarray]:
        """Return the data term, its gradient in the scores, and that in the biases [G].

        The gradient G [K, K] of the symmetric scores has blocks, too.
        """
        problem, copies = self.problem, self.other_copies
        own, others = self._compute_logits(scores, bias)
        values, own_slopes, other_slopes = self.loss.evaluate_groups(own, others, copies)
        values = values - problem.own_target * own
        values = values - problem.other_target * (copies * others).sum(axis=0) + self._squares
        own_slopes = self.shares * (own_slopes - problem.own_target)
        other_slopes = self.shares * (other_slopes - problem.other_target * copies)
        return float(self.shares @ values), *self._pull_back(own_slopes, other_slopes)

    def curve_data(
        self, scores: Blocks, bias: np.ndarray, moved: Blocks, moved_bias: np.ndarray
    ) -> tuple[Blocks, np.ndarray]:
        """Return the data term's Hessian times a direction, as `evaluate_data` its gradient."""
        logits = self._compute_logits(scores, bias)
        directions = self._compute_logits(moved, moved_bias)
        own, others = self.loss.curve_groups(*logits, self.other_copies, *directions)
        return self._pull_back(self.shares * own, self.shares * others)

    def _compute_logits(self, scores: Blocks, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        others = scores.between - bias[:, None]
        np.fill_diagonal(others, scores.beside - bias)
        return scores.diagonal - bias, others

    def _pull_back(self, own: np.ndarray, others: np.ndarray) -> tuple[Blocks, np.ndarray]:
        """Turn slopes in the logits into those in the entries of Z, and in the biases."""
        copies, inside = self.groups.copies, np.diag(others)
        sums = others + np.diag(own)  # over the entries of each block
        pairs = np.maximum(copies - 1, 1.0)  # an entry beside the diagonal stands m (m − 1) times
        within = (own - inside / pairs) / copies
        gradient = Blocks(
            copies, np.where(copies > 1, within, 0.0), sums / copies[:, None] / copies
        )
        return gradient, -sums.sum(axis=1)

    def evaluate(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the objective at a flat point and its gradient, of the point's shape."""
        left, right, roots, _ = self.split(point)
        bias, copies = self.read_bias(point), self.groups.copies
        value, slopes, bias_slopes = self.evaluate_data(self.read_scores(point), bias)
        norms = (
            np.vdot(left, left) / 2 + np.vdot(right, right) / 2 + ((copies - 1) * roots**2).sum()
        )
        decay = self.problem.weight_decay_bias
        value += self.price * norms + decay * (copies * bias**2).sum() / 2
        between, within = self.scale_gradient(slopes)
        gradient = np.empty_like(point)
        to_left, to_right, to_roots, to_bias = self.split(gradient)
        to_left[:] = between @ right.T + self.price * left
        to_right[:] = left.T @ between + self.price * right
        to_roots[:] = 2 * roots * (copies - 1) * (within + self.price)
        to_bias[:] = self.gather(bias_slopes + decay * copies * bias)
        return value, gradient

    def scale_gradient(self, slopes: Blocks) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradient in Z̃: between groups [G, G] in an orthonormal basis, within [G]."""
        return slopes.orthonormal() / self.roots, slopes.within / self.roots

    def multiply_hessian(self, point: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Return the Hessian of the objective at a point times a direction."""
        left, right, roots, _ = self.split(point)
        to_left, to_right, to_roots, to_bias = self.split(direction)
        scores, bias, copies = self.read_scores(point), self.read_bias(point), self.groups.copies
        between, within = self.scale_gradient(self.evaluate_data(scores, bias)[1])
        moved = Blocks(
            copies,
            2 * roots * to_roots / self.roots,
            (to_left @ right + left @ to_right) / self.scale,
        )
        spread = self.spread(to_bias)
        curved, bias_curved = self.curve_data(scores, bias, moved, spread)
        between_curved, within_curved = self.scale_gradient(curved)
        product = np.empty_like(direction)
        of_left, of_right, of_roots, of_bias = self.split(product)
        of_left[:] = between_curved @ right.T + between @ to_right.T + self.price * to_left
        of_right[:] = left.T @ between_curved + to_left.T @ between + self.price * to_right
        steps = roots * within_curved + to_roots * (within + self.price)
        of_roots[:] = 2 * (copies - 1) * steps
        decay = self.problem.weight_decay_bias
        of_bias[:] = self.gather(bias_curved + decay * copies * spread)
        return product

    def leave_saddle(self, scores: Blocks, bias: np.ndarray, step: float) -> Blocks:
        """Return scores with the singular directions added along which the objective falls.

        A direction that is absent from both factors has no gradient in them. It is missing if the
        gradient in Z̃ exceeds c there.

        Args:
            scores, bias: of a stationary point of the factors.
            step: the singular value of each direction that is added to Z̃.
        """
        between, within = self.scale_gradient(self.evaluate_data(scores, bias)[1])
        left, values, right = np.linalg.svd(between)
        falls = values > self.price
        added = step * (left[:, falls] @ right[falls]) / self.scale
        grown = np.where(-within > self.price, np.maximum(scores.within, step / self.roots), 0.0)
        return Blocks(scores.copies, np.maximum(scores.within, grown), scores.between - added)

    def bound_gap(self, scores: Blocks, bias: np.ndarray) -> tuple[float, float, float]:
        """Return the objective, its data term, and a bound on its distance from the minimum.

        With G̃ the data term's gradient in Z̃ and P the objective, the excess is at most

            ⟨G̃, Z̃⟩ + c ‖Z̃‖_* + max(0, ‖G̃‖_2/c − 1) P + ‖∇_b‖ ‖b − b*‖

        because the problem is convex and c ‖Z̃*‖_* ≤ P. The bound is absolute.
        """
        copies = self.groups.copies
        data, slopes, bias_slopes = self.evaluate_data(scores, bias)
        between, within = self.scale_gradient(slopes)
        scaled = self.scale * scores.between
        inner = (
            np.vdot(between, scaled) + ((copies - 1) * within * self.roots * scores.within).sum()
        )
        inside = ((copies - 1) * self.roots * np.abs(scores.within)).sum()
        nuclear = np.linalg.svd(scaled, compute_uv=False).sum() + inside
        spectral = max(np.linalg.svd(between, compute_uv=False)[0], np.abs(within).max())
        decay = self.problem.weight_decay_bias
        value = data + self.price * nuclear + decay * (copies * bias**2).sum() / 2
        bound = max(0.0, inner + self.price * nuclear)  # ≥ 0 but for rounding, by duality
        bound += max(0.0, spectral / self.price - 1) * value
        bound += self.bound_bias_term(bias_slopes + decay * copies * bias, bias, value)
        return float(value), data, float(bound)

    def bound_bias_term(self, slopes: np.ndarray, bias: np.ndarray, value: float) -> float:
        """Bound ‖∇_b‖ ‖b − b*‖; both count the classes of a group one by one."""
        if self.bias_size == 0:
            return 0.0
        copies = self.groups.copies
        if self.bias_size == 1 and len(copies) > 1:
            slope = abs(slopes.sum()) / np.sqrt(copies.sum())
        else:
            slope = np.sqrt((slopes**2 / copies).sum())
        # At the minimum the mean prediction for a class is its mean target, so its bias is the
        # inverse link of that target, but for scores of at most P/(c √n) in size.
        largest_score = value / self.price / self.roots.min()
        shares, problem = self.shares / copies, self.problem
        targets = problem.other_target + (problem.own_target - problem.other_target) * shares
        links = {"MSE": targets, "CE": np.log(targets)}
        link = links.get(problem.loss, np.log(targets) - np.log1p(-targets))
        farthest = 2 * largest_score + 2 * np.abs(link).max()
        return float(slope * np.sqrt(copies.sum()) * (farthest + np.abs(bias).max()))


def compute_gram_matrices(
    problem: Problem, groups: Groups, scores: Blocks
) -> tuple[Blocks, Blocks]:
    """Return the Gram matrices W Wᵀ and [h_1 … h_K]ᵀ [h_1 … h_K] of the cheapest factors of Z.

    With the singular values of Z̃ = U D Vᵀ: W Wᵀ = ρ U D Uᵀ and H̃ᵀ H̃ = V D Vᵀ/ρ, ρ = √(λ_H/λ_W).
    """
    copies, roots = groups.copies, np.sqrt(groups.sizes)
    ratio = np.sqrt(problem.feature_decay_rate / problem.weight_decay)
    left, values, right = np.linalg.svd(scores.orthonormal() * roots)
    within = np.abs(scores.within) * roots
    weights = from_orthonormal(copies, ratio * within, ratio * (left * values) @ left.T)
    features = from_orthonormal(copies, within / ratio, (right.T * values) @ right / ratio)
    return weights, features.scale(1 / roots, 1 / roots)
