"""The exact minimum that a run approaches."""

from __future__ import annotations

from collections.abc import Sequence

from args import Settings
from input_pipeline import AUGMENTATIONS
from objective import LOSSES
from theory.minimum import Prediction, predict

BALANCED = 1.5  # classes count as balanced up to this ratio of the largest to the smallest
# A prediction depends on these besides the classes and the network.
PREDICTION_SETTINGS = [
    "loss",
    "sep_decay",
    "smoothing",
    "augment",
    "batch_size",
    "weight_decay",
    "feature_decay_rate",
    "weight_decay_bias",
]


def predict_run(
    settings: Settings, class_sizes: Sequence[float], feature_dim: int
) -> Prediction | None:
    """Predict the exact minimum that a run with these settings approaches; None without one.

    A mini-batch regularised by `--sep_decay` is problem (1) with n = batch_size/K samples per
    class. The prediction needs a loss with a known minimum, hard labels, a trained weight, a bias,
    decays above 0, enough features, and classes of about one size.

    Args:
        settings: the complete settings of the run.
        class_sizes: training images of each class; the largest at most 1.5 times the smallest.
        feature_dim: d.
    """
    if not _is_covered(settings) or max(class_sizes) > BALANCED * min(class_sizes):
        return None
    num_classes, batch_size = len(class_sizes), min(settings.batch_size, sum(class_sizes))
    prediction = predict(
        settings.loss,
        num_classes,
        batch_size / num_classes,
        settings.weight_decay,
        settings.feature_decay_rate,
        settings.weight_decay_bias or 0.0,
    )
    return prediction if feature_dim >= prediction.min_feature_dim else None


def _is_covered(settings: Settings) -> bool:
    return (
        settings.sep_decay
        and LOSSES[settings.loss].has_exact_minimum
        and settings.smoothing == 0
        and not AUGMENTATIONS[settings.augment].mixes_labels
        and settings.bias_mode != "none"
        and not settings.fixed_etf
        and not settings.freeze_backbone  # its features are not free
        and min(settings.weight_decay, settings.feature_decay_rate) > 0
    )
