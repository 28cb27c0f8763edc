"""Classes of one size as one group, and matrices that treat the classes of a group alike.

The problem of theory/problem.py does not change if classes of one size are permuted, and it is
convex. The mean of a minimum over these permutations is therefore a minimum, too. Its matrices
[K, K] have, for classes i of group g and j of group h,

    Z_ij = δ_gh α_g (δ_ij − 1/m_g) + S_gh        (m_g classes in group g)

so that G groups leave G + G² numbers of K². ImageNet's 1,000 classes have about 100 sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NOTHING = 1e-9  # singular values below it are 0; logits that matter are about 1


@dataclass(frozen=True)
class Groups:
    """Groups of classes that have one size each, the largest first.

    Attributes:
        sizes: [G], the samples of each class of a group.
        copies: [G], the number m_g of classes of a group.
        members: int [K], the group of each class.
    """

    sizes: np.ndarray
    copies: np.ndarray
    members: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    def merge(self, count: int) -> tuple[Groups, np.ndarray]:
        """Merge neighbours into at most `count` groups of the mean size.

        Returns the merged groups and the new group of each old one, int [G].
        """
        chosen = np.arange(len(self)) * min(count, len(self)) // len(self)
        copies = np.bincount(chosen, self.copies)
        sizes = np.bincount(chosen, self.copies * self.sizes) / copies
        return Groups(sizes, copies, chosen[self.members]), chosen


def group_classes(class_sizes: Sequence[float]) -> Groups:
    """Group the K classes by their sizes."""
    sizes, members, copies = np.unique(
        -np.asarray(class_sizes, dtype=float), return_inverse=True, return_counts=True
    )
    return Groups(-sizes, copies.astype(float), members)


@dataclass(frozen=True)
class Blocks:
    """A matrix [K, K] with entries δ_gh α_g (δ_ij − 1/m_g) + S_gh.

    Attributes:
        copies: [G], m_g.
        within: [G], α_g; 0 in a group of one class.
        between: [G, G], S_gh, the means of the blocks.
    """

    copies: np.ndarray
    within: np.ndarray
    between: np.ndarray

    @property
    def diagonal(self) -> np.ndarray:
        """The diagonal entry of each group, [G]."""
        return np.diag(self.between) + self.within * (1 - 1 / self.copies)

    @property
    def beside(self) -> np.ndarray:
        """The entry of two different classes of one group, [G]; no entry where m_g is 1."""
        return np.diag(self.between) - self.within / self.copies

    def centre(self) -> Blocks:
        """Return the matrix times I − 11ᵀ/K: every row gets the sum 0."""
        row_means = self.between @ self.copies / self.copies.sum()
        return Blocks(self.copies, self.within, self.between - row_means[:, None])

    def mirror(self) -> Blocks:
        """Return the transpose."""
        return Blocks(self.copies, self.within, self.between.T)

    def scale(self, rows: np.ndarray, columns: np.ndarray) -> Blocks:
        """Multiply the rows of each group, [G], and the columns. `within` needs equal blocks."""
        between = rows[:, None] * self.between * columns
        return Blocks(self.copies, rows * self.within * columns, between)

    def norm(self) -> float:
        """Return the Frobenius norm."""
        inner = ((self.copies - 1) * self.within**2).sum()
        return float(np.sqrt(inner + (self.copies[:, None] * self.between**2 * self.copies).sum()))

    def orthonormal(self) -> np.ndarray:
        """Return `between` in the orthonormal basis 1_g/√m_g: S_gh √(m_g m_h), [G, G].

        Its singular values, and α_g m_g − 1 times for each group, are those of the matrix.
        """
        roots = np.sqrt(self.copies)
        return roots[:, None] * self.between * roots

    def expand(self, members: np.ndarray) -> np.ndarray:
        """Return the matrix itself, [K, K], for the group of each class, int [K]."""
        dense = self.between[np.ix_(members, members)]
        same = members[:, None] == members
        inner = np.eye(len(members)) - 1 / self.copies[members]
        return dense + np.where(same, self.within[members] * inner, 0.0)


def from_orthonormal(copies: np.ndarray, within: np.ndarray, matrix: np.ndarray) -> Blocks:
    """Return the blocks whose `orthonormal` is the matrix [G, G]."""
    roots = np.sqrt(copies)
    return Blocks(copies, within, matrix / roots[:, None] / roots)


def refine(coarse: Blocks, groups: Groups, chosen: np.ndarray) -> Blocks:
    """Return the same matrix [K, K] as blocks of finer groups.

    Args:
        coarse: the matrix in merged groups.
        groups: the finer groups.
        chosen: the merged group of each finer one, int [G].
    """
    within = coarse.within[chosen]
    between = coarse.between[np.ix_(chosen, chosen)]
    same = chosen[:, None] == chosen
    inner = np.diag(1 / groups.copies) - 1 / coarse.copies[chosen]
    between = between + np.where(same, within[:, None] * inner, 0.0)
    return Blocks(groups.copies, np.where(groups.copies > 1, within, 0.0), between)


def spread_bias(bias: np.ndarray, count: int) -> np.ndarray:
    """Return the bias of each class or group, [count], of as many biases, of one or of none."""
    return bias if len(bias) == count else np.full(count, bias[0] if len(bias) else 0.0)


def average(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted mean; that of equal values is exact."""
    return float(values[0] + weights @ (values - values[0]) / weights.sum())


def drop_small(scores: Blocks, roots: np.ndarray) -> Blocks:
    """Return scores without singular values of Z diag(√n_k) that are 0 but for rounding.

    Args:
        scores: Z.
        roots: √n of each group, [G].
    """
    left, values, right = np.linalg.svd(scores.orthonormal() * roots)
    within = scores.within * roots
    least = NOTHING * max(1.0, values[0], within.max())
    kept = values > least
    matrix = (left[:, kept] * values[kept]) @ right[kept] / roots
    within = np.where(within > least, scores.within, 0.0)
    return from_orthonormal(scores.copies, within, matrix)
