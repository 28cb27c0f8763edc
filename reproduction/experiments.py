"""The paper's experiments as named grids of training runs. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from reproduction import published

LOSSES, OPTIMIZERS = ("CE", "BCE"), ("SGD", "AdamW")
SCALES = ("smoke", "cpu", "full")
Reference = Callable[[Mapping[str, Any]], Mapping[str, float | None]]
SCORE_MEASURES = ("positive", "negative", "bias")


@dataclass(frozen=True)
class Experiment:
    """A table or a figure of the paper.

    Attributes:
        title: for the report.
        what: one sentence on what it shows.
        datasets, models: the paper's.
        axes: the settings of train.py that the grid spans besides data set, model, loss and seed.
        fixed: settings of all its runs.
        measures: what the report tells of a run, by the names in utils/report.py.
        published: settings of a run in the paper's terms -> the published values by measure.
        smaller: by scale, axes in place of those of `axes`.
        checkpoints: which of them are evaluated (a --checkpoints of eval_nc.py), None for none:
            metrics.csv tells all that is reported.
        save_every: epochs between checkpoints; None for the last alone.
    """

    title: str
    what: str
    datasets: tuple[str, ...] = ("cifar10",)
    models: tuple[str, ...] = ("ResNet18",)
    axes: dict[str, tuple[Any, ...]] = field(default_factory=lambda: {"optimizer": OPTIMIZERS})
    fixed: dict[str, Any] = field(default_factory=dict)
    measures: tuple[str, ...] = ("top1", "uniform")
    published: Reference = lambda settings: {}
    smaller: dict[str, dict[str, tuple[Any, ...]]] = field(default_factory=dict)
    checkpoints: str | None = None
    save_every: int | None = None
    losses: tuple[str, ...] = LOSSES


def _accuracy(settings: Mapping[str, Any]) -> dict[str, float | None]:
    key = tuple(settings[name] for name in ("dataset", "model", "loss", "optimizer", "augment"))
    return dict(zip(("top1", "uniform"), published.ACCURACY.get(key, (None, None)), strict=True))


def imagenet(settings: Mapping[str, Any]) -> dict[str, float | None]:
    pair = published.IMAGENET.get((settings["model"], settings["loss"]), (None, None))
    return dict(zip(("top1", "uniform"), pair, strict=True))


def _long_tail(settings: Mapping[str, Any]) -> dict[str, float | None]:
    return {"top1": published.LONG_TAIL.get((settings["imbalance_factor"], settings["loss"]))}


def _nc_curves(settings: Mapping[str, Any]) -> dict[str, float | None]:
    pair = published.NC_CURVES[settings["loss"], settings["optimizer"]]
    return dict(zip(("nc2", "nc3"), pair, strict=True))


def _scores(settings: Mapping[str, Any]) -> dict[str, float | None]:
    if settings["optimizer"] != "AdamW" or settings["model"] != "Swin":
        return {}
    classes = {"cifar10": 10, "cifar100": 100}.get(settings["dataset"], 0)
    values = published.find_scores(classes, settings["loss"], settings["weight_decay_bias"])
    return dict(zip(SCORE_MEASURES, values, strict=True))


_SCORE_FIGURE = {
    "datasets": ("cifar10", "cifar100"),
    "models": ("ResNet18", "ViT", "Swin"),
    "measures": (*SCORE_MEASURES, "top1", "uniform"),
    "published": _scores,
    "checkpoints": "last",
}
EXPERIMENTS = {
    "table-cifar": Experiment(
        "Accuracy and uniform accuracy",
        "Top-1 (A) and uniform accuracy (A_Uni) on the test set under CE and BCE.",
        datasets=("cifar10", "cifar100"),
        models=("ResNet18", "ResNet50", "DenseNet121"),
        axes={"optimizer": OPTIMIZERS, "augment": ("DA1", "DA1+DA2")},
        published=_accuracy,
    ),
    "nc-curves": Experiment(
        "Neural collapse over the epochs",
        "NC1 to NC3, scores and bias without augmentation, the decays as terms of the loss.",
        fixed={"sep_decay": True},
        measures=(
            *("nc1", "nc2", "nc2_h", "nc3", "nc2_mean", "nc3_mean"),
            *SCORE_MEASURES,
            *("top1", "uniform"),
        ),
        published=_nc_curves,
        checkpoints="all",
        save_every=1,
    ),
    "bias-mean": Experiment(
        "Scores and biases over the initial mean of the bias",
        "Decision scores and biases at the last epoch, for biases that begin at different means.",
        axes={"optimizer": OPTIMIZERS, "bias_init_mean": (0, 1, 2, 3, 4, 5, 6, 8, 10)},
        fixed={"sep_decay": True, "weight_decay_bias": 0.0},
        smaller={"cpu": {"bias_init_mean": (0, 5, 10)}, "smoke": {"bias_init_mean": (0, 10)}},
        **_SCORE_FIGURE,
    ),
    "bias-decay": Experiment(
        "Scores and biases over the decay of the bias",
        "Decision scores and biases at the last epoch, for decays λ_b of biases that begin at 10.",
        axes={"optimizer": OPTIMIZERS, "weight_decay_bias": (0.5, 0.05, 5e-3, 5e-4, 5e-5, 5e-6)},
        fixed={"sep_decay": True, "bias_init_mean": 10},
        smaller={
            "cpu": {"weight_decay_bias": (0.5, 5e-3, 5e-5)},
            "smoke": {"weight_decay_bias": (0.5, 5e-6)},
        },
        **_SCORE_FIGURE,
    ),
    "tsne": Experiment(
        "t-SNE of the features over the epochs",
        "Features of the training set at epochs 6 to 13 under CE and BCE.",
        axes={"optimizer": ("SGD",)},
        fixed={"sep_decay": True},
        measures=("nc1", "compactness", "distinctiveness", "top1", "uniform"),
        checkpoints="6-13",
        save_every=1,
    ),
    "long-tail": Experiment(
        "Long-tailed classes",
        "Top-1 on the balanced test set after training on CIFAR100-LT. The paper's network for "
        "this table is not among the facts at hand: ResNet18 is taken.",
        datasets=("cifar100",),
        axes={"optimizer": ("SGD",), "imbalance_factor": (10, 50, 100)},
        fixed={"augment": "DA1"},
        measures=("top1", "uniform", "many", "medium", "few"),
        published=_long_tail,
        # Enough images that a class has more than 100, and is one of the many.
        smaller={"smoke": {"imbalance_factor": (10,), "sample_size": (120,)}},
        checkpoints="last",
    ),
    "imagenet": Experiment(
        "ImageNet-1K",
        "Top-1 and uniform accuracy. The paper's optimizer settings for ImageNet are not among the "
        "facts at hand: those of CIFAR are taken, with crops and flips.",
        datasets=("folder",),
        models=("ResNet50", "ResNet101", "DenseNet161"),
        axes={"optimizer": ("SGD",)},
        fixed={"augment": "DA1"},
        published=imagenet,
    ),
    "theory": Experiment(
        "The unconstrained-feature model",
        "The exact minimum, the minimum that L-BFGS finds, and the paper's score figures.",
        datasets=(),
        models=(),
        axes={},
        measures=SCORE_MEASURES,
    ),
}
