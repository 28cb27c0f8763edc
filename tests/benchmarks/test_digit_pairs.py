"""digit_pairs.py: what it writes, held against MNIST's own images by brute force."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import MNIST
from torchvision.transforms import v2

from benchmarks import digit_pairs
from input_pipeline.load import load_dataset
from tests.helpers import read_refusal
from tests.input_pipeline.helpers import write_mnist

SIZES = {"train": 3, "test": 2}  # images of each class


@pytest.fixture(scope="module", autouse=True)
def keep_off_the_disk():
    """Files that reached the disk take seconds to remove again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sync", lambda: None, raising=False)
        yield


@pytest.fixture(scope="module")
def mnist(tmp_path_factory) -> Path:
    """An MNIST with 31 training and 20 test images of each digit, all of them different."""
    data_dir = tmp_path_factory.mktemp("mnist")
    write_mnist(data_dir, train=310, test=200)
    return data_dir


def list_flags(mnist: Path, out: Path, *more: object) -> list[str]:
    flags = ["--data_dir", mnist, "--out", out, "--sample_size", 3, "--test_sample_size", 2]
    return [str(word) for word in (*flags, *more)]


def write(mnist: Path, out: Path, *more: object) -> dict[str, bytes]:
    """Run the command; returns the contents of all files by their path in the folder."""
    assert digit_pairs.main(list_flags(mnist, out, *more)) == 0
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*")}


@pytest.fixture(scope="module")
def folder(mnist, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pairs") / "set"
    write(mnist, out)
    return out


@pytest.mark.parametrize("split", SIZES)
def test_each_half_is_an_image_of_the_split_used_once(mnist, folder, split):
    """The pixels are compared with the split's own images, so test digits leak nowhere."""
    source = MNIST(mnist, train=split == "train")
    resize = v2.Resize((32, 16))
    halves = [np.array(resize(Image.fromarray(image.numpy()))) for image in source.data]
    found = []
    for path in (folder / split).rglob("*.png"):
        left, right = map(int, path.stem.split("-"))
        found.append((left, right))
        pixels = Image.open(path)
        assert (pixels.mode, pixels.size) == ("L", (32, 32))
        assert np.array_equal(np.array(pixels), np.hstack([halves[left], halves[right]]))
        digits = "".join(str(int(source.targets[number])) for number in (left, right))
        assert path.parent.name == digits
    assert len(found) == 100 * SIZES[split]
    for numbers in zip(*found, strict=True):
        assert len(set(numbers)) == len(numbers)
    assert all(left != right for left, right in found)


def test_the_folder_is_a_data_set_of_100_classes(folder):
    data = load_dataset("folder", folder)
    assert data.classes == [f"{a}{b}" for a, b in itertools.product(range(10), repeat=2)]
    assert np.bincount(data.train.labels).tolist() == [3] * 100
    assert np.bincount(data.test.labels).tolist() == [2] * 100


def test_the_same_seed_gives_the_same_files(mnist, folder, tmp_path):
    first = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}
    assert write(mnist, tmp_path / "again") == first


def test_a_folder_that_is_there_stays(mnist, folder, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write(mnist, folder)
    assert "already" in capsys.readouterr().out
    line = read_refusal(capsys, digit_pairs.main, *list_flags(mnist, folder, "--seed", 1))
    assert str(folder) in line and "other flags" in line
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    line = read_refusal(capsys, digit_pairs.main, *list_flags(mnist, tmp_path))
    assert f"{tmp_path} exists" in line and not list(tmp_path.iterdir())


def test_a_stop_leaves_nothing_and_another_seed_draws_others(mnist, folder, tmp_path, monkeypatch):
    draw = digit_pairs.draw_pairs
    written = []

    def stop_half_way(folder, *args):
        for pair in itertools.islice(draw(folder, *args), 150):
            assert not (tmp_path / "set").exists()
            written.append(pair)
            yield pair
        raise SystemExit(143)  # as SIGTERM does

    monkeypatch.setattr(digit_pairs, "draw_pairs", stop_half_way)
    with pytest.raises(SystemExit):
        digit_pairs.main(list_flags(mnist, tmp_path / "set", "--seed", 1))
    assert len(written) == 150 and not list(tmp_path.iterdir())
    names = {f"{pair.name}/{pair.left:05}-{pair.right:05}.png" for pair in written}
    assert sum((folder / "train" / name).exists() for name in names) < 75


@pytest.mark.parametrize(
    ("flag", "count", "words"),
    [
        ("--sample_size", 4, ("40 images", "31 of digit 0", "at most 3")),
        ("--test_sample_size", 3, ("30 images", "20 of digit 0", "at most 2")),
    ],
)
def test_too_few_images_are_a_mistake(mnist, tmp_path, capsys, flag, count, words):
    line = read_refusal(capsys, digit_pairs.main, *list_flags(mnist, tmp_path / "set", flag, count))
    assert all(word in line for word in (f"{flag} {count}", *words))
    assert not list(tmp_path.iterdir())


def test_without_mnist_the_line_is_the_loaders(tmp_path, capsys):
    (tmp_path / "MNIST").touch()  # so that nothing can be downloaded
    line = read_refusal(capsys, digit_pairs.main, *list_flags(tmp_path, tmp_path / "set"))
    assert str(tmp_path / "MNIST") in line
