"""The unconstrained-feature model beside the paper's score figures: predicted, found, published."""

from __future__ import annotations

from collections.abc import Sequence

from reproduction import published
from reproduction.results import Result
from theory.minimiser import FeatureModel, minimise
from theory.minimum import predict
from theory.problem import Problem

BATCH_SIZE, DECAY = 128, 5e-4  # the paper's runs use these; λ_W = λ_H = DECAY
PAPERS_NETWORK = "Swin, CIFAR"  # of the published figures
# (loss, λ_b) of the published figures that show a number.
PUBLISHED_SETTINGS = (("CE", 5e-4), ("BCE", 0.0), ("BCE", 5e-4), ("BCE", 0.5))


def compute_results(class_counts: Sequence[int], *, bias_init_mean: float = 10.0) -> list[Result]:
    """Return scores and bias for each number of classes and each published setting.

    A result's values are those that L-BFGS finds, and its reference is the exact prediction. The
    paper's number is of a trained network: context.

    Args:
        class_counts: numbers of classes K.
        bias_init_mean: the mean of the biases where L-BFGS starts.
    """
    return [
        _compute_result(num_classes, loss, weight_decay_bias, bias_init_mean)
        for num_classes in class_counts
        for loss, weight_decay_bias in PUBLISHED_SETTINGS
    ]


def _compute_result(
    num_classes: int, loss: str, weight_decay_bias: float, bias_init_mean: float
) -> Result:
    per_class = BATCH_SIZE / num_classes
    problem = Problem(loss, [per_class] * num_classes, DECAY, DECAY, weight_decay_bias)
    model = FeatureModel(problem, num_classes + 6)
    found = minimise(model, bias_init_mean=bias_init_mean)
    exact = predict(problem)
    values = {
        "positive_mean": found.positive_scores.mean(),
        "negative_mean": found.negative_scores.mean(),
        "bias_mean": found.bias.mean(),
    }
    predicted = (exact.positive_score, exact.negative_score, exact.bias)
    paper = published.find_scores(num_classes, loss, weight_decay_bias)
    exact_values = zip(values, predicted, strict=True)
    shown = zip(values, paper, strict=True)
    return Result(
        labels={"classes": num_classes, "loss": loss, "weight_decay_bias": weight_decay_bias},
        values={key: [float(value)] for key, value in values.items()},
        references={key: {"predicted": each} for key, each in exact_values if each is not None},
        context={key: each for key, each in shown if each is not None},
        context_of=PAPERS_NETWORK,
    )
