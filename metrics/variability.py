"""Variability of the features: within their classes, and the directions that they fill."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metrics.checks import Numbers, split_rows
from metrics.class_means import EPSILON, ClassMeans, prepare_features
from metrics.features import Features
from metrics.sums import add_up, average_rows
from utils.world import ALONE, World

# Columns of a product on the CPU that adds to a scatter. With d = 2048 narrow ones take 0.57 times
# as long as the whole square: half of it is never computed.
SCATTER_COLUMNS = 128


@torch.no_grad()
def compute_variability(
    features: Features | Numbers,
    labels: Numbers,
    num_classes: int | None = None,
    means: ClassMeans | None = None,
    world: World = ALONE,
) -> dict[str, float]:
    """Compute the class-distance normalised variance and the effective rank of the features.

    cdnv: the mean of (Var_j + Var_k) / (2 ‖h̄_j − h̄_k‖²) over all pairs of classes j ≠ k (Galanti,
        György, Hutter, ICLR 2022). Var_k is the mean squared distance of class k's features from
        their mean h̄_k. It is 0 at collapse. If two class means differ by no more than rounding
        (`ClassMeans.resolution`), it is infinite, or their pair counts 0 if both classes are
        points, too.
    effective_rank: exp(−Σ_i p_i ln p_i), p_i = σ_i / Σ_j σ_j, with the singular values σ of the
        features minus the mean of all N (Roy, Vetterli, EUSIPCO 2007). It is at most K−1 at
        collapse, and K−1 at a simplex ETF of classes with equally many samples. NaN if all features
        are equal, to rounding.

    Everything is computed in float64, in one pass over the features of about N·d²/2
    multiplications (N·d² on a GPU). Beyond
    the chunks it takes a few [d, d] matrices and the K(K−1)/2 distances. Arrays may be tensors,
    NumPy arrays or nested lists.

    Args:
        features: [N, d], any float dtype, or `HostFeatures`.
        labels: integer [N], every class from 0 to K−1 present.
        num_classes: K; by default the largest label + 1.
        means: those of the features, if they were computed before.
        world: as for `metrics.neural_collapse.compute_neural_collapse`.

    Raises:
        ValueError: as `metrics.neural_collapse.compute_neural_collapse`.
    """
    features, labels, means = prepare_features(features, labels, num_classes, means, world)
    variances, scatter = _compute_scatter(features, labels, means, world)
    factor = _centre(features, means, world) if scatter is None else _factorise(scatter, means)
    # LAPACK, also for a GPU: cuSOLVER's SVD launches many small kernels.
    scales = torch.linalg.svdvals(factor.cpu())
    scales = scales.masked_fill(scales <= means.rounding * math.sqrt(means.num_samples), 0.0)
    return {"cdnv": _compute_cdnv(variances, means), "effective_rank": _compute_rank(scales)}


def _compute_scatter(
    features: Features, labels: Tensor, means: ClassMeans, world: World
) -> tuple[Tensor, Tensor | None]:
    """Compute the classes' variances [K], and Σ_i (h_i − h̄_y)(h_i − h̄_y)ᵀ [d, d].

    Only the upper triangle of the second is right: the matrix is symmetric. It is None where a
    matrix of all features is not larger than what it would lead to.
    """
    dim = features.shape[1]
    is_small = means.num_samples <= dim + len(means.counts)
    sums = torch.zeros_like(means.counts)
    scatter = means.reference.new_zeros(0 if is_small else dim, dim)
    for rows in split_rows(features):
        deviations = (features[rows] - means.reference).sub_(means.relative[labels[rows]])
        if not is_small:
            _add_products(scatter, deviations)
        sums.index_add_(0, labels[rows], deviations.square_().sum(dim=1))
    sums, scatter = add_up(world, sums, scatter)
    return sums / means.counts, None if is_small else scatter


def _add_products(scatter: Tensor, rows: Tensor) -> None:
    """Add rowsᵀ·rows to the upper triangle of a scatter [d, d]; below it, anything.

    A GPU takes the whole product at once: whether narrow ones are faster there was not measured.
    """
    dim = len(scatter)
    width = SCATTER_COLUMNS if scatter.device.type == "cpu" else dim
    for first in range(0, dim, width):
        last = first + width
        scatter[first:last, first:].addmm_(rows[:, first:last].T, rows[:, first:])


def _centre(features: Features, means: ClassMeans, world: World) -> Tensor:
    """Return the features [N, d] minus the mean of all, or rows with the same singular values.

    Several processes gather the triangular factors R of their own rows Q R, for an orthogonal Q.
    """
    centred = features[0 : len(features)] - means.reference
    centred.sub_(average_rows(centred, world))
    if world.size == 1:
        return centred
    return world.join_rows(torch.linalg.qr(centred, mode="r").R)


def _factorise(scatter: Tensor, means: ClassMeans) -> Tensor:
    """Return a matrix [r + K, d], r ≤ d, with the singular values of the centred features.

    These are the roots of the eigenvalues of their scatter, which is that within the classes plus
    Σ_k n_k (h̄_k − h̄_G)(h̄_k − h̄_G)ᵀ. The sum is not formed. In it, rounding of the distances between
    the classes would hide deviations within them of 10⁻⁸ of these, as in any Gram matrix.
    """
    scatter, counts, relative = scatter.cpu(), means.counts.cpu(), means.relative.cpu()
    varying = scatter.diagonal() > 0  # dead units do not vary
    root = scatter.new_zeros(int(varying.sum()), len(scatter))
    root[:, varying] = _compute_root(scatter[varying][:, varying])
    offsets = relative - counts @ relative / counts.sum()
    return torch.cat([root, offsets * counts.sqrt()[:, None]])


def _compute_root(scatter: Tensor) -> Tensor:
    """Return R [d, d] with RᵀR = S for a scatter S [d, d], of which the upper triangle is read."""
    root, failed = torch.linalg.cholesky_ex(scatter, upper=True)
    if not failed:
        return root
    # S has directions without features, to rounding: their eigenvalues are not above it. This takes
    # several times as long.
    values, vectors = torch.linalg.eigh(scatter, UPLO="U")
    rounding = 4 * EPSILON * math.sqrt(len(values)) * values[-1]
    return vectors.T * values.masked_fill(values <= rounding, 0.0).sqrt()[:, None]


def _compute_cdnv(variances: Tensor, means: ClassMeans) -> float:
    distances = torch.pdist(means.centred)
    first, second = torch.triu_indices(
        len(variances), len(variances), offset=1, device=variances.device
    )
    halves = (variances[first] + variances[second]) / 2
    ratios = halves / distances.square()
    limits = torch.where(halves.sqrt() > means.rounding, math.inf, 0.0)
    return torch.where(distances > means.resolution, ratios, limits).mean().item()


def _compute_rank(scales: Tensor) -> float:
    """Return the exponential of the entropy of singular values; NaN if all are 0."""
    return torch.special.entr(scales / scales.sum()).sum().exp().item()
