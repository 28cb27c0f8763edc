"""The registries of the paper's experiments and of their scales.

Imports no torch: an entry names its functions as text. To add an experiment, write its entry in
`EXPERIMENTS`: reproduce.py then lists, trains, evaluates, draws and reports it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Values = tuple[Any, ...]
# Behind the name of a measure: its mean over the epochs; the first epoch at which it is below a
# value, as in "nc2 below 0.2"; the one from which on it stays near its exact prediction, as in
# "bias_mean within 5 %". Other readings are those of the last epoch.
OVER_EPOCHS, BELOW, WITHIN = " over epochs", " below ", " within "


@dataclass(frozen=True)
class Scale:
    """A size at which experiments are run.

    Attributes:
        what: one phrase for `--help`.
        settings: of train.py, for every run.
        rates: learning rates by optimizer; one that is not named gets train.py's default.
        datasets, models: in place of the experiments' own; None: the experiments'.
        of_datasets: settings in place of `settings`, by data set.
        of_models: additional settings, by network.
        is_papers: whether the runs are those of the paper, and not small ones of the same kind.
        classes: numbers of classes of the unconstrained-feature model, for its table.
        swept_classes: the same for its sweeps.
    """

    what: str
    settings: Mapping[str, Any]
    rates: Mapping[str, float]
    datasets: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    of_datasets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    of_models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    is_papers: bool = False
    classes: tuple[int, ...] = (10, 100)
    swept_classes: tuple[int, ...] = (10,)


@dataclass(frozen=True)
class Experiment:
    """A table or a figure of the paper.

    Attributes:
        title: heads the report.
        what: its content in one or two sentences.
        datasets, models: those of the paper. An experiment without any trains nothing.
        losses: the losses to compare; the report subtracts the first from the others.
        axes: settings of train.py that the grid spans besides data set, model, loss and seed. A
            value of None is the default, which is not given.
        smaller: axes in place of those of `axes`, by scale.
        of_losses: the values of axes that a loss has, where it does not have all, by loss.
        fixed: settings of all its runs.
        recipes: settings of runs on `datasets` in place of the scale's and of `fixed`, by scale.
            Where `--epochs` gives another number of epochs, warm-up and milestones follow.
        image_side: side in pixels to which the paper resizes the images of a source that streams.
        save_every: epochs between checkpoints; None: the last epoch alone is saved.
        checkpoints: the checkpoints for eval_nc.py: last, all, best, or epochs such as 1,5,10-20;
            None: none. Runs keep no others, besides best_model.pth, where train.py can do so.
        epochs: the first and the last epoch to measure and draw, in place of `checkpoints`. A
            shorter run takes its last half.
        overlays_curves: whether eval_nc.py draws the curves of all runs in one picture.
        measures: the columns of the report: measures of `metrics.MEASURES` at the last epoch, the
            test_loss of training, or what `OVER_EPOCHS`, `BELOW` and `WITHIN` make of a measure.
        published: maps the settings of a run in the paper's terms to the paper's numbers by
            measure.
        network_known: whether `models` are the networks of the paper's numbers.
        titles: the paper's names for its data sets, where they differ from those of
            `input_pipeline.SOURCES`.
        sizes: (classes, training images, test images) of the paper's data set, by the name of a
            source that can hold others.
        find_results: maps (work, failed) to the results, see reproduction.results.
        draw: maps the work to a drawing, see reproduction.pictures.
        swept: the setting on the x axis of its score figure.
    """

    title: str
    what: str
    datasets: tuple[str, ...] = ("cifar10",)
    models: tuple[str, ...] = ("ResNet18",)
    losses: tuple[str, ...] = ("CE", "BCE")
    axes: Mapping[str, Values] = field(default_factory=lambda: {"optimizer": ("SGD", "AdamW")})
    smaller: Mapping[str, Mapping[str, Values]] = field(default_factory=dict)
    of_losses: Mapping[str, Mapping[str, Values]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    image_side: int | None = None
    save_every: int | None = None
    checkpoints: str | None = None
    epochs: tuple[int, int] | None = None
    overlays_curves: bool = False
    measures: tuple[str, ...] = ("top1", "uniform_accuracy")
    published: str | None = None
    network_known: bool = True
    titles: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    find_results: str = "reproduction.results:collect_results"
    draw: str = "reproduction.pictures:draw_accuracies"
    swept: str | None = None

    @property
    def trains(self) -> bool:
        """Whether the experiment has training runs."""
        return bool(self.datasets)

    def choose_checkpoints(self, epochs: int) -> str | None:
        """Return the checkpoints to measure of runs of `epochs` epochs; None: none."""
        if self.epochs is None:
            return self.checkpoints
        first, last = choose_epochs(self.epochs, epochs)
        return f"{first}-{last}"

    def choose_kept(self, epochs: int) -> str | int:
        """Return the `keep_checkpoints` of runs of `epochs` epochs: what will be measured."""
        chosen = self.choose_checkpoints(epochs)
        if chosen in (None, "best"):
            return "best"
        return 1 if chosen == "last" else "all"


def choose_epochs(asked: tuple[int, int], epochs: int) -> tuple[int, int]:
    """Return the first and the last epoch of a span, or of the last half of a shorter run."""
    return asked if epochs >= asked[1] else (math.ceil(epochs / 2), epochs)


SCALES: dict[str, Scale] = {
    "smoke": Scale(
        "a small MLP on few digits, minutes",
        settings={"epochs": 6, "sample_size": 60, "test_sample_size": 30, "batch_size": 32},
        rates={"SGD": 0.1, "AdamW": 0.008},
        datasets=("digits",),
        models=("MLP",),
        of_models={"MLP": {"width": 128, "depth": 2}},
        classes=(10,),
    ),
    "cpu": Scale(
        "ResNet18 on a sample of MNIST",
        settings={"epochs": 20, "sample_size": 200, "test_sample_size": 100, "img_size": 16},
        rates={"SGD": 0.02, "AdamW": 0.002},
        datasets=("mnist",),
        models=("ResNet18",),
        of_datasets={
            "digits": {"epochs": 40},
            "folder": {"epochs": 20, "sample_size": 200, "test_sample_size": 100},
        },
    ),
    "full": Scale(
        "the paper's setting",
        settings={"epochs": 100},
        rates={"SGD": 0.01, "AdamW": 0.01},
        is_papers=True,
        swept_classes=(10, 100),
    ),
}

SCORE_MEASURES = ("positive_mean", "negative_mean", "bias_mean")
EXPERIMENTS: dict[str, Experiment] = {
    "table-cifar": Experiment(
        title="Accuracy and uniform accuracy",
        what="Top-1 (A) and uniform accuracy (A_Uni) on the test set under CE and BCE.",
        datasets=("cifar10", "cifar100"),
        models=("ResNet18", "ResNet50", "DenseNet121"),
        axes={"optimizer": ("SGD", "AdamW"), "augment": ("DA1", "DA1+DA2")},
        published="reproduction.published:look_up_accuracy",
    ),
    "nc-curves": Experiment(
        title="Neural collapse over the epochs",
        what="NC1 to NC3, scores and bias without augmentation, the decays as terms of the loss.",
        fixed={"sep_decay": True},
        save_every=1,
        checkpoints="all",
        overlays_curves=True,
        measures=(
            "nc1",
            "nc2",
            "nc2_h",
            "nc3",
            f"nc2{OVER_EPOCHS}",
            f"nc3{OVER_EPOCHS}",
            *SCORE_MEASURES,
            "top1",
            "uniform_accuracy",
        ),
        published="reproduction.published:look_up_nc_curves",
        draw="reproduction.pictures:draw_curves",
        swept="bias_init_mean",
    ),
    "bias-mean": Experiment(
        title="Scores and biases over the initial mean of the bias",
        what="Decision scores and biases at the last epoch, for biases that begin at different "
        "means.",
        datasets=("cifar10", "cifar100"),
        models=("ResNet18", "ViT", "Swin"),
        axes={"optimizer": ("SGD", "AdamW"), "bias_init_mean": (0, 1, 2, 3, 4, 5, 6, 8, 10)},
        smaller={"cpu": {"bias_init_mean": (0, 5, 10)}, "smoke": {"bias_init_mean": (0, 10)}},
        fixed={"sep_decay": True, "weight_decay_bias": 0.0},
        checkpoints="last",
        measures=(*SCORE_MEASURES, "top1", "uniform_accuracy"),
        published="reproduction.published:look_up_scores",
        draw="reproduction.pictures:draw_scores",
        swept="bias_init_mean",
    ),
    "bias-decay": Experiment(
        title="Scores and biases over the decay of the bias",
        what="Decision scores and biases at the last epoch, for decays λ_b of biases that begin "
        "at 10.",
        datasets=("cifar10", "cifar100"),
        models=("ResNet18", "ViT", "Swin"),
        axes={
            "optimizer": ("SGD", "AdamW"),
            "weight_decay_bias": (0.5, 0.05, 5e-3, 5e-4, 5e-5, 5e-6),
        },
        smaller={
            "cpu": {"weight_decay_bias": (0.5, 5e-3, 5e-5)},
            "smoke": {"weight_decay_bias": (0.5, 5e-6)},
        },
        fixed={"sep_decay": True, "bias_init_mean": 10},
        checkpoints="last",
        measures=(*SCORE_MEASURES, "top1", "uniform_accuracy"),
        published="reproduction.published:look_up_scores",
        draw="reproduction.pictures:draw_scores",
        swept="weight_decay_bias",
    ),
    "tsne": Experiment(
        title="t-SNE of the features over the epochs",
        what="Features of the training set at epochs 6 to 13 under CE and BCE.",
        axes={"optimizer": ("SGD",)},
        fixed={"sep_decay": True},
        save_every=1,
        epochs=(6, 13),
        measures=("nc1", "compactness", "distinctiveness", "top1", "uniform_accuracy"),
        draw="reproduction.pictures:draw_tsne",
    ),
    "long-tail": Experiment(
        title="Long-tailed classes",
        what="Top-1 on the balanced test set after training on CIFAR100-LT. The network of the "
        "paper's table is not known here: ResNet18 is taken.",
        datasets=("cifar100",),
        axes={"optimizer": ("SGD",), "imbalance_factor": (10, 50, 100)},
        # With this many images, a class has more than 100 and is one of the many.
        smaller={"smoke": {"imbalance_factor": (10,), "sample_size": (120,)}},
        fixed={"augment": "DA1"},
        checkpoints="last",
        measures=("top1", "uniform_accuracy", "top1_many", "top1_medium", "top1_few"),
        published="reproduction.published:look_up_long_tail",
        network_known=False,
        titles={"cifar100": "CIFAR100-LT"},
    ),
    "imagenet": Experiment(
        title="ImageNet-1K",
        what="Top-1 and uniform accuracy. The paper's training settings for ImageNet are not known "
        "here. At full scale those of torchvision's references for ResNets are taken (90 epochs, "
        "batches of 256, SGD with a rate of 0.1 that is divided by 10 after 30 and 60 epochs, "
        "weight decay 1e-4, random resized crops and flips), with the 5 epochs of warm-up of Goyal "
        "et al. (2017).",
        datasets=("folder",),
        models=("ResNet50", "ResNet101", "DenseNet161"),
        axes={"optimizer": ("SGD",)},
        fixed={"augment": "DA1"},
        recipes={
            "full": {
                "augment": "RRC",
                "epochs": 90,
                "batch_size": 256,
                "lr": 0.05,  # for batches of 128: 0.1 for those of 256
                "schedule": "step",
                "step_milestones": [30, 60],
                "epochs_warmup": 5,
                "weight_decay": 1e-4,
            },
        },
        image_side=224,
        published="reproduction.published:look_up_imagenet",
        titles={"folder": "ImageNet-1K"},
        sizes={"folder": (1000, 1_281_167, 50_000)},
    ),
    "bias-start": Experiment(
        title="Where the bias starts",
        what="Training from biases that begin at 0, at the prior (where scores of 0 have the least "
        "loss) and at the exact prediction. With CE the level of the bias is free, and it "
        "begins at 0. This experiment is not the paper's.",
        # None: 0, the default. nc-curves has these runs, too.
        axes={
            "optimizer": ("SGD", "AdamW"),
            "bias_init_mean": (None, "prior", "predicted"),
        },
        of_losses={"CE": {"bias_init_mean": (None,)}},
        fixed={"sep_decay": True},
        save_every=1,
        checkpoints="all",
        measures=(
            f"nc2{BELOW}0.2",
            "nc2",
            "nc2_h",
            "nc3",
            "top1",
            "uniform_accuracy",
            "test_loss",
            *SCORE_MEASURES,
            *(f"{name}{WITHIN}5 %" for name in SCORE_MEASURES),
        ),
        draw="reproduction.starts:draw_starts",
        swept="bias_init_mean",
    ),
    "theory": Experiment(
        title="The unconstrained-feature model",
        what="The exact minimum, the minimum that L-BFGS finds, and the paper's score figures.",
        datasets=(),
        models=(),
        axes={},
        measures=SCORE_MEASURES,
        find_results="reproduction.sweeps:find_results",
        draw="reproduction.sweeps:draw_sweeps",
    ),
}
