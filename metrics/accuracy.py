"""Accuracies from logits: top-k, by class size, and uniform accuracy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metrics.checks import Numbers, as_tensor, check_logits, split_rows
from metrics.features import Features
from utils.world import ALONE, World

MANY, FEW = 100, 20  # training images: a class with more is one of the many, with fewer of the few


def count_correct(logits: Numbers, labels: Numbers, ks: tuple[int, ...] = (1, 5)) -> Tensor:
    """Count the samples whose label is among the k largest logits, for each k: int64 [len(ks)].

    logits [N, K], labels int64 [N]. The counts stay on the device: no synchronisation. If there are
    fewer than k classes, k is their number.
    """
    logits, labels = as_tensor(logits, "logits"), as_tensor(labels, "labels")
    hits = _rank_hits(logits, labels, max(ks))
    return torch.stack([hits[:, :k].sum() for k in ks])


def count_correct_by_class(
    logits: Numbers, labels: Numbers, ks: tuple[int, ...] = (1, 5)
) -> Tensor:
    """Count as `count_correct` does, class by class: int64 [len(ks), K].

    logits [N, K], labels int64 [N]. The counts stay on the device: no synchronisation.
    """
    logits, labels = as_tensor(logits, "logits"), as_tensor(labels, "labels")
    hits = _rank_hits(logits, labels, max(ks))
    counts = torch.zeros(len(ks), logits.shape[1], dtype=torch.int64, device=logits.device)
    for count, k in zip(counts, ks, strict=True):
        count.index_add_(0, labels, hits[:, :k].sum(dim=1))
    return counts


def compute_group_accuracies(
    correct: Numbers, counts: Numbers, class_sizes: Numbers
) -> dict[str, float | None]:
    """Compute top-1 for classes of many, medium and few training images (Liu et al., CVPR 2019).

    Args:
        correct: int64 [K], correctly classified samples of each class in the evaluated split.
        counts: int64 [K], all samples of each class there.
        class_sizes: K numbers of training images, which decide the group: many are above 100,
            medium 20 to 100, few below 20.

    Returns:
        The shares, in [0, 1], of correctly classified samples among those of the group's classes,
        for many, medium and few. A share is the mean class accuracy if the classes have equally
        many samples. None for a group without samples.

    Raises:
        ValueError: the three differ in length.
    """
    if not len(correct) == len(counts) == len(class_sizes):
        raise ValueError(
            f"correct, counts and class_sizes must have one length, not {len(correct)}, "
            f"{len(counts)} and {len(class_sizes)}"
        )
    sizes = as_tensor(class_sizes, "class_sizes").double().cpu()
    groups = {
        "many": sizes > MANY,
        "medium": (sizes >= FEW) & (sizes <= MANY),
        "few": sizes < FEW,
    }
    correct, counts = as_tensor(correct, "correct").cpu(), as_tensor(counts, "counts").cpu()
    totals = {name: counts[group].sum().item() for name, group in groups.items()}
    return {
        name: correct[group].sum().item() / totals[name] if totals[name] else None
        for name, group in groups.items()
    }


def compute_uniform_accuracy(
    logits: Numbers, labels: Numbers, world: World = ALONE
) -> tuple[float, float]:
    """Compute the largest share of samples that one threshold serves at once, and the threshold.

    max over t of |{i : z_{i,y} > t ≥ max_{j≠y} z_{i,j}}| / N (Li, Xiao, Shen, ICML 2025). It is
    never above top-1, and takes O(N log N) after one pass over the logits. Arrays may be tensors,
    NumPy arrays or nested lists.

    Args:
        logits: [N, K], any float dtype.
        labels: integer [N].
        world: the processes that share the samples; this one has N of them, or none.

    Returns:
        The accuracy in [0, 1] and the smallest best threshold, NaN if no sample is classified
        correctly.

    Raises:
        ValueError: shapes do not match, labels are out of range, or logits are not finite.
    """
    logits, labels = check_logits(logits, labels, world)
    chunks = split_rows(logits, logits.shape[1])
    margins = [split_margins(logits[rows], labels[rows]) for rows in chunks]
    margins = margins or [(logits.new_empty(0), logits.new_empty(0))]
    positives, negatives = (torch.cat(parts) for parts in zip(*margins, strict=True))
    return find_best_threshold(positives, negatives, world)


def find_best_threshold(
    positives: Numbers, negatives: Numbers, world: World = ALONE
) -> tuple[float, float]:
    """Compute the uniform accuracy and its threshold from the logits that decide it, each [N].

    `positives` holds each sample's logit at its own label, `negatives` the largest of its others.

    A correctly classified sample is the half-open interval [largest negative, positive). The
    greatest number of intervals that share a point is reached at some interval's left end: two
    sorts, O(N log N). Several processes (`world`) gather these two numbers of each sample. Raises
    ValueError if the logits are not finite.
    """
    positives, negatives = as_tensor(positives, "positives"), as_tensor(negatives, "negatives")
    if world.size > 1:
        pairs = torch.stack([positives, negatives], dim=1)
        positives, negatives = world.join_rows(pairs).unbind(dim=1)
    if len(positives) == 0:
        return 0.0, float("nan")
    finite = torch.isfinite(positives).all() & torch.isfinite(negatives).all()
    # Intervals of the samples that are not classified correctly begin and end at infinity: they
    # serve no threshold. Nothing is read from the device before the end.
    wrong = positives <= negatives
    starts = negatives.double().masked_fill(wrong, torch.inf).sort().values
    ends = positives.double().masked_fill(wrong, torch.inf).sort().values
    begun = torch.searchsorted(starts, starts, right=True)
    ended = torch.searchsorted(ends, starts, right=True)
    served = begun - ended
    best = served.max()
    threshold = starts.masked_fill(served < best, torch.inf).min()
    found = torch.stack([finite.double(), best.double(), threshold])
    is_finite, best_count, value = found.tolist()
    if not is_finite:
        raise ValueError("logits are not finite")
    return best_count / len(positives), value if best_count else float("nan")


def split_margins(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's entry at its label and the largest other entry of logits [N, K]: [N]."""
    own = labels[:, None]
    positives = logits.gather(1, own).squeeze(1)
    negatives = logits.scatter(1, own, -torch.inf).amax(dim=1)
    return positives, negatives


