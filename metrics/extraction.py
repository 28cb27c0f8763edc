"""Features, logits and labels of a split, passed through a model once."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from input_pipeline.loader import BatchLoader
from input_pipeline.splits import DataSet
from metrics.accuracy import class_correct_counts, positive_and_largest_negative


def split_batches(data: DataSet, split: str, **options: Any) -> BatchLoader:
    """The train or test images of `data` in order, as they are; options as of BatchLoader."""
    return BatchLoader(
        getattr(data, split),
        mean=data.mean,
        std=data.std,
        num_classes=data.num_classes,
        **options,
    )


@dataclass
class Extracted:
    """What one pass of a model over a split of N samples leaves.

    Attributes:
        features: float32 [N, d].
        labels: int64 [N].
        positives, negatives: float32 [N], each sample's own logit and the largest of the others.
        top1, top5: shares of samples, in [0, 1].
        class_correct: int64 [K], samples of each class whose own logit is the largest.
    """

    features: Tensor
    labels: Tensor
    positives: Tensor
    negatives: Tensor
    top1: float
    top5: float
    class_correct: Tensor


@torch.no_grad()
def extract(
    model: nn.Module, batches: BatchLoader, autocast: contextlib.AbstractContextManager
) -> Extracted:
    """Pass a split through the model once, in evaluation mode.

    Of the logits only what the measures need is kept, so that memory does not grow with N·K.
    """
    model.eval()
    device, count = batches.device, batches.num_samples
    features = torch.empty(count, model.feature_dim, device=device)
    labels = torch.empty(count, dtype=torch.int64, device=device)
    margins = torch.empty(2, count, device=device)
    correct = torch.zeros(2, len(model.fc.weight), dtype=torch.int64, device=device)
    first = 0
    for images, targets in batches.batches(epoch=0):
        with autocast:
            logits, batch_features = model(images)
        at = slice(first, first + len(targets))
        features[at], labels[at] = batch_features, targets
        margins[0, at], margins[1, at] = positive_and_largest_negative(logits, targets)
        correct += class_correct_counts(logits, targets)
        first = at.stop
    top1, top5 = (hits / count for hits in correct.sum(dim=1).tolist())
    return Extracted(features, labels, margins[0], margins[1], top1, top5, correct[0])
