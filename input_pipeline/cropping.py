"""Random parts of image files, which the processes that decode them cut out.

Each draw is seeded by (seed, epoch, sample). It depends neither on the number of these processes,
nor on the batch in which a sample stands, nor on the step at which an epoch is resumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from utils.seeds import mix_seed

SCALE = (0.08, 1.0)  # of the image's area
RATIO = (3 / 4, 4 / 3)  # width to height
ATTEMPTS = 10
_USE = 1  # keeps these seeds apart from those of (seed, epoch, step)


class Region(NamedTuple):
    """A part of an image in pixels, and whether it is mirrored left and right."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


class Crop(Protocol):
    """Chooses the part of each image file that is resized. It is built as `crop(seed)`.

    An entry of `input_pipeline.AUGMENTATIONS` names it. It is sent to other processes.
    """

    def draw(self, epoch: int, sample: int, height: int, width: int) -> Region:
        """Draw for one image; equal arguments give an equal region.

        Args:
            epoch: ≥ 0.
            sample: its number in the split.
            height, width: of the whole image in pixels, turned upright.
        """
        ...


@dataclass(frozen=True)
class ResizedCrop:
    """A part of 8 % to 100 % of the area, 3:4 to 4:3, mirrored with probability 1/2.

    The draws are those of torchvision's RandomResizedCrop and RandomHorizontalFlip in this order,
    from a generator of the same seed.

    Args:
        seed: the run's seed, ≥ 0.
    """

    seed: int

    def draw(self, epoch: int, sample: int, height: int, width: int) -> Region:
        """Draw a region, as `Crop` describes."""
        key = mix_seed(self.seed, epoch, sample, _USE)
        return draw_region(height, width, torch.Generator().manual_seed(key))


def draw_region(height: int, width: int, generator: torch.Generator) -> Region:
    """Draw a part of an image of these many pixels as torchvision does.

    A part that would not lie in the image is drawn again, up to `ATTEMPTS` times in all. Then the
    largest part in the centre whose ratio is allowed is taken.
    """

    def draw_uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(1).uniform_(low, high, generator=generator)

    # Rounded to float32 where torchvision has tensors, and in float64 where it has numbers.
    low, high = torch.log(torch.tensor(RATIO)).tolist()
    top, left, tall, wide = _find_central_region(height, width)
    for _ in range(ATTEMPTS):
        area = height * width * draw_uniform(*SCALE).item()
        ratio = torch.exp(draw_uniform(low, high)).item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            tall, wide = h, w
            top = int(torch.randint(height - h + 1, (1,), generator=generator))
            left = int(torch.randint(width - w + 1, (1,), generator=generator))
            break
    mirrored = bool(torch.rand(1, generator=generator) < 0.5)
    return Region(top, left, tall, wide, mirrored)


def _find_central_region(height: int, width: int) -> tuple[int, int, int, int]:
    """Find top, left, height and width of the largest central part whose ratio is allowed."""
    narrowest, widest = RATIO
    tall, wide = height, width
    if width / height < narrowest:
        tall = round(width / narrowest)
    elif width / height > widest:
        wide = round(height * widest)
    return (height - tall) // 2, (width - wide) // 2, tall, wide
