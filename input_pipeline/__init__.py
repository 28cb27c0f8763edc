"""The data sources and augmentations by name: what there is to know of each.

Imports no torch: an entry names its functions as text.
"""

from __future__ import annotations

from dataclasses import dataclass

Channels = tuple[float, float, float]

# The paper's, per channel, in units of the full range 0…1.
CIFAR_MEAN: Channels = (0.4914, 0.4822, 0.4465)
CIFAR_STD: Channels = (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class Source:
    """A data source.

    Attributes:
        loader: reads one split, see input_pipeline.load.
        title: its name in reports and figures.
        side: side in pixels of its images by default; None: as the images are.
        mean, std: per channel, in units of the full range 0…1; None: measured on the training
            images.
        rotation: largest angle of DA1 in degrees.
        num_classes: K, where it is known beforehand.
        streams: whether it consists of image files, which worker processes decode.
        bundled_with: the package that it comes with, so that it needs no `--data_dir`.
    """

    loader: str
    title: str
    side: int | None = None
    mean: Channels | None = None
    std: Channels | None = None
    rotation: float = 0.0
    num_classes: int | None = None
    streams: bool = False
    bundled_with: str | None = None


@dataclass(frozen=True)
class Augmentation:
    """An augmentation of the training images.

    Attributes:
        help: what it does, in a few words.
        transforms: per-sample transforms of uint8 images in their order, see
            input_pipeline.augmentation.
        mixer: mixes the samples of a batch, see input_pipeline.augmentation; None for none.
    """

    help: str
    transforms: tuple[str, ...] = ()
    mixer: str | None = None

    @property
    def mixes_labels(self) -> bool:
        return self.mixer is not None


SOURCES: dict[str, Source] = {
    "mnist": Source(
        "input_pipeline.known:read_mnist",
        title="MNIST",
        side=32,  # the paper resizes 28×28 to its models' input
        mean=(0.1307, 0.1307, 0.1307),
        std=(0.3081, 0.3081, 0.3081),
        num_classes=10,
    ),
    "cifar10": Source(
        "input_pipeline.known:read_cifar10",
        title="CIFAR10",
        side=32,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        num_classes=10,
    ),
    "cifar100": Source(
        "input_pipeline.known:read_cifar100",
        title="CIFAR100",
        side=32,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        rotation=15.0,
        num_classes=100,
    ),
    "digits": Source(
        "input_pipeline.digits:read_digits",
        title="digits",
        side=8,
        num_classes=10,
        bundled_with="scikit-learn",
    ),
    "folder": Source("input_pipeline.folder:load_folder", title="folder", streams=True),
}
AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation("no augmentation"),
    "DA1": Augmentation(
        "random crop and flip",
        transforms=(
            "input_pipeline.augmentation:CropAndFlip",
            "input_pipeline.augmentation:Rotation",
        ),
    ),
    "DA1+DA2": Augmentation(
        "then Mixup or CutMix",
        transforms=(
            "input_pipeline.augmentation:CropAndFlip",
            "input_pipeline.augmentation:Rotation",
        ),
        mixer="input_pipeline.augmentation:BatchMixer",
    ),
}
