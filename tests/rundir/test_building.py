"""Batches that are built from settings."""

import pytest
import torch

from args import parse_settings
from input_pipeline.load import load_dataset
from metrics.extraction import choose_test_batch
from rundir.building import build_batches
from utils.precision import Precision


@pytest.mark.parametrize(
    ("device", "side", "usual", "expected"),
    [
        ("cuda", 32, 256, 1024),
        ("cuda", 64, 128, 1024),
        ("cuda", 65, 128, 128),
        ("cuda", 32, 4096, 4096),
        ("cpu", 8, 128, 1024),
        ("cpu", 32, 128, 128),
    ],
)
def test_small_images_are_tested_in_large_batches(device, side, usual, expected):
    assert choose_test_batch(torch.device(device), side, usual) == expected


def test_only_test_batches_are_larger_than_the_setting():
    settings = parse_settings(["--dataset", "digits", "--batch_size", "50"])
    data = load_dataset("digits", ".", sample_size=20)
    train, test = build_batches(settings, data, Precision("fp32", torch.device("cpu")))
    assert len(next(train.batches(1))[0]) == 50
    ((images, labels),) = test.batches(0)
    assert len(images) == len(data.test)
    assert torch.equal(labels, data.test.labels)
