"""A trained run, rebuilt from its directory: the data, the model, and what is measured on them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from input_pipeline.load import load_dataset
from input_pipeline.loader import BatchLoader
from input_pipeline.splits import DataSet
from metrics.extraction import Extracted, extract, split_batches
from models import build_model
from rundir.config import check_data, read_config
from rundir.prediction import predict_run
from rundir.weights import epoch_path, load_weights
from theory.minimum import Prediction
from utils.precision import memory_format

DATA_SETTINGS = (
    *("dataset", "data_dir", "img_size"),
    *("sample_size", "imbalance_factor", "test_sample_size"),
)
MODEL_SETTINGS = ("patch_size", "width", "depth", "bias_mode", "fixed_etf")


def rebuild_data(
    settings: dict[str, Any], data_dir: str | None = None, splits: Sequence[str] = ("test",)
) -> DataSet:
    """The data set of a run's settings, without augmentation; `data_dir` if it has moved."""
    return load_dataset(
        settings["dataset"],
        data_dir or settings["data_dir"],
        img_size=settings["img_size"],
        sample_size=settings["sample_size"],
        imbalance_factor=settings["imbalance_factor"],
        test_sample_size=settings["test_sample_size"],
        num_workers=settings["num_workers"],
        splits=splits,
    )


def rebuild_model(settings: dict[str, Any], data: DataSet) -> nn.Module:
    """The model of a run's settings for the images of `data`, with weights still to be loaded."""
    options = {key: settings[key] for key in MODEL_SETTINGS}
    return build_model(settings["model"], data.num_classes, data.image_shape, **options)


def extract_run(directory: Path, epoch: int, device: torch.device) -> Extracted:
    """The test set of a run passed through its checkpoint of `epoch`. Raises UserError."""
    config = read_config(directory)
    run = TrainedRun(directory, config["settings"], config["data"])
    return Rebuilder(device, ("test",)).extract(run, epoch_path(directory, epoch), "test")


@dataclass
class TrainedRun:
    """A run directory and what its config.json says: settings, and facts of the data set (empty
    for weights that came without one)."""

    directory: Path
    settings: dict[str, Any]
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        return self.directory.resolve().name


@dataclass
class ChosenRun(TrainedRun):
    """A run and those of its checkpoints, by epoch, that are to be evaluated."""

    chosen: dict[int, Path]


class Rebuilder:
    """Data, batches and models of trained runs; each built once for all runs that share it.

    Args:
        device: where the models and the batches are.
        splits: "train", "test" or both, to be loaded.
        batch_size: images per pass.
        data_dir, num_workers: in place of those in the runs' settings, where given.
        precision: that the networks will compute in, which decides their memory format.
    """

    def __init__(
        self,
        device: torch.device,
        splits: Sequence[str],
        *,
        batch_size: int = 256,
        data_dir: str | None = None,
        num_workers: int | None = None,
        precision: str = "fp32",
    ) -> None:
        self._precision = precision
        self._device, self._splits = device, tuple(splits)
        self._batch_size, self._data_dir, self._num_workers = batch_size, data_dir, num_workers
        self._built: dict[str, tuple[Any, Any]] = {}

    def data(self, run: TrainedRun) -> DataSet:
        """Raises UserError if it cannot be loaded or is not what the run was trained on."""
        identity = [run.settings[key] for key in DATA_SETTINGS]
        data = self._once("data", identity, lambda: self._load(run))
        check_data(run.directory, run.facts, data.facts())
        return data

    def _load(self, run: TrainedRun) -> DataSet:
        settings = {**run.settings, "num_workers": self._workers(run)}
        # Of a long tail, the training set tells the class sizes even where it is not evaluated.
        splits = self._splits if settings["imbalance_factor"] == 1 else ("train", "test")
        return rebuild_data(settings, self._data_dir, splits)

    def _workers(self, run: TrainedRun) -> int:
        return run.settings["num_workers"] if self._num_workers is None else self._num_workers

    def batches(self, run: TrainedRun, split: str) -> BatchLoader:
        """The split's images in order, as they are."""
        data = self.data(run)
        options = {"batch_size": self._batch_size, "device": self._device}
        options["num_workers"] = self._workers(run)
        options["memory_format"] = self._memory_format(run)
        identity = data, options["memory_format"]
        return self._once(split, identity, lambda: split_batches(data, split, **options))

    def model(self, run: TrainedRun) -> nn.Module:
        """The run's network on the device, with whatever weights were loaded into it last."""
        data = self.data(run)
        options = [run.settings[key] for key in ("model", *MODEL_SETTINGS)]
        identity = options, data.num_classes, data.image_shape
        placement = {"device": self._device, "memory_format": self._memory_format(run)}
        return self._once(
            "model", identity, lambda: rebuild_model(run.settings, data).to(**placement)
        )

    def _memory_format(self, run: TrainedRun) -> torch.memory_format:
        side = self.data(run).side
        return memory_format(self._device, run.settings["model"], self._precision, side)

    def loaded(self, run: TrainedRun, checkpoint: Path, *, bias_added: bool = False) -> nn.Module:
        """`model` with the weights of a checkpoint. Raises UserError as `load_weights`."""
        model = self.model(run)
        load_weights(model, checkpoint, self._device, bias_added=bias_added)
        return model

    def extract(
        self,
        run: TrainedRun,
        checkpoint: Path,
        split: str,
        autocast: contextlib.AbstractContextManager | None = None,
    ) -> Extracted:
        """A split passed through a checkpoint. Raises UserError."""
        model = self.loaded(run, checkpoint)
        return extract(model, self.batches(run, split), autocast or contextlib.nullcontext())

    def class_sizes(self, run: TrainedRun) -> list[float]:
        """Training images per class, from the training split where it is loaded."""
        data = self.data(run)
        known = data.class_sizes or run.facts.get("class_sizes")
        if known:
            return known
        # An older run, the test set alone loaded: its shares at the training set's size.
        counts = torch.bincount(data.test.labels.cpu(), minlength=data.num_classes).double()
        total = run.facts.get("train_size", len(data.test))
        return (counts * total / len(data.test)).tolist()

    def prediction(self, run: TrainedRun) -> Prediction | None:
        """The exact minimum that the run approaches; None where none is claimed."""
        if not run.facts:
            return None
        return predict_run(run.settings, self.class_sizes(run), self.model(run).feature_dim)

    def _once(self, kind: str, identity: Any, build: Any) -> Any:
        """What `build` returns, kept until one of its kind with another identity is asked for."""
        if kind not in self._built or self._built[kind][0] != identity:
            self._built.pop(kind, None)  # frees the memory of the last one first
            self._built[kind] = identity, build()
        return self._built[kind][1]
