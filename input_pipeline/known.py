"""MNIST, CIFAR-10 and CIFAR-100, which torchvision downloads and reads.

The readers return (images uint8 [N, C, H, W], labels int64 [N], class names) of one split. They
raise UserError where files are corrupt, or absent and can't be downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import check_integrity

from input_pipeline.download import download
from utils.errors import UserError


def read_mnist(data_dir: Path, train: bool) -> tuple[Tensor, Tensor, list[str]]:
    """Read MNIST's 28×28 grey images from `<data_dir>/MNIST/raw`."""
    folder = data_dir / "MNIST" / "raw"
    archives = [archive for archive, _ in MNIST.resources]
    absent = [archive for archive in archives if not (folder / archive).with_suffix("").is_file()]
    if absent:
        download(MNIST, data_dir, absent, MNIST.mirrors[0], folder)
    part = "train" if train else "t10k"
    images_file = folder / f"{part}-images-idx3-ubyte"
    labels_file = folder / f"{part}-labels-idx1-ubyte"
    images = _read_idx(read_image_file, images_file)
    labels = _read_idx(read_label_file, labels_file)
    if len(images) != len(labels):
        raise UserError(
            f"{images_file} holds {len(images)} images but {labels_file.name} {len(labels)} "
            "labels: delete both and run again to download them"
        )
    if len(labels) == 0 or labels.max() > 9:
        raise UserError(_explain_corrupt(labels_file, "its labels are not all in 0…9"))
    return images[:, None], labels, [str(digit) for digit in range(10)]


def _read_idx(reader: Callable[[str], Tensor], path: Path) -> Tensor:
    """Read an IDX file with one of torchvision's readers."""
    try:
        return reader(str(path))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    # The readers raise any of these, depending on where the file stops making sense.
    except (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = "it is not a whole IDX file of its kind"
        raise UserError(_explain_corrupt(path, reason)) from error


def read_cifar10(data_dir: Path, train: bool) -> tuple[Tensor, Tensor, list[str]]:
    """Read CIFAR-10's 32×32 colour images from `<data_dir>/cifar-10-batches-py`."""
    return _read_cifar(CIFAR10, data_dir, train)


def read_cifar100(data_dir: Path, train: bool) -> tuple[Tensor, Tensor, list[str]]:
    """Read CIFAR-100's, with the fine labels, from `<data_dir>/cifar-100-python`."""
    return _read_cifar(CIFAR100, data_dir, train)


def _read_cifar(
    cifar: type[CIFAR10], data_dir: Path, train: bool
) -> tuple[Tensor, Tensor, list[str]]:
    folder = data_dir / cifar.base_folder
    try:
        data = cifar(data_dir, train=train)
    except OSError as error:
        raise UserError(f"{folder} can't be read: {error}") from error
    except RuntimeError:
        # torchvision raises it for absent and for corrupt files. Only the first deserve a download.
        _check_present(cifar, data_dir)
        download(cifar, data_dir, [cifar.filename], cifar.url, data_dir)
        data = cifar(data_dir, train=train)
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(data.targets, dtype=torch.int64)
    if len(images) != len(labels) or labels.min() < 0 or labels.max() >= len(data.classes):
        reason = f"its labels don't fit its {len(images)} images and its classes"
        raise UserError(_explain_corrupt(folder, reason))
    return images, labels, list(data.classes)


def _explain_corrupt(path: Path, reason: str) -> str:
    return f"{path} is corrupt ({reason}): delete it and run again to download it"


def _check_present(cifar: type[CIFAR10], data_dir: Path) -> None:
    """Raise UserError for a batch file that is there but not as published."""
    folder = data_dir / cifar.base_folder
    meta = (cifar.meta["filename"], cifar.meta["md5"])
    listed = [(folder / file, md5) for file, md5 in (*cifar.train_list, *cifar.test_list, meta)]
    present = [(path, md5) for path, md5 in listed if path.is_file()]
    for path, md5 in present:
        if not check_integrity(path, md5):
            raise UserError(_explain_corrupt(path, "its MD5 is not that of the published file"))
    meta_path = folder / cifar.meta["filename"]
    if len(present) == len(listed) - 1 and not meta_path.is_file():
        # torchvision doesn't count it among the files to download.
        raise UserError(f"{meta_path} is missing: delete {folder} and run again to download it")
