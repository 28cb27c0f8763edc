"""A trained run, rebuilt from its directory: the data, the model, and what is measured on them."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import build_model
from utils.checkpoint import epoch_path, load
from utils.datasets import DataSet, load_dataset
from utils.errors import UserError
from utils.loader import BatchLoader
from utils.metrics import (
    best_threshold,
    class_correct_counts,
    positive_and_largest_negative,
    score_statistics,
)
from utils.neural_collapse import feature_properties, neural_collapse
from utils.precision import memory_format
from utils.rundir import check_data, read_config
from utils.theory import Prediction, predict_run

DATA_SETTINGS = (
    *("dataset", "data_dir", "img_size"),
    *("sample_size", "imbalance_factor", "test_sample_size"),
)
MODEL_SETTINGS = ("patch_size", "width", "depth", "bias_mode", "fixed_etf")

MEASURES = (
    "top1",
    "top5",
    "uniform_accuracy",
    "uniform_threshold",
    "nc1",
    "nc2",
    "nc2_h",
    "nc3",
    "nc4",
    "compactness",
    "distinctiveness",
    *(
        f"{kind}_{statistic}"
        for kind in ("positive", "negative", "bias")
        for statistic in ("mean", "std", "min", "max")
    ),
)


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


def load_weights(
    model: nn.Module, path: Path, device: torch.device, *, bias_added: bool = False
) -> None:
    """Load a state_dict into `model`, whose classifier subtracts the bias.

    With `bias_added` the file's classifier adds it, as torch.nn.Linear does: its sign is turned.
    Raises UserError that names the file if it is damaged or does not fit.
    """
    state = load(path, device)
    try:
        if bias_added and "fc.bias" in state:
            state["fc.bias"] = -state["fc.bias"]
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        reason = textwrap.shorten(str(error), 160, placeholder=" …")
        raise UserError(f"{path} does not fit the model ({reason})") from error


def split_batches(data: DataSet, split: str, **options: Any) -> BatchLoader:
    """The train or test images of `data` in order, as they are; options as of BatchLoader."""
    return BatchLoader(
        getattr(data, split),
        mean=data.mean,
        std=data.std,
        num_classes=data.num_classes,
        **options,
    )


@dataclass
class Extracted:
    """What one pass of a model over a split of N samples leaves.

    Attributes:
        features: float32 [N, d].
        labels: int64 [N].
        positives, negatives: float32 [N], each sample's own logit and the largest of the others.
        top1, top5: shares of samples, in [0, 1].
        class_correct: int64 [K], samples of each class whose own logit is the largest.
    """

    features: Tensor
    labels: Tensor
    positives: Tensor
    negatives: Tensor
    top1: float
    top5: float
    class_correct: Tensor


@torch.no_grad()
def extract(
    model: nn.Module, batches: BatchLoader, autocast: contextlib.AbstractContextManager
) -> Extracted:
    """Pass a split through the model once, in evaluation mode.

    Of the logits only what the measures need is kept, so that memory does not grow with N·K.
    """
    model.eval()
    device, count = batches.device, batches.num_samples
    features = torch.empty(count, model.feature_dim, device=device)
    labels = torch.empty(count, dtype=torch.int64, device=device)
    margins = torch.empty(2, count, device=device)
    correct = torch.zeros(2, len(model.fc.weight), dtype=torch.int64, device=device)
    first = 0
    for images, targets in batches.batches(epoch=0):
        with autocast:
            logits, batch_features = model(images)
        at = slice(first, first + len(targets))
        features[at], labels[at] = batch_features, targets
        margins[0, at], margins[1, at] = positive_and_largest_negative(logits, targets)
        correct += class_correct_counts(logits, targets)
        first = at.stop
    top1, top5 = (hits / count for hits in correct.sum(dim=1).tolist())
    return Extracted(features, labels, margins[0], margins[1], top1, top5, correct[0])


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


def measure(extracted: Extracted, weight: Tensor, bias: Tensor) -> dict[str, float]:
    """All of `MEASURES` (accuracies in percent) for a classifier's weight [K, d] and bias [K].

    Raises ValueError where they are not defined: features not finite, a class without samples.
    """
    features, labels = extracted.features, extracted.labels
    collapse = neural_collapse(features, labels, weight, bias)
    uniform, threshold = best_threshold(extracted.positives, extracted.negatives)
    values = {
        "top1": 100 * extracted.top1,
        "top5": 100 * extracted.top5,
        "uniform_accuracy": 100 * uniform,
        "uniform_threshold": threshold,
        **collapse,
        **feature_properties(features, labels),
        **score_statistics(features, labels, weight),
        **bias_statistics(bias),
    }
    return {key: values[key] for key in MEASURES}


def bias_statistics(bias: Tensor) -> dict[str, float]:
    """Mean, population standard deviation, minimum and maximum of the biases [K]."""
    bias = bias.double()
    values = {"mean": bias.mean(), "std": bias.std(correction=0), "min": bias.min()}
    values["max"] = bias.max()
    return {f"bias_{name}": value.item() for name, value in values.items()}
