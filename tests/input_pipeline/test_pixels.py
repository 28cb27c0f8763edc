"""Resizing, and mean and standard deviation of the channels."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import v2

from input_pipeline.load import load_dataset
from input_pipeline.pixels import measure_channels, resize


def exact_stats(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation from fractions, each rounded at the end."""
    values = [Fraction(int(value), 255) for value in values.ravel()]
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return float(mean), math.sqrt(variance)


def test_stats_are_the_exact_ones_rounded_however_the_images_are_cut():
    images = torch.randint(0, 256, (2500, 3, 2, 1), dtype=torch.uint8)
    images[:, 1] = 51
    expected = [exact_stats(images[:, channel].numpy()) for channel in (0, 2)]
    for batches in ([images], [images[:7], images[7:]], images.split(640), images.flip(0).split(1)):
        mean, std = measure_channels(batches)
        assert [(mean[0], std[0]), (mean[2], std[2])] == expected
        assert (mean[1], std[1]) == (0.2, 1)


def test_stats_of_more_pixels_than_floats_count_exactly(monkeypatch):
    many = 2**53 + 1
    monkeypatch.setattr(torch, "bincount", lambda *_, **__: torch.full((256,), many))
    mean, std = measure_channels([torch.zeros(1, 3, 1, 1, dtype=torch.uint8)])
    assert (mean, std) == ((0.5,) * 3, (exact_stats(np.arange(256))[1],) * 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(28, 28), (8, 8), (32, 32), (50, 37), (3, 5)])
def test_resizing_is_pillows_bit_for_bit(channels, size):
    images = torch.randint(0, 256, (3, channels, *size), dtype=torch.uint8)
    last = images.contiguous(memory_format=torch.channels_last)
    for side in (7, 28, 32, 33, 64):
        pillow = v2.Compose([v2.ToPILImage(), v2.Resize((side, side)), v2.PILToTensor()])
        expected = torch.stack([pillow(image) for image in images])
        assert torch.equal(resize(images, side), expected)
        assert torch.equal(resize(last, side), expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_mnists_size_is_what_torch_resizes_as_uint8(memory_format):
    images = torch.randint(0, 256, (1030, 1, 28, 28), dtype=torch.uint8)
    images = images.contiguous(memory_format=memory_format)
    expected = F.interpolate(images, (32, 32), mode="bilinear", antialias=True)
    assert torch.equal(resize(images, 32), expected)


def test_img_size_resizes_the_digits(tmp_path):
    native = load_dataset("digits", tmp_path, test_sample_size=3).test.images
    resized = load_dataset("digits", tmp_path, test_sample_size=3, img_size=12)
    assert resized.image_shape == (3, 12, 12)
    for image, before in zip(resized.test.images, native, strict=True):
        pillow = Image.fromarray(before[0].numpy()).resize((12, 12), Image.Resampling.BILINEAR)
        assert torch.equal(image, torch.from_numpy(np.array(pillow)).expand(3, -1, -1))
