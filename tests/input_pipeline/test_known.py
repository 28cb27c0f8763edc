"""MNIST and CIFAR on small files of the published formats, and real MNIST where it is at hand."""

import gzip
import hashlib
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, MNIST
from torchvision.transforms import v2

from input_pipeline.load import load_dataset
from input_pipeline.pixels import measure_channels
from tests.input_pipeline.helpers import refusal, shared_archive, write_idx, write_mnist


@pytest.fixture
def mnist(tmp_path) -> Path:
    """A data directory with an MNIST of 40 training and 20 test images."""
    write_mnist(tmp_path, train=40, test=20)
    return tmp_path


def test_mnist_is_resized_and_its_channel_repeated(mnist):
    data = load_dataset("mnist", mnist)
    assert (data.image_shape, data.classes) == ((3, 32, 32), [str(k) for k in range(10)])
    assert (data.mean, data.std) == ((0.1307,) * 3, (0.3081,) * 3)
    raw = MNIST(mnist, train=True)
    # The authors' transform: torchvision's Resize of a Pillow image.
    resized = [np.array(v2.Resize(32)(Image.fromarray(image.numpy()))) for image in raw.data]
    expected = torch.from_numpy(np.stack(resized))[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(data.train.images, expected)
    assert torch.equal(data.test.labels, torch.arange(20) % 10)


def test_mnist_in_its_native_size(mnist):
    data = load_dataset("mnist", mnist, img_size=28)
    assert torch.equal(data.test.images[:, 1], MNIST(mnist, train=False).data)


@pytest.mark.parametrize("keep", [0, 3, 10, 1000])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_truncated_idx_file_is_named(mnist, name, keep):
    path = mnist / "MNIST" / "raw" / name
    path.write_bytes(path.read_bytes()[: min(keep, path.stat().st_size - 1)])
    message = refusal("mnist", mnist)
    assert str(path) in message and "delete it" in message


def test_mnist_labels_out_of_range_and_differing_counts_are_reported(mnist):
    path = mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    write_idx(path, np.arange(40))
    assert str(path) in refusal("mnist", mnist)
    write_idx(path, np.arange(39) % 10)
    message = refusal("mnist", mnist)
    assert "40 images" in message and f"{path.name} 39 labels" in message


def test_offline_mnist_names_file_and_folder(tmp_path, offline, capfd):
    message = refusal("mnist", tmp_path)
    for archive, _ in MNIST.resources:
        assert archive in message
    assert MNIST.mirrors[0] in message
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "no network" in message
    assert capfd.readouterr() == ("", "")


def test_offline_mnist_names_only_what_is_absent(mnist, offline):
    (mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    message = refusal("mnist", mnist)
    assert "t10k-labels-idx1-ubyte.gz" in message and "train" not in message


def test_mnist_archives_put_there_by_hand_are_unpacked(mnist, offline, monkeypatch):
    raw = mnist / "MNIST" / "raw"
    resources = []
    for path in sorted(raw.iterdir()):
        packed = gzip.compress(path.read_bytes())
        path.with_name(path.name + ".gz").write_bytes(packed)
        resources.append((path.name + ".gz", hashlib.md5(packed).hexdigest()))
        path.unlink()
    monkeypatch.setattr(MNIST, "resources", resources)
    assert len(load_dataset("mnist", mnist).train) == 40


def write_cifar(cifar, folder: Path, monkeypatch, num_classes: int, labels_key: str) -> None:
    """Small batches in CIFAR's format; torchvision's MD5 sums are set to theirs."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(file: str, content: dict) -> list[str]:
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, hashlib.md5((folder / file).read_bytes()).hexdigest()]

    def write_batch(file: str) -> list[str]:
        pixels = rng.integers(0, 256, (2 * num_classes, 3072), dtype=np.uint8)
        labels = [i % num_classes for i in range(2 * num_classes)]
        return write(file, {"data": pixels, labels_key: labels})

    names = [f"class{k:02}" for k in range(num_classes)]
    meta_file, meta_md5 = write(cifar.meta["filename"], {cifar.meta["key"]: names})
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"filename": meta_file, "md5": meta_md5})
    for part in ("train_list", "test_list"):
        listed = [write_batch(file) for file, _ in getattr(cifar, part)]
        monkeypatch.setattr(cifar, part, listed)


@pytest.fixture
def cifar10(tmp_path, monkeypatch) -> Path:
    write_cifar(CIFAR10, tmp_path / CIFAR10.base_folder, monkeypatch, 10, "labels")
    return tmp_path


def test_cifar10_is_torchvisions(cifar10):
    data = load_dataset("cifar10", cifar10)
    reference = CIFAR10(cifar10, train=True)
    assert (len(data.train), len(data.test)) == (100, 20)
    assert torch.equal(data.train.images.permute(0, 2, 3, 1), torch.from_numpy(reference.data))
    assert data.train.labels.tolist() == reference.targets
    assert data.classes == reference.classes
    assert data.mean == (0.4914, 0.4822, 0.4465) and data.std == (0.2023, 0.1994, 0.2010)


def test_cifar100_has_fine_labels(tmp_path, monkeypatch):
    write_cifar(CIFAR100, tmp_path / CIFAR100.base_folder, monkeypatch, 100, "fine_labels")
    data = load_dataset("cifar100", tmp_path)
    assert (data.num_classes, data.image_shape) == (100, (3, 32, 32))
    assert torch.equal(data.test.labels, torch.arange(200) % 100)
    assert data.classes[99] == "class99"
    assert data.mean == (0.4914, 0.4822, 0.4465)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_cifar_file_of_another_md5_is_named(cifar10, offline, name):
    path = cifar10 / CIFAR10.base_folder / name
    path.write_bytes(path.read_bytes()[:-1])
    message = refusal("cifar10", cifar10)
    assert str(path) in message and "MD5" in message


def test_cifar_without_its_class_names_is_reported(cifar10, offline):
    path = cifar10 / CIFAR10.base_folder / "batches.meta"
    path.unlink()
    assert f"{path} is missing" in refusal("cifar10", cifar10)


def test_offline_cifar_names_file_source_and_folder(tmp_path, offline, capfd):
    message = refusal("cifar100", tmp_path)
    assert CIFAR100.filename in message and CIFAR100.url in message
    assert f"into {tmp_path}" in message and "no network" in message
    assert capfd.readouterr() == ("", "")


def test_offline_cifar_reports_an_incomplete_archive(tmp_path, offline):
    (tmp_path / CIFAR10.filename).write_bytes(b"half")
    assert f"the incomplete {CIFAR10.filename}" in refusal("cifar10", tmp_path)


def test_a_cifar_archive_put_there_by_hand_is_unpacked(cifar10, offline, monkeypatch):
    folder, archive = cifar10 / CIFAR10.base_folder, cifar10 / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    for path in folder.iterdir():
        path.unlink()
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert len(load_dataset("cifar10", cifar10).test) == 20


COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # of the test set


@pytest.mark.slow
def test_real_mnist(tmp_path):
    with tarfile.open(shared_archive("mnist.tar.xz")) as tar:
        tar.extractall(tmp_path, filter="data")
    data = load_dataset("mnist", tmp_path)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert torch.bincount(data.test.labels).tolist() == COUNTS
    native = load_dataset("mnist", tmp_path, img_size=28, splits=("train",))
    mean, std = measure_channels([native.train.images])
    # The published constants are those of the native images.
    np.testing.assert_allclose((mean, std), (data.mean, data.std), atol=5e-5)
