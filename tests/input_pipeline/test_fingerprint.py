"""What changes the identity of samples, and what does not."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from input_pipeline import fingerprint, states
from input_pipeline.fingerprint import hash_files, hash_tensors
from input_pipeline.load import identify_dataset, load_dataset
from tests.input_pipeline.helpers import picture, refusal

BOTH = ("train", "test")


def read_prints(folder, **options) -> dict[str, dict[str, str]]:
    facts = load_dataset("folder", folder, **options).facts()
    return {kind: facts[kind] for kind in ("fingerprints", "listings")}


def find_changes(folder, before) -> set[tuple[str, str]]:
    after = read_prints(folder)
    return {(k, s) for k, found in after.items() for s in found if found[s] != before[k][s]}


def test_a_copy_under_another_name_with_new_times_is_the_same(folder, tmp_path):
    before = read_prints(folder)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for path in copy.rglob("*.png"):
        os.utime(path, (1, 1))
    assert find_changes(copy, before) == set()
    (copy / "test").rename(copy / "val")
    assert find_changes(copy, before) == set()
    os.symlink(copy, tmp_path / "link")
    assert find_changes(tmp_path / "link", before) == set()


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def test_swapped_classes_a_renamed_file_and_a_changed_byte_are_noticed(folder):
    before = read_prints(folder)
    swap(folder / "test" / "cat", folder / "test" / "dog")
    assert ("fingerprints", "test") in find_changes(folder, before)
    assert ("fingerprints", "train") not in find_changes(folder, before)
    swap(folder / "test" / "cat", folder / "test" / "dog")
    assert find_changes(folder, before) == set()
    path = folder / "train" / "dog" / "1.png"
    path.rename(path.with_name("3.png"))
    assert find_changes(folder, before) == {("fingerprints", "train"), ("listings", "train")}
    path.with_name("3.png").rename(path)
    with open(path, "ab") as file:
        file.write(b"1")
    with_one = read_prints(folder)
    path.write_bytes(path.read_bytes()[:-1] + b"2")
    assert find_changes(folder, with_one) == {("fingerprints", "train")}


def test_only_the_samples_used_and_the_splits_asked_for_count(folder):
    few = read_prints(folder, sample_size=2)
    picture(9).save(folder / "train" / "dog" / "2.png")
    assert read_prints(folder, sample_size=2) == few
    assert read_prints(folder)["listings"]["train"] != few["listings"]["train"]
    test_only = read_prints(folder, splits=["test"])
    assert test_only["fingerprints"].keys() == {"test"}
    assert test_only["fingerprints"]["test"] == few["fingerprints"]["test"]
    options = {"sample_size": 2, "imbalance_factor": 2}
    tail = load_dataset("folder", folder, **options).facts()
    assert tail["fingerprints"]["train"] != few["fingerprints"]["train"]
    found = identify_dataset("folder", folder, **options)
    pixels = {"image_shape", "mean", "std"}
    assert found == {key: value for key, value in tail.items() if key not in pixels}


def test_images_in_memory_are_identified_before_they_are_resized(tmp_path):
    facts = load_dataset("digits", tmp_path, sample_size=9).facts()
    assert (
        load_dataset("digits", tmp_path, sample_size=9, img_size=12).facts()["fingerprints"]
        == (facts["fingerprints"])
    )
    found = identify_dataset("digits", tmp_path, sample_size=9, splits=["train"])
    assert found["fingerprints"] == {"train": facts["fingerprints"]["train"]}
    json.dumps(facts)


def test_a_label_a_pixel_and_the_order_change_the_hash_of_tensors():
    images = torch.arange(48, dtype=torch.uint8).reshape(4, 3, 2, 2)
    labels = torch.tensor([0, 1, 1, 0])
    whole = hash_tensors(images, labels)
    assert hash_tensors(images.clone(memory_format=torch.channels_last), labels) == whole
    other = images.clone()
    other[3, 2, 1, 1] += 1
    assert hash_tensors(other, labels).listing == whole.listing
    order = torch.tensor([3, 1, 2, 0])
    changed = [hash_tensors(other, labels), hash_tensors(images, labels[[1, 0, 2, 3]])]
    changed += [hash_tensors(images[order], labels[order])]
    changed += [hash_tensors(images.reshape(4, 3, 1, 4), labels)]
    assert len({found.whole for found in (whole, *changed)}) == 5


def write_files(folder: Path, count: int = 20, size: int = 100) -> list[str]:
    folder.mkdir()
    paths = [folder / f"{i:02}.png" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * size)
    return [str(path) for path in paths]


def hash_all(paths: list[str], **options) -> str:
    labels = torch.zeros(len(paths), dtype=torch.int64)
    return hash_files(paths, labels, Path(paths[0]).parent, **options).whole


def test_beyond_the_limit_a_fixed_sample_is_read(tmp_path):
    paths = write_files(tmp_path / "files")
    whole = hash_all(paths, hashed_bytes=1000)
    noticed = set()
    for path in map(Path, paths):
        content = path.read_bytes()
        path.write_bytes(b"x" * 100)
        if hash_all(paths, hashed_bytes=1000) != whole:
            noticed.add(path.name)
        path.write_bytes(content)
    assert len(noticed) == 10  # of 100 bytes each
    moved = write_files(tmp_path / "other")
    assert hash_all(moved, hashed_bytes=1000) == whole
    left_out = next(path for path in moved if Path(path).name not in noticed)
    with open(left_out, "ab") as file:
        file.write(b"1")
    assert hash_all(moved, hashed_bytes=1000) != whole  # the sizes are of all


@pytest.fixture
def read_files(monkeypatch) -> list[str]:
    """The files that are hashed, with a cache that is used for small sets and recent files."""
    read: list[str] = []
    plain = fingerprint._hash_file

    def record(path):
        read.append(path)
        return plain(path)

    monkeypatch.setattr(fingerprint, "_hash_file", record)
    monkeypatch.setattr(states, "_COSTLY", 0)
    monkeypatch.setattr(states, "_SETTLED", -(10**12))
    return read


def test_unchanged_files_are_not_read_again(tmp_path, read_files):
    paths = write_files(tmp_path / "files")
    whole = hash_all(paths)
    assert sorted(read_files) == paths
    assert hash_all(paths) == whole and len(read_files) == 20
    os.utime(paths[3])
    assert hash_all(paths) == whole and read_files[20:] == [paths[3]]
    # Equal sizes and times, as an archive may leave them: the inode shows the other file.
    for path in paths:
        os.utime(path, (1, 1))
    whole = hash_all(paths)
    swap(Path(paths[0]), Path(paths[1]))
    assert hash_all(paths) != whole


@pytest.mark.parametrize("damage", ["flip", "cut", "text", "empty"])
def test_a_damaged_cache_is_ignored(tmp_path, cache_home, read_files, damage):
    paths = write_files(tmp_path / "files")
    whole = hash_all(paths)
    (cache,) = cache_home.glob("bce-vs-ce/*.hashes")
    content = cache.read_bytes()
    flipped = content.replace(bytes([content[-300]]), bytes([content[-300] ^ 1]), 1)
    damaged = {"flip": flipped, "cut": content[:300], "text": b"[]", "empty": b""}[damage]
    assert damaged != content
    cache.write_bytes(damaged)
    assert hash_all(paths) == whole and len(read_files) == 40
    assert hash_all(paths) == whole and len(read_files) == 40


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, cache_home, read_files):
    (cache_home / "bce-vs-ce").write_text("a file")
    paths = write_files(tmp_path / "files")
    assert hash_all(paths) == hash_all(paths)
    assert len(read_files) == 40


def test_files_of_this_moment_and_small_sets_leave_no_cache(tmp_path, cache_home, monkeypatch):
    paths = write_files(tmp_path / "files")
    hash_all(paths)
    monkeypatch.setattr(states, "_COSTLY", 0)
    os.utime(paths[0], (time.time() + 60,) * 2)
    hash_all(paths)
    assert not list(cache_home.iterdir())


def test_a_file_that_cannot_be_read_is_named(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(fingerprint, "_hash_file", refuse)
    message = refusal("folder", folder)
    assert f"{folder / 'train' / 'cat'}" in message and "can't be read: Permission" in message
