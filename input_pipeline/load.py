"""None"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from input_pipeline.folder import (
    common_classes,
    list_files,
    load_folder,
    split_folders,
)
from input_pipeline.image_files import size_of
from input_pipeline.known import (
    CIFAR_SIZE,
    DIGITS_SIZE,
    MNIST_SIZE,
    load_known,
)
from input_pipeline.selection import Selection
from input_pipeline.splits import DataSet
from utils.errors import UserError

DATASETS = ("mnist", "cifar10", "cifar100", "digits", "folder")


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
        "train": Selection("train", sample_size, imbalance_factor),
        "test": Selection("test", test_sample_size),
    }
    if name == "folder":
        return load_folder(
            Path(data_dir), img_size, selections, num_workers, splits, in_memory_bytes
        )
    return load_known(name, Path(data_dir), img_size, selections, splits)


def image_side(name: str, data_dir: str | Path, img_size: int | None) -> int:
    """The shorter side in pixels of the images that `load_dataset` will give, without loading them.

    Of a folder that keeps its images' size, that of the first training image. Raises UserError as
    `load_dataset` does for a folder without images.
    """
    if img_size is not None:
        return img_size
    if name != "folder":
        return {"mnist": MNIST_SIZE, "digits": DIGITS_SIZE}.get(name, CIFAR_SIZE)
    folders = split_folders(Path(data_dir))
    paths, _ = list_files(folders["train"], common_classes(folders)[:1])
    return min(size_of(paths[0]))
