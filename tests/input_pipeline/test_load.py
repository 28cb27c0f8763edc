"""What load_dataset does for every source, and the registry that it follows."""

import dataclasses

import numpy as np
import pytest
import torch

from input_pipeline import AUGMENTATIONS, SOURCES, Source
from input_pipeline.load import count_samples, find_image_side, load_dataset
from tests.input_pipeline.helpers import picture, refusal
from utils.errors import UserError
from utils.registry import load_function


def test_unknown_name_and_numbers_out_of_range_are_reported(tmp_path):
    message = refusal("imagenet", tmp_path)
    assert "'imagenet'" in message and all(name in message for name in SOURCES)
    assert "--img_size 0" in refusal("digits", tmp_path, img_size=0)
    assert "--sample_size -1" in refusal("digits", tmp_path, sample_size=-1)


def test_measured_stats_are_numpys_on_the_training_images_used(tmp_path):
    digits = load_dataset("digits", tmp_path, sample_size=5)
    values = digits.train.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(digits.mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(digits.std, values.std((0, 2, 3)), rtol=1e-12)


def test_only_the_splits_asked_for_with_the_same_stats(tmp_path):
    both = load_dataset("digits", tmp_path)
    test_only = load_dataset("digits", tmp_path, splits=("test",))
    assert test_only.train is None and len(test_only.test) == 360
    assert (test_only.mean, test_only.std) == (both.mean, both.std)
    assert load_dataset("digits", tmp_path, splits=("train",)).test is None


def test_samples_are_counted_as_they_are_loaded(folder, tmp_path):
    for name, root, options in [
        ("digits", tmp_path, {}),
        ("digits", tmp_path, {"sample_size": 9, "test_sample_size": 3}),
        ("digits", tmp_path, {"sample_size": 100, "imbalance_factor": 10}),
        ("folder", folder, {}),
        ("folder", folder, {"sample_size": 1}),
    ]:
        data = load_dataset(name, root, **options)
        counted = data.num_classes, len(data.train), len(data.test)
        assert count_samples(name, root, **options) == counted
    # Nothing is read or downloaded.
    assert count_samples("cifar100", tmp_path / "absent") == (100, 50_000, 10_000)
    with pytest.raises(UserError, match="--sample_size 501 is more than the 500"):
        count_samples("cifar100", tmp_path, sample_size=501)
    with pytest.raises(UserError, match="is missing"):
        count_samples("folder", tmp_path / "absent")


@pytest.mark.parametrize("name", SOURCES)
def test_entries_of_sources_name_functions_and_fit_each_other(name):
    source = SOURCES[name]
    assert callable(load_function(source.reader)) and source.title
    assert (source.mean is None) == (source.std is None)
    if source.side_finder is not None:
        assert source.side is None and callable(load_function(source.side_finder))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_entries_of_augmentations_name_classes(name):
    entry = AUGMENTATIONS[name]
    for transform in map(load_function, entry.transforms):
        assert callable(transform.draw) and callable(transform.apply)
    assert entry.mixes_labels == (entry.mixer is not None)
    if entry.mixer is not None:
        assert callable(load_function(entry.mixer))


def read_patterns(data_dir, train):
    """A reader as CONTRIBUTING.md adds one: four random 8×8 patterns under noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(256, (4, 1, 8, 8), generator=generator)
    generator.manual_seed(1 if train else 2)
    labels = torch.arange(200) % 4
    noise = torch.randint(-60, 61, (200, 1, 8, 8), generator=generator)
    images = (patterns[labels] + noise).clamp(0, 255).to(torch.uint8)
    return images, labels, ["A", "B", "C", "D"]


PATTERNS = Source(
    f"{__name__}:read_patterns",
    title="patterns",
    side=8,
    num_classes=4,
    bundled_with="this program",
)


def test_a_new_source_is_a_reader_and_an_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "patterns", PATTERNS)
    data = load_dataset("patterns", tmp_path, sample_size=20, test_sample_size=10)
    images, labels, classes = read_patterns(tmp_path, True)
    assert (data.classes, data.image_shape) == (classes, (3, 8, 8))
    assert (len(data.train), len(data.test)) == (80, 40)
    assert torch.equal(data.train.images, images[:80].expand(-1, 3, -1, -1))
    assert torch.equal(data.train.labels, labels[:80])
    assert data.mean == pytest.approx([images[:80].double().mean().item() / 255] * 3)
    assert find_image_side("patterns", tmp_path, None) == 8


def test_a_source_may_have_no_side_of_its_own_and_known_channels(tmp_path, monkeypatch):
    mean, std = (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)
    entry = dataclasses.replace(PATTERNS, side=None, mean=mean, std=std)
    monkeypatch.setitem(SOURCES, "patterns", entry)
    data = load_dataset("patterns", tmp_path, splits=["test"])
    assert data.train is None and (data.mean, data.std) == (mean, std)
    assert data.side == find_image_side("patterns", tmp_path, None) == 8
    assert load_dataset("patterns", tmp_path, img_size=12).image_shape == (3, 12, 12)


def list_files(data_dir, train):
    paths = sorted(map(str, data_dir.glob("*.png")))
    return paths, torch.tensor([0, 1]), ["A", "B"]


def test_a_source_of_files_without_a_side_finder(tmp_path, monkeypatch):
    monkeypatch.setitem(
        SOURCES, "files", Source(f"{__name__}:list_files", title="files", streams=True)
    )
    for name in "ab":
        picture(0).save(tmp_path / f"{name}.png")
    data = load_dataset("files", tmp_path)
    assert data.image_shape == (3, 10, 12)
    assert data.side == find_image_side("files", tmp_path, None) == 10


def test_a_reader_that_breaks_its_contract_is_named(tmp_path, monkeypatch):
    entry = dataclasses.replace(PATTERNS, num_classes=5)
    monkeypatch.setitem(SOURCES, "patterns", entry)
    with pytest.raises(ValueError, match="read_patterns"):
        load_dataset("patterns", tmp_path)


def test_a_file_in_place_of_the_data_directory_is_reported(tmp_path):
    path = tmp_path / "data"
    path.touch()
    for name in ("mnist", "folder"):
        assert f"--data_dir {path} is not a directory" in refusal(name, path)
    with pytest.raises(UserError, match="is not a directory"):
        find_image_side("folder", path, None)
    assert len(load_dataset("digits", path).test) == 360
