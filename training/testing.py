"""The test after an epoch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from input_pipeline.loader import BatchLoader
from metrics.accuracy import compute_uniform_accuracy, count_correct
from objective import LOSSES
from training.log import RunLog
from utils.precision import Precision
from utils.registry import load_function
from utils.signals import Stopped, StopSignal
from utils.world import ALONE, World


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: BatchLoader,
    loss: str,
    precision: Precision,
    log: RunLog,
    stop: StopSignal,
    world: World = ALONE,
) -> dict[str, float]:
    """Return loss and accuracies (percent) on the test set, of which each process passes its share.

    If a logit is not finite, return only the loss, NaN. Raises Stopped if a stop is requested.
    """
    model.eval()
    collected = []
    # autocast once: the weights are not cast again for every batch.
    with log.watch_test() as progress, precision.autocast():
        for step, (images, targets) in enumerate(batches.batches(epoch=0)):
            if len(targets):  # the last batch may be too small for all processes
                collected.append((model(images)[0], targets))
            progress.advance(batches.find_size(step))
            if stop.poll():
                raise Stopped
    # Any number of classes, at least two, serves a process without samples.
    parts = collected or [(batches.mean.new_empty(0, 2), batches.mean.new_empty(0).long())]
    logits, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    sums = world.total(_sum_up(logits, labels, loss, batches.num_samples))
    infinite, test_loss, *hits = sums.tolist()
    if infinite:
        return {"test_loss": math.nan}
    top1, top5 = (100 * (count / batches.num_samples) for count in hits)
    return {
        "test_loss": test_loss,
        "test_top1": top1,
        "test_top5": top5,
        "test_uniform": 100 * compute_uniform_accuracy(logits, labels, world)[0],
    }


def _sum_up(logits: Tensor, labels: Tensor, loss: str, total: int) -> Tensor:
    """Sum up a process's samples, of `total`: those of all are the figures of the whole set.

    Returns:
        float64 [4]: logits that are not finite, the share of the mean loss, hits among the first
        and among the five largest logits.
    """
    if len(labels) == 0:
        return torch.zeros(4, dtype=torch.float64, device=logits.device)
    mean_loss = load_function(LOSSES[loss].function)(logits, labels).double()
    infinite = logits.numel() - torch.isfinite(logits).sum()
    # A process alone has the share 1, which changes no bit.
    figures = [infinite, mean_loss * (len(labels) / total), *count_correct(logits, labels)]
    return torch.stack([figure.double() for figure in figures])
