"""The exact minimum of a setting beside the one that L-BFGS finds, NC metrics included."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from metrics.neural_collapse import compute_neural_collapse
from theory.balanced import find_balanced_minimum
from theory.comparison import Comparison, compare
from theory.minimiser import FeatureModel, FoundMinimum, minimise
from theory.problem import Problem
from theory.setting import Setting
from utils.errors import UserError


def compare_minima(setting: Setting, class_sizes: Sequence[int]) -> Comparison:
    """Predict the minimum of a setting, find it, and compare the two.

    Args:
        setting: the setting. The prediction is for balanced classes, at any imbalance factor.
        class_sizes: samples of each of the K classes in the search, the largest first.

    Raises:
        UserError: the decays are too small or too large for float64.
    """
    samples, rate = setting.samples_per_class, setting.feature_decay_rate
    weight_decay, weight_decay_bias = setting.weight_decay, setting.weight_decay_bias
    try:
        predicted = find_balanced_minimum(
            setting.loss, setting.num_classes, samples, weight_decay, rate, weight_decay_bias
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    share = samples / class_sizes[0]  # n may be fractional
    sizes = [size * share for size in class_sizes]
    problem = Problem(setting.loss, sizes, weight_decay, rate, weight_decay_bias)
    model = FeatureModel(problem, setting.feature_dim)
    found = minimise(
        model, bias_init_mean=setting.bias_init_mean, seed=setting.seed, starts=setting.starts
    )
    return compare(predicted, found, measure_collapse(found), class_sizes, setting.feature_dim)


def measure_collapse(found: FoundMinimum) -> dict[str, float]:
    """Return the NC metrics of a found minimum by name."""
    return compute_neural_collapse(
        torch.from_numpy(found.features.copy()),
        torch.from_numpy(found.labels),
        torch.from_numpy(found.weight.copy()),
        torch.from_numpy(found.bias.copy()),
    )
