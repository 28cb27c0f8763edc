"""A data set is the one that a run was trained on, or the line says what differs."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.load import load_dataset
from rundir.config import check_data
from utils.errors import UserError


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.ppm")
    return tmp_path


def read_facts(name, folder, **options):
    return json.loads(json.dumps(load_dataset(name, folder, **options).facts()))


def refuse(stored, found) -> str:
    with pytest.raises(UserError) as refused:
        check_data(DIRECTORY, stored, found)
    assert "\n" not in str(refused.value)
    return str(refused.value)


DIRECTORY = Path("runs/one")


def test_swapped_test_classes_are_refused_and_the_test_set_is_named(folder):
    stored = read_facts("folder", folder)
    check_data(DIRECTORY, stored, read_facts("folder", folder))
    os.rename(folder / "test" / "a", folder / "test" / "c")
    os.rename(folder / "test" / "b", folder / "test" / "a")
    os.rename(folder / "test" / "c", folder / "test" / "b")
    line = refuse(stored, read_facts("folder", folder, splits=["test"]))
    # All names and sizes are the same.
    assert "runs/one" in line and "the contents of the files of the test set" in line
    check_data(DIRECTORY, stored, read_facts("folder", folder, splits=["train"]))
    os.rename(folder / "train" / "a" / "0.ppm", folder / "train" / "a" / "9.ppm")
    line = refuse(stored, read_facts("folder", folder))
    assert "the names, sizes or labels of the files of the training set" in line


def test_another_test_folder_is_named_and_a_renamed_one_is_the_same(folder):
    stored = read_facts("folder", folder)
    os.rename(folder / "test", folder / "val")
    check_data(DIRECTORY, stored, read_facts("folder", folder))
    os.rename(folder / "val" / "a" / "1.ppm", folder / "val" / "b" / "2.ppm")
    line = refuse(stored, read_facts("folder", folder))
    assert "test set" in line and "(the test set was in test/, is in val/)" in line


def change(facts, key, amount):
    changed = copy.deepcopy(facts)
    changed[key][1] += amount
    return changed


def test_mean_and_std_may_differ_by_rounding_and_by_decoding_the_same_files(folder):
    files, digits = read_facts("folder", folder), read_facts("digits", folder, sample_size=9)
    # Earlier versions stored no fingerprint.
    early = {key: files[key] for key in files if key not in ("fingerprints", "listings")}
    for key in ("mean", "std"):
        for stored in (files, early, digits):
            found = digits if stored is digits else files
            check_data(DIRECTORY, change(stored, key, 1e-8), found)
            assert f"{key} was" in refuse(change(stored, key, 2e-3), found)
        check_data(DIRECTORY, change(files, key, 9e-4), files)
        assert f"{key} was" in refuse(change(early, key, 1e-5), files)
        assert f"{key} was" in refuse(change(digits, key, 1e-5), digits)


def test_what_memory_holds_is_named_as_such():
    found = read_facts("digits", ".", sample_size=9)
    stored = copy.deepcopy(found)
    stored["fingerprints"]["test"] = "0" * 32
    assert "the pixels of the images of the test set" in refuse(stored, found)
    stored["listings"]["test"] = "0" * 32
    assert "the labels of the test set" in refuse(stored, found)


@pytest.mark.parametrize("mean", [3, [0.1, 0.2], [0.1, "a", 0.2], [0.1, float("nan"), 0.2], None])
def test_channels_that_are_none_are_damage(mean):
    found = read_facts("digits", ".", sample_size=9)
    for key in ("mean", "std"):
        line = refuse(found | {key: mean}, found)
        assert "config.json is damaged" in line and key in line
    assert "damaged: std" in refuse(found | {"std": [1.0, 0.0, 1.0]}, found)
    # Fingerprints of another form are those of an unknown version.
    check_data(DIRECTORY, found | {"fingerprints": [1], "listings": None}, found)


def test_a_run_is_normalised_as_in_its_training(folder):
    data = load_dataset("folder", folder)
    stored = change(data.facts(), "mean", 5e-4)
    ours = data.normalised_as(stored)
    assert list(ours.mean) == stored["mean"] and ours.std == data.std
    assert ours.train is data.train and ours.facts()["fingerprints"] == stored["fingerprints"]
    assert data.normalised_as({}) is data
