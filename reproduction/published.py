"""The paper's published numbers (Li, Xiao, Shen, ICML 2025), to compare with ours.

Accuracies are percent on the test set: top-1 and, where published, uniform accuracy.
"""

from __future__ import annotations

from args import Settings
from input_pipeline import SOURCES

Scores = tuple[float | None, float | None, float | None]  # positive score, negative score, bias

# (optimizer, augment) of the four columns of the accuracy table.
ACCURACY_COLUMNS = (("SGD", "DA1"), ("SGD", "DA1+DA2"), ("AdamW", "DA1"), ("AdamW", "DA1+DA2"))

# (dataset, model, loss): (top-1, uniform accuracy) for each of ACCURACY_COLUMNS.
_TABLE = {
    ("cifar10", "ResNet18", "CE"): ((92.8, 85.2), (92.7, 89.1), (93.4, 89.0), (95.7, 94.3)),
    ("cifar10", "ResNet18", "BCE"): ((93.2, 91.9), (93.6, 91.9), (93.9, 93.4), (95.6, 95.2)),
    ("cifar10", "ResNet50", "CE"): ((92.7, 85.2), (92.7, 89.6), (94.5, 87.9), (96.0, 94.3)),
    ("cifar10", "ResNet50", "BCE"): ((93.4, 92.5), (93.2, 91.5), (94.0, 93.6), (96.2, 95.7)),
    ("cifar10", "DenseNet121", "CE"): ((87.9, 78.8), (86.7, 81.5), (90.4, 83.6), (92.6, 90.7)),
    ("cifar10", "DenseNet121", "BCE"): ((88.7, 87.6), (87.8, 85.0), (90.6, 89.9), (92.6, 91.8)),
    ("cifar100", "ResNet18", "CE"): ((71.2, 43.2), (71.8, 56.7), (71.7, 49.2), (76.5, 64.4)),
    ("cifar100", "ResNet18", "BCE"): ((72.2, 63.3), (72.3, 62.9), (73.2, 66.3), (76.7, 70.0)),
    ("cifar100", "ResNet50", "CE"): ((71.6, 44.2), (70.3, 55.2), (75.0, 48.8), (78.6, 67.8)),
    ("cifar100", "ResNet50", "BCE"): ((71.8, 64.1), (71.9, 62.8), (75.3, 68.8), (78.5, 72.7)),
    ("cifar100", "DenseNet121", "CE"): ((60.8, 32.9), (57.2, 39.8), (63.7, 38.8), (69.0, 57.2)),
    ("cifar100", "DenseNet121", "BCE"): ((61.1, 53.5), (58.4, 47.7), (63.6, 57.3), (69.4, 63.5)),
}
ACCURACY = {
    (*key, *column): pair
    for key, pairs in _TABLE.items()
    for column, pair in zip(ACCURACY_COLUMNS, pairs, strict=True)
}

# (model, loss) on ImageNet-1K.
IMAGENET = {
    ("ResNet50", "CE"): (76.74, 34.48),
    ("ResNet50", "BCE"): (77.12, 66.92),
    ("ResNet101", "CE"): (78.47, 38.85),
    ("ResNet101", "BCE"): (78.88, 70.46),
    ("DenseNet161", "CE"): (78.58, 43.56),
    ("DenseNet161", "BCE"): (79.19, 69.08),
}

# (imbalance factor, loss) on CIFAR100-LT: top-1.
LONG_TAIL: dict[tuple[float, str], float] = {
    (10, "CE"): 70.91,
    (50, "CE"): 57.59,
    (100, "CE"): 51.48,
    (10, "BCE"): 71.54,
    (50, "BCE"): 58.49,
    (100, "BCE"): 52.88,
}

# (loss, optimizer), ResNet18 on CIFAR10 after 100 epochs: NC2 and NC3, read off the poster (±0.02).
NC_CURVES = {
    ("CE", "SGD"): (0.22, 0.17),
    ("BCE", "SGD"): (0.03, 0.04),
    ("CE", "AdamW"): (0.01, 0.01),
    ("BCE", "AdamW"): (0.01, 0.01),
}

# (classes, loss, λ_b) of the score figures with AdamW and Swin, read off the figures. CE's scores
# do not depend on λ_b (None in the key). Its bias has no number to compare with: without bias decay
# (λ_b = 0) it keeps its initial value.
SCORE_FIGURES: dict[tuple[int, str, float | None], Scores] = {
    (10, "BCE", 0.0): (9.4, -1.0, 5.3),
    (10, "BCE", 5e-4): (8.0, -1.9, 3.8),
    (10, "BCE", 0.5): (4.3, -5.6, 0.0),
    (100, "BCE", 0.0): (10.2, -0.1, 7.4),
    (100, "BCE", 5e-4): (4.0, -5.6, 1.2),
    (100, "BCE", 0.5): (2.9, -6.8, 0.0),
    (10, "CE", None): (5.7, -0.6, None),
    (100, "CE", None): (7.4, -0.1, None),
}


def find_scores(num_classes: int, loss: str, weight_decay_bias: float) -> Scores:
    """Return the scores and the bias of the paper's figures; None for a value not shown there."""
    independent = SCORE_FIGURES.get((num_classes, loss, None), (None, None, None))
    return SCORE_FIGURES.get((num_classes, loss, weight_decay_bias), independent)


# The functions that `reproduction.EXPERIMENTS` names: they map the settings of a run in the paper's
# terms to the published numbers by measure, None for what is not published.


def look_up_accuracy(settings: Settings) -> dict[str, float | None]:
    """Return the entry of the table of accuracies."""
    s = settings
    top1, uniform = ACCURACY.get((s.dataset, s.model, s.loss, s.optimizer, s.augment), (None, None))
    return {"top1": top1, "uniform_accuracy": uniform}


def look_up_imagenet(settings: Settings) -> dict[str, float | None]:
    """Return the entry of the ImageNet table."""
    top1, uniform = IMAGENET.get((settings.model, settings.loss), (None, None))
    return {"top1": top1, "uniform_accuracy": uniform}


def look_up_long_tail(settings: Settings) -> dict[str, float | None]:
    """Return the entry of the CIFAR100-LT table."""
    return {"top1": LONG_TAIL.get((settings.imbalance_factor, settings.loss))}


def look_up_nc_curves(settings: Settings) -> dict[str, float | None]:
    """Return the values at the end of the curves."""
    nc2, nc3 = NC_CURVES.get((settings.loss, settings.optimizer), (None, None))
    return {"nc2": nc2, "nc3": nc3}


def look_up_scores(settings: Settings) -> dict[str, float | None]:
    """Return the values of the score figures, which were read off for Swin with AdamW."""
    if (settings.model, settings.optimizer) != ("Swin", "AdamW"):
        return {}
    num_classes = SOURCES[settings.dataset].num_classes or 0
    values = find_scores(num_classes, settings.loss, settings.weight_decay_bias or 0.0)
    return dict(zip(("positive_mean", "negative_mean", "bias_mean"), values, strict=True))
