"""Resizing, and mean and standard deviation of the channels."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from input_pipeline.load import load_dataset
from input_pipeline.pixels import measure_channels


def test_stats_of_several_batches_and_of_a_constant_channel():
    images = torch.randint(0, 256, (2500, 3, 4, 5), dtype=torch.uint8)
    images[:, 1] = 51
    mean, std = measure_channels([images[:7], images[7:]])
    values = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std[::2], values.std((0, 2, 3))[::2], rtol=1e-12)
    assert mean[1] == pytest.approx(0.2) and std[1] == 1


def test_img_size_resizes_as_torchvision(tmp_path):
    native = load_dataset("digits", tmp_path, test_sample_size=3).test.images
    resized = load_dataset("digits", tmp_path, test_sample_size=3, img_size=12)
    assert resized.image_shape == (3, 12, 12)
    expected = v2.functional.resize(native.float(), [12, 12], antialias=True).round()
    torch.testing.assert_close(resized.test.images.float(), expected, atol=0, rtol=0)
