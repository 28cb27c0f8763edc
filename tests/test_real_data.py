"""Real MNIST and CIFAR-10 (JPEG) through train.py, where the shared archives are at hand."""

import tarfile

import pytest

from rundir.config import read_config
from tests.helpers import ROOT, train_here
from utils.files import read_csv

SHARED = ROOT.parent / "shared" / "data"


def unpack(archive, target, wanted=lambda name: True):
    path = SHARED / archive
    if not path.is_file():
        pytest.skip(f"{archive} is not at ../shared/data")

    def choose(member, directory):
        return tarfile.data_filter(member, directory) if wanted(member.name) else None

    with tarfile.open(path) as tar:
        tar.extractall(target, filter=choose)


def train_on(tmp_path, *flags):
    """Train; returns the rows of metrics.csv and the facts of the data."""
    run_dir = train_here(tmp_path / "runs", *flags)
    return read_csv(run_dir / "metrics.csv"), read_config(run_dir).facts


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["CE", "BCE"])
def test_mnist_is_learned(tmp_path, loss):
    unpack("mnist.tar.xz", tmp_path)
    flags = ["--dataset", "mnist", "--data_dir", tmp_path, "--model", "MLP", "--width", 256]
    flags += ["--depth", 2, "--sample_size", 500, "--test_sample_size", 100, "--epochs", 3]
    rows, data = train_on(tmp_path, *flags, "--loss", loss, "--lr", 0.05)
    assert float(rows[-1]["test_top1"]) > 90
    assert (data["train_size"], data["image_shape"]) == (5000, [3, 32, 32])


@pytest.mark.slow
def test_cifar10_jpeg_is_learned_from_a_folder(tmp_path):
    # The first 100 images of each class: 0000.jpg, 0001.jpg, …
    unpack("cifar10-jpeg.tar.xz", tmp_path, lambda name: not name.endswith(".jpg") or "/00" in name)
    flags = ["--dataset", "folder", "--data_dir", tmp_path / "cifar10-jpeg", "--augment", "DA1"]
    flags += ["--model", "MLP", "--width", 256, "--depth", 2, "--batch_size", 50]
    flags += ["--sample_size", 100, "--test_sample_size", 20, "--epochs", 5]
    rows, data = train_on(tmp_path, *flags, "--schedule", "constant", "--lr", 0.01)
    assert float(rows[-1]["train_loss"]) < 0.9 * float(rows[0]["train_loss"])
    assert float(rows[-1]["test_top1"]) > 15  # about 30 is reached, 10 is chance
    assert (data["num_classes"], data["train_size"], data["test_size"]) == (10, 1000, 200)
    assert data["classes"][0] == "airplane"
    # measured on 1,000 images, near the published constants of the whole set
    assert data["mean"] == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.02)
