"""Accuracies from logits: top-k, by class size, uniform accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metrics.checks import (
    check_logits,
    row_chunks,
)

MANY, FEW = 100, 20  # training images of a class: above, many; below, few


def correct_counts(logits: Tensor, labels: Tensor, ks: tuple[int, ...] = (1, 5)) -> Tensor:
    """How many samples have their label among the k largest logits, for each k: int64 [len(ks)].

    logits [N, K], labels int64 [N]. Stays on the device: no synchronisation. Where there are fewer
    than k classes, k is their number.
    """
    hits = _ranked_hits(logits, labels, max(ks))
    return torch.stack([hits[:, :k].sum() for k in ks])


def class_correct_counts(logits: Tensor, labels: Tensor, ks: tuple[int, ...] = (1, 5)) -> Tensor:
    """`correct_counts` class by class: int64 [len(ks), K], whose sums over the classes those are.

    logits [N, K], labels int64 [N]. Stays on the device: no synchronisation.
    """
    hits = _ranked_hits(logits, labels, max(ks))
    counts = torch.zeros(len(ks), logits.shape[1], dtype=torch.int64, device=logits.device)
    for count, k in zip(counts, ks, strict=True):
        count.index_add_(0, labels, hits[:, :k].sum(dim=1))
    return counts


def group_accuracies(
    correct: Tensor, counts: Tensor, class_sizes: Sequence[float]
) -> dict[str, float | None]:
    """Top-1 by how many training images a class has (Liu et al. 2019, long-tailed recognition).

    Args:
        correct: int64 [K], correctly classified samples of each class in the evaluated split.
        counts: int64 [K], all samples of each class there.
        class_sizes: K numbers of training images, which decide the group: many, above 100;
            medium, 20 to 100; few, below 20.

    Returns:
        many, medium and few: the share, in [0, 1], of correctly classified samples among all of
        the group's classes (the mean class accuracy where these have equally many); None for a
        group without samples.

    Raises:
        ValueError: the three differ in length.
    """
    if not len(correct) == len(counts) == len(class_sizes):
        raise ValueError(
            f"correct, counts and class_sizes must have one length, not {len(correct)}, "
            f"{len(counts)} and {len(class_sizes)}"
        )
    sizes = torch.as_tensor(class_sizes, dtype=torch.float64)
    groups = {
        "many": sizes > MANY,
        "medium": (sizes >= FEW) & (sizes <= MANY),
        "few": sizes < FEW,
    }
    correct, counts = correct.cpu(), counts.cpu()
    totals = {name: counts[group].sum().item() for name, group in groups.items()}
    return {
        name: correct[group].sum().item() / totals[name] if totals[name] else None
        for name, group in groups.items()
    }


def uniform_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """The largest share of samples that one threshold serves at once (paper, section 3), and it.

    max over t of |{i : z_{i,y} > t ≥ max_{j≠y} z_{i,j}}| / N for logits z [N, K] of any float
    dtype, labels integer [N]. Never above top-1; O(N log N) after one pass over the logits. Returns
    (accuracy in [0, 1], the smallest best threshold), the threshold NaN where no sample is
    classified correctly.

    Raises ValueError for shapes that do not match, labels out of range, or logits not finite.
    """
    check_logits(logits, labels)
    labels = labels.to(logits.device, torch.int64)
    chunks = row_chunks(logits, logits.shape[1])
    margins = [positive_and_largest_negative(logits[rows], labels[rows]) for rows in chunks]
    positives, negatives = (torch.cat(parts) for parts in zip(*margins, strict=True))
    return best_threshold(positives, negatives)


def best_threshold(positives: Tensor, negatives: Tensor) -> tuple[float, float]:
    """`uniform_accuracy` from each sample's own logit and the largest of the others, each [N].

    Each correctly classified sample is the half-open interval [largest negative, positive); the
    answer is the greatest number of intervals that share a point, which is some interval's left
    end: two sorts, O(N log N). Raises ValueError if they are not finite.
    """
    if not (torch.isfinite(positives).all() and torch.isfinite(negatives).all()):
        raise ValueError("logits are not finite")
    correct = positives > negatives
    starts = negatives[correct].double().sort().values
    ends = positives[correct].double().sort().values
    if len(starts) == 0:
        return 0.0, float("nan")
    begun = torch.searchsorted(starts, starts, right=True)
    ended = torch.searchsorted(ends, starts, right=True)
    served = begun - ended
    best = served.max()
    return best.item() / len(positives), starts[served == best][0].item()


def positive_and_largest_negative(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of logits [N, K]: its label's entry and the largest of the others, each [N]."""
    own = labels[:, None]
    positives = logits.gather(1, own).squeeze(1)
    negatives = logits.scatter(1, own, -torch.inf).amax(dim=1)
    return positives, negatives


def _ranked_hits(logits: Tensor, labels: Tensor, largest: int) -> Tensor:
    """Whether the label is the 1st, 2nd, … largest logit: bool [N, min(largest, K)]."""
    return logits.topk(min(largest, logits.shape[1]), dim=1).indices == labels[:, None]
