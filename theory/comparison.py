"""Predicted and found minimum side by side: their quantities, differences and table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from theory.balanced import BalancedMinimum
from theory.minimiser import FoundMinimum

FLAT = 1e-6  # L-BFGS cannot lower a loss that exceeds the minimum by less than this share


@dataclass(frozen=True)
class Quantity:
    """A number to compare.

    Attributes:
        title: its title in the table.
        is_relative: whether differences are relative if the predicted value is above 1.
    """

    title: str
    is_relative: bool = False


COLLAPSE_QUANTITIES = {
    "nc1": Quantity("NC1"),
    "nc2": Quantity("NC2 (classifier)"),
    "nc2_h": Quantity("NC2 (class means)"),
    "nc3": Quantity("NC3"),
}
QUANTITIES = {
    "positive_score": Quantity("positive score"),
    "negative_score": Quantity("negative score"),
    "bias": Quantity("bias"),
    "loss_value": Quantity("loss", is_relative=True),
    "weight_norm_squared": Quantity("|W|^2", is_relative=True),
    **COLLAPSE_QUANTITIES,
}


@dataclass(frozen=True)
class Comparison:
    """The predicted and the found minimum of one setting.

    Attributes:
        predicted: the exact minimum.
        found: the minimum that L-BFGS arrived at.
        objection: the reason why the theory does not apply; None if it applies.
        expected: predicted values by the names of `QUANTITIES`; None without a prediction.
        measured: found values by the same names and others (see `collect_measured`).
    """

    predicted: BalancedMinimum
    found: FoundMinimum
    objection: str | None
    expected: dict[str, float | None]
    measured: dict[str, float]

    def find_largest_difference(self) -> tuple[float, str]:
        """Return the largest difference and the name of its quantity.

        Scores and biases count with their whole spread. A bias without a prediction needs only be
        the same for all classes. A NaN counts as infinite.
        """
        differences = {}
        for name, value in self.expected.items():
            if value is not None:
                differences[name] = self._measure_difference(name, value)
        if self.expected["bias"] is None:
            spread = self.measured["bias_max"] - self.measured["bias_min"]
            differences["spread of the bias"] = spread
        # A NaN counts as the largest difference.
        largest = max(
            differences, key=lambda name: (math.isnan(differences[name]), differences[name])
        )
        difference = differences[largest]
        return (math.inf if math.isnan(difference) else difference), largest

    def is_flat(self) -> bool:
        """Return whether the losses agree so well that L-BFGS had no reason to go on."""
        return abs(self.excess) <= FLAT * abs(self.predicted.loss_value)

    @property
    def excess(self) -> float:
        """The found loss minus the minimum."""
        return self.found.loss_value - self.predicted.loss_value

    def list_rows(self) -> list[list[str]]:
        """Return the cells of a table: quantity, predicted, found, difference."""
        rows = []
        for name, quantity in QUANTITIES.items():
            value = self.expected[name]
            for suffix in ("_min", "_max") if f"{name}_min" in self.measured else ("",):
                found = self.measured[name + suffix]
                difference = "" if value is None else f"{found - value:.1e}"
                title = quantity.title + suffix.replace("_", ", ")
                rows.append([title, format_number(value), format_number(found), difference])
        return rows

    def _measure_difference(self, name: str, value: float) -> float:
        scale = max(1.0, abs(value)) if QUANTITIES[name].is_relative else 1.0
        keys = (name, f"{name}_min", f"{name}_max")
        ends = [self.measured[key] for key in keys if key in self.measured]
        return max(abs(end - value) for end in ends) / scale


def compare(
    predicted: BalancedMinimum,
    found: FoundMinimum,
    collapse: Mapping[str, float],
    class_sizes: Sequence[int],
    feature_dim: int,
) -> Comparison:
    """Compare a found minimum with the prediction.

    Args:
        predicted: the exact minimum for balanced classes.
        found: the minimum that L-BFGS arrived at.
        collapse: the found point's values of the quantities `COLLAPSE_QUANTITIES`, by name.
        class_sizes: the sizes in the found minimum; the theory does not apply if they differ.
        feature_dim: d of the found minimum.
    """
    objection = find_objection(predicted, class_sizes, feature_dim)
    expected = collect_expected(predicted)
    if objection is not None:
        expected = dict.fromkeys(expected)  # there is no prediction
    measured = collect_measured(found, collapse)
    return Comparison(predicted, found, objection, expected, measured)


def find_objection(
    predicted: BalancedMinimum, class_sizes: Sequence[int], feature_dim: int
) -> str | None:
    """Return the reason why the theory does not apply, or None if it applies."""
    if len(set(class_sizes)) > 1:
        return "the classes are imbalanced"
    if feature_dim < predicted.min_feature_dim:
        return (
            f"the regime is {predicted.regime}, which needs d >= {predicted.min_feature_dim}, "
            f"and d = {feature_dim}"
        )
    return None


def collect_expected(predicted: BalancedMinimum) -> dict[str, float | None]:
    """Return the predicted value of each of `QUANTITIES`; None where it is not defined."""
    has_means = predicted.positive_score != predicted.negative_score
    collapsed = 0.0 if has_means else None  # without class means nothing can collapse onto them
    return {
        "positive_score": predicted.positive_score + 0.0,  # no -0
        "negative_score": predicted.negative_score + 0.0,
        "bias": predicted.bias,
        "loss_value": predicted.loss_value,
        "weight_norm_squared": predicted.weight_norm_squared,
        "nc1": collapsed,
        "nc2": compute_nc2(predicted),
        "nc2_h": collapsed,
        "nc3": collapsed,
    }


def compute_nc2(predicted: BalancedMinimum) -> float | None:
    """Return NC2 of the predicted W, or None where W is 0.

    W Wᵀ is p (I − 11ᵀ/K) + q 11ᵀ/K and shares the singular vectors of the scores. Hence p : q is
    the amplitude's singular value a K/(K−1) over the shift's, K|s|.
    """
    num_classes = predicted.num_classes
    etf = predicted.positive_score - predicted.negative_score  # a K/(K−1), K−1 times
    common = num_classes * abs(predicted.common_shift)
    norm = math.sqrt((num_classes - 1) * etf**2 + common**2)
    if norm == 0:
        return None
    along = etf / norm - 1 / math.sqrt(num_classes - 1)
    return math.sqrt((num_classes - 1) * along**2 + (common / norm) ** 2)


def collect_measured(found: FoundMinimum, collapse: Mapping[str, float]) -> dict[str, float]:
    """Return the found value of each of `QUANTITIES`, and the gradient.

    Scores and bias are means; NAME_min and NAME_max hold their spread.
    """
    groups = {
        "positive_score": found.positive_scores,
        "negative_score": found.negative_scores,
        "bias": found.bias,
    }
    values: dict[str, float] = {}
    for name, group in groups.items():
        values |= {name: group.mean(), f"{name}_min": group.min(), f"{name}_max": group.max()}
    values["loss_value"] = found.loss_value
    values["weight_norm_squared"] = np.square(found.weight).sum()
    values["gradient"] = found.gradient_norm
    values |= {name: collapse[name] for name in COLLAPSE_QUANTITIES}
    return {name: float(value) for name, value in values.items()}


def format_number(value: float | None) -> str:
    """Return six significant digits; "-" where there is no value."""
    return "-" if value is None else f"{value:.6g}"