def _rank_hits(logits: Tensor, labels: Tensor, largest: int) -> Tensor:
    """Return whether the label is the 1st, 2nd, … largest logit: bool [N, min(largest, K)]."""
    return logits.topk(min(largest, logits.shape[1]), dim=1).indices == labels[:, None]


@torch.no_grad()
def compare_bias_signs(
    features: Features | Numbers,
    labels: Numbers,
    weight: Numbers,
    bias: Numbers,
    world: World = ALONE,
) -> tuple[float, float, float]:
    """Compare the classifier W h − b with W h + b.

    Args:
        features: [N, d]. labels: int64 [N]. weight: [K, d]. bias: [K].
        world: the processes that share the samples; this one has N of them, or none.

    Returns:
        The shares of samples that each classifies correctly, and the number of standard errors by
        which the second share is larger. The errors are those of McNemar's test: only the samples
        on which the two disagree count.
    """
    features, labels = as_tensor(features, "features"), as_tensor(labels, "labels")
    weight, bias = as_tensor(weight, "weight"), as_tensor(bias, "bias")
    counts = torch.zeros(5, dtype=torch.int64, device=labels.device)
    for rows in split_rows(features, len(weight)):
        scores = features[rows].float() @ weight.float().T
        first = (scores - bias).argmax(dim=1) == labels[rows]
        second = (scores + bias).argmax(dim=1) == labels[rows]
        kinds = torch.stack([first, second, first & ~second, second & ~first])
        counts[:4] += kinds.sum(dim=1)
        counts[4] += len(first)
    subtracted, added, only_subtracted, only_added, total = world.total(counts).tolist()
    errors = (only_added - only_subtracted) / math.sqrt(max(1, only_added + only_subtracted))
    return subtracted / total, added / total, errors
