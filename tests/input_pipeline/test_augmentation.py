"""Augmentation against torchvision, sample by sample, and the statistics of the draws."""

import math

import pytest
import torch
from scipy import stats
from torchvision import transforms
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from input_pipeline import AUGMENTATIONS, Augmentation
from input_pipeline.augmentation import (
    BatchMixer,
    CropAndFlip,
    Rotation,
    augment_batch,
    crop_and_flip,
    draw_plan,
    normalise,
    rotate,
)
from input_pipeline.loader import BatchLoader
from input_pipeline.splits import TensorSplit
from utils.seeds import mix_seed

DA1 = [CropAndFlip(), Rotation()]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def unpack(plan):
    """dy, dx, flip and angle of a plan of DA1 with rotation."""
    (_, (dy, dx, flip)), (_, (angle,)) = plan.steps
    return dy, dx, flip, angle


def noise(batch: int, height: int = 12, width: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_at_every_offset_and_flip_are_torchvisions(padding):
    draws = torch.cartesian_prod(*[torch.arange(2 * padding + 1)] * 2, torch.arange(2))
    images = noise(len(draws))
    dy, dx, flip = draws.unbind(1)
    results = crop_and_flip(images, dy, dx, flip.bool(), padding)
    for image, (dy, dx, flip), result in zip(images, draws.tolist(), results, strict=True):
        expected = tv.crop(tv.pad(image, [padding], fill=0), dy, dx, *image.shape[-2:])
        assert torch.equal(result, tv.horizontal_flip(expected) if flip else expected)
    assert results.is_contiguous()


@pytest.mark.parametrize("size", [(32, 32), (9, 14)])
def test_rotation_is_torchvisions(size):
    degrees = torch.tensor([-15.0, -7.3, -0.01, 0.0, 3.21, 11.9, 15.0, 90.0, 137.0, 180.0])
    images = noise(len(degrees), *size)
    for image, angle, result in zip(images, degrees, rotate(images, degrees), strict=True):
        assert torch.equal(result, tv.rotate(image, float(angle))), float(angle)


def test_rotation_is_pillows_but_for_rounding():
    """Where a source falls between two pixels, Pillow may take the other one."""
    generator = torch.Generator().manual_seed(1)
    degrees = torch.empty(200).uniform_(-15, 15, generator=generator)
    images = noise(len(degrees), 32, 32)
    differing = 0
    for image, angle, result in zip(images, degrees, rotate(images, degrees), strict=True):
        expected = tv.pil_to_tensor(tv.rotate(tv.to_pil_image(image), float(angle)))
        differing += (expected != result).any(0).sum().item()
    assert differing < len(degrees) * 32 * 32 / 2000


def test_normalise_is_torchvisions():
    images = noise(2)
    result = normalise(images, torch.tensor(MEAN), torch.tensor(STD))
    conventional = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    expected = torch.stack([conventional(image.permute(1, 2, 0).numpy()) for image in images])
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


def test_draws_have_the_right_range_and_frequency():
    count = 20_000
    plan = draw_plan(
        count, seed=0, epoch=3, shuffle=True, transforms=DA1, image_side=16, rotation=15.0
    )
    assert torch.equal(plan.order.sort().values, torch.arange(count))
    dy, dx, flip, angle = unpack(plan)
    for offsets in (dy, dx):
        shares = torch.bincount(offsets, minlength=5) / count
        assert len(shares) == 5
        assert shares.sub(0.2).abs().max() < 0.015
    assert abs(flip.double().mean() - 0.5) < 0.015
    assert angle.abs().max() <= 15
    assert abs(angle.mean()) < 0.3
    assert abs(angle.std() - 15 / math.sqrt(3)) < 0.2
    drawn = torch.stack([dy.double(), dx.double(), flip.double(), angle])
    assert (torch.corrcoef(drawn) - torch.eye(4)).abs().max() < 0.03


def test_plan_follows_from_seed_and_epoch_alone():
    def plan(seed, epoch):
        torch.rand(3)  # the default generator has no effect
        options = {"transforms": DA1, "image_side": 32, "rotation": 15.0}
        return draw_plan(50, seed=seed, epoch=epoch, shuffle=True, **options)

    first, again = plan(1, 2), plan(1, 2)
    assert torch.equal(first.order, again.order)
    for draw, drawn_again in zip(unpack(first), unpack(again), strict=True):
        assert torch.equal(draw, drawn_again)
    orders = [plan(seed, epoch).order for seed in range(5) for epoch in range(5)]
    assert len({tuple(order.tolist()) for order in orders}) == 25


def test_order_does_not_depend_on_augmentation_nor_crops_on_rotation():
    options = {"seed": 0, "epoch": 0, "shuffle": True, "image_side": 8}
    plain = draw_plan(30, **options)
    upright = draw_plan(30, transforms=DA1, **options)
    rotated = draw_plan(30, transforms=DA1, rotation=15.0, **options)
    assert torch.equal(plain.order, upright.order) and torch.equal(plain.order, rotated.order)
    assert plain.steps == ()
    ((transform, draws),) = upright.steps  # no angles without rotation
    assert isinstance(transform, CropAndFlip)
    for draw, other in zip(draws, unpack(rotated), strict=False):
        assert torch.equal(draw, other)
    assert torch.equal(draw_plan(30, seed=0, epoch=0).order, torch.arange(30))


def test_seeds_do_not_collide():
    keys = [(s, *key) for s in range(20) for key in [(e,) for e in range(20)] + [(s, s)]]
    keys += [(s, e, t) for s in range(5) for e in range(6, 12) for t in range(20)]
    assert len({mix_seed(*key) for key in keys}) == len(set(keys))
    assert mix_seed(0, 1) != mix_seed(1, 0)


def test_batch_uses_its_positions_of_the_plan():
    images = noise(10, 16, 16)
    plan = draw_plan(10, seed=0, epoch=0, transforms=DA1, image_side=16, rotation=15.0)
    whole = augment_batch(images, plan, slice(0, 10))
    assert torch.equal(augment_batch(images[4:7], plan, slice(4, 7)), whole[4:7])
    draws = zip(*(draw.tolist() for draw in unpack(plan)), strict=True)
    for image, result, (dy, dx, flip, angle) in zip(images, whole, draws, strict=True):
        expected = tv.crop(tv.pad(image, [2]), dy, dx, 16, 16)
        expected = tv.horizontal_flip(expected) if flip else expected
        assert torch.equal(result, tv.rotate(expected, angle))


class Erase:
    """A transform as CONTRIBUTING.md adds one: a square of half the side, set to zero."""

    def draw(self, num_samples, generator, image_side, rotation):
        top, left = torch.randint(image_side, (2, num_samples), generator=generator)
        return top, left

    def apply(self, images, draws):
        top, left = draws
        height, width = images.shape[-2:]
        row = torch.arange(height, device=images.device) - top[:, None]
        column = torch.arange(width, device=images.device) - left[:, None]
        erased_rows = (row >= 0) & (row < height // 2)
        erased_columns = (column >= 0) & (column < width // 2)
        square = erased_rows[:, None, :, None] & erased_columns[:, None, None, :]
        return images.masked_fill(square, 0)


def test_a_new_augmentation_is_a_class_and_an_entry(monkeypatch):
    entry = Augmentation("a black square", transforms=(f"{__name__}:Erase",))
    monkeypatch.setitem(AUGMENTATIONS, "erase", entry)
    images = noise(23, 8, 8).clamp(min=1)
    split = TensorSplit(images, torch.arange(23) % 4)
    options = {"batch_size": 5, "device": "cpu", "num_classes": 4, "seed": 3, "augment": "erase"}
    options |= {"mean": (0, 0, 0), "std": (1, 1, 1)}

    def load(epoch, start_step=0):
        return [x for x, _ in BatchLoader(split, **options).batches(epoch, start_step)]

    whole = load(1)
    erased = torch.cat(whole) == 0
    assert torch.equal(torch.cat(whole)[~erased], (images / 255)[~erased])
    sizes = erased[:, 0].sum((1, 2))
    assert sizes.min() >= 1 and sizes.max() == 16 and len(sizes.unique()) > 3
    assert not torch.equal(torch.cat(load(2)), torch.cat(whole))
    for step in range(6):
        resumed = load(1, step)
        assert len(resumed) == 5 - step
        for batch, expected in zip(resumed, whole[step:], strict=True):
            assert torch.equal(batch, expected)


def mix_by_torchvision(images, labels, seed, epoch, step):
    """One batch mixed by torchvision itself; the default generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seed(seed, epoch, step))
        kind, alpha = (v2.MixUp, 0.8) if torch.rand(()) < 0.5 else (v2.CutMix, 1.0)
        return kind(alpha=alpha, num_classes=4)(images, labels), kind


@pytest.mark.parametrize("size", [(32, 32), (9, 14), (1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mixed_batches_are_torchvisions_bit_for_bit(size, layout):
    """A short last batch, and an epoch that goes on at any step."""
    images, labels = noise(53, *size), torch.arange(53) * 7 % 4
    options = {"batch_size": 6, "device": "cpu", "num_classes": 4, "seed": 5, "shuffle": True}
    options |= {"mean": MEAN, "std": STD, "memory_format": layout}
    split = TensorSplit(images, labels)
    plain = list(BatchLoader(split, **options, augment="DA1").batches(3))
    expected, kinds = zip(
        *(mix_by_torchvision(*batch, 5, 3, step) for step, batch in enumerate(plain)), strict=True
    )
    assert len(plain[-1][0]) == 5 and set(kinds) == {v2.MixUp, v2.CutMix}
    loader = BatchLoader(split, **options, augment="DA1+DA2")
    state = torch.random.get_rng_state()
    for start in (0, 1, 7, 8):
        for ours, theirs in zip(loader.batches(3, start), expected[start:], strict=True):
            for tensor, other in zip(ours, theirs, strict=True):
                assert tensor.dtype == other.dtype == torch.float32
                assert torch.equal(tensor, other)
            assert ours[0].is_contiguous(memory_format=layout)
    assert torch.equal(torch.random.get_rng_state(), state)
    other_epoch = next(loader.batches(4))
    assert not torch.equal(other_epoch[1], expected[0][1])


def test_shares_of_mixup_have_the_papers_distribution():
    """Beta(0.8, 0.8), by Kolmogorov and Smirnov, for one half of the batches."""
    pixels, shares = BatchMixer(num_classes=2, seed=0).draw(0, range(6000), (40, 40))
    assert torch.equal(pixels.sum(1), torch.ones(6000, 40, 40))
    lowest, highest = pixels[:, 0].flatten(1).aminmax(dim=1)
    cut = (highest == 1) & ((lowest == 0) | (shares[:, 0] == 1))
    inside = pixels[cut, 1].mean((1, 2))
    torch.testing.assert_close(shares[cut, 1], inside)
    shares = shares[~cut, 0].tolist()
    assert 2800 < len(shares) < 3200
    assert stats.kstest(shares, stats.beta(0.8, 0.8).cdf).pvalue > 0.01
    assert stats.kstest(shares, stats.uniform.cdf).pvalue < 0.01  # the test separates them
