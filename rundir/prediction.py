"""The exact minimum that a run approaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from theory.minimum import (
    Prediction,
    predict,
)

BALANCED = 1.5  # the largest class over the smallest, up to which a run's classes are balanced


def predict_run(
    settings: Mapping[str, Any], class_sizes: Sequence[int], feature_dim: int
) -> Prediction | None:
    """What a run of train.py with these settings approaches; None where no prediction is claimed.

    A mini-batch regularised by `--sep_decay` is problem (1) with n = batch_size/K samples per
    class. That needs CE or BCE on hard labels, a trained weight, a bias, decays above 0 and
    features enough, and classes of about one size (`class_sizes` of the training set, the largest
    at most 1.5 times the smallest).
    """
    covered = (
        settings["sep_decay"]
        and settings["loss"] in ("CE", "BCE")
        and settings["smoothing"] == 0
        and settings["augment"] != "DA1+DA2"  # mixes labels
        and settings["bias_mode"] != "none"
        and not settings["fixed_etf"]
        and min(settings["weight_decay"], settings["feature_decay_rate"]) > 0
    )
    if not covered:
        return None
    num_classes, batch_size = len(class_sizes), min(settings["batch_size"], sum(class_sizes))
    if max(class_sizes) > BALANCED * min(class_sizes):
        return None
    prediction = predict(
        settings["loss"],
        num_classes,
        batch_size / num_classes,
        settings["weight_decay"],
        settings["feature_decay_rate"],
        settings["weight_decay_bias"],
    )
    return prediction if feature_dim >= prediction.min_feature_dim else None
