"""Data sets as uint8 images with labels, in memory or decoded from files on demand.

`load_dataset` is the entry. MNIST, CIFAR-10 and CIFAR-100 come through torchvision (downloaded
where absent), `digits` from scikit-learn, `folder` from image files sorted into class folders.
All images have three channels. Normalisation constants of MNIST and CIFAR are the paper's; those of
the other sets are measured on the training images used.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import io
import multiprocessing
import os
import signal
import socket
import sys
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10, CIFAR100, MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import check_integrity
from torchvision.transforms import v2

from utils.errors import UserError
from utils.longtail import long_tailed_sizes

DATASETS = ("mnist", "cifar10", "cifar100", "digits", "folder")

# The paper's, per channel, in units of the full range 0…1.
_CIFAR_STATS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_STATS = {
    "mnist": ((0.1307,) * 3, (0.3081,) * 3),
    "cifar10": _CIFAR_STATS,
    "cifar100": _CIFAR_STATS,
}
_MNIST_SIZE = 32  # pixels; the paper resizes 28×28 to its models' input
_CIFAR_SIZE, _DIGITS_SIZE = 32, 8

IN_MEMORY_BYTES = 2 * 1024**3  # a folder whose decoded images take more is streamed
_STATS_IMAGES = 10_000  # at most so many images of a streamed set are measured
_CHUNK = 1024  # images handled at a time, to bound temporary memory
_DECODE_CHUNK = 64  # files a worker decodes at a time
_EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
)
_DOWNLOAD_TIMEOUT = 15  # seconds without an answer
# What a failed connection, a full disk or a cut-off archive end in.
_DOWNLOAD_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    http.client.HTTPException,
    tarfile.TarError,
    zlib.error,
)


@dataclass(frozen=True, eq=False)
class TensorSplit:
    """Samples held in memory.

    Attributes:
        images: uint8 [N, 3, H, W].
        labels: int64 [N].
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return tuple(self.images.shape[-2:])

    def fetch(self, indices: Tensor) -> Tensor:
        """Images uint8 [B, 3, H, W] of the samples `indices`, int64 [B] on the images' device."""
        return self.images[indices]

    def select(self, indices: Tensor) -> TensorSplit:
        """The samples `indices`, int64 [B], alone."""
        return TensorSplit(self.images[indices], self.labels[indices])

    def to(self, device: torch.device | str) -> TensorSplit:
        """The same samples on `device`."""
        return TensorSplit(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Samples in image files, decoded on demand.

    Attributes:
        paths: N image files.
        labels: int64 [N].
        image_size: (H, W) in pixels of every decoded image.
        size_from: the file whose size all others must share, or None where images of another
            size are resized and cropped (then H = W).
    """

    paths: Sequence[str]
    labels: Tensor
    image_size: tuple[int, int]
    size_from: str | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Iterable[int]) -> Tensor:
        """Decode the samples `indices`, B in number.

        Returns:
            uint8 [B, 3, H, W] on the CPU.

        Raises:
            UserError: a file can't be decoded, or its size isn't that of `size_from`.
        """
        numbers = list(indices)
        images = np.empty((len(numbers), 3, *self.image_size), dtype=np.uint8)
        with warnings.catch_warnings():
            # Pillow warns of oddities in metadata, which say nothing about the pixels.
            warnings.simplefilter("ignore")
            for image, number in zip(images, numbers, strict=True):
                image[:] = self._decode(self.paths[number]).transpose(2, 0, 1)
        return torch.from_numpy(images)

    def select(self, indices: Tensor) -> FileSplit:
        """The samples `indices`, int64 [B], alone."""
        paths = [self.paths[i] for i in indices.tolist()]
        return FileSplit(paths, self.labels[indices], self.image_size, self.size_from)

    def to(self, device: torch.device | str) -> FileSplit:
        """The same samples with the labels on `device`; the images remain files."""
        return FileSplit(self.paths, self.labels.to(device), self.image_size, self.size_from)

    def _decode(self, path: str) -> np.ndarray:
        """One file as uint8 [H, W, 3]."""
        image = _open_rgb(path)
        size = (image.height, image.width)
        if size == self.image_size:
            return np.asarray(image)
        if self.size_from is None:
            return np.asarray(_fit(image, self.image_size[0]))
        (h0, w0), (h1, w1) = self.image_size, size
        raise UserError(
            f"images differ in size: {self.size_from} is {w0}×{h0} pixels, {path} is {w1}×{h1}; "
            "give --img_size to resize them all"
        )


Split = TensorSplit | FileSplit


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set ready for loaders.

    Attributes:
        name: one of `DATASETS`.
        classes: K class names; labels are indices into it.
        image_shape: (3, H, W).
        mean, std: three numbers each, per channel, in units of the full range 0…1.
        train, test: the samples; None where the split was not asked for.
    """

    name: str
    classes: list[str]
    image_shape: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train: Split | None
    test: Split | None

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def side(self) -> int:
        """The shorter side of the images in pixels."""
        return min(self.image_shape[1:])

    @property
    def class_sizes(self) -> list[int] | None:
        """Training images of each class; None where that split was not asked for."""
        if self.train is None:
            return None
        return torch.bincount(self.train.labels.cpu(), minlength=self.num_classes).tolist()

    def facts(self) -> dict[str, Any]:
        """What config.json keeps: what a resumed or evaluated run must find unchanged."""
        sizes = {"train_size": self.train, "test_size": self.test}
        class_sizes = self.class_sizes
        return {
            "num_classes": self.num_classes,
            "classes": list(self.classes),
            "image_shape": list(self.image_shape),
            "mean": list(self.mean),
            "std": list(self.std),
            **{key: len(split) for key, split in sizes.items() if split is not None},
            **({} if class_sizes is None else {"class_sizes": class_sizes}),
        }


def load_dataset(
    name: str,
    data_dir: str | Path,
    *,
    img_size: int | None = None,
    sample_size: int | None = None,
    imbalance_factor: float = 1.0,
    test_sample_size: int | None = None,
    num_workers: int = 0,
    splits: Sequence[str] = ("train", "test"),
    in_memory_bytes: int | None = None,
) -> DataSet:
    """Load a data set, downloading it first where torchvision knows a source and it is absent.

    Args:
        name: one of `DATASETS`.
        data_dir: where torchvision's sets lie or are put; the root of a `folder`.
        img_size: side in pixels all images are resized to; None keeps the native size (MNIST: 32).
        sample_size: use only the first so many training images of each class, in the set's order.
        imbalance_factor: above 1, cut the training set to a long tail. With n the size of the
            largest class (after `sample_size`), class k keeps the first
            ⌊n · factor^(−k/(K−1))⌋ of its images, at least one, or all where it has fewer; only
            classes of equal size follow the profile exactly. The test set stays as it is.
        test_sample_size: `sample_size` of the test set.
        num_workers: processes that decode a folder's files; 0 decodes in this one.
        splits: which of "train" and "test" to return images for. Where mean and std are measured,
            that is on the training images either way: give the same `sample_size` and
            `imbalance_factor` to get the same.
        in_memory_bytes: a folder whose decoded images take more is streamed; None: 2 GiB.

    Raises:
        UserError: an unknown name, a number out of range, absent, corrupt or inconsistent files,
            or a failed download.
    """
    if name not in DATASETS:
        raise UserError(f"data set {name!r} is unknown: use one of {', '.join(DATASETS)}")
    numbers = {"img_size": img_size, "sample_size": sample_size}
    numbers |= {"imbalance_factor": imbalance_factor, "test_sample_size": test_sample_size}
    for flag, value in numbers.items():
        if value is not None and not value >= 1:
            raise UserError(f"--{flag} {value} is too small: use 1 or more")
    selections = {
        "train": _Selection("train", sample_size, imbalance_factor),
        "test": _Selection("test", test_sample_size),
    }
    if name == "folder":
        return _load_folder(
            Path(data_dir), img_size, selections, num_workers, splits, in_memory_bytes
        )
    return _load_known(name, Path(data_dir), img_size, selections, splits)


def image_side(name: str, data_dir: str | Path, img_size: int | None) -> int:
    """The shorter side in pixels of the images that `load_dataset` will give, without loading them.

    Of a folder that keeps its images' size, that of the first training image. Raises UserError as
    `load_dataset` does for a folder without images.
    """
    if img_size is not None:
        return img_size
    if name != "folder":
        return {"mnist": _MNIST_SIZE, "digits": _DIGITS_SIZE}.get(name, _CIFAR_SIZE)
    folders = _split_folders(Path(data_dir))
    paths, _ = _list_files(folders["train"], _common_classes(folders)[:1])
    return min(_size_of(paths[0]))


@dataclass(frozen=True)
class _Selection:
    """Which samples of a split are used: the first so many of each class.

    Attributes:
        split: "train" or "test".
        sample_size: of each class; None takes all.
        imbalance_factor: of the long tail made of these; 1 leaves them.
    """

    split: str
    sample_size: int | None
    imbalance_factor: float = 1.0

    def numbers(self, labels: Tensor, classes: list[str]) -> Tensor:
        """The samples, int64 and ascending, of a split of these labels. Raises UserError."""
        counts = torch.bincount(labels, minlength=len(classes))
        return first_per_class(labels, self._tail(self._equal(counts, classes)))

    def _equal(self, counts: Tensor, classes: list[str]) -> Tensor:
        """The class sizes [K] that sample_size leaves of `counts` [K]."""
        if self.sample_size is None:
            return counts
        fewest = int(counts.argmin())
        if self.sample_size > counts[fewest]:
            flag = {"train": "--sample_size", "test": "--test_sample_size"}[self.split]
            raise UserError(
                f"{flag} {self.sample_size} is more than the {counts[fewest]} {self.split} images "
                f"of class {classes[fewest]!r}: use at most {counts[fewest]}"
            )
        return torch.full_like(counts, self.sample_size)

    def _tail(self, counts: Tensor) -> Tensor:
        """The class sizes [K] that the long tail leaves of `counts` [K]."""
        if self.imbalance_factor == 1:
            return counts
        profile = long_tailed_sizes(int(counts.max()), len(counts), self.imbalance_factor)
        sizes = torch.minimum(counts, torch.tensor(profile))
        if torch.equal(sizes, counts):
            raise UserError(
                f"--imbalance_factor {self.imbalance_factor:g} has no effect here: no class has "
                f"more images than the long tail of the largest, which has {counts.max()}"
            )
        return sizes


# --- sets in memory -------------------------------------------------------------------------------


def _load_known(
    name: str,
    data_dir: Path,
    img_size: int | None,
    selections: dict[str, _Selection],
    splits: Sequence[str],
) -> DataSet:
    """The sets that torchvision and scikit-learn know."""
    if name != "digits" and data_dir.exists() and not data_dir.is_dir():
        raise UserError(f"--data_dir {data_dir} is not a directory")
    read = {"mnist": _read_mnist, "digits": _read_digits}.get(name, _read_cifar)
    side = img_size or (_MNIST_SIZE if name == "mnist" else None)
    loaded = {}
    # Sets without known constants are measured on the training images, asked for or not.
    for split in splits if name in _STATS else dict.fromkeys(("train", *splits)):
        images, labels, classes = read(name, data_dir, split == "train")
        kept = selections[split].numbers(labels, classes)
        images = _resize(images[kept], side)
        loaded[split] = TensorSplit(images.expand(-1, 3, -1, -1).contiguous(), labels[kept])
    mean, std = _STATS[name] if name in _STATS else channel_stats([loaded["train"].images])
    shape = (3, *next(iter(loaded.values())).image_size)
    train, test = (loaded[s] if s in splits else None for s in ("train", "test"))
    return DataSet(name, classes, shape, mean, std, train, test)


def _read_digits(name: str, data_dir: Path, train: bool) -> tuple[Tensor, Tensor, list[str]]:
    """scikit-learn's 8×8 digits, grey values 0…16, in a fixed stratified 80/20 split."""
    # Only this set needs scikit-learn, which takes a second to import.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    numbers = np.arange(len(digits.target))
    parts = train_test_split(numbers, test_size=0.2, stratify=digits.target, random_state=0)
    chosen = np.sort(parts[0 if train else 1])
    images = np.round(digits.images[chosen] * 255 / 16).astype(np.uint8)
    labels = torch.from_numpy(digits.target[chosen]).long()
    return torch.from_numpy(images)[:, None], labels, [str(c) for c in digits.target_names]


def _read_mnist(name: str, data_dir: Path, train: bool) -> tuple[Tensor, Tensor, list[str]]:
    """MNIST's 28×28 grey images from `<data_dir>/MNIST/raw`."""
    folder = data_dir / "MNIST" / "raw"
    archives = [archive for archive, _ in MNIST.resources]
    absent = [archive for archive in archives if not (folder / archive).with_suffix("").is_file()]
    if absent:
        _download(MNIST, data_dir, absent, MNIST.mirrors[0], folder)
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
        _download(cifar, data_dir, [cifar.filename], cifar.url, data_dir)
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


def _download(
    dataset: type[MNIST | CIFAR10], data_dir: Path, archives: list[str], source: str, folder: Path
) -> None:
    """Have torchvision download and unpack a set; its talk is kept off the console.

    Args:
        dataset: torchvision's class.
        data_dir: its root.
        archives: the files wanted, `source` where they are published, `folder` where they belong:
            told where the download fails.
    """
    timeout = socket.getdefaulttimeout()
    try:
        # torchvision sets no time limit, and an unanswered connection would hang for minutes.
        socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
        with _quiet():
            dataset(data_dir, download=True)
    except _DOWNLOAD_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        broken = [archive for archive in archives if (folder / archive).is_file()]
        note = f" in place of the incomplete {', '.join(broken)} there" if broken else ""
        raise UserError(
            f"{dataset.__name__} is not in {data_dir} and can't be downloaded ({reason}): "
            f"get {', '.join(archives)} from {source} and put it into {folder}{note}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what is printed, but keep a progress bar that a person can see on a terminal."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if not sys.stderr.isatty():
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


def first_per_class(labels: Tensor, limits: Tensor | int) -> Tensor:
    """Numbers, int64 and ascending, of the first samples of each class of labels [N].

    `limits` are how many of each class [K], or one number for all; all samples of a class that has
    fewer.
    """
    counts = torch.bincount(labels)
    limits = torch.full_like(counts, limits) if isinstance(limits, int) else limits
    by_class = labels.argsort(stable=True)
    sorted_labels = labels[by_class]
    firsts = counts.cumsum(0) - counts
    rank = torch.arange(len(labels)) - firsts[sorted_labels]
    return by_class[rank < limits[sorted_labels]].sort().values


def _resize(images: Tensor, side: int | None) -> Tensor:
    """Resize uint8 [N, C, H, W] to side×side pixels (bilinear, antialiased); None: as they are."""
    if side is None or images.shape[-2:] == (side, side):
        return images
    resized = images.new_empty((*images.shape[:2], side, side))
    for source, target in zip(images.split(_CHUNK), resized.split(_CHUNK), strict=True):
        values = F.interpolate(source.float(), (side, side), mode="bilinear", antialias=True)
        target.copy_(values.round_().clamp_(0, 255))
    return resized


def channel_stats(batches: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each channel over all pixels, in float64.

    Args:
        batches: uint8 [B, 3, H, W] each.

    Returns:
        (mean, std), three numbers each, in units of the full range 0…1. A std of 0 becomes 1, so
        that a constant channel can be divided by it.
    """
    # Pixels take 256 values: counting them is exact however many there are.
    counts = torch.zeros(3, 256, dtype=torch.float64)
    for chunk in (chunk for batch in batches for chunk in batch.split(_CHUNK)):
        for channel in range(3):
            counts[channel] += torch.bincount(chunk[:, channel].flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    std = (share * (values - mean[:, None]) ** 2).sum(1).sqrt()
    std[std == 0] = 1
    return tuple(mean.tolist()), tuple(std.tolist())


# --- folders of image files -----------------------------------------------------------------------


def _load_folder(
    root: Path,
    img_size: int | None,
    selections: dict[str, _Selection],
    num_workers: int,
    splits: Sequence[str],
    in_memory_bytes: int | None,
) -> DataSet:
    """Image files under `<root>/train/<class>` and `<root>/test/<class>` (or `val`)."""
    folders = _split_folders(root)
    classes = _common_classes(folders)
    listed = {s: _list_files(folder, classes) for s, folder in folders.items()}
    for split, (paths, labels) in listed.items():
        kept = selections[split].numbers(labels, classes)
        listed[split] = [paths[i] for i in kept.tolist()], labels[kept]
    first = listed["train"][0][0]
    size, size_from = ((img_size, img_size), None) if img_size else (_size_of(first), first)
    files = {s: FileSplit(*found, size, size_from) for s, found in listed.items()}

    # Both splits count, asked for or not, so that training and evaluation decide and measure alike.
    decoded_bytes = sum(len(split) for split in files.values()) * 3 * size[0] * size[1]
    if decoded_bytes <= (IN_MEMORY_BYTES if in_memory_bytes is None else in_memory_bytes):
        # The training images are measured even where only the test split is asked for.
        loaded = {s: _decode_all(files[s], num_workers) for s in dict.fromkeys(("train", *splits))}
        mean, std = channel_stats([loaded["train"].images])
    else:
        loaded = files
        mean, std = channel_stats(_spread_sample(files["train"], num_workers))
    train, test = (loaded[s] if s in splits else None for s in ("train", "test"))
    return DataSet("folder", classes, (3, *size), mean, std, train, test)


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of the two splits, by the split's name."""
    train = root / "train"
    if not train.is_dir():
        raise UserError(f"{train} is missing: a folder data set lies in train/<class>/* below it")
    for name in ("test", "val"):
        if (root / name).is_dir():
            return {"train": train, "test": root / name}
    raise UserError(f"{root} holds neither test/<class>/* nor val/<class>/*: add one of them")


def _common_classes(folders: dict[str, Path]) -> list[str]:
    """Sorted class names, the same in both splits."""
    train, test = (_class_names(folders[split]) for split in ("train", "test"))
    if len(train) < 2:
        raise UserError(
            f"{folders['train']} holds {len(train)} class folders: put the images of each class, "
            "at least 2 classes, into a folder of its own there"
        )
    if train == test:
        return train
    differing = sorted(set(train) ^ set(test))
    named = ", ".join(repr(name) for name in differing[:5])
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    raise UserError(
        f"{folders['train']} and {folders['test']} must hold the same classes, but only one of "
        f"them has {named}{more}: add or remove these folders"
    )


def _class_names(folder: Path) -> list[str]:
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} can't be read: {error.strerror}") from error
    return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _list_files(folder: Path, classes: list[str]) -> tuple[list[str], Tensor]:
    """Image files of all classes, class by class in sorted order, and their labels int64 [N]."""
    by_class = [_image_files(folder / name) for name in classes]
    for name, files in zip(classes, by_class, strict=True):
        if not files:
            extensions = ", ".join(sorted(_EXTENSIONS))
            raise UserError(
                f"{folder / name} holds no images ({extensions}): add some or remove it"
            )
    counts = torch.tensor([len(files) for files in by_class])
    labels = torch.arange(len(classes)).repeat_interleave(counts)
    return [path for files in by_class for path in files], labels


def _image_files(folder: Path) -> list[str]:
    """Paths of the image files at any depth below `folder`, sorted; hidden ones are ignored."""
    found = []
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        shown = (name for name in names if not name.startswith("."))
        images = (name for name in shown if os.path.splitext(name)[1].lower() in _EXTENSIONS)
        found += [os.path.join(parent, name) for name in images]
    return sorted(found)


def _spread_sample(split: FileSplit, num_workers: int) -> Iterator[Tensor]:
    """At most `_STATS_IMAGES` evenly spaced images, as uint8 [B, 3, H, W] batches."""
    count = min(len(split), _STATS_IMAGES)
    numbers = torch.arange(count) * len(split) // count
    return _decode(split, numbers, num_workers)


def _decode_all(split: FileSplit, num_workers: int) -> TensorSplit:
    """Decode every file once; the order is kept."""
    # NumPy copies: torch's would wake all threads for a few kilobytes at a time.
    images = np.empty((len(split), 3, *split.image_size), dtype=np.uint8)
    filled = 0
    for batch in _decode(split, torch.arange(len(split)), num_workers):
        images[filled : filled + len(batch)] = batch.numpy()
        filled += len(batch)
    return TensorSplit(torch.from_numpy(images), split.labels)


def _decode(split: FileSplit, numbers: Tensor, num_workers: int) -> Iterator[Tensor]:
    chunks = [chunk.tolist() for chunk in numbers.split(_DECODE_CHUNK)]
    return decoded_batches(decoding_loader(split, chunks, num_workers=num_workers))


# --- decoding -------------------------------------------------------------------------------------


def decoding_loader(
    split: FileSplit,
    batches: Iterable[list[int]],
    *,
    num_workers: int,
    pin_memory: bool = False,
    persistent: bool = False,
) -> DataLoader:
    """A DataLoader that decodes batches of a FileSplit; read it through `decoded_batches`.

    Args:
        split: the files.
        batches: lists of sample numbers, iterated anew in each epoch.
        num_workers: processes that decode; 0 decodes in this one.
        pin_memory: deliver in page-locked memory, for copies that don't block.
        persistent: keep the workers between epochs.
    """
    return DataLoader(
        _Decoder(split),
        sampler=batches,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=persistent and num_workers > 0,
        worker_init_fn=init_worker,
        # A DataLoader without its own generator would draw from the default one at each epoch,
        # and the model's dropout would depend on how the data is loaded.
        generator=torch.Generator(),
    )


def decoded_batches(loader: DataLoader) -> Iterator[Tensor]:
    """uint8 [B, 3, H, W] batches on the CPU, in order.

    Raises:
        UserError: a file can't be decoded, wherever that happened, or a worker process died.
    """
    batches = iter(loader)
    if loader.num_workers > 0:
        # Anew each time: of functions to be called at exit, the last one registered is first.
        atexit.unregister(_end_workers)
        atexit.register(_end_workers)
    try:
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0].rstrip(". ")
        raise UserError(f"{reason}: free some memory or lower --num_workers") from error


def init_worker(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM, which reach the whole process group, to the main process.

    It finishes its step, for which it may still need batches, and then ends the workers through
    their queue; a worker whose main process was killed notices and leaves by itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end_workers() -> None:
    """End workers that a loader kept alive (by a traceback, in a notebook) still has at exit.

    DataLoader would send them SIGTERM, which they leave to the main process, and wait for ever.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # DataLoader's handler would complain
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class _Decoder:
    """The map-style data set behind `decoding_loader`: a list of numbers -> a batch.

    Errors are returned, not raised: DataLoader would wrap them into a worker's traceback.
    """

    def __init__(self, split: FileSplit) -> None:
        # Labels may be on a GPU, which a worker must not touch.
        self.split = split.to("cpu")

    def __getitem__(self, numbers: list[int]) -> Tensor | UserError:
        try:
            return self.split.fetch(numbers)
        except UserError as error:
            return error


def _size_of(path: str) -> tuple[int, int]:
    """(height, width) in pixels of an image file."""
    image = _open_rgb(path)
    return image.height, image.width


def _open_rgb(path: str) -> Image.Image:
    """Decode a file to 8-bit RGB."""
    try:
        with Image.open(path) as image:
            return _to_rgb(image)
    except MemoryError:
        raise
    # Broken data makes Pillow's decoders raise nearly anything: SyntaxError, struct.error, …
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        reason = reason or type(error).__name__
        raise UserError(f"{path} can't be decoded as an image ({reason}): replace it") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    # Pillow would clip 16-bit grey at 255 and show white.
    grey = np.round(np.clip(np.asarray(image), 0, 65535) / 257)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _fit(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to `side` pixels and crop the centre square."""
    resized = v2.functional.resize(image, [side], v2.InterpolationMode.BILINEAR, antialias=True)
    return v2.functional.center_crop(resized, [side, side])
