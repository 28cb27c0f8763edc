"""All measures of one checkpoint on one split."""

from __future__ import annotations

from torch import Tensor

from metrics.accuracy import best_threshold
from metrics.extraction import Extracted
from metrics.neural_collapse import feature_properties, neural_collapse
from metrics.scores import score_statistics

MEASURES = (
    "top1",
    "top5",
    "uniform_accuracy",
    "uniform_threshold",
    "nc1",
    "nc2",
    "nc2_h",
    "nc3",
    "nc4",
    "compactness",
    "distinctiveness",
    *(
        f"{kind}_{statistic}"
        for kind in ("positive", "negative", "bias")
        for statistic in ("mean", "std", "min", "max")
    ),
)


def measure(extracted: Extracted, weight: Tensor, bias: Tensor) -> dict[str, float]:
    """All of `MEASURES` (accuracies in percent) for a classifier's weight [K, d] and bias [K].

    Raises ValueError where they are not defined: features not finite, a class without samples.
    """
    features, labels = extracted.features, extracted.labels
    collapse = neural_collapse(features, labels, weight, bias)
    uniform, threshold = best_threshold(extracted.positives, extracted.negatives)
    values = {
        "top1": 100 * extracted.top1,
        "top5": 100 * extracted.top5,
        "uniform_accuracy": 100 * uniform,
        "uniform_threshold": threshold,
        **collapse,
        **feature_properties(features, labels),
        **score_statistics(features, labels, weight),
        **bias_statistics(bias),
    }
    return {key: values[key] for key in MEASURES}


def bias_statistics(bias: Tensor) -> dict[str, float]:
    """Mean, population standard deviation, minimum and maximum of the biases [K]."""
    bias = bias.double()
    values = {"mean": bias.mean(), "std": bias.std(correction=0), "min": bias.min()}
    values["max"] = bias.max()
    return {f"bias_{name}": value.item() for name, value in values.items()}
