"""Features, logits and labels of a split, passed through a model once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from input_pipeline.loader import BatchLoader
from input_pipeline.splits import DataSet
from metrics.accuracy import count_correct_by_class, split_margins
from metrics.calibration import score_probabilities
from metrics.features import Features, allocate_features
from utils.world import ALONE, World

EVALUATION_BATCH = 256  # images per pass of an evaluation, where not more pass at once
# Small images pass in batches of at least so many. A GPU computes a smaller one sooner than the
# host can launch it. On a CPU with 2 cores 8×8 images passed 1.1 to 1.9 times as fast as 128 at a
# time, and 32×32 ones as fast.
SMALL_IMAGES_BATCH = 1024
SMALL_IMAGES_SIDE = {"cpu": 16, "cuda": 64}  # pixels


def build_split_batches(data: DataSet, split: str, **options: Any) -> BatchLoader:
    """Build a loader of the train or test images of `data`, in order and not augmented.

    `options` are further arguments of `BatchLoader`.
    """
    return BatchLoader(
        getattr(data, split),
        mean=data.mean,
        std=data.std,
        num_classes=data.num_classes,
        **options,
    )


def choose_test_batch(device: torch.device, side: int, usual: int) -> int:
    """Choose how many images of `side` pixels pass at once, where nothing is trained.

    `usual` is the number for images that are not small.
    """
    small = side <= SMALL_IMAGES_SIDE[device.type]
    return max(usual, SMALL_IMAGES_BATCH) if small else usual


@dataclass
class Extracted:
    """The results of one pass of a model over a split of N samples, or over a process's share.

    Attributes:
        features: float32 [N, d], or `HostFeatures` where they do not fit into the device.
        labels: int64 [N].
        positives: float32 [N], each sample's logit at its own label.
        negatives: float32 [N], the largest of its other logits.
        top1, top5: shares of the samples of all processes, in [0, 1].
        class_correct: int64 [K], samples of each class whose own logit is the largest, on all
            processes.
        nll: float64 [N], −ln softmax(z)_y.
        confidences: float64 [N], the largest of softmax(z).
        hits: bool [N], whether its class, the first of equal ones, is the label.
    """

    features: Features
    labels: Tensor
    positives: Tensor
    negatives: Tensor
    top1: float
    top5: float
    class_correct: Tensor
    nll: Tensor
    confidences: Tensor
    hits: Tensor


@torch.no_grad()
def extract(
    model: nn.Module,
    batches: BatchLoader,
    autocast: contextlib.AbstractContextManager,
    budget: float | None = None,
    report: Callable[[int], object] = lambda done: None,
    world: World = ALONE,
) -> Extracted:
    """Pass a split, or this process's share of it, through the model once, in evaluation mode.

    The function keeps only the logits that the measures need: memory does not grow with N·K. It
    reads the device once, at the end.

    Args:
        model: the network on the batches' device.
        batches: of the split, in order.
        autocast: entered once, so that weights are cast once and not again for every batch.
        budget: bytes of the device that features may take. None: a third of a GPU's free memory,
            and no limit on the CPU.
        report: called after each batch with the number of images that were passed on.
        world: the processes that share the split. Each calls `report` equally often, also if the
            pass fails there: it may ask the others something.

    Raises:
        ValueError: the images of a process cannot be read, or the memory is too small for the
            features; on all processes.
    """
    model.eval()
    calls = _Calls(report, len(batches) if world.size > 1 else 0)

    def pass_images() -> _Kept:
        with calls, autocast:
            kept = _Kept(model, batches, budget)
            for images, targets in batches.batches(epoch=0):
                if len(targets):  # the last batch may be too small for all processes
                    logits, features = model(images)
                    kept.add(logits, features, targets)
                calls.send(kept.count)
        return kept

    return world.check(pass_images).finish(batches.num_samples, world)


class _Calls:
    """Calls of a function, of which there are at least `number` if a ValueError ends the block."""

    def __init__(self, function: Callable[[int], object], number: int) -> None:
        self._function, self._left = function, number

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        while kind is not None and issubclass(kind, ValueError) and self._left > 0:
            self.send(0)

    def send(self, done: int) -> None:
        self._left -= 1
        self._function(done)


class _Kept:
    """What is kept of the batches that have passed through a model."""

    def __init__(self, model: nn.Module, batches: BatchLoader, budget: float | None) -> None:
        device, size = batches.device, batches.count_own()
        classifier: Any = model.fc
        feature_dim: Any = model.feature_dim
        self.count = 0  # samples
        self._features = allocate_features(size, feature_dim, device, budget)
        self._labels = torch.empty(size, dtype=torch.int64, device=device)
        self._margins = torch.empty(2, size, device=device)
        self._probabilities = torch.empty(2, size, dtype=torch.float64, device=device)
        self._hits = torch.empty(size, dtype=torch.bool, device=device)
        shape = 2, len(classifier.weight)
        self._correct = torch.zeros(shape, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, features: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [B, K], features [B, d], labels int64 [B]; no synchronisation."""
        at = slice(self.count, self.count + len(labels))
        self._features[at] = features
        self._labels[at] = labels
        self._margins[0, at], self._margins[1, at] = split_margins(logits, labels)
        nll, confidences, self._hits[at] = score_probabilities(logits, labels)
        self._probabilities[0, at], self._probabilities[1, at] = nll, confidences
        self._correct += count_correct_by_class(logits, labels)
        self.count = at.stop

    def finish(self, total: int, world: World) -> Extracted:
        """Return everything, with the accuracies over the `total` samples of all processes."""
        # Reading these waits for all copies to the host, too.
        correct = world.total(self._correct)
        top1, top5 = (number / total for number in correct.sum(dim=1).tolist())
        return Extracted(
            self._features,
            self._labels,
            self._margins[0],
            self._margins[1],
            top1,
            top5,
            correct[0],
            self._probabilities[0],
            self._probabilities[1],
            self._hits,
        )
