"""Data, batches and networks of trained runs, built again from their directories."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from args import Settings
from input_pipeline import SPLITS
from input_pipeline.load import identify_dataset
from input_pipeline.loader import BatchLoader
from input_pipeline.splits import DataSet
from metrics.extraction import (
    EVALUATION_BATCH,
    Extracted,
    build_split_batches,
    choose_test_batch,
    extract,
)
from metrics.features import check_room
from models import find_network
from rundir.building import build_data, build_network, crops_files, list_data_options
from rundir.checkpoints import check_origin
from rundir.config import check_data, find_skipped
from rundir.foreign import (
    explain_library,
    explain_misfit,
    read_content,
    translate_content,
    translate_own,
)
from rundir.names import name_checkpoint
from rundir.prediction import predict_trained
from rundir.trained import TrainedRun, open_run
from rundir.weights import open_checkpoint
from theory.minimum import Prediction
from utils.errors import UserError
from utils.precision import Precision, choose_precision
from utils.resources import count_default_workers
from utils.world import ALONE, World


def extract_epoch(directory: Path, epoch: int, device: torch.device) -> Extracted:
    """Pass the test set of a run through its checkpoint of `epoch`. Raises UserError."""
    rebuilder = Rebuilder(device, ("test",))
    return rebuilder.extract(open_run(directory), directory / name_checkpoint(epoch), "test")


def _find_channels(run: TrainedRun) -> dict[str, Any]:
    """Return the mean and std by which a run's images are normalised, if not by the data set's."""
    source = run.facts if run.bare is None else vars(run.bare)
    return {name: source[name] for name in ("mean", "std") if source.get(name) is not None}


@dataclass(frozen=True, eq=False)
class LoadedData:
    """A run's data set for evaluation.

    Attributes:
        data: the samples that were selected, or all.
        facts: those of the whole data set.
        samples: the numbers of the selected samples, int64 [N], by split; empty for all.
    """

    data: DataSet
    facts: dict[str, Any]
    samples: dict[str, torch.Tensor]


def translate_weights(
    run: TrainedRun, checkpoint: Path, content: Any, num_classes: int
) -> dict[str, torch.Tensor]:
    """Give what was read from a checkpoint of a run the names of our networks. Raises UserError."""
    name = run.settings.model
    if run.bare is not None:
        return translate_content(checkpoint, content, run.bare, name, num_classes)
    return translate_own(checkpoint, content, name, run.versions.network)


def find_feature_dim(run: TrainedRun, checkpoints: Iterable[Path], num_classes: int) -> int | None:
    """Return d, from the first checkpoint of a run that can be read; None if none can."""
    for path in checkpoints:
        with contextlib.suppress(UserError, KeyError, AttributeError, IndexError):
            with open_checkpoint(path) as opened:
                state = translate_weights(run, path, read_content(opened), num_classes)
            return int(state["fc.weight"].shape[1])
    return None


class Rebuilder:
    """Builder of data, batches and models of trained runs, each once for all runs that share it.

    Args:
        device: the device of the models and the batches.
        splits: the splits to load: "train", "test" or both.
        batch_size: images per pass of a process; None is `choose_test_batch`'s.
        data_dir, num_workers: in place of those in the runs' settings, where given.
        precision: the precision of the networks: fp32, tf32, bf16 or fp16.
        select: maps the labels of a split, int64 [N], to the numbers of the samples to keep; None
            keeps all.
        keep_all: whether the data and models of one run are kept while another is evaluated. Runs
            that take turns need it.
        world: the processes that share the images of each batch.
    """

    def __init__(
        self,
        device: torch.device,
        splits: Sequence[str],
        *,
        batch_size: int | None = None,
        data_dir: str | None = None,
        num_workers: int | None = None,
        precision: str = "fp32",
        select: Callable[[torch.Tensor], torch.Tensor] | None = None,
        keep_all: bool = False,
        world: World = ALONE,
    ) -> None:
        self.world = world
        self._device, self._splits, self._precision = device, tuple(splits), precision
        self._batch_size, self._data_dir, self._num_workers = batch_size, data_dir, num_workers
        self._select, self._keep_all = select, keep_all
        self._built: dict[str, list[tuple[Any, Any]]] = {}

    def adopt(self, run: TrainedRun, data: DataSet, facts: dict[str, Any]) -> None:
        """Take a run's data set that is loaded already, with its facts, instead of loading it."""
        self._built["data"] = [(self._identify_data(run), LoadedData(data, facts, {}))]

    def drop_batches(self) -> None:
        """Forget the batches, and end the processes that decode image files for them."""
        for split in SPLITS:
            self._built.pop(split, None)

    def data(self, run: TrainedRun) -> DataSet:
        """Load a run's data set, with the mean and std of its training.

        Raises UserError if it cannot be loaded or is not what the run was trained on.
        """
        loaded = self._load_once(run)
        channels = _find_channels(run)
        data: DataSet = self._build_once(
            "normalised data", (loaded, channels), lambda: loaded.data.normalised_as(channels)
        )
        return data

    def identify(self, run: TrainedRun) -> dict[str, Any]:
        """Return the facts that identify a run's data set, as it is now; no image is decoded.

        Raises UserError if it is not what the run was trained on.
        """
        if run.facts and "fingerprints" not in run.facts:  # a run of an earlier version
            self.data(run)
            return run.facts
        options = list_data_options(run.settings, self._data_dir)
        del options["img_size"], options["jpeg_draft"]
        options["skipped"] = find_skipped(run.directory, run.facts)
        splits = self._choose_splits(run)
        facts: dict[str, Any] = self._build_once(
            "facts",
            (run.settings.dataset, options, splits),
            lambda: identify_dataset(run.settings.dataset, splits=splits, **options),
        )
        check_data(run.directory, run.facts, facts)
        return facts

    def _choose_splits(self, run: TrainedRun) -> tuple[str, ...]:
        # The training set of a long tail shows the class sizes even where it is not evaluated.
        return self._splits if run.settings.imbalance_factor == 1 else SPLITS

    def samples(self, run: TrainedRun, split: str) -> torch.Tensor:
        """Return the numbers of the samples of a split that were selected, int64 [N]."""
        return self._load_once(run).samples[split]

    def _identify_data(self, run: TrainedRun) -> tuple[Any, ...]:
        settings = run.settings.values(["dataset", *Settings.names(builds="data")])
        skipped = find_skipped(run.directory, run.facts)
        return settings, run.versions.pixels, crops_files(run.settings), skipped

    def _load_once(self, run: TrainedRun) -> LoadedData:
        identity = self._identify_data(run)
        loaded: LoadedData = self._build_once("data", identity, lambda: self._load(run))
        check_data(run.directory, run.facts, loaded.facts)
        return loaded

    def _load(self, run: TrainedRun) -> LoadedData:
        data = build_data(
            run.settings,
            self._choose_splits(run),
            data_dir=self._data_dir,
            num_workers=self._num_workers,
            pixels=run.versions.pixels,
            skipped=find_skipped(run.directory, run.facts),
            device=self._device,
        )
        facts = data.facts()
        if self._select is None:
            return LoadedData(data, facts, {})
        samples = {split: self._select(getattr(data, split).labels) for split in self._splits}
        parts = {split: getattr(data, split).select(kept) for split, kept in samples.items()}
        return LoadedData(dataclasses.replace(data, **parts), facts, samples)

    def precision(self, run: TrainedRun) -> Precision:
        """Return the precision and memory format of a run's network."""
        network = find_network(run.settings.model)
        return choose_precision(
            self._precision,
            self._device,
            self.data(run).side,
            convolutional=network.convolutional,
            bf16_side=network.bf16_side,
            channels_last_side=network.channels_last_side,
        )

    def batches(self, run: TrainedRun, split: str) -> BatchLoader:
        """Build the batches of a split's images in order, without augmentation."""
        data, memory_format = self.data(run), self.precision(run).memory_format
        usual = choose_test_batch(self._device, data.side, EVALUATION_BATCH)
        batches: BatchLoader = self._build_once(
            split,
            (data, memory_format),
            lambda: build_split_batches(
                data,
                split,
                batch_size=(self._batch_size or usual) * self.world.size,
                device=self._device,
                num_workers=self._choose_workers(run),
                rank=self.world.rank,
                ranks=self.world.size,
                memory_format=memory_format,
            ),
        )
        return batches

    def _choose_workers(self, run: TrainedRun) -> int:
        """Choose how many processes decode for this one."""
        if self._num_workers is not None:
            return self._num_workers
        workers = run.settings.num_workers or 0
        # The run may have been trained by one process, which had all cores.
        return workers if self.world.size == 1 else min(workers, count_default_workers())

    def model(self, run: TrainedRun) -> nn.Module:
        """Build a run's network on the device; its weights are those that were loaded last."""
        data, precision = self.data(run), self.precision(run)
        stem = run.bare.stem if run.bare else None
        options = run.settings.values(["model", *Settings.names(builds="model")])
        model: nn.Module = self._build_once(
            "model",
            (options, data.num_classes, data.image_shape, precision, stem),
            lambda: precision.place(build_network(run.settings, data, stem, initial=False)),
        )
        return model

    def check_room(self, run: TrainedRun) -> None:
        """Refuse a run if the features of a split do not fit into the memory. Raises UserError."""
        data, model = self.data(run), self.model(run)
        dim: Any = model.feature_dim
        for split in self._splits:
            share = math.ceil(len(getattr(data, split)) / self.world.size)
            try:
                check_room(share, dim, self._device)
            except UserError as error:
                raise UserError(f"{run.directory}, {split} set: {error}") from error

    def load_model(self, run: TrainedRun, checkpoint: Path) -> nn.Module:
        """Return `model` with the weights of a checkpoint.

        Raises a UserError that names the file if it is damaged, of another run, or does not fit.
        """
        with open_checkpoint(checkpoint) as opened:
            check_origin(checkpoint, opened.archive.origin, run.id)
            content = read_content(opened)
        return self.fill_model(run, checkpoint, content)

    def fill_model(self, run: TrainedRun, checkpoint: Path, content: Any) -> nn.Module:
        """Return `model` with the weights that were read from a checkpoint.

        Raises a UserError that names the file if they do not fit.
        """
        model = self.model(run)
        state = translate_weights(run, checkpoint, content, self.data(run).num_classes)
        try:
            model.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError, ValueError) as error:
            reason = explain_misfit(model, state) + explain_library(model, run.network)
            raise UserError(f"{checkpoint} does not fit the model: {reason}") from error
        return model

    def extract(
        self,
        run: TrainedRun,
        checkpoint: Path,
        split: str,
        autocast: contextlib.AbstractContextManager[None] | None = None,
    ) -> Extracted:
        """Pass a split through a checkpoint. Raises UserError."""
        model = self.load_model(run, checkpoint)
        return extract(model, self.batches(run, split), autocast or contextlib.nullcontext())

    def class_sizes(self, run: TrainedRun) -> list[float]:
        """Return the training images per class, from the training split where it is loaded."""
        data = self.data(run)
        known = self._load_once(run).facts.get("class_sizes") or run.facts.get("class_sizes")
        if known:
            return list(known)
        # An older run with the test set alone: its shares are scaled to the training set's size.
        assert data.test is not None
        counts = torch.bincount(data.test.labels.cpu(), minlength=data.num_classes).double()
        total = run.facts.get("train_size", len(data.test))
        return (counts * total / len(data.test)).tolist()

    def prediction(self, run: TrainedRun) -> Prediction | None:
        """Predict the exact minimum that the run approaches; None without a prediction."""
        feature_dim: Any = self.model(run).feature_dim
        return predict_trained(run, self.class_sizes(run), feature_dim)

    def _build_once(self, kind: str, identity: Any, build: Callable[[], Any]) -> Any:
        """Return what `build` built, until one of its kind with another identity is asked for."""
        built = self._built.setdefault(kind, [])
        for known, result in built:
            if known == identity:
                return result
        if not self._keep_all:
            built.clear()  # frees the memory of the last one before the next is built
        built.append((identity, build()))
        return built[-1][1]
