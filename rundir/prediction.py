"""The exact minimum that a run approaches."""

from __future__ import annotations

from collections.abc import Sequence

from args import Settings
from input_pipeline import AUGMENTATIONS
from objective import LOSSES
from theory.convex import UncertainError
from theory.minimum import Prediction, predict
from theory.problem import Problem, divide_batch

# A prediction depends on these besides the classes and the network.
PREDICTION_SETTINGS = [
    "loss",
    "sep_decay",
    "smoothing",
    "augment",
    "bias_mode",
    "batch_size",
    "weight_decay",
    "feature_decay_rate",
    "weight_decay_bias",
]


def predict_run(
    settings: Settings, class_sizes: Sequence[float], feature_dim: int
) -> Prediction | None:
    """Predict the exact minimum that a run with these settings approaches; None without one.

    A mini-batch of B images regularised by `--sep_decay` is the problem with n_k = B π_k, where π_k
    is the share of class k in the training set. The prediction needs targets that are the same in
    every batch, a trained weight, decays above 0, free features, and enough of them.

    Args:
        settings: the complete settings of the run.
        class_sizes: training images of each class.
        feature_dim: d.
    """
    problem = build_problem(settings, class_sizes)
    if problem is None:
        return None
    try:
        prediction = predict(problem)
    except UncertainError:
        return None
    return prediction if feature_dim >= prediction.min_feature_dim else None


def build_problem(settings: Settings, class_sizes: Sequence[float]) -> Problem | None:
    """Return the problem that a run approaches the minimum of; None if it is none of that kind."""
    if explain_no_problem(settings) is not None:
        return None
    batch_size = min(settings.batch_size, sum(class_sizes))
    return Problem(
        settings.loss,
        divide_batch(batch_size, class_sizes),
        settings.weight_decay,
        settings.feature_decay_rate,
        settings.weight_decay_bias or 0.0,
        settings.smoothing,
        settings.bias_mode,
    )


def explain_no_problem(settings: Settings) -> str | None:
    """Return why the minimum that a run approaches is not known; None if it is."""
    reasons = {
        "without --sep_decay no term limits the features": not settings.sep_decay,
        f"--loss {settings.loss} has none": not LOSSES[settings.loss].has_exact_minimum,
        f"--augment {settings.augment} changes the targets with every batch": AUGMENTATIONS[
            settings.augment
        ].mixes_labels,
        "--fixed_etf fixes the weight": settings.fixed_etf,
        "--freeze_backbone fixes the features": settings.freeze_backbone,
        "--weight_decay is 0": settings.weight_decay == 0,
        "--feature_decay_rate is 0": settings.feature_decay_rate == 0,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)
