"""All measures of one checkpoint on one split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from metrics import MEASURES, PREDICTION
from metrics.accuracy import compute_group_accuracies, find_best_threshold
from metrics.calibration import summarise_calibration
from metrics.class_means import ClassMeans, prepare_features
from metrics.extraction import Extracted
from metrics.geometry import compute_geometry
from metrics.neural_collapse import compute_neural_collapse
from metrics.properties import compute_feature_properties
from metrics.scores import ScoreStatistics, compute_bias_statistics
from metrics.variability import compute_variability
from theory.minimum import Prediction
from utils.registry import load_function
from utils.world import ALONE, World


@dataclass(frozen=True)
class Evaluation:
    """The input of every measure.

    Attributes:
        extracted: the result of a checkpoint's pass over a split, or over this process's share.
        weight: [K, d], the classifier's.
        bias: [K], the classifier's, subtracted; 0 for a classifier without one.
        class_sizes: K numbers of training images.
        long_tailed: whether the training set was cut to a long tail.
        prediction: the exact minimum that the run approaches; None without a prediction.
        world: the processes that share the split. All get the measures of all its samples.
    """

    extracted: Extracted
    weight: Tensor
    bias: Tensor
    class_sizes: Sequence[float]
    long_tailed: bool = False
    prediction: Prediction | None = None
    world: World = ALONE

    @cached_property
    def class_means(self) -> ClassMeans:
        """Those of the features, computed once for all measures. Raises ValueError."""
        features, labels = self.extracted.features, self.extracted.labels
        return prepare_features(features, labels, len(self.weight), None, self.world)[2]

    @cached_property
    def collapse_and_scores(self) -> tuple[dict[str, float], dict[str, float]]:
        """NC1 to NC4, and the score statistics: both take the N·K scores, which are costly."""
        extracted, statistics = self.extracted, ScoreStatistics()
        collapse = compute_neural_collapse(
            extracted.features,
            extracted.labels,
            self.weight,
            self.bias,
            means=self.class_means,
            statistics=statistics,
            world=self.world,
        )
        return collapse, statistics.describe(self.world)


def compute_measures(evaluation: Evaluation) -> dict[str, float | None]:
    """Compute all of `metrics.MEASURES` in their order; each function is called once.

    Raises ValueError if they are not defined: features are not finite, a class has no samples. With
    several processes all raise it.
    """
    results: dict[str, Any] = {}
    values: dict[str, float | None] = {}
    for column, measure in MEASURES.items():
        if measure.function not in results:
            results[measure.function] = load_function(measure.function)(evaluation)
        result = results[measure.function]
        values[column] = result[column] if isinstance(result, Mapping) else result
    return values


def measure_top(evaluation: Evaluation) -> dict[str, float]:
    """Return top-1 and top-5 accuracy in percent."""
    extracted = evaluation.extracted
    return {"top1": 100 * extracted.top1, "top5": 100 * extracted.top5}


def measure_uniform_accuracy(evaluation: Evaluation) -> dict[str, float]:
    """Compute uniform accuracy in percent, and its threshold."""
    extracted = evaluation.extracted
    positives, negatives = extracted.positives, extracted.negatives
    accuracy, threshold = find_best_threshold(positives, negatives, evaluation.world)
    return {"uniform_accuracy": 100 * accuracy, "uniform_threshold": threshold}


def measure_neural_collapse(evaluation: Evaluation) -> dict[str, float]:
    """Compute NC1 to NC4."""
    return evaluation.collapse_and_scores[0]


def measure_feature_properties(evaluation: Evaluation) -> dict[str, float]:
    """Compute compactness and distinctiveness."""
    extracted, means = evaluation.extracted, evaluation.class_means
    num_classes = len(evaluation.weight)
    return compute_feature_properties(
        extracted.features, extracted.labels, num_classes, means, evaluation.world
    )


def measure_variability(evaluation: Evaluation) -> dict[str, float]:
    """Compute the class-distance normalised variance and the effective rank."""
    extracted, means = evaluation.extracted, evaluation.class_means
    num_classes = len(evaluation.weight)
    return compute_variability(
        extracted.features, extracted.labels, num_classes, means, evaluation.world
    )


def measure_geometry(evaluation: Evaluation) -> dict[str, float]:
    """Compute equinorm, equiangularity and self-duality of class means and classifier."""
    extracted, means = evaluation.extracted, evaluation.class_means
    return compute_geometry(
        extracted.features, extracted.labels, evaluation.weight, means, evaluation.world
    )


def measure_calibration(evaluation: Evaluation) -> dict[str, float]:
    """Compute the expected calibration error in percent, and the negative log-likelihood."""
    extracted = evaluation.extracted
    found = summarise_calibration(
        extracted.nll, extracted.confidences, extracted.hits, evaluation.world
    )
    return {"ece": 100 * found["ece"], "nll": found["nll"]}


def measure_score_statistics(evaluation: Evaluation) -> dict[str, float]:
    """Compute mean, standard deviation, minimum and maximum of positive and negative scores."""
    return evaluation.collapse_and_scores[1]


def measure_bias_statistics(evaluation: Evaluation) -> dict[str, float]:
    """Compute mean, standard deviation, minimum and maximum of the biases."""
    return compute_bias_statistics(evaluation.bias)


def measure_prediction(evaluation: Evaluation) -> dict[str, float | None]:
    """Return scores, bias and collapse at the exact minimum; None for each without a prediction."""
    return describe_prediction(evaluation.prediction)


def describe_prediction(prediction: Prediction | None) -> dict[str, float | None]:
    """Return the columns of an exact minimum; None for each without a prediction.

    Scores are means over the training samples, and the bias is the mean over the classes.
    """
    columns = [name for name, measure in MEASURES.items() if measure.function == PREDICTION]
    if prediction is None:
        return dict.fromkeys(columns)
    values = {
        "positive": prediction.positive_score,
        "negative": prediction.negative_score,
        "bias": prediction.bias,
        **prediction.collapse,
    }
    return {name: values[name.removeprefix("predicted_")] for name in columns}


def measure_group_accuracies(evaluation: Evaluation) -> dict[str, float | None]:
    """Compute top-1 in percent for many, medium and few images; None without a long tail."""
    columns = {"many": "top1_many", "medium": "top1_medium", "few": "top1_few"}
    if not evaluation.long_tailed:
        return dict.fromkeys(columns.values())
    correct = evaluation.extracted.class_correct
    own = torch.bincount(evaluation.extracted.labels, minlength=len(correct))
    counts = evaluation.world.total(own)
    shares = compute_group_accuracies(correct, counts, evaluation.class_sizes)
    return {
        columns[group]: None if share is None else 100 * share for group, share in shares.items()
    }
