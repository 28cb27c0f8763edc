"""The bias that --bias_init_mean predicted and prior let a run begin with."""

from __future__ import annotations

from collections.abc import Sequence

from args import Settings
from models import PREDICTED
from rundir.prediction import build_problem
from theory.convex import UncertainError
from theory.minimum import predict
from theory.prior import find_prior_biases
from utils.console import Console
from utils.errors import UserError

MANY = 150  # sizes of classes from which on a prediction takes more than a few seconds


def find_first_bias(
    settings: Settings, class_sizes: Sequence[int], feature_dim: int
) -> float | list[float]:
    """Return the biases of a start that --bias_init_mean names; one number where all are equal.

    Args:
        settings: complete; `bias_init_mean` is one of `models.BIAS_STARTS`.
        class_sizes: training images of each class.
        feature_dim: d.

    Raises:
        UserError: there are none for these classes or this network, or they change nothing.
    """
    find = _predict_biases if settings.bias_init_mean == PREDICTED else _find_prior
    values = find(settings, class_sizes, feature_dim)
    return values[0] if min(values) == max(values) else values


def describe_first_bias(start: str, values: float | list[float]) -> str:
    """Return the line for the log."""
    if isinstance(values, float):
        return f"the bias begins at {values:.4g} ({start})"
    return f"the biases begin at {min(values):.4g} to {max(values):.4g} ({start})"


def _predict_biases(
    settings: Settings, class_sizes: Sequence[int], feature_dim: int
) -> list[float]:
    advice = "use prior or a number"
    if len(set(class_sizes)) >= MANY:
        Console().say("computing the exact minimum for --bias_init_mean predicted: minutes")
    try:
        problem = build_problem(settings, class_sizes)
        assert problem is not None  # refusals.check_bias_start
        prediction = predict(problem)
    except (ValueError, UncertainError) as error:
        reason = f"the exact minimum could not be found, {error}"
        raise UserError(f"--bias_init_mean predicted: {reason}; {advice}") from error
    if feature_dim < prediction.min_feature_dim:
        raise UserError(
            f"--bias_init_mean predicted: the exact minimum needs {prediction.min_feature_dim} "
            f"features, {settings.model} has {feature_dim}; {advice}"
        )
    return [float(value) for value in prediction.biases]


def _find_prior(settings: Settings, class_sizes: Sequence[int], _: int) -> list[float]:
    try:
        values = find_prior_biases(
            settings.loss, class_sizes, settings.smoothing, settings.bias_mode
        )
    except ValueError as error:
        reason = f"the prior is infinite, {error}"
        raise UserError(f"--bias_init_mean prior: {reason}; use a number") from error
    if settings.loss == "CE" and not any(values):
        raise UserError(
            "--bias_init_mean prior has no effect here: with --loss CE and classes of one size it "
            "is the same for all classes, which the loss does not see; leave it out"
        )
    return values
