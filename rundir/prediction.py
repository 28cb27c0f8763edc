"""The exact minimum that a run approaches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from args import Settings
from refusals import explain_no_problem
from rundir.trained import TrainedRun
from theory.convex import UncertainError
from theory.minimum import Prediction, predict
from theory.problem import Problem, divide_batch


def predict_run(
    settings: Settings, class_sizes: Sequence[float], feature_dim: float
) -> Prediction | None:
    """Predict the exact minimum that a run with these settings approaches; None without one.

    A mini-batch of B images regularised by `--sep_decay` is the problem with n_k = B π_k, where π_k
    is the share of class k in the training set. The prediction needs targets that are the same in
    every batch, a trained weight, decays above 0, free features, and enough of them.

    Args:
        settings: the complete settings of the run.
        class_sizes: training images of each class.
        feature_dim: d; infinite for features of enough dimensions.
    """
    problem = build_problem(settings, class_sizes) if min(class_sizes) > 0 else None
    prediction = None if problem is None else _solve(problem)
    if prediction is None or feature_dim < prediction.min_feature_dim:
        return None
    return prediction


@lru_cache(maxsize=16)
def _solve(problem: Problem) -> Prediction | None:
    """Return the exact minimum; None if it is not certified, which is not tried again."""
    try:
        return predict(problem)
    except UncertainError:
        return None


def predict_trained(
    run: TrainedRun, class_sizes: Sequence[float], feature_dim: float
) -> Prediction | None:
    """Predict what `predict_run` does for a run, of which a directory records what is known."""
    # The authors' MSE has another scale than the one whose minimum is known.
    if not run.is_documented or (run.bare is not None and run.loss == "MSE"):
        return None
    return predict_run(run.settings, class_sizes, feature_dim)


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
