"""t-SNE of features (van der Maaten and Hinton, 2008), each embedding begun at the one before."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np

from utils.errors import UserError

# The library's defaults, named because the progress is told in them.
EXAGGERATED_ITERATIONS, ITERATIONS = 250, 500
REPORT_EVERY = 50  # iterations between two calls of `on_progress`


def library() -> ModuleType:
    """openTSNE, which only this module's users need. Raises UserError if it is not installed."""
    try:
        import openTSNE
    except ImportError as error:
        raise UserError(
            f"openTSNE cannot be imported ({error}): pip install -r requirements.txt"
        ) from error
    return openTSNE


def check_perplexity(perplexity: float, samples: int) -> None:
    """Refuse what openTSNE would silently lower: 3·perplexity neighbours are looked up.

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
        seed: of the jitter of the first positions; the result follows from it.
        start: an earlier embedding [N, 2] of the same samples, whose layout this one begins with;
            else their two principal components.
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
    open_tsne = library()
    initialization = open_tsne.initialization
    if start is None:
        first = initialization.pca(features, random_state=seed)
    else:
        first = initialization.jitter(initialization.rescale(start), random_state=seed)
    method = open_tsne.TSNE(
        perplexity=perplexity,
        initialization=np.ascontiguousarray(first, dtype=np.float64),
        early_exaggeration_iter=EXAGGERATED_ITERATIONS,
        n_iter=ITERATIONS,
        random_state=seed,
        # Of more threads the sums depend on which is first, and the picture with them.
        n_jobs=1,
        callbacks=_reporter(on_progress) if on_progress else None,
        callbacks_every_iters=REPORT_EVERY,
    )
    return np.array(method.fit(features), dtype=np.float64)


def _reporter(on_progress: Callable[[float], None]) -> Callable[..., None]:
    """openTSNE's callback; it counts for itself, as openTSNE counts each phase from 1."""
    calls = 0

    def report(*_state: object) -> None:
        nonlocal calls
        calls += 1
        on_progress(min(1.0, calls * REPORT_EVERY / (EXAGGERATED_ITERATIONS + ITERATIONS)))

    return report


def unit_square(embedding: np.ndarray) -> np.ndarray:
    """Each axis of an embedding [N, 2] shifted and scaled to [0, 1], as the paper's figure has it.

    An axis along which nothing varies is put to 0.5.
    """
    low, span = embedding.min(axis=0), np.ptp(embedding, axis=0)
    varied = span > 0
    return np.where(varied, (embedding - low) / np.where(varied, span, 1), 0.5)
