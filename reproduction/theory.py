"""The unconstrained-feature model beside the paper's score figures: predicted, found, published."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reproduction import published
from reproduction.results import Result
from theory.minimiser import Problem, minimise
from theory.minimum import predict

BATCH, DECAY = 128, 5e-4  # of the paper's runs; λ_W = λ_H
# (loss, λ_b) of the published figures that show a number.
SETTINGS = (("CE", 5e-4), ("BCE", 0.0), ("BCE", 5e-4), ("BCE", 0.5))


def theory_results(class_counts: Sequence[int], *, bias_mean: float = 10.0) -> list[Result]:
    """For each number of classes and published setting the scores and the bias: found by L-BFGS
    (a value), exact and published (references)."""
    return [
        _result(num_classes, loss, decay, bias_mean)
        for num_classes in class_counts
        for loss, decay in SETTINGS
    ]


def _result(num_classes: int, loss: str, decay: float, bias_mean: float) -> Result:
    per_class = BATCH / num_classes
    whole = math.ceil(per_class)
    problem = Problem(
        loss, [whole] * num_classes, num_classes + 6, DECAY, DECAY * per_class / whole, decay
    )
    found = minimise(problem, bias_mean=bias_mean)
    exact = predict(loss, num_classes, per_class, DECAY, DECAY, decay)
    values = {
        "positive": found.positive_scores.mean(),
        "negative": found.negative_scores.mean(),
        "bias": found.bias.mean(),
    }
    predicted = (exact.positive_score, exact.negative_score, exact.bias)
    paper = published.scores(num_classes, loss, decay)
    references = {
        measure: {
            name: number
            for name, number in (("paper", shown), ("predicted", computed))
            if number is not None
        }
        for measure, shown, computed in zip(values, paper, predicted, strict=True)
    }
    labels = {"classes": num_classes, "loss": loss, "weight_decay_bias": decay}
    return Result(labels, {key: [float(value)] for key, value in values.items()}, references)
