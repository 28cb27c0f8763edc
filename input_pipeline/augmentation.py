"""Data augmentation in batches on the device, and the random draws that it follows.

All draws of an epoch for single images are made at once, on the CPU, from a generator seeded by
(seed, epoch). Entry i of a draw belongs to the i-th position of the epoch. Those for a batch are
seeded by (seed, epoch, step). A resume at step s therefore needs no replay, the result does not
depend on the device or on worker processes, and no training step waits for the host.

DA1 is a zero-padded random crop and a horizontal flip, with a rotation for some data sets. DA2 is
Mixup or CutMix, one of the two with probability 1/2 per batch. Both follow the training settings of
Li, Xiao, Shen (ICML 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from input_pipeline import AUGMENTATIONS
from input_pipeline.cropping import Crop
from input_pipeline.delivery import send
from utils.registry import load_function
from utils.seeds import mix_seed

MIXUP_ALPHA = 0.8
CUTMIX_ALPHA = 1.0

Draws = tuple[Tensor, ...]


class Transform(Protocol):
    """Changes each image alone, as drawn at the start of the epoch. It is built without arguments.

    An entry of `input_pipeline.AUGMENTATIONS` names it. CONTRIBUTING.md has a complete one.
    """

    def draw(
        self, num_samples: int, generator: torch.Generator, image_side: int, rotation: float
    ) -> Draws | None:
        """Draw for one epoch.

        Args:
            num_samples: N.
            generator: the epoch's generator on the CPU, to be used for every draw.
            image_side: H of the images in pixels.
            rotation: the data set's largest angle in degrees, 0 for none.

        Returns:
            CPU tensors whose first dimension is N. None: all images stay as they are.
        """
        ...

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Change the images of some positions of the epoch. It must not wait for the device.

        Args:
            images: uint8 [B, C, H, W].
            draws: the same tensors as `draw` returned, but only the B entries of these images, on
                the images' device.

        Returns:
            uint8 [B, C, H, W].
        """
        ...


