"""Files decoded by this process or by workers, into memory or streamed."""

import pytest
import torch

from input_pipeline import decoding
from input_pipeline.load import load_dataset
from input_pipeline.pixels import measure_channels
from input_pipeline.splits import FileSplit
from tests.input_pipeline.helpers import break_file, picture, refusal


def test_workers_decode_the_same(folder, monkeypatch):
    monkeypatch.setattr(decoding, "_DECODE_CHUNK", 2)
    alone, helped = (load_dataset("folder", folder, num_workers=n) for n in (0, 2))
    assert torch.equal(alone.train.images, helped.train.images)
    assert alone.mean == helped.mean


def test_a_large_folder_streams_the_same_images(folder, monkeypatch):
    memory = load_dataset("folder", folder)
    monkeypatch.setattr("input_pipeline.load.IN_MEMORY_BYTES", 10 * 3 * 10 * 12 - 1)
    streamed = load_dataset("folder", folder)
    assert isinstance(streamed.train, FileSplit) and isinstance(streamed.test, FileSplit)
    assert torch.equal(streamed.train.fetch(torch.arange(6)), memory.train.images)
    assert torch.equal(streamed.test.fetch([3, 0]), memory.test.images[[3, 0]])
    assert streamed.mean == memory.mean and streamed.image_shape == memory.image_shape


def test_streamed_stats_are_of_evenly_spaced_images(folder, monkeypatch):
    images = load_dataset("folder", folder).train.images
    monkeypatch.setattr("input_pipeline.load.IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("input_pipeline.load._MEASURED_IMAGES", 3)
    streamed = load_dataset("folder", folder)
    assert (streamed.mean, streamed.std) == measure_channels([images[[0, 2, 4]]])


@pytest.mark.parametrize("in_memory", [True, False])
def test_mixed_sizes_are_reported_with_both_files(folder, monkeypatch, in_memory):
    if not in_memory:
        monkeypatch.setattr("input_pipeline.load.IN_MEMORY_BYTES", 0)
    odd = folder / "train" / "dog" / "1.png"
    picture(3, 7, 9).save(odd)
    message = refusal("folder", folder)
    for part in (str(folder / "train" / "cat" / "0.png"), "12×10", str(odd), "7×9", "--img_size"):
        assert part in message


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("how", ["text", "empty", "truncated"])
def test_a_file_that_is_no_whole_image_is_named(folder, how, num_workers):
    path = folder / "train" / "dog" / "1.jpg"
    break_file(path, how)
    message = refusal("folder", folder, num_workers=num_workers)
    assert f"{path} can't be decoded" in message and "Traceback" not in message
