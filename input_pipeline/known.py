"""MNIST, CIFAR-10 and CIFAR-100 through torchvision, read into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import check_integrity

from input_pipeline.digits import read_digits
from input_pipeline.download import download
from input_pipeline.pixels import channel_stats, resize
from input_pipeline.selection import Selection
from input_pipeline.splits import DataSet, TensorSplit
from utils.errors import UserError

# The paper's, per channel, in units of the full range 0…1.
_CIFAR_STATS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_STATS = {
    "mnist": ((0.1307,) * 3, (0.3081,) * 3),
    "cifar10": _CIFAR_STATS,
    "cifar100": _CIFAR_STATS,
}
MNIST_SIZE = 32  # pixels; the paper resizes 28×28 to its models' input
CIFAR_SIZE, DIGITS_SIZE = 32, 8


def load_known(
    name: str,
    data_dir: Path,
    img_size: int | None,
    selections: dict[str, Selection],
    splits: Sequence[str],
) -> DataSet:
    """The sets that torchvision and scikit-learn know."""
    if name != "digits" and data_dir.exists() and not data_dir.is_dir():
        raise UserError(f"--data_dir {data_dir} is not a directory")
    read = {"mnist": _read_mnist, "digits": read_digits}.get(name, _read_cifar)
    side = img_size or (MNIST_SIZE if name == "mnist" else None)
    loaded = {}
    # Sets without known constants are measured on the training images, asked for or not.
    for split in splits if name in _STATS else dict.fromkeys(("train", *splits)):
        images, labels, classes = read(name, data_dir, split == "train")
        kept = selections[split].numbers(labels, classes)
        images = resize(images[kept], side)
        loaded[split] = TensorSplit(images.expand(-1, 3, -1, -1).contiguous(), labels[kept])
    mean, std = _STATS[name] if name in _STATS else channel_stats([loaded["train"].images])
    shape = (3, *next(iter(loaded.values())).image_size)
    train, test = (loaded[s] if s in splits else None for s in ("train", "test"))
    return DataSet(name, classes, shape, mean, std, train, test)


def _read_mnist(name: str, data_dir: Path, train: bool) -> tuple[Tensor, Tensor, list[str]]:
    """MNIST's 28×28 grey images from `<data_dir>/MNIST/raw`."""
    folder = data_dir / "MNIST" / "raw"
    archives = [archive for archive, _ in MNIST.resources]
    absent = [archive for archive in archives if not (folder / archive).with_suffix("").is_file()]
    if absent:
        download(MNIST, data_dir, absent, MNIST.mirrors[0], folder)
    part = "train" if train else "t10k"
    images_file = folder / f"{part}-images-idx3-ubyte"
    labels_file = folder / f"{part}-labels-idx1-ubyte"
    images, labels = (
        _read_idx(read_image_file, images_file),
        _read_idx(read_label_file, labels_file),
    )
    if len(images) != len(labels):
        raise UserError(
            f"{images_file} holds {len(images)} images but {labels_file.name} {len(labels)} "
            "labels: delete both and run again to download them anew"
        )
    if len(labels) == 0 or labels.max() > 9:
        raise _corrupt(labels_file, "its labels are not all in 0…9")
    return images[:, None], labels, [str(digit) for digit in range(10)]


def _read_idx(reader: Callable[[str], Tensor], path: Path) -> Tensor:
    try:
        return reader(str(path))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    # What torchvision's readers end in, by where the file stops making sense.
    except (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _corrupt(path, "it is not a whole IDX file of its kind") from error


def _read_cifar(name: str, data_dir: Path, train: bool) -> tuple[Tensor, Tensor, list[str]]:
    """CIFAR-10 or CIFAR-100 (fine labels), 32×32 colour images."""
    cifar = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder = data_dir / cifar.base_folder
    try:
        data = cifar(data_dir, train=train)
    except OSError as error:
        raise UserError(f"{folder} can't be read: {error}") from error
    except RuntimeError:
        # torchvision's one answer to absent and corrupt files; only the first is worth a download.
        _refuse_present(cifar, data_dir)
        download(cifar, data_dir, [cifar.filename], cifar.url, data_dir)
        data = cifar(data_dir, train=train)
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(data.targets, dtype=torch.int64)
    if len(images) != len(labels) or labels.min() < 0 or labels.max() >= len(data.classes):
        raise _corrupt(folder, f"its labels don't fit its {len(images)} images and its classes")
    return images, labels, list(data.classes)


def _corrupt(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is corrupt ({reason}): delete it and run again to download it anew")


def _refuse_present(cifar: type[CIFAR10], data_dir: Path) -> None:
    """Raise UserError for a batch file that is there but not as published."""
    folder = data_dir / cifar.base_folder
    meta = (cifar.meta["filename"], cifar.meta["md5"])
    listed = [(folder / file, md5) for file, md5 in (*cifar.train_list, *cifar.test_list, meta)]
    present = [(path, md5) for path, md5 in listed if path.is_file()]
    for path, md5 in present:
        if not check_integrity(path, md5):
            raise _corrupt(path, "its MD5 is not that of the published file")
    meta_path = folder / cifar.meta["filename"]
    if len(present) == len(listed) - 1 and not meta_path.is_file():
        # torchvision doesn't count it among the files to download.
        raise UserError(f"{meta_path} is missing: delete {folder} and run again to download it")