class Mixer(Protocol):
    """Mixes the samples of each batch, of many batches at once.

    It is built as `mixer(num_classes, seed)`. An entry of `input_pipeline.AUGMENTATIONS` names it.
    """

    def draw(self, epoch: int, steps: range, image_size: tuple[int, int]) -> Draws:
        """Draw for some batches; the draws of each follow from (seed, epoch, step) alone.

        Args:
            epoch: ≥ 0.
            steps: where in the epoch these S batches stand.
            image_size: (H, W) in pixels.

        Returns:
            CPU tensors whose first dimension is S.
        """
        ...

    def apply(self, images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Mix the samples of each batch among themselves. It must not wait for the device.

        Args:
            images: float32 [S, B, C, H, W], normalised. They may be overwritten.
            labels: int64 [S, B].
            draws: those of these batches, on the images' device.

        Returns:
            Mixed images, float32 [S, B, C, H, W], and soft targets, float32 [S, B, K]. Rows sum
            to 1.
        """
        ...


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """All random draws of one epoch; entry i belongs to the i-th sample visited.

    Attributes:
        order: int64 [N], which sample of the split is visited i-th.
        steps: the transforms to apply in turn, each with its draws for N samples.
    """

    order: Tensor
    steps: tuple[tuple[Transform, Draws], ...] = ()

    def to(self, device: torch.device) -> EpochPlan:
        """Copy the plan's tensors to `device`; the host does not wait for it."""
        steps = tuple((transform, send_draws(draws, device)) for transform, draws in self.steps)
        return EpochPlan(send(self.order, device), steps)

    def select(self, positions: Tensor) -> EpochPlan:
        """Keep the entries of some positions of the epoch, int64 [n], where the plan is."""
        steps = tuple(
            (transform, tuple(draw[positions] for draw in draws)) for transform, draws in self.steps
        )
        return EpochPlan(self.order[positions], steps)


def send_draws(draws: Draws, device: torch.device) -> Draws:
    """Copy draws to the device; the host does not wait for it."""
    return tuple(send(draw, device) for draw in draws)


def build_transforms(augment: str) -> tuple[Transform, ...]:
    """Build the transforms of one of `AUGMENTATIONS`, in their order."""
    return tuple(load_function(name)() for name in AUGMENTATIONS[augment].transforms)


def build_crop(augment: str, seed: int) -> Crop | None:
    """Build the crop of image files of one of `AUGMENTATIONS`, None where it has none.

    `seed` is the run's seed, ≥ 0.
    """
    name = AUGMENTATIONS[augment].crop
    if name is None:
        return None
    crop: Crop = load_function(name)(seed)
    return crop


def build_mixer(augment: str, num_classes: int, seed: int) -> Mixer | None:
    """Build the mixer of one of `AUGMENTATIONS`, None where it has none.

    Args:
        augment: the name.
        num_classes: K, the width of the soft targets.
        seed: the run's seed, ≥ 0.
    """
    name = AUGMENTATIONS[augment].mixer
    if name is None:
        return None
    mixer: Mixer = load_function(name)(num_classes, seed)
    return mixer


def draw_plan(
    num_samples: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = False,
    transforms: Sequence[Transform] = (),
    image_side: int = 0,
    rotation: float = 0.0,
) -> EpochPlan:
    """Draw one epoch's order and augmentations; the result follows from the arguments alone.

    The order comes first and the transforms draw in turn. The samples' order is therefore the same
    with and without augmentation, and crops and flips are the same with and without rotation.

    Args:
        num_samples: N, samples in the split.
        seed, epoch: integers ≥ 0.
        shuffle: visit in random order, otherwise in the split's.
        transforms: what is done to each image.
        image_side: H of the images in pixels.
        rotation: largest angle in degrees; 0 for none.

    Returns:
        An EpochPlan on the CPU.
    """
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
    permutation = torch.randperm(num_samples, generator=generator)
    order = permutation if shuffle else torch.arange(num_samples)
    steps = []
    for transform in transforms:
        draws = transform.draw(num_samples, generator, image_side, rotation)
        if draws is not None:
            steps.append((transform, draws))
    return EpochPlan(order, tuple(steps))


def augment_batch(images: Tensor, plan: EpochPlan, at: slice) -> Tensor:
    """Apply the plan's transforms in turn.

    Args:
        images: uint8 [B, C, H, W].
        plan: draws on the images' device.
        at: the batch's B positions in the epoch.

    Returns:
        uint8 [B, C, H, W]; the images themselves where the plan holds no transform.
    """
    for transform, draws in plan.steps:
        images = transform.apply(images, tuple(draw[at] for draw in draws))
    return images


class CropAndFlip:
    """A crop of the image with a zero border of 1/8 of its side, mirrored with probability 1/2."""

    def draw(
        self, num_samples: int, generator: torch.Generator, image_side: int, rotation: float
    ) -> Draws | None:
        """Draw dy and dx, int64 [N] in 0…2·padding, and flip, bool [N]."""
        offsets = 2 * compute_padding(image_side) + 1
        dy, dx = torch.randint(offsets, (2, num_samples), generator=generator)
        flip = torch.rand(num_samples, generator=generator) < 0.5
        return dy, dx, flip

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Change the images, as `Transform` describes."""
        dy, dx, flip = draws
        return crop_and_flip(images, dy, dx, flip, compute_padding(images.shape[-2]))


class Rotation:
    """A rotation about the centre by a uniform angle, for data sets whose entry has one."""

    def draw(
        self, num_samples: int, generator: torch.Generator, image_side: int, rotation: float
    ) -> Draws | None:
        """Draw angles, float32 [N], degrees counter-clockwise. None without rotation."""
        if not rotation:
            return None
        angles = torch.empty(num_samples)
        return (angles.uniform_(-rotation, rotation, generator=generator),)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Change the images, as `Transform` describes."""
        (angles,) = draws
        return rotate(images, angles)


def compute_padding(image_side: int) -> int:
    """Compute the zero pixels on each side of an image before its crop: 4 for 32 pixels."""
    return image_side // 8


def crop_and_flip(images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Crop each zero-padded image back to its size at its own offset, then mirror those chosen.

    The result is that of torchvision's RandomCrop(size, padding) and RandomHorizontalFlip for given
    draws. One gather does both: on the CPU it is five times as fast as a crop and then a flip.

    Args:
        images: uint8 [B, C, H, W].
        dy, dx: int64 [B], top and left corners in 0…2·padding; `padding` leaves an image as it is.
        flip: bool [B], which images to mirror left and right.
        padding: zero (black) pixels on each side.

    Returns:
        uint8 [B, C, H, W].
    """
    channels, height, width = images.shape[1:]
    padded = F.pad(images, (padding,) * 4)
    rows = dy[:, None] + torch.arange(height, device=images.device)
    columns = dx[:, None] + torch.arange(width, device=images.device)
    columns = torch.where(flip[:, None], columns.flip(-1), columns)
    pixels = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]
    pixels = pixels.flatten(1)[:, None].expand(-1, channels, -1)
    return padded.flatten(2).gather(2, pixels).unflatten(2, (height, width))


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image about its centre by its own angle.

    The result is that of torchvision.transforms.v2.functional.rotate called on tensors sample by
    sample: nearest neighbour, size kept, zeros outside. For PIL images torchvision calls Pillow,
    which takes another neighbour at one pixel in some thousands.

    Args:
        images: uint8 [B, C, H, W].
        degrees: [B], counter-clockwise.

    Returns:
        uint8 [B, C, H, W].
    """
    height, width = images.shape[-2:]
    angle = torch.deg2rad(degrees.double())
    cos, sin = angle.cos().float()[:, None, None], angle.sin().float()[:, None, None]
    y = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    # Each output pixel comes from this place, in units of half the image. The sums are written out:
    # a matrix product could run in TF32 and then miss by a pixel.
    source_x = (cos * x - sin * y) / (width / 2)
    source_y = (sin * x + cos * y) / (height / 2)
    grid = torch.stack((source_x, source_y), dim=-1)
    rotated = F.grid_sample(images.float(), grid, mode="nearest", align_corners=False)
    return rotated.to(images.dtype)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Compute (images/255 − mean)/std per channel, as torchvision's ToTensor and Normalize do.

    Args:
        images: uint8 [B, C, H, W].
        mean, std: float32 [C] on the images' device, in units of the full range 0…1.

    Returns:
        float32 [B, C, H, W].
    """
    scaled = images.to(torch.float32).div_(255)
    return scaled.sub_(mean[:, None, None]).div_(std[:, None, None])


class BatchMixer:
    """DA2: Mixup (α = 0.8) or CutMix (α = 1.0), one of the two with probability 1/2 per batch.

    Each sample is mixed with its predecessor in the batch, which is a random partner because
    training batches are shuffled. Draws and results are those of torchvision's MixUp and CutMix.

    Args:
        num_classes: K, the width of the soft targets.
        seed: the run's seed, ≥ 0.
    """

    def __init__(self, num_classes: int, seed: int) -> None:
        self.num_classes, self.seed = num_classes, seed
        self.mixup = v2.MixUp(alpha=MIXUP_ALPHA, num_classes=num_classes)
        self.cutmix = v2.CutMix(alpha=CUTMIX_ALPHA, num_classes=num_classes)

    def draw(self, epoch: int, steps: range, image_size: tuple[int, int]) -> Draws:
        """Draw the weights of a sample (at 0) and of its partner (at 1), which sum to 1.

        Returns:
            Those of each pixel, float32 [S, 2, H, W], and those of the labels, float32 [S, 2].
        """
        pixels = torch.empty(len(steps), 2, *image_size)
        shares = torch.empty(len(steps), 2)
        template = torch.empty(()).expand(1, 1, *image_size)
        with torch.random.fork_rng(devices=[]):
            for step, of_pixels, of_labels in zip(
                steps, pixels.numpy(), shares.numpy(), strict=True
            ):
                # torchvision draws from the CPU's default generator. torch.manual_seed would also
                # seed the GPU's, which the fork doesn't restore: the model's dropout would change.
                torch.default_generator.manual_seed(mix_seed(self.seed, epoch, step))
                share = self._weigh_pixels(of_pixels, template)
                of_labels[:] = share, 1.0 - share  # each rounded once, as torchvision does
        return pixels, shares

    def _weigh_pixels(self, weights: np.ndarray, template: Tensor) -> float:
        """Draw the weights [2, H, W] of the pixels of one batch; return the sample's share."""
        if torch.rand(()) < 0.5:
            share: float = self.mixup.make_params([])["lam"]
            weights[0], weights[1] = share, 1.0 - share
            return share
        drawn = self.cutmix.make_params([template])
        left, top, right, bottom = drawn["box"]
        weights[0], weights[1] = 1.0, 0.0
        weights[0, top:bottom, left:right], weights[1, top:bottom, left:right] = 0.0, 1.0
        share = drawn["lam_adjusted"]
        return share

    def apply(self, images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Mix the samples and their labels, as `Mixer` describes."""
        own, partners = draws[0][:, :, None, None].unbind(1)
        other_images = images.roll(1, dims=1).mul_(partners)
        images = images.mul_(own).add_(other_images)
        own, partners = draws[1][:, :, None, None].unbind(1)
        onehot = labels[..., None] == torch.arange(self.num_classes, device=labels.device)
        return images, (onehot.roll(1, dims=1) * partners).add_(onehot * own)
