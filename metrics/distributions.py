"""Distributions of decision scores, summarised so that the N·K scores are never held."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metrics.checks import check_scored, row_chunks
from metrics.scores import ScoreSummary, unordered_scores

BINS = 4096  # of a histogram: the smallest visible detail of a violin is hundreds of them
GRID = 256  # points of a violin's outline
REACH = 3.0  # bandwidths by which an outline goes beyond the smallest and the largest value


@dataclass
class Distribution:
    """Values, by their exact statistics and a histogram.

    Attributes:
        count: how many values there are.
        mean, std (population), min, max: exact, computed in float64.
        histogram: float64 [BINS] on the CPU, counts in equal bins from min to max.
    """

    count: int
    mean: float
    std: float
    min: float
    max: float
    histogram: Tensor

    @property
    def centres(self) -> Tensor:
        """The bins' middles, float64 [BINS]."""
        bins = len(self.histogram)
        return self.min + (torch.arange(bins).double() + 0.5) * (self.max - self.min) / bins

    def quantile(self, share: float) -> float:
        """The value below which `share` of the values lie, to the width of a bin."""
        reached = self.histogram.cumsum(0) >= share * self.count
        return self.centres[int(reached.int().argmax())].item()

    def outline(self) -> tuple[Tensor, Tensor]:
        """A violin's outline: positions [GRID] and densities [GRID], float64.

        A Gaussian kernel density with Scott's bandwidth, std · n^(−1/5) (Scott 1992), of the
        histogram. Equal values have no density: their outline is one point of density 1.
        """
        if self.std == 0:
            return torch.tensor([self.mean]).double(), torch.ones(1).double()
        # Not below the bins' width, under which the histogram knows nothing.
        narrowest = (self.max - self.min) / len(self.histogram)
        bandwidth = max(self.std * self.count**-0.2, narrowest)
        low, high = self.min - REACH * bandwidth, self.max + REACH * bandwidth
        grid = torch.linspace(low, high, GRID, dtype=torch.float64)
        distances = (grid[:, None] - self.centres) / bandwidth
        kernel = torch.exp(-0.5 * distances.square()) / (math.sqrt(2 * math.pi) * bandwidth)
        return grid, kernel @ self.histogram / self.count


def distribution(values: Tensor) -> Distribution:
    """Of a tensor of any shape and float dtype that is held anyway; ValueError if it is empty."""
    if values.numel() == 0:
        raise ValueError("no values")
    summary = ScoreSummary()
    summary.add(values.double())
    return _distribution(summary, _counts(values.double(), summary))


@torch.no_grad()
def score_distributions(
    features: Tensor, labels: Tensor, weight: Tensor
) -> tuple[Distribution, Distribution]:
    """Positive and negative decision scores W h (bias not subtracted) of every sample.

    features [N, d], labels integer [N], weight [K, d], any float dtype; raises ValueError as
    `utils.metrics.decision_scores` does. The scores are computed chunk by chunk in float64, twice:
    once for their statistics, and once for the histograms, whose range is known then. Beyond the
    inputs memory does not depend on N·K.
    """
    labels, weight = check_scored(features, labels, weight)
    summaries = ScoreSummary(), ScoreSummary()
    for rows in row_chunks(features, len(weight)):
        for summary, scores in zip(
            summaries, unordered_scores(features[rows], labels[rows], weight), strict=True
        ):
            summary.add(scores)
    totals = [torch.zeros(BINS, dtype=torch.float64, device=features.device) for _ in summaries]
    for rows in row_chunks(features, len(weight)):
        parts = unordered_scores(features[rows], labels[rows], weight)
        for total, summary, scores in zip(totals, summaries, parts, strict=True):
            total += _counts(scores, summary)
    positive, negative = map(_distribution, summaries, totals)
    return positive, negative


def _counts(values: Tensor, summary: ScoreSummary) -> Tensor:
    if summary.min == summary.max:  # histc would widen the range
        counts = values.new_zeros(BINS)
        counts[0] = values.numel()
        return counts
    return torch.histc(values, BINS, summary.min, summary.max)


def _distribution(summary: ScoreSummary, counts: Tensor) -> Distribution:
    std = math.sqrt(summary.squares / summary.count)
    return Distribution(
        summary.count, summary.mean, std, summary.min, summary.max, counts.cpu().double()
    )
