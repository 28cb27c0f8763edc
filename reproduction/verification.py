"""The exact minimum of a setting beside the one that L-BFGS finds, measures included."""

from __future__ import annotations

from dataclasses import replace

import torch

from metrics.class_means import compute_class_means
from metrics.neural_collapse import compute_neural_collapse
from metrics.properties import compute_feature_properties
from theory.comparison import Comparison, compare
from theory.convex import UncertainError
from theory.minimiser import FeatureModel, FoundMinimum, minimise
from theory.minimum import Prediction, predict
from theory.setting import Setting
from utils.errors import UserError


def compare_minima(setting: Setting) -> Comparison:
    """Predict the minimum of a setting, find it, and compare the two.

    Raises:
        UserError: the decays are too small or too large for float64.
    """
    try:
        problem = setting.build_problem()
    except ValueError as error:
        raise UserError(str(error)) from error
    predicted: Prediction | None = None
    uncertain = None
    try:
        predicted = predict(problem)
    except UncertainError as error:
        uncertain = str(error)
    found = minimise(
        FeatureModel(problem, setting.feature_dim),
        bias_init_mean=setting.bias_init_mean,
        seed=setting.seed,
        starts=setting.starts,
    )
    rank = None if predicted is None else predicted.count_mean_directions()
    return compare(problem, predicted, found, measure_collapse(found, rank), uncertain)


def measure_collapse(found: FoundMinimum, rank: int | None) -> dict[str, float]:
    """Return the measures of collapse and of the features of a found minimum by name.

    NC1 divides by the spread of the class means in each direction. Where the exact ones have only
    `rank` directions, as after minority collapse, the others of the found ones are what L-BFGS has
    left of them, and do not count.
    """
    features, labels = torch.from_numpy(found.features.copy()), torch.from_numpy(found.labels)
    weight, bias = torch.from_numpy(found.weight.copy()), torch.from_numpy(found.bias.copy())
    means = compute_class_means(features, labels, len(weight))
    scales = torch.linalg.svdvals(means.centred)
    if rank is not None and rank < len(scales):
        means = replace(means, resolution=max(means.resolution, scales[rank].item()))
    return {
        **compute_neural_collapse(features, labels, weight, bias, means=means),
        **compute_feature_properties(features, labels),
    }
