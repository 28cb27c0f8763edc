"""Accuracies from logits (top-k, uniform accuracy) and decision scores from features."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

MANY, FEW = 100, 20  # training images of a class: above, many; below, few

# Numbers in a float64 chunk. On the CPU 4 MiB: larger ones leave the cache and were up to ten times
# slower; on other devices 64 MiB, enough to fill them.
CPU_CHUNK = 1 << 19
DEVICE_CHUNK = 1 << 23


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


@torch.no_grad()
def decision_scores(features: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The scores W h of every sample (paper, section 1; no bias), split by the sample's label.

    features [N, d], labels integer [N], weight [K, d], any float dtype. Returns float64 tensors on
    the features' device: positive [N], w_y·h, and negative [N, K−1], w_j·h for j ≠ y in the order
    of the classes. Beyond what it returns (8·N·K bytes) memory is bounded by chunks;
    `score_statistics` summarises them without holding them.

    Raises ValueError for shapes that do not match, labels that are not integers from 0 to K−1, or
    features or weight not finite.
    """
    labels, weight = check_scored(features, labels, weight)
    count, num_classes = len(features), len(weight)
    positive = weight.new_empty(count)
    negative = weight.new_empty(count, num_classes - 1)
    for rows in row_chunks(features, num_classes):
        positive[rows], negative[rows] = _split_scores(features[rows], labels[rows], weight)
    return positive, negative


@torch.no_grad()
def score_statistics(features: Tensor, labels: Tensor, weight: Tensor) -> dict[str, float]:
    """Mean, population standard deviation, minimum and maximum of the `decision_scores`.

    Takes and raises what `decision_scores` does. Keys: positive_mean, positive_std, positive_min,
    positive_max, and the same with negative. Computed in float64, chunk by chunk: the N·K scores
    are never held.
    """
    labels, weight = check_scored(features, labels, weight)
    positive, negative = ScoreSummary(), ScoreSummary()
    for rows in row_chunks(features, len(weight)):
        own, others = unordered_scores(features[rows], labels[rows], weight)
        positive.add(own)
        negative.add(others)
    return positive.statistics("positive") | negative.statistics("negative")


@dataclass
class ScoreSummary:
    """Running count, mean, sum of squared deviations, minimum and maximum of float64 values."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    min: float = math.inf
    max: float = -math.inf

    def add(self, values: Tensor) -> None:
        """Take in more values (a tensor of any shape, not empty).

        Each chunk is summed about its own mean and merged by the rule of Chan, Golub and LeVeque
        (1979): a mean far from 0 costs no accuracy, as it would in Σx² − (Σx)²/n.
        """
        mean = values.mean()
        squares = (values - mean).square_().sum().item()
        low, high = (bound.item() for bound in values.aminmax())
        total = self.count + values.numel()
        step = mean.item() - self.mean
        self.squares += squares + step * step * self.count * values.numel() / total
        self.mean += step * values.numel() / total
        self.count = total
        self.min, self.max = min(self.min, low), max(self.max, high)

    def statistics(self, name: str) -> dict[str, float]:
        """`name`_mean, _std (population), _min and _max of all values so far."""
        values = {"mean": self.mean, "std": math.sqrt(self.squares / self.count)}
        values |= {"min": self.min, "max": self.max}
        return {f"{name}_{key}": value for key, value in values.items()}


def row_chunks(tensor: Tensor, width: int = 0) -> Iterator[slice]:
    """Slices over the rows of `tensor` [N, d], so that float64 [rows, max(d, width)] is small."""
    numbers = CPU_CHUNK if tensor.device.type == "cpu" else DEVICE_CHUNK
    size = max(1, numbers // max(tensor.shape[1], width, 1))
    return (slice(first, first + size) for first in range(0, len(tensor), size))


def check_logits(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            "logits must be [N, K] and labels [N], "
            f"not {list(logits.shape)} and {list(labels.shape)}"
        )
    if len(labels) == 0:
        raise ValueError("logits and labels are empty")
    if logits.shape[1] < 2 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating point of at least 2 classes, not {logits.dtype} "
            f"of {logits.shape[1]}"
        )
    check_labels(labels, logits.shape[1])
    check_finite("logits", logits)


def check_scored(features: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Labels as int64 and weight as float64, on the features' device, if all three are sound."""
    check_features(features, labels)
    check_weight(weight, features)
    check_labels(labels, len(weight))
    check_finite("features", features)
    return labels.to(features.device, torch.int64), weight.to(features.device, torch.float64)


def check_features(features: Tensor, labels: Tensor) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or features.shape[1] == 0:
        raise ValueError(
            "features must be [N, d] and labels [N], "
            f"not {list(features.shape)} and {list(labels.shape)}"
        )
    if len(labels) == 0:
        raise ValueError("features and labels are empty")
    if not features.is_floating_point():
        raise ValueError(f"features must be floating point, not {features.dtype}")


def check_weight(weight: Tensor, features: Tensor) -> None:
    if weight.ndim != 2 or weight.shape[1] != features.shape[1]:
        raise ValueError(
            "weight must be [K, d] for features [N, d], "
            f"not {list(weight.shape)} for {list(features.shape)}"
        )
    if len(weight) < 2:
        raise ValueError(f"weight has {len(weight)} class(es); at least 2 are needed")
    check_finite("weight", weight)


def check_labels(labels: Tensor, num_classes: int) -> None:
    if labels.dtype not in INTEGERS or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be integers from 0 to {num_classes - 1}")


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise ValueError with the first bad row of `tensor` [N, d] if it holds NaN or infinity."""
    for rows in row_chunks(tensor):
        finite = torch.isfinite(tensor[rows])
        if not finite.all():
            row = rows.start + finite.all(dim=1).int().argmin().item()
            raise ValueError(f"{name} not finite: row {row} holds NaN or infinity")


def unordered_scores(features: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 scores W h [n, K] of checked inputs: each row's own class [n], the others [n, K−1].

    The others in no particular order: the last class takes the place of the row's own, which is
    several times faster than to close the gap.
    """
    scores = features.double() @ weight.T
    own = labels[:, None]
    positive = scores.gather(1, own).squeeze(1)
    return positive, scores.scatter_(1, own, scores[:, -1:].clone())[:, :-1]


def _ranked_hits(logits: Tensor, labels: Tensor, largest: int) -> Tensor:
    """Whether the label is the 1st, 2nd, … largest logit: bool [N, min(largest, K)]."""
    return logits.topk(min(largest, logits.shape[1]), dim=1).indices == labels[:, None]


def _split_scores(features: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of float64 scores W h [n, K]: each row's own class [n] and the others [n, K−1]."""
    scores = features.double() @ weight.T
    own = labels[:, None]
    others = torch.ones_like(scores, dtype=torch.bool).scatter_(1, own, False)
    return scores.gather(1, own).squeeze(1), scores[others].view(len(scores), -1)
