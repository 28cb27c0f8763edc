"""Problem (1) of the paper for any class sizes, targets and kind of bias. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

LOSSES = ("CE", "BCE", "MSE")
BIAS_MODES = ("diverse", "unified", "none")


@dataclass(frozen=True)
class Problem:
    """The unconstrained-feature model, with logits z = W h − b:

        min over W, H, b of  (1/N) Σ_i L(z_i, t_i) + λ_W/2 ‖W‖² + λ_H/2 ‖H‖² + λ_b/2 ‖b‖²

    A mini-batch of B images that `--sep_decay` regularises is this problem with n_k = B π_k, where
    π_k is the share of class k in the training set. Class sizes need not be whole numbers, because
    the samples of a class coincide at the minimum.

    Attributes:
        loss: "CE", "BCE" (summed over classes) or "MSE" (½ Σ_k (z_k − t_k)²).
        class_sizes: n_k > 0, K ≥ 2 of them; N is their sum.
        weight_decay: λ_W > 0.
        feature_decay_rate: λ_H > 0.
        weight_decay_bias: λ_b ≥ 0.
        smoothing: s in [0, 1): targets become (1 − s) onehot + s/K.
        bias_mode: "diverse" (a bias per class), "unified" (one for all, which counts K times in
            ‖b‖²) or "none".

    Raises:
        ValueError: a value is out of its range; the message names it.
    """

    loss: str
    class_sizes: Sequence[float] = field(repr=False)
    weight_decay: float
    feature_decay_rate: float
    weight_decay_bias: float = 0.0
    smoothing: float = 0.0
    bias_mode: str = "diverse"

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_sizes", tuple(map(float, self.class_sizes)))
        check_choice("loss", self.loss, LOSSES)
        check_choice("bias_mode", self.bias_mode, BIAS_MODES)
        if self.num_classes < 2:
            raise ValueError(f"class_sizes has {self.num_classes} values: it must have 2 or more")
        for index, size in enumerate(self.class_sizes):
            check_positive(f"class_sizes[{index}]", size)
        check_decays(
            self.total / self.num_classes,
            self.weight_decay,
            self.feature_decay_rate,
            self.weight_decay_bias,
        )
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing is {self.smoothing}: it must be at least 0 and below 1")

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_sizes)

    @property
    def total(self) -> float:
        """N, the number of samples."""
        return math.fsum(self.class_sizes)

    @property
    def is_balanced(self) -> bool:
        """Whether all classes have one size."""
        return len(set(self.class_sizes)) == 1

    @property
    def price(self) -> float:
        """√(λ_W λ_H), the price of a unit of the nuclear norm of the scaled scores."""
        return math.sqrt(self.weight_decay) * math.sqrt(self.feature_decay_rate)

    @property
    def own_target(self) -> float:
        """The target of a sample's own class."""
        return 1 - self.smoothing + self.smoothing / self.num_classes

    @property
    def other_target(self) -> float:
        """The target of each other class."""
        return self.smoothing / self.num_classes

    def count_biases(self, classes: int) -> int:
        """Return how many biases there are for a number of classes, or of groups of equal ones."""
        return {"diverse": classes, "unified": 1, "none": 0}[self.bias_mode]

    @property
    def bias_level_is_free(self) -> bool:
        """Whether a number added to all biases changes nothing: CE without decay of the bias."""
        return self.loss == "CE" and self.weight_decay_bias == 0 and self.bias_mode != "none"


def divide_batch(batch_size: float, class_sizes: Sequence[float]) -> list[float]:
    """Return how many of a batch's images belong to each class on average: B π_k.

    Args:
        batch_size: B.
        class_sizes: training images of each class.
    """
    total = math.fsum(class_sizes)
    return [batch_size * size / total for size in class_sizes]


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError if a value is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: it must be one of {', '.join(choices)}")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless a value is above 0 and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}: it must be above 0 and finite")


def check_decays(
    samples_per_class: float,
    weight_decay: float,
    feature_decay_rate: float,
    weight_decay_bias: float,
) -> None:
    """Raise ValueError unless decays are in their ranges, and their product in float64's."""
    check_positive("weight_decay", weight_decay)
    check_positive("feature_decay_rate", feature_decay_rate)
    product = samples_per_class * weight_decay * feature_decay_rate
    if not 1e-200 < product < 1e200:
        raise ValueError(
            f"samples_per_class · weight_decay · feature_decay_rate is {product}: it must be "
            "between 1e-200 and 1e200"
        )
    if not 0 <= weight_decay_bias < math.inf:
        raise ValueError(
            f"weight_decay_bias is {weight_decay_bias}: it must be at least 0 and finite"
        )
