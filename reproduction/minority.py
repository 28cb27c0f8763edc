"""Minority collapse over the ratio of class sizes: thresholds, and the minimum along the ratio.

Half of the classes are large, and a batch of 128 images is regularised, as in the paper's runs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from figures.minority import PANELS, Path
from theory.minimiser import FeatureModel, minimise
from theory.minimum import Prediction
from theory.minority import TwoGroups, find_merging_ratio, find_vanishing_ratio
from theory.problem import Problem

BATCH = 128
VANISHED = 1e-3  # rows shorter than this share of the large ones count as 0


def list_thresholds(classes: int, decay: float, loss: str) -> dict[str, Any]:
    """Return a row of the table: the ratios from which small rows are equal, and 0."""
    groups = _divide(loss, classes, decay)
    return {
        "classes": classes,
        "decay": decay,
        "loss": loss,
        "equal_from": find_merging_ratio(groups),
        "zero_from": find_vanishing_ratio(groups),
    }


def follow(loss: str, classes: int, decay: float, count: int, *, search: bool) -> Path:
    """Follow the minimum over the ratio of class sizes.

    Args:
        loss, classes, decay: the setting; λ_W = λ_H.
        count: ratios of the curve; near the thresholds there are two thirds as many more.
        search: whether L-BFGS also looks for the minimum on features at up to five ratios.
    """
    groups = _divide(loss, classes, decay)
    merging, vanishing = find_merging_ratio(groups), find_vanishing_ratio(groups)
    assert vanishing is not None
    coarse = np.geomspace(1.001, 2.5 * vanishing, count)
    near = merging * (1 - np.geomspace(1e-4, 0.3, count // 3))
    between = merging + (vanishing - merging) * np.linspace(0.01, 0.99, count // 3)
    ratios = sorted({*coarse, *near[near > 1], *between})
    points = [describe(groups.predict(ratio)) for ratio in ratios]
    found = []
    if search:
        steps = (0.1, 0.4, 0.8, math.sqrt(vanishing / merging), 1.2 * vanishing / merging)
        searched = [step * merging for step in steps if step * merging > 1]
        found = [(ratio, find_on_features(groups, ratio)) for ratio in searched]
    values = {name: [point[name] for point in points] for name in PANELS}
    return Path(loss, classes, decay, ratios, values, merging, vanishing, found)


def _divide(loss: str, classes: int, decay: float) -> TwoGroups:
    model = Problem(loss, [BATCH / classes] * classes, decay, decay)
    return TwoGroups(model, classes // 2)


def describe(prediction: Prediction) -> dict[str, float]:
    """Return what the figure shows of a minimum."""
    gram = prediction.weight_gram.expand(prediction.group_of)
    return describe_rows(gram, prediction.positive_scores, prediction.biases)


def find_on_features(groups: TwoGroups, ratio: float) -> dict[str, float]:
    """Return the same of a minimum that L-BFGS finds on the features."""
    problem = groups.problem(ratio)
    found = minimise(FeatureModel(problem, problem.num_classes + 2))
    of_classes = np.bincount(found.labels, found.positive_scores) / np.bincount(found.labels)
    return describe_rows(found.weight @ found.weight.T, of_classes, found.bias, groups.minority)


def describe_rows(
    gram: np.ndarray, positive_scores: np.ndarray, bias: np.ndarray, minority: int | None = None
) -> dict[str, float]:
    """Return the figure's quantities: the means over the small classes.

    Args:
        gram: W Wᵀ, [K, K]. The small classes are the last ones.
        positive_scores: [K].
        bias: [K].
        minority: the number of small classes; None: half of all.

    Returns:
        The mean cosine between small rows (NaN where they are 0), their norm over that of the large
        rows, their score, and their bias minus that of the large classes.
    """
    count = minority or len(gram) // 2
    small, large = slice(-count, None), slice(None, -count)
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    ratio = float(norms[small].mean() / norms[large].mean())
    cosine = math.nan
    if ratio > VANISHED:
        cosines = gram[small, small] / np.outer(norms[small], norms[small])
        cosine = float((cosines.sum() - count) / (count * (count - 1)))
    return {
        "cosine": cosine,
        "norm": ratio,
        "positive_score": float(positive_scores[small].mean()),
        "bias": float(bias[small].mean() - bias[large].mean()),
    }
