"""A setting to compare theory and search in, and the paper's sweeps. Imports nothing heavy.

The names of the attributes are the flags of verify_theory.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from theory.problem import Problem


@dataclass(frozen=True)
class Setting:
    """Problem, search and tolerance.

    Attributes:
        loss: a name of `theory.losses.EXACT_LOSSES`.
        num_classes: K.
        samples_per_class: the mean of n_k; None if the sizes were given one by one.
        imbalance_factor: the size of the largest class over that of the smallest; None likewise.
        class_sizes: n_k of each class, whatever it follows from.
        feature_dim: d.
        weight_decay: λ_W.
        feature_decay_rate: λ_H.
        weight_decay_bias: λ_b.
        smoothing: s.
        bias_mode: "diverse", "unified" or "none".
        bias_init_mean: the mean of the biases where the search starts.
        seed: the seed of the first random start.
        starts: the number of random starts.
        tolerance: the largest difference that counts as agreement.
    """

    loss: str
    num_classes: int
    samples_per_class: float | None
    imbalance_factor: float | None
    class_sizes: Sequence[float]
    feature_dim: int
    weight_decay: float
    feature_decay_rate: float
    weight_decay_bias: float
    smoothing: float
    bias_mode: str
    bias_init_mean: float
    seed: int
    starts: int
    tolerance: float

    def build_problem(self) -> Problem:
        """Return the problem. Raises ValueError if decays are beyond float64's range."""
        return Problem(
            self.loss,
            self.class_sizes,
            self.weight_decay,
            self.feature_decay_rate,
            self.weight_decay_bias,
            self.smoothing,
            self.bias_mode,
        )


@dataclass(frozen=True)
class Sweep:
    """One of the paper's grids over one attribute of a setting.

    Attributes:
        name: the name of the sweep.
        attribute: the attribute that varies.
        values: its values.
        axis_label: the label of the axis in the picture.
        bias_init_mean: the default of that attribute during the sweep.
    """

    name: str
    attribute: str
    values: tuple[float, ...]
    axis_label: str
    bias_init_mean: float = 0.0

    def apply(self, setting: Setting, value: float) -> Setting:
        """Return the setting with another value of the swept attribute."""
        changed: dict[str, Any] = {self.attribute: value}
        return replace(setting, **changed)


DECAY_SWEEP = Sweep(
    "bias_decay",
    "weight_decay_bias",
    (0.5, 0.05, 5e-3, 5e-4, 5e-5, 5e-6),
    "decay of the bias",
    bias_init_mean=10.0,
)
MEAN_SWEEP = Sweep(
    "bias_init_mean", "bias_init_mean", (0, 1, 2, 3, 4, 5, 6, 8, 10), "initial mean of the bias"
)
SWEEPS = {sweep.name: sweep for sweep in (DECAY_SWEEP, MEAN_SWEEP)}
