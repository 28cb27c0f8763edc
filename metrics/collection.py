"""All measures of any network on any loader: the implementation of `metrics.measure`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from metrics.accuracy import count_correct_by_class, split_margins
from metrics.calibration import score_probabilities
from metrics.checks import as_tensor, check_labels
from metrics.extraction import Extracted
from metrics.features import Features, HostFeatures, find_budget
from metrics.measures import Evaluation, compute_measures

# A classifier's logits may differ from W h ± b by the rounding of half precision, which is less.
LARGEST_DIFFERENCE = 0.1  # relative
HOST = torch.device("cpu")


def measure_network(
    model: nn.Module,
    loader: Iterable[Any],
    classifier: nn.Module,
    bias_added: bool = True,
) -> dict[str, float | None]:
    """Compute what `metrics.measure` returns; see there."""
    weight, bias = read_classifier(classifier)
    added = bias if bias_added else 0 - bias
    collector = Collector(weight, added)
    with torch.no_grad(), evaluate_only(model), watch(classifier) as calls:
        for number, batch in enumerate(loader):
            images, labels = split_batch(batch, weight, number)
            calls.clear()
            model(images)
            collector.add(*read_call(calls), labels)
    extracted = collector.finish()
    # A caller's autocast is for the network alone.
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        counts = torch.bincount(extracted.labels, minlength=len(weight))
        return compute_measures(Evaluation(extracted, weight, 0 - added, counts.tolist()))


def read_classifier(classifier: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight [K, d] and bias [K] of a linear layer; the bias is 0 if there is none."""
    weight = getattr(classifier, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or len(weight) < 2:
        shape = list(weight.shape) if isinstance(weight, Tensor) else None
        raise ValueError(
            "classifier must be a linear layer with a weight [K, d] of at least 2 classes, "
            f"not {type(classifier).__name__} with a weight {shape}"
        )
    weight = weight.detach()
    bias = getattr(classifier, "bias", None)
    if bias is None:
        return weight, weight.new_zeros(len(weight))
    if bias.shape not in ((1,), (len(weight),)):
        raise ValueError(
            f"classifier has a bias {list(bias.shape)}; it must be [{len(weight)}] or [1]"
        )
    return weight, bias.detach().expand(len(weight))


@contextlib.contextmanager
def evaluate_only(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode; afterwards each of its modules has its mode again."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def watch(classifier: nn.Module) -> Iterator[list[tuple[Any, Any]]]:
    """Yield a list that gets input and output of every call of the classifier."""
    calls: list[tuple[Any, Any]] = []

    def record(module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
        calls.append((next(iter([*inputs, *named.values()]), None), output))

    handle = classifier.register_forward_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def split_batch(batch: Any, weight: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return images and labels, int64 [B], of a batch on the device of the weight [K, d]."""
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        what = f"{len(batch)} parts" if isinstance(batch, list | tuple) else type(batch).__name__
        raise ValueError(f"batch {number} of the loader must be (images, labels), not {what}")
    images, labels = as_tensor(batch[0], "images"), as_tensor(batch[1], "labels")
    if labels.shape != images.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"batch {number} of the loader has images {list(images.shape)} and labels "
            f"{list(labels.shape)}; the labels must be [B], B > 0"
        )
    check_labels(labels, len(weight))  # where they are: no wait for a GPU if they are on the host
    device = weight.device
    return images.to(device, non_blocking=True), labels.to(device, torch.int64, non_blocking=True)


def read_call(calls: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
    """Return features [B, d] and logits [B, K] of a classifier's only call."""
    if len(calls) != 1:
        raise ValueError(
            f"the network called the classifier {len(calls)} times for a batch, not once; give the "
            "layer that its forward pass uses, and in place of a compiled network the original"
        )
    ((features, logits),) = calls
    for name, tensor in (("input", features), ("output", logits)):
        if not isinstance(tensor, Tensor) or tensor.ndim != 2:
            what = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(
                f"the classifier's {name} must be a tensor of 2 dimensions, not {what}"
            )
    return features, logits


class Collector:
    """Collects what the measures need of a network's batches; the logits are not kept.

    Features that would take more than a third of a GPU's free memory move to the host.

    Args:
        weight: [K, d], the classifier's.
        bias: [K], the one that it adds.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight, self._bias = weight, bias
        self._features: list[Tensor] = []
        self._parts: list[tuple[Tensor, ...]] = []
        self._correct = torch.zeros(2, len(weight), dtype=torch.int64, device=weight.device)
        self._room = find_budget(weight.device)
        self._place = weight.device

    def add(self, features: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: features [B, d], logits [B, K], labels int64 [B]. Raises ValueError."""
        if len(labels) != len(logits):
            raise ValueError(f"the network made {len(logits)} logits of {len(labels)} images")
        if not self._parts:
            self._check_sign(features, logits)
        self._room -= features.numel() * features.element_size()
        if self._room < 0 and self._place != HOST:
            self._place = HOST
            self._features = [part.to(HOST) for part in self._features]
        # A network may write to its features afterwards, or give the same memory again.
        self._features.append(features.to(self._place, copy=True))
        self._parts.append(
            (labels, *split_margins(logits, labels), *score_probabilities(logits, labels))
        )
        self._correct += count_correct_by_class(logits, labels)

    def finish(self) -> Extracted:
        """Return all batches together. Raises ValueError if there were none."""
        if not self._parts:
            raise ValueError("the loader gave no batches; a generator gives its batches only once")
        parts = [torch.cat(column) for column in zip(*self._parts, strict=True)]
        labels, positives, negatives, nll, confidences, hits = parts
        # On the host they stay as they came: together they would take their memory twice.
        features: Features = HostFeatures(self._features, self._weight.device)
        if self._place != HOST:
            features = torch.cat(self._features)
            self._features.clear()
        top1, top5 = (count / len(labels) for count in self._correct.sum(dim=1).tolist())
        return Extracted(
            features,
            labels,
            positives,
            negatives,
            top1,
            top5,
            self._correct[0],
            nll,
            confidences,
            hits,
        )

    def _check_sign(self, features: Tensor, logits: Tensor) -> None:
        """Refuse a classifier that does not compute W h + b of its input."""
        if features.shape[1] != self._weight.shape[1] or logits.shape[1] != len(self._weight):
            raise ValueError(
                f"the classifier's weight is {list(self._weight.shape)}, but it made logits "
                f"{list(logits.shape)} of features {list(features.shape)}"
            )
        scores = features.double() @ self._weight.double().T
        bias, logits = self._bias.double(), logits.double()
        norms = [(logits - scores - sign * bias).norm() for sign in (1, -1)]
        own, other, size = torch.stack([*norms, logits.norm()]).tolist()
        if other < own / 2:
            raise ValueError(
                "the classifier's logits fit the other sign of its bias: bias_added=True is for "
                "W h + b (torch.nn.Linear), False for W h − b"
            )
        if own > LARGEST_DIFFERENCE * size:
            raise ValueError(
                "the classifier's logits are not W h + b or W h − b of its weight and bias; the "
                "measures are defined for a linear classifier"
            )
