"""The images of train_speed.py: random ones in memory or in files, or a user's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.bench import Bench
from input_pipeline.load import load_dataset
from input_pipeline.splits import DataSet, Split, TensorSplit

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PHOTO = (375, 500)  # height and width of the files of --stream, ImageNet's most frequent size


def load_images(bench: Bench) -> DataSet:
    """Load the tree of --data_dir, or draw random images. Raises UserError."""
    if bench.data_dir is None:
        return draw_images(bench)
    return load_dataset(
        "folder",
        bench.data_dir,
        img_size=bench.settings.img_size,
        num_workers=bench.settings.num_workers or 0,
        in_memory_bytes=0 if bench.stream else None,
    )


def get_training_images(data: DataSet) -> Split:
    """Return the training images, which these data sets always have."""
    assert data.train is not None
    return data.train


def draw_images(bench: Bench) -> DataSet:
    """Draw uint8 noise of the right shape: the speed does not depend on the pixels."""
    generator = np.random.default_rng(0)
    shape = (bench.num_images, *bench.image_shape)
    images = torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, bench.num_classes, bench.num_images))
    split = TensorSplit(images, labels)
    names = [str(number) for number in range(bench.num_classes)]
    return DataSet("folder", names, bench.image_shape, MEAN, STD, split, split)


def write_photos(root: Path, count: int, num_classes: int, quality: int = 90) -> None:
    """Write a folder data set of JPEGs with the size, the detail and the bytes of photos."""
    generator = np.random.default_rng(0)
    height, width = PHOTO
    for number in range(count):
        small = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        grain = generator.normal(0, 12, (height, width, 1))
        photo = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
        name = f"{number % num_classes:04d}"
        for split in ("train", "test") if number < num_classes else ("train",):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            photo.save(root / split / name / f"{number}.jpg", quality=quality)
