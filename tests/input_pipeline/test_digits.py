"""scikit-learn's digits."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from input_pipeline.load import load_dataset


def test_digits_are_the_whole_set_split_by_class(tmp_path):
    digits = load_dataset("digits", tmp_path)
    assert (digits.name, digits.num_classes, digits.image_shape) == ("digits", 10, (3, 8, 8))
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    total = np.bincount(load_digits().target)
    share = torch.bincount(digits.test.labels) / torch.from_numpy(total)
    assert (share - 0.2).abs().max() < 0.01

    every = torch.cat([digits.train.images, digits.test.images])
    assert every.dtype == torch.uint8
    assert torch.equal(every[:, 0], every[:, 2])
    scaled = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    rows = every[:, 0].reshape(-1, 64).numpy()
    assert sorted(map(bytes, rows)) == sorted(map(bytes, scaled.reshape(-1, 64)))

    again = load_dataset("digits", tmp_path)
    assert torch.equal(again.train.images, digits.train.images)
    assert torch.equal(again.test.labels, digits.test.labels)
