"""The registries of data sources and augmentations, by name.

Imports no torch: an entry names its functions as text, "package.module:function".
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

Channels = tuple[float, float, float]

# The paper's, per channel, in units of the full range 0…1.
MNIST_MEAN: Channels = (0.1307, 0.1307, 0.1307)
MNIST_STD: Channels = (0.3081, 0.3081, 0.3081)
CIFAR_MEAN: Channels = (0.4914, 0.4822, 0.4465)
CIFAR_STD: Channels = (0.2023, 0.1994, 0.2010)

SPLITS = ("train", "test")

# The number of the rules by which stored samples become pixels. config.json records it. A change of
# any pixel raises it. Up to 1, images in memory were resized in floating point.
PIXELS = 2

# DA1: the angle of its rotation is part of a source's entry.
CROP_FLIP_ROTATE = (
    "input_pipeline.augmentation:CropAndFlip",
    "input_pipeline.augmentation:Rotation",
)
BATCH_MIXER = "input_pipeline.augmentation:BatchMixer"  # DA2
RESIZED_CROP = "input_pipeline.cropping:ResizedCrop"


@dataclass(frozen=True)
class Source:
    """A data source: a function that reads its samples, and what the program must know of them.

    The function is called as `reader(data_dir: Path, train: bool)`, once for each split, and
    returns `(images, labels, classes)`:

    - images: uint8 [N, C, H, W] with C = 1 or 3. A source that streams returns the paths of N image
      files in their place: list[str], or an input_pipeline.listing.Listing with notes for the log.
    - labels: int64 [N], indices into `classes`.
    - classes: K names, the same for both splits.

    It raises UserError where files are absent, corrupt or inconsistent. `load_dataset` does the
    rest: it selects samples, decodes files, resizes, repeats a single channel, and measures mean
    and std where the entry has none. CONTRIBUTING.md has a complete source.

    Attributes:
        reader: the function.
        title: its name in reports and figures.
        side: pixels to which images are resized unless --img_size is given. None: they keep their
            size.
        side_finder: a function of `data_dir` that returns the shorter side in pixels where `side`
            is None. It may raise UserError. None: the samples are read to find the side.
        mean, std: per channel, in units of the full range 0…1. None: measured on the training
            images.
        rotation: the largest angle of DA1 in degrees.
        num_classes: K, where it is known beforehand.
        sizes: images of the training and of the test set, where they are known beforehand.
        streams: the source consists of image files, which worker processes decode. They are held in
            memory if they are few.
        named_by_directory: whether its samples are named by the directory they lie in, because the
            source reads any.
        bundled_with: the package that the samples come with, so that they need no --data_dir.
        help: what it is, in a few words, if its name does not show it.
    """

    reader: str
    title: str
    side: int | None = None
    side_finder: str | None = None
    mean: Channels | None = None
    std: Channels | None = None
    rotation: float = 0.0
    num_classes: int | None = None
    sizes: tuple[int, int] | None = None
    streams: bool = False
    named_by_directory: bool = False
    bundled_with: str | None = None
    help: str = ""


@dataclass(frozen=True)
class Augmentation:
    """An augmentation of the training images.

    Attributes:
        help: what it does, in a few words, if its name does not show it.
        crop: a class that cuts a part from each image file, which is then resized: see
            input_pipeline.cropping.Crop. Images that are not augmented then get a margin, which
            `find_resized_side` explains. None: image files are fitted to squares.
        transforms: classes that change each image alone, in their order: see
            input_pipeline.augmentation.Transform.
        mixer: a class that mixes the samples of a batch and their labels: see
            input_pipeline.augmentation.Mixer. None: no mixing.
    """

    help: str = ""
    crop: str | None = None
    transforms: tuple[str, ...] = ()
    mixer: str | None = None

    @property
    def crops_files(self) -> bool:
        """Whether it needs the images as their files have them."""
        return self.crop is not None

    @property
    def mixes_labels(self) -> bool:
        """Whether the labels of a batch become soft targets."""
        return self.mixer is not None


SOURCES: dict[str, Source] = {
    "mnist": Source(
        "input_pipeline.known:read_mnist",
        title="MNIST",
        side=32,  # the paper resizes 28×28 to its models' input
        mean=MNIST_MEAN,
        std=MNIST_STD,
        num_classes=10,
        sizes=(60_000, 10_000),
    ),
    "cifar10": Source(
        "input_pipeline.known:read_cifar10",
        title="CIFAR10",
        side=32,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        num_classes=10,
        sizes=(50_000, 10_000),
    ),
    "cifar100": Source(
        "input_pipeline.known:read_cifar100",
        title="CIFAR100",
        side=32,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        rotation=15.0,
        num_classes=100,
        sizes=(50_000, 10_000),
    ),
    "digits": Source(
        "input_pipeline.digits:read_digits",
        title="digits",
        side=8,
        num_classes=10,
        sizes=(1437, 360),
        bundled_with="scikit-learn",
    ),
    "folder": Source(
        "input_pipeline.folder:list_folder",
        title="folder",
        side_finder="input_pipeline.folder:find_side",
        streams=True,
        named_by_directory=True,
        help="any image tree",
    ),
}
AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "DA1": Augmentation("random crop and flip", transforms=CROP_FLIP_ROTATE),
    "DA1+DA2": Augmentation(
        "then Mixup or CutMix",
        transforms=CROP_FLIP_ROTATE,
        mixer=BATCH_MIXER,
    ),
    "RRC": Augmentation("random resized crop and flip", crop=RESIZED_CROP),
    "RRC+DA2": Augmentation("then DA2", crop=RESIZED_CROP, mixer=BATCH_MIXER),
}


def name_data(dataset: str, data_dir: str) -> str:
    """Return the name of a data set for titles, tables and names of runs.

    That of a folder is the name of its directory. A path that ends in "." or ".." counts from the
    working directory.
    """
    if not SOURCES[dataset].named_by_directory:
        return dataset
    return Path(os.path.abspath(data_dir)).name or dataset


def explain_bundled(dataset: str) -> str | None:
    """Return why a data set needs no --data_dir; None if it needs one."""
    package = SOURCES[dataset].bundled_with
    return f"{dataset} come with {package}" if package else None


def find_resized_side(side: int) -> int:
    """Return the pixels of the shorter side before an image is cropped to `side` in its centre.

    Random resized crops enlarge what they show. Images that are not augmented are therefore resized
    to 256/224 of `side` where networks train on such crops, as in torchvision's references.
    """
    return round(side * 256 / 224)


def explain_no_files(dataset: str) -> str | None:
    """Return why there is nothing to decode in a data set; None if it consists of image files."""
    files = SOURCES[dataset].streams
    return None if files else f"{dataset} does not consist of image files"
