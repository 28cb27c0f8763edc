"""Folders of image files, and real CIFAR-10 as JPEG where it is at hand."""

import json
import os
import tarfile

import numpy as np
import pytest
import torch

from input_pipeline.load import find_image_side, load_dataset
from input_pipeline.splits import FileSplit, TensorSplit
from tests.input_pipeline.helpers import break_file, picture, pixels_of, refusal, shared_archive


def test_folder_decodes_in_sorted_order_and_keeps_the_size(folder):
    data = load_dataset("folder", folder)
    assert (data.classes, data.image_shape) == (["cat", "dog"], (3, 10, 12))
    assert isinstance(data.train, TensorSplit)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    paths = [folder / "train" / c / f"{i}.png" for c in ("cat", "dog") for i in range(3)]
    assert torch.equal(data.train.images, torch.stack([pixels_of(path) for path in paths]))
    assert torch.equal(data.test.images[3], pixels_of(folder / "test" / "dog" / "1.png"))
    values = data.train.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(data.mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, values.std((0, 2, 3)), rtol=1e-12)


def test_nested_files_count_hidden_and_other_files_do_not(folder):
    cat = folder / "train" / "cat"
    (cat / "more" / "still").mkdir(parents=True)
    picture(7).save(cat / "more" / "still" / "x.BMP")
    (cat / ".hidden.png").write_bytes(b"")
    (cat / ".cache").mkdir()
    (cat / ".cache" / "x.png").write_bytes(b"")
    (cat / "notes.txt").write_text("")
    (folder / "train" / ".git").mkdir()
    data = load_dataset("folder", folder)
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert torch.equal(data.train.images[3], pixels_of(cat / "more" / "still" / "x.BMP"))


def test_sample_size_comes_before_decoding(folder):
    break_file(folder / "train" / "dog" / "2.jpg", "text")
    data = load_dataset("folder", folder, sample_size=2, test_sample_size=1)
    assert (len(data.train), len(data.test)) == (4, 2)
    message = refusal("folder", folder, sample_size=4)
    assert "--sample_size 4" in message and "3 train images of class 'cat'" in message


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_folder_with_a_long_tail(folder, in_memory):
    break_file(folder / "train" / "dog" / "1.jpg", "text")  # it is not reached
    room = None if in_memory else 0
    data = load_dataset("folder", folder, imbalance_factor=3, in_memory_bytes=room)
    assert isinstance(data.train, TensorSplit if in_memory else FileSplit)
    assert data.class_sizes == [3, 1]
    files = [folder / "train" / "cat" / f"{i}.png" for i in range(3)]
    files.append(folder / "train" / "dog" / "0.png")
    images = data.train.fetch(torch.arange(4))
    assert torch.equal(images, torch.stack([pixels_of(path) for path in files]))
    assert len(data.test) == 4


def test_one_split_alone_has_the_same_stats(folder):
    both = load_dataset("folder", folder)
    test_only = load_dataset("folder", folder, splits=["test"])
    assert test_only.train is None and test_only.mean == both.mean


def test_the_side_is_found_before_loading(folder):
    picture(0, 7, 9).save(folder / "train" / "dog" / "0.png")  # the first image is a cat's
    assert find_image_side("folder", folder, None) == 10
    assert find_image_side("folder", folder, 32) == 32


def test_missing_folders_are_reported(folder):
    assert str(folder / "gone" / "train") in refusal("folder", folder / "gone")
    (folder / "test").rename(folder / "exam")
    message = refusal("folder", folder)
    assert str(folder) in message and "test/" in message and "val/" in message


def test_too_few_and_empty_classes_are_reported(folder):
    for path in (folder / "train" / "dog").iterdir():
        path.unlink()
    assert str(folder / "train" / "dog") in refusal("folder", folder)
    (folder / "train" / "dog").rmdir()
    assert "holds 1 class" in refusal("folder", folder)


