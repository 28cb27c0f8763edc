"""Calibration of the probabilities softmax(z): expected calibration error and likelihood."""

from __future__ import annotations

import torch
from torch import Tensor

from metrics.checks import Numbers, check_logits, split_rows
from metrics.sums import average_rows, count_rows
from utils.world import ALONE, World

BINS = 15  # of the confidence, as in Guo et al.


@torch.no_grad()
def compute_calibration(logits: Numbers, labels: Numbers) -> dict[str, float]:
    """Compute the expected calibration error and the negative log-likelihood (Guo et al. 2017).

    Probabilities are softmax(z) whatever loss trained the network, so that networks of several
    losses compare. The confidence c_i of a sample is the probability of its predicted class.
        ece: Σ_b (n_b/N) |accuracy of b − mean confidence of b|, in [0, 1], over the 15 bins
            ((b−1)/15, b/15] of the confidence.
        nll: the mean of −ln softmax(z)_y.

    Args:
        logits: [N, K], any float dtype. labels: integer [N]. Both may be tensors, NumPy arrays or
            nested lists.

    Raises:
        ValueError: shapes do not match, labels are out of range, or logits are not finite.
    """
    logits, labels = check_logits(logits, labels)
    chunks = split_rows(logits)
    parts = [score_probabilities(logits[rows], labels[rows]) for rows in chunks]
    nll, confidences, hits = (torch.cat(part) for part in zip(*parts, strict=True))
    return summarise_calibration(nll, confidences, hits)


def score_probabilities(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score softmax(z) of each sample of logits [N, K], labels int64 [N]; no synchronisation.

    Returns:
        −ln softmax(z)_y, float64 [N]; the largest probability, float64 [N]; whether its class, the
        first of equal ones, is the label, bool [N].
    """
    logits = logits.double()
    normalisers = logits.logsumexp(dim=1)
    largest, predicted = logits.max(dim=1)
    nll = normalisers - logits.gather(1, labels[:, None]).squeeze(1)
    return nll, (largest - normalisers).exp(), predicted == labels


def summarise_calibration(
    nll: Tensor, confidences: Tensor, hits: Tensor, world: World = ALONE
) -> dict[str, float]:
    """Summarise what `score_probabilities` returns: ece and nll of `compute_calibration`.

    The samples are those of this process; the results are those of all processes of `world`.
    """
    edges = torch.arange(1, BINS, dtype=torch.float64, device=nll.device) / BINS
    gaps = nll.new_zeros(BINS)
    gaps.index_add_(0, torch.bucketize(confidences, edges), hits.double() - confidences)
    gaps = world.total(gaps)
    error = gaps.abs().sum() / count_rows(len(nll), world)
    error, likelihood = torch.stack([error, average_rows(nll, world)]).tolist()
    return {"ece": error, "nll": likelihood}
