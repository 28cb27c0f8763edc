"""The training runs of an experiment."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reproduction.experiments import (
    EXPERIMENTS,
    Experiment,
    imagenet,
)

# Settings by scale; at `smoke` and `cpu` also by data set.
_FULL = {"epochs": 100, "lr": {"SGD": 0.01, "AdamW": 0.01}}
_SMALL = {
    "smoke": {
        None: {
            **{"epochs": 6, "sample_size": 60, "test_sample_size": 30, "batch_size": 32},
            **{"width": 128, "depth": 2, "lr": {"SGD": 0.1, "AdamW": 0.008}},
        },
    },
    "cpu": {
        "folder": {
            **{"epochs": 20, "sample_size": 200, "test_sample_size": 100},
            **{"lr": {"SGD": 0.02, "AdamW": 0.002}},
        },
        "digits": {"epochs": 40, "lr": {"SGD": 0.02, "AdamW": 0.002}},
        None: {
            **{"epochs": 20, "sample_size": 200, "test_sample_size": 100, "img_size": 16},
            **{"lr": {"SGD": 0.02, "AdamW": 0.002}},
        },
    },
}
_SMALL_DATASETS = {"smoke": ("digits",), "cpu": ("mnist",)}
_SMALL_MODELS = {"smoke": ("MLP",), "cpu": ("ResNet18",)}
# Checkpoints of a run with fewer than 14 epochs, in place of 6-13.
EARLY = 13


@dataclass(frozen=True)
class GridRun:
    """One training run of a grid.

    Attributes:
        name: of its run directory.
        settings: flags of train.py with their values, in order.
        group: the same for the runs that differ in the seed alone.
        stands_for: data set and model of the paper whose numbers it is held against.
    """

    name: str
    settings: dict[str, Any]
    group: tuple[tuple[str, Any], ...]
    stands_for: dict[str, Any]

    def flags(self) -> list[str]:
        words = []
        for key, value in self.settings.items():
            words += [f"--{key}"] if value is True else [f"--{key}", str(value)]
        return words

    def published(self, experiment: Experiment) -> Mapping[str, float | None]:
        """The paper's numbers for it, by measure."""
        return experiment.published({**_PLAIN, **self.settings, **self.stands_for})


# What a published number may depend on and a grid does not set.
_PLAIN = {"augment": "none", "weight_decay_bias": 0.0, "imbalance_factor": 1}


def grid(
    name: str,
    scale: str,
    *,
    seeds: int = 1,
    datasets: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> list[GridRun]:
    """The training runs of an experiment; none for one that trains nothing.

    Args:
        scale: "smoke", "cpu" or "full".
        seeds: 0 … seeds − 1.
        datasets, models: in place of the experiment's at this scale.
        overrides: settings in place of the scale's, by their name; `lr_SGD` and `lr_AdamW` are the
            learning rates of one optimizer.
    """
    experiment = EXPERIMENTS[name]
    if not experiment.datasets:
        return []
    datasets = datasets or _SMALL_DATASETS.get(scale, experiment.datasets)
    models = models or _SMALL_MODELS.get(scale, experiment.models)
    axes = {**experiment.axes, **experiment.smaller.get(scale, {})}
    runs = []
    for dataset, model, loss in itertools.product(datasets, models, experiment.losses):
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            for seed in range(seeds):
                runs.append(
                    _run(experiment, scale, dataset, model, loss, chosen, seed, overrides or {})
                )
    return runs


def _run(
    experiment: Experiment,
    scale: str,
    dataset: str,
    model: str,
    loss: str,
    chosen: dict[str, Any],
    seed: int,
    overrides: Mapping[str, Any],
) -> GridRun:
    small = _SMALL.get(scale, {None: _FULL})
    base = {**small.get(dataset, small[None])}
    if dataset == "folder" and scale == "full":
        base["img_size"] = 224 if experiment.published is imagenet else None
    rates = base.pop("lr")
    if model != "MLP" or scale == "full":
        base = {key: value for key, value in base.items() if key not in ("width", "depth")}
    given = {key: value for key, value in overrides.items() if not key.startswith("lr_")}
    optimizer = chosen["optimizer"]
    settings = {
        "model": model,
        "dataset": dataset,
        "loss": loss,
        **base,
        **chosen,
        **experiment.fixed,
        **given,
        "lr": overrides.get(f"lr_{optimizer}") or rates[optimizer],
        "seed": seed,
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    settings["epoch_save_step"] = experiment.save_every or settings["epochs"]
    group = {"dataset": dataset, "model": model, "loss": loss, **chosen}
    paper_data = dataset if dataset in experiment.datasets else experiment.datasets[0]
    paper_model = model if model in experiment.models else experiment.models[0]
    return GridRun(
        _name(settings, given, overrides),
        settings,
        tuple(group.items()),
        {"dataset": paper_data, "model": paper_model},
    )


def _name(settings: dict[str, Any], given: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    """Tells runs of one scale apart, also those of different experiments and overrides."""
    parts = [str(settings[key]) for key in ("model", "dataset", "loss", "optimizer")]
    short = {
        "augment": "{}",
        "sep_decay": "sep",
        "bias_init_mean": "mean{:g}",
        "weight_decay_bias": "decay{:g}",
        "imbalance_factor": "lt{:g}",
        "epoch_save_step": "every{}",
    }
    parts += [form.format(settings[key]) for key, form in short.items() if key in settings]
    parts += [f"{key}{value}" for key, value in given.items() if key != "data_dir"]
    if f"lr_{settings['optimizer']}" in overrides:
        parts.append(f"lr{settings['lr']:g}")
    return "_".join([*parts, f"s{settings['seed']}"])


def drawn_epochs(epochs: int) -> str:
    """Epochs of the t-SNE pictures: 6 to 13, or as many of the last as a short run has."""
    if epochs >= EARLY:
        return "6-13"
    return f"{math.ceil(epochs / 2)}-{epochs}"