def test_differing_classes_are_named_at_most_five(folder):
    (folder / "test" / "dog").rename(folder / "test" / "fox")
    message = refusal("folder", folder)
    assert f"{folder / 'test'} lacks 'dog' and has 'fox' besides" in message
    assert "'cat'" not in message
    for k in range(7):
        (folder / "train" / f"new{k}").mkdir()
    message = refusal("folder", folder)
    assert "'new3' and 3 more" in message and "'new4'" not in message


def test_the_split_with_the_class_folders_is_the_test_set(folder):
    (folder / "test").rename(folder / "val")
    assert load_dataset("folder", folder).facts()["test_split"] == "val"
    (folder / "test" / "unknown").mkdir(parents=True)
    picture(0).save(folder / "test" / "unknown" / "0.png")
    data = load_dataset("folder", folder)
    assert (len(data.test), data.facts()["test_split"]) == (4, "val")
    assert any("test/ is not used, since its class folders" in note for note in data.notes)
    for name in ("cat", "dog"):
        (folder / "test" / name).mkdir(parents=True)
        picture(0).save(folder / "test" / name / "0.png")
    (folder / "val" / "fox").mkdir()
    message = refusal("folder", folder)
    assert "test has 'unknown' besides" in message and "val has 'fox' besides" in message
    (folder / "val" / "fox").rmdir()
    (folder / "test" / "unknown" / "0.png").unlink()
    (folder / "test" / "unknown").rmdir()
    data = load_dataset("folder", folder)
    assert (len(data.test), data.facts()["test_split"]) == (2, "test")
    assert "test/ is the test set; val/ is not used" in data.notes


def test_notes_count_classes_and_nested_folders(folder):
    for name in ("cat", "dog"):
        for inner in ("masks", "@eaDir", "__MACOSX"):
            (folder / "train" / name / inner).mkdir()
            picture(0).save(folder / "train" / name / inner / "0.png")
    (folder / "train" / "@eaDir").mkdir()
    data = load_dataset("folder", folder)
    assert (data.classes, len(data.train)) == (["cat", "dog"], 8)
    assert data.notes == (
        "train/: images per class: cat 4, dog 4",
        "train/: images in nested folders count, too: <class>/masks 2",
        "test/: images per class: cat 2, dog 2",
    )
    for k in range(19):
        for split in ("train", "test"):
            (folder / split / f"k{k}").mkdir()
            picture(0).save(folder / split / f"k{k}" / "0.png")
    notes = load_dataset("folder", folder).notes
    assert notes[0] == "train/: 1 (k0) to 4 (cat) images in each of 21 classes"


def test_names_that_are_not_utf8_are_data(folder):
    names = [b"caf\xe9", b"caf\\xe9", b"caf\\\\xe9", "café".encode()]
    for split in (b"train", b"test"):
        for name in names:
            directory = os.path.join(os.fsencode(folder), split, name)
            os.mkdir(directory)
            picture(0).save(os.path.join(os.fsdecode(directory), "0.png"))
    data = load_dataset("folder", folder)
    assert len(data.train) == 10 and len(set(data.classes)) == 6
    assert {"cat", "dog", "café", "caf\\xe9"} < set(data.classes)
    json.dumps(data.facts(), ensure_ascii=False).encode()
    "".join(data.notes).encode()


@pytest.mark.slow
def test_real_cifar10_jpeg(tmp_path):
    with tarfile.open(shared_archive("cifar10-jpeg.tar.xz")) as tar:
        for member in tar:
            # A hundred files of each class are enough.
            if member.isfile() and member.name.endswith(".jpg") and "/00" in member.name:
                tar.extract(member, tmp_path, filter="data")
    root = tmp_path / "cifar10-jpeg"
    data = load_dataset("folder", root, sample_size=30, test_sample_size=10)
    assert data.num_classes == 10 and data.image_shape == (3, 32, 32)
    assert (len(data.train), len(data.test)) == (300, 100)
    first = root / "train" / data.classes[0] / "0000.jpg"
    assert torch.equal(data.train.images[0], pixels_of(first))
    # Near the constants of the original set.
    np.testing.assert_allclose(data.mean, (0.4914, 0.4822, 0.4465), atol=0.05)
