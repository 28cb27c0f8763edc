"""Data, batches and networks from settings, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from args import Settings
from input_pipeline import AUGMENTATIONS, PIXELS, SOURCES, SPLITS
from input_pipeline.load import find_image_side, load_dataset
from input_pipeline.loader import BatchLoader
from input_pipeline.resized import keep_resized
from input_pipeline.room import find_room
from input_pipeline.splits import DataSet, FileSplit
from metrics.extraction import build_split_batches, choose_test_batch
from models import BIAS_STARTS, OLD_COMMIT, build_model, find_network
from rundir.bare import STEMS
from rundir.config import check_data, find_skipped, read_config
from utils.console import Console
from utils.errors import UserError
from utils.precision import Precision, choose_precision
from utils.world import ALONE, World, read_number, read_rank


def build_data(
    settings: Settings,
    splits: Sequence[str] = SPLITS,
    *,
    data_dir: str | None = None,
    num_workers: int | None = None,
    pixels: int = PIXELS,
    skipped: Mapping[str, Sequence[str]] | None = None,
    device: torch.device | None = None,
    room: int | None = None,
    streamed: Sequence[str] = (),
    fill_cache: bool = False,
) -> DataSet:
    """Load the data set of these settings, without augmentation.

    Args:
        settings: complete.
        splits: "train", "test" or both.
        data_dir, num_workers: in place of those of the settings.
        pixels: the number of the rules for pixels.
        skipped: the files that a run has left out, by split. None: --skip_corrupt looks for them.
        device: where the images will be used. None: the CPU.
        room: bytes that the images may take in memory. None: as `find_room` finds for the device.
        streamed: splits whose image files are never held in memory.
        fill_cache: whether --cache_dir gets the images that it lacks.

    Raises:
        UserError: it cannot be loaded.
    """
    options = list_data_options(settings, data_dir)
    workers = settings.num_workers if num_workers is None else num_workers
    keep, console = None, Console(quiet=read_rank() > 0)
    if settings.cache_dir is not None:
        directory, shown = Path(settings.cache_dir), console if fill_cache else None
        options_of_store: dict[str, Any] = {"num_workers": workers or 0, "console": shown}
        keep = partial(keep_resized, cache_dir=directory, fill=fill_cache, **options_of_store)
    return load_dataset(
        settings.dataset,
        num_workers=workers or 0,
        splits=splits,
        pixels=pixels,
        skipped=skipped,
        # The other processes on this machine find what the first one keeps.
        force_listing=settings.force_listing and read_number("LOCAL_RANK", 0) == 0,
        console=console,
        in_memory_bytes=find_room(device) if room is None else room,
        margin=crops_files(settings),
        streamed=streamed,
        keep=keep,
        **options,
    )


def crops_files(settings: Settings) -> bool:
    """Return whether training images are cropped from their files, and others have a margin."""
    return AUGMENTATIONS[settings.augment].crops_files


def list_data_options(settings: Settings, data_dir: str | None = None) -> dict[str, Any]:
    """Return the settings that select and shape the data, with another `data_dir` if given."""
    options = settings.values(Settings.names(builds="data"))
    return options if data_dir is None else {**options, "data_dir": data_dir}


def build_run_data(settings: Settings, directory: Path, resumed: bool, room: int) -> DataSet:
    """Load the data set of a run; one that goes on keeps the pixels, mean and std of its beginning.

    `room` is how many bytes the images may take in memory. Raises UserError if the data set has
    changed since then, or if the network's definition has.
    """
    streamed = ("train",) if crops_files(settings) else ()
    if not resumed:
        data = build_data(settings, room=room, streamed=streamed, fill_cache=True)
        return _crop_resized(settings, data)
    config = read_config(directory)
    if config.versions.network != find_network(settings.model).version:
        raise UserError(
            f"--resume: {directory} was begun with an older definition of {settings.model}; "
            f"commit {OLD_COMMIT} of this program goes on with it"
        )
    pixels, skipped = config.versions.pixels, find_skipped(directory, config.facts)
    data = build_data(
        settings, pixels=pixels, skipped=skipped, room=room, streamed=streamed, fill_cache=True
    )
    check_data(directory, config.facts, data.facts())
    return _crop_resized(settings, data.normalised_as(config.facts))


def _crop_resized(settings: Settings, data: DataSet) -> DataSet:
    """Let --resize_first choose where training images are cropped from."""
    if not (settings.resize_first and isinstance(data.train, FileSplit)):
        return data
    return replace(data, train=replace(data.train, resize_first=True))


def build_network(
    settings: Settings, data: DataSet, stem: str | None = None, *, initial: bool = True
) -> nn.Module:
    """Build the network of these settings for the images of `data`, with freshly drawn weights.

    Where --bias_init_mean is a word, the biases are those of 0: `rundir.starting` replaces them.

    Args:
        settings: complete.
        data: the images, and how many classes they have.
        stem: that of a convolutional network, if not the one for images of this size.
        initial: whether its weights are the ones to begin with. False where others are loaded.

    Raises:
        UserError: a value that the network cannot use, or weights that cannot be had.
    """
    options = settings.values(Settings.names(builds="model"))
    if initial:
        options |= settings.values(Settings.names(builds="initial weights"))
        if options["bias_init_mean"] in BIAS_STARTS:
            del options["bias_init_mean"]
    shape = data.image_shape
    network = find_network(settings.model)
    if stem is not None and network.convolutional and not network.prefix:
        shape = (shape[0], STEMS[stem], STEMS[stem])
    elif stem is not None:
        raise UserError(
            f"--stem has no effect here: {settings.model} has no choice of first layers"
        )
    return build_model(settings.model, data.num_classes, shape, **options)


def build_precision(settings: Settings, asked: str, device: torch.device) -> Precision:
    """Decide in which precision the network of these settings computes.

    Args:
        settings: complete; the images' side follows from them.
        asked: auto, fp32, tf32, bf16 or fp16.
        device: where the network computes.

    Raises:
        UserError: the device does not have that precision, or a folder holds no images.
    """
    network = find_network(settings.model)
    return choose_precision(
        asked,
        device,
        find_image_side(settings.dataset, settings.data_dir, settings.img_size),
        convolutional=network.convolutional,
        bf16_side=network.bf16_side,
        channels_last_side=network.channels_last_side,
    )


def build_batches(
    settings: Settings,
    data: DataSet,
    precision: Precision,
    world: World = ALONE,
    smallest: int = 1,
) -> tuple[BatchLoader, BatchLoader]:
    """Build the training batches, shuffled and augmented, and the test batches, in order and plain.

    A process of `world` gets its share of each, of a training batch none that is smaller than
    `smallest`. Raises UserError if the training set has a single image.
    """
    common: dict[str, Any] = {
        "device": precision.device,
        "num_workers": settings.num_workers,
        "memory_format": precision.memory_format,
        "rank": world.rank,
        "ranks": world.size,
    }
    train_batches = build_split_batches(
        data,
        "train",
        batch_size=settings.batch_size,
        shuffle=True,
        augment=settings.augment,
        rotation=SOURCES[settings.dataset].rotation,
        seed=settings.seed,
        drop_single=True,
        parts=settings.accumulate,
        smallest=smallest,
        **common,
    )
    if len(train_batches) == 0:
        raise UserError("the training set has a single image: at least two are needed")
    usual = settings.batch_size // world.size
    test_batch = choose_test_batch(precision.device, data.side, usual) * world.size
    return train_batches, build_split_batches(data, "test", batch_size=test_batch, **common)
