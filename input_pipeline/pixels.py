"""Operations on uint8 images in memory: resizing and statistics."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from input_pipeline import Channels

_CHUNK = 1024  # images handled at a time, to bound temporary memory


def resize(images: Tensor, side: int | None) -> Tensor:
    """Resize uint8 [N, C, H, W] to side×side pixels (bilinear, antialiased); None: as they are."""
    if side is None or images.shape[-2:] == (side, side):
        return images
    resized = images.new_empty((*images.shape[:2], side, side))
    for source, target in zip(images.split(_CHUNK), resized.split(_CHUNK), strict=True):
        values = F.interpolate(source.float(), (side, side), mode="bilinear", antialias=True)
        target.copy_(values.round_().clamp_(0, 255))
    return resized


def measure_channels(batches: Iterable[Tensor]) -> tuple[Channels, Channels]:
    """Measure mean and population standard deviation of each channel over all pixels, in float64.

    Args:
        batches: uint8 [B, 3, H, W] each.

    Returns:
        (mean, std), three numbers each, in units of the full range 0…1. A std of 0 becomes 1, so
        that a constant channel can be divided by it.
    """
    # Pixels take 256 values: counting them is exact however many there are.
    counts = torch.zeros(3, 256, dtype=torch.float64)
    for chunk in (chunk for batch in batches for chunk in batch.split(_CHUNK)):
        for channel in range(3):
            counts[channel] += torch.bincount(chunk[:, channel].flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    std = (share * (values - mean[:, None]) ** 2).sum(1).sqrt()
    std[std == 0] = 1
    (mean_0, mean_1, mean_2), (std_0, std_1, std_2) = mean.tolist(), std.tolist()
    return (mean_0, mean_1, mean_2), (std_0, std_1, std_2)
