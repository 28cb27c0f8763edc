"""t-SNE of features (van der Maaten and Hinton, 2008). Each embedding starts at the last one."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from utils.errors import UserError

# openTSNE's defaults: first attraction is exaggerated, so that points find their neighbours.
EXAGGERATION = 12
EXAGGERATED_ITERATIONS, ITERATIONS = 250, 500
REPORT_EVERY = 50  # iterations between two calls of `on_progress`


def load_library() -> ModuleType:
    """Import openTSNE, which nothing else needs. Raises UserError if it is not installed."""
    try:
        import openTSNE
    except ImportError as error:
        raise UserError(
            f"openTSNE cannot be imported ({error}): pip install -r requirements.txt"
        ) from error
    return openTSNE


def check_perplexity(perplexity: float, samples: int) -> None:
    """Refuse a perplexity that openTSNE would silently lower: it takes 3·perplexity neighbours.

    Raises UserError.
    """
    if 3 * perplexity > samples - 1:
        raise UserError(
            f"--perplexity {perplexity:g} is too large for {samples} samples: "
            f"use at most {int((samples - 1) / 3 * 10) / 10:g}, or more samples"
        )


def embed(
    features: np.ndarray,
    *,
    perplexity: float,
    seed: int,
    start: np.ndarray | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Embed features [N, d] in the plane.

    Args:
        perplexity: effective number of neighbours of each sample.
        seed: decides the jitter of the first positions, and with it the result.
        start: an earlier embedding [N, 2] of the same samples, at which this one begins; None: it
            begins at their two principal components.
        on_progress: called now and then with the share of the iterations done, in [0, 1].

    Returns:
        float64 [N, 2], of arbitrary position and scale.

    Raises:
        ValueError: features are not finite, or all the same.
    """
    features = np.asarray(features, dtype=np.float64)
    if not np.isfinite(features).all():
        raise ValueError("features are not finite")
    if (features == features[0]).all():
        raise ValueError("the features of all samples are the same")
    open_tsne = load_library()
    # The result depends on the number of threads, and on 2 shared cores two were no faster.
    common: dict[str, Any] = {"n_jobs": 1, "random_state": seed}
    affinities = open_tsne.affinity.PerplexityBasedNN(features, perplexity=perplexity, **common)
    if start is None:
        start = open_tsne.initialization.pca(features, random_state=seed)
    options: dict[str, Any] = {"inplace": True, "propagate_exception": True}
    if on_progress:
        reporter = _build_reporter(on_progress)
        options |= {"callbacks": reporter, "callbacks_every_iters": REPORT_EVERY}
    embedding = open_tsne.TSNEEmbedding(np.array(start, dtype=np.float64), affinities, **common)
    # openTSNE would shrink the start. It is not shrunk here: points would move up to twice as far
    # between epochs. Exaggeration is still needed: without it, classes stay at places where they
    # no longer belong, and the divergence is 13 % higher.
    embedding.optimize(EXAGGERATED_ITERATIONS, exaggeration=EXAGGERATION, momentum=0.5, **options)
    embedding.optimize(ITERATIONS, momentum=0.8, **options)
    return np.array(embedding, dtype=np.float64)


def _build_reporter(on_progress: Callable[[float], None]) -> Callable[..., None]:
    """Build openTSNE's callback. It counts its calls, as openTSNE counts each phase from 1."""
    calls = 0

    def report(*_state: object) -> None:
        nonlocal calls
        calls += 1
        on_progress(min(1.0, calls * REPORT_EVERY / (EXAGGERATED_ITERATIONS + ITERATIONS)))

    return report


def scale_to_unit_square(embedding: np.ndarray) -> np.ndarray:
    """Shift and scale each axis of an embedding [N, 2] to [0, 1], as in the paper's figure.

    An axis along which nothing varies becomes 0.5.
    """
    low, span = embedding.min(axis=0), np.ptp(embedding, axis=0)
    varied = span > 0
    return np.where(varied, (embedding - low) / np.where(varied, span, 1), 0.5)
