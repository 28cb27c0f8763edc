"""Operations on uint8 images in memory: resizing and statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from input_pipeline import Channels

_CHUNK = 1024  # images handled at a time, to bound temporary memory


def resize(images: Tensor, side: int | None) -> Tensor:
    """Resize uint8 [N, C, H, W] to side×side pixels (bilinear, antialiased); None: as they are.

    The pixels are Pillow's, bit for bit, as for image files and as in the code of most papers.
    F.interpolate on uint8 gives the same from 28 to 32 pixels. At other sizes its weights of 16
    bits change up to a tenth of the pixels by one or two levels.
    """
    if side is None or images.shape[-2:] == (side, side):
        return images
    resized = torch.empty((*images.shape[:2], side, side), dtype=torch.uint8)
    sources, targets = images.flatten(0, 1).numpy(), resized.flatten(0, 1).numpy()
    for source, target in zip(sources, targets, strict=True):
        target[:] = Image.fromarray(source).resize((side, side), Image.Resampling.BILINEAR)
    return resized


def resize_in_float(images: Tensor, side: int | None) -> Tensor:
    """Resize as `resize` did under rule 1 of `input_pipeline.PIXELS`, for runs of that time."""
    if side is None or images.shape[-2:] == (side, side):
        return images
    resized = images.new_empty((*images.shape[:2], side, side))
    for source, target in zip(images.split(_CHUNK), resized.split(_CHUNK), strict=True):
        values = F.interpolate(source.float(), (side, side), mode="bilinear", antialias=True)
        target.copy_(values.round_().clamp_(0, 255))
    return resized


def measure_channels(batches: Iterable[Tensor]) -> tuple[Channels, Channels]:
    """Measure mean and population standard deviation of each channel over all pixels.

    Sums are exact integers and each result is rounded once or twice: it depends neither on how the
    pixels are cut into batches nor on the processor.

    Args:
        batches: uint8 [B, 3, H, W] each.

    Returns:
        (mean, std), three numbers each, in units of the full range 0…1. A std of 0 becomes 1, so
        that a constant channel can be divided by it.
    """
    # Pixels take 256 values: counting them is exact however many there are.
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for chunk in (chunk for batch in batches for chunk in batch.split(_CHUNK)):
        for channel in range(3):
            counts[channel] += torch.bincount(chunk[:, channel].flatten(), minlength=256)
    (mean_0, std_0), (mean_1, std_1), (mean_2, std_2) = map(_summarise, counts.tolist())
    return (mean_0, mean_1, mean_2), (std_0, std_1, std_2)


def _summarise(counts: list[int]) -> tuple[float, float]:
    """Compute mean and standard deviation of a channel that has `counts[v]` pixels of value v."""
    total = sum(counts)
    first = sum(value * count for value, count in enumerate(counts))
    second = sum(value**2 * count for value, count in enumerate(counts))
    # Python's integers have any length, and it rounds their quotient correctly.
    variance = (total * second - first**2) / (255 * total) ** 2
    return first / (255 * total), math.sqrt(variance) or 1.0
