"""The measures of each class, and what an exact minimum predicts of it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from metrics import CLASS_MEASURES
from metrics.measures import Evaluation
from theory.minimum import Prediction

Values = dict[str, float | None]


def differ(class_sizes: Sequence[float]) -> bool:
    """Return whether the classes have different sizes."""
    return len(set(class_sizes)) > 1


def measure_classes(evaluation: Evaluation) -> list[Values]:
    """Compute the `metrics.CLASS_MEASURES` of each class; none if all classes have one size.

    The mean score of a class is that of its mean feature, because scores are linear in it.
    All processes get the measures of all samples. Raises ValueError as `compute_measures`.
    """
    if not differ(evaluation.class_sizes):
        return []
    means = evaluation.class_means
    features = means.relative + means.reference  # [K, d], the class means
    weight = evaluation.weight.to(features)
    own = (features * weight).sum(dim=1)
    others = (features @ weight.sum(dim=0) - own) / (len(weight) - 1)
    hits = evaluation.extracted.class_correct.to(means.counts)
    columns: dict[str, Sequence[float]] = {
        "class_size": [float(size) for size in evaluation.class_sizes],
        "top1": _list(100 * hits / means.counts),
        "positive_mean": _list(own),
        "negative_mean": _list(others),
        "bias": _list(evaluation.bias.double()),
        "weight_norm": _list(weight.norm(dim=1)),
        "mean_norm": _list(features.norm(dim=1)),
    }
    measured = [{name: column[k] for name, column in columns.items()} for k in range(len(weight))]
    predicted = describe_classes(evaluation.prediction, len(weight))
    return [{**own, **exact} for own, exact in zip(measured, predicted, strict=True)]


def describe_classes(prediction: Prediction | None, num_classes: int) -> list[Values]:
    """Return what the exact minimum predicts of each class; None for each without a prediction."""
    names = [name for name, measure in CLASS_MEASURES.items() if measure.optional]
    if prediction is None:
        return [dict.fromkeys(names) for _ in range(num_classes)]
    has_bias = prediction.problem.bias_mode != "none"
    columns = {
        "predicted_positive": prediction.positive_scores.tolist(),
        "predicted_negative": prediction.negative_scores.tolist(),
        "predicted_bias": prediction.biases.tolist() if has_bias else [None] * num_classes,
        "predicted_weight_norm": prediction.weight_norms.tolist(),
        "predicted_mean_norm": prediction.feature_norms.tolist(),
    }
    return [{name: columns[name][k] for name in names} for k in range(num_classes)]


def _list(values: Tensor) -> list[float]:
    numbers: list[float] = values.tolist()
    return numbers
