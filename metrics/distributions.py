"""Distributions of decision scores, summarised so that the N·K scores are never held."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metrics.checks import Numbers, as_tensor, check_score_inputs, split_rows
from metrics.features import Features
from metrics.scores import ScoreSummary, compute_unordered_scores

BINS = 4096  # bins of a histogram; the smallest visible detail of a violin spans hundreds
GRID = 256  # points of a violin's outline
REACH = 3.0  # an outline exceeds the smallest and the largest value by this many bandwidths


@dataclass
class Distribution:
    """Exact statistics and a histogram of values.

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
        """The middles of the bins, float64 [BINS]."""
        bins = len(self.histogram)
        return self.min + (torch.arange(bins).double() + 0.5) * (self.max - self.min) / bins

    def find_quantile(self, share: float) -> float:
        """Return the value below which `share` of the values lie, to the width of a bin."""
        reached = self.histogram.cumsum(0) >= share * self.count
        return self.centres[int(reached.int().argmax())].item()

    def trace_outline(self) -> tuple[Tensor, Tensor]:
        """Return a violin's outline: positions [GRID] and densities [GRID], float64.

        It is a Gaussian kernel density of the histogram with Scott's bandwidth, std · n^(−1/5)
        (Scott 1992). Equal values have no density: their outline is one point of density 1.
        """
        if self.std == 0:
            return torch.tensor([self.mean]).double(), torch.ones(1).double()
        # The histogram resolves nothing narrower than a bin.
        narrowest = (self.max - self.min) / len(self.histogram)
        bandwidth = max(self.std * self.count**-0.2, narrowest)
        low, high = self.min - REACH * bandwidth, self.max + REACH * bandwidth
        grid = torch.linspace(low, high, GRID, dtype=torch.float64)
        distances = (grid[:, None] - self.centres) / bandwidth
        kernel = torch.exp(-0.5 * distances.square()) / (math.sqrt(2 * math.pi) * bandwidth)
        return grid, kernel @ self.histogram / self.count


def compute_distribution(values: Numbers) -> Distribution:
    """Summarise an array of any shape and float dtype. Raises ValueError if it is empty."""
    values = as_tensor(values, "values")
    if values.numel() == 0:
        raise ValueError("no values")
    summary = ScoreSummary()
    summary.add(values.double())
    return _build_distribution(summary, _count_bins(values.double(), summary))


@torch.no_grad()
def compute_score_distributions(
    features: Features | Numbers, labels: Numbers, weight: Numbers
) -> tuple[Distribution, Distribution]:
    """Compute the distributions of positive and of negative decision scores W h of every sample.

    The bias is not subtracted; arguments and errors are those of
    `metrics.scores.compute_decision_scores`. The scores are computed chunk by chunk in float64,
    twice: once for their statistics, which give the range, and once for the histograms. Memory
    beyond the inputs does not depend on N·K.
    """
    features, labels, weight = check_score_inputs(features, labels, weight)
    summaries = ScoreSummary(), ScoreSummary()
    for rows in split_rows(features, len(weight)):
        for summary, scores in zip(
            summaries, compute_unordered_scores(features[rows], labels[rows], weight), strict=True
        ):
            summary.add(scores)
    totals = [torch.zeros(BINS, dtype=torch.float64, device=features.device) for _ in summaries]
    for rows in split_rows(features, len(weight)):
        parts = compute_unordered_scores(features[rows], labels[rows], weight)
        for total, summary, scores in zip(totals, summaries, parts, strict=True):
            total += _count_bins(scores, summary)
    positive, negative = map(_build_distribution, summaries, totals)
    return positive, negative


def _count_bins(values: Tensor, summary: ScoreSummary) -> Tensor:
    if summary.min == summary.max:  # histc would widen the range
        counts = values.new_zeros(BINS)
        counts[0] = values.numel()
        return counts
    return torch.histc(values, BINS, summary.min, summary.max)


def _build_distribution(summary: ScoreSummary, counts: Tensor) -> Distribution:
    std = math.sqrt(summary.squares / summary.count)
    return Distribution(
        summary.count, summary.mean, std, summary.min, summary.max, counts.cpu().double()
    )
