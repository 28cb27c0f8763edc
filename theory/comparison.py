"""Predicted and found minimum side by side: their quantities, differences and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from theory.groups import average
from theory.minimiser import FoundMinimum
from theory.minimum import Prediction
from theory.problem import Problem

FLAT = 1e-6  # L-BFGS cannot lower a loss that exceeds the minimum by less than this share


@dataclass(frozen=True)
class Quantity:
    """A number to compare.

    Attributes:
        title: its title in the table.
        is_relative: whether differences are relative if the predicted value is above 1.
        of_classes: the name of its values of the classes, [K]; "" for a single number.
    """

    title: str
    is_relative: bool = False
    of_classes: str = ""


COLLAPSE_QUANTITIES = {
    "nc1": Quantity("NC1"),
    "nc2": Quantity("NC2 (classifier)"),
    "nc2_h": Quantity("NC2 (class means)"),
    "nc3": Quantity("NC3"),
    "compactness": Quantity("compactness"),
    "distinctiveness": Quantity("distinctiveness"),
}
CLASS_QUANTITIES = {
    "positive_score": Quantity("positive score", of_classes="positive_scores"),
    "negative_score": Quantity("negative score", of_classes="negative_scores"),
    "bias": Quantity("bias", of_classes="biases"),
}
QUANTITIES = {
    **CLASS_QUANTITIES,
    "loss_value": Quantity("loss", is_relative=True),
    "weight_norm_squared": Quantity("|W|^2", is_relative=True),
    **COLLAPSE_QUANTITIES,
}


@dataclass(frozen=True)
class Comparison:
    """The predicted and the found minimum of one problem.

    Attributes:
        problem: the problem.
        predicted: the exact minimum; None without one that is certified.
        found: the minimum that L-BFGS arrived at.
        objection: the reason why there is no prediction; None if there is one.
        expected: predicted values by the names of `QUANTITIES`; None without a prediction. Scores
            and bias are means, over the samples and over the classes; NAME_min and NAME_max are the
            least and the largest single one, and `Quantity.of_classes` the means of the classes,
            [K]. So are weight_norms and feature_norms. gap is the prediction's.
        measured: found values by the same names without gap, and gradient.
    """

    problem: Problem
    predicted: Prediction | None
    found: FoundMinimum
    objection: str | None
    expected: dict[str, Any]
    measured: dict[str, Any]

    @cached_property
    def class_differences(self) -> dict[str, np.ndarray]:
        """The largest difference within each class of scores and biases, [K]; empty without any.

        Each score of each sample counts. A free level of the bias does not.
        """
        if self.objection is not None or self.predicted is None:
            return {}
        labels = self.found.labels
        exact = self.predicted.scores.expand(self.predicted.group_of)
        apart = np.abs(self.found.features @ self.found.weight.T - exact.T[labels])
        rows = np.arange(len(labels))
        own = apart[rows, labels].copy()
        apart[rows, labels] = 0
        differences = {
            "positive_score": _find_largest(own, labels),
            "negative_score": _find_largest(apart.max(axis=1), labels),
            "bias": np.abs(np.subtract(self.measured["biases"], self.expected["biases"])),
        }
        return {name: differences[name] for name in self.list_quantities() if name in differences}

    def find_largest_difference(self) -> tuple[float, str]:
        """Return the largest difference and the name of its quantity.

        It names the class, too, if the classes differ. A NaN counts as infinite.
        """
        differences = {}
        for name, values in self.class_differences.items():
            worst = int(np.argmax(values))  # the first NaN, if there is one
            differences[self._name_class(name, worst)] = float(values[worst])
        for name in QUANTITIES.keys() - CLASS_QUANTITIES.keys():
            value = self.expected[name]
            if value is not None:
                scale = max(1.0, abs(value)) if QUANTITIES[name].is_relative else 1.0
                differences[name] = abs(self.measured[name] - value) / scale
        largest = max(
            differences, key=lambda name: (math.isnan(differences[name]), differences[name])
        )
        difference = differences[largest]
        return (math.inf if math.isnan(difference) else difference), largest

    def is_flat(self) -> bool:
        """Return whether the losses agree so well that L-BFGS had no reason to go on."""
        return self.predicted is not None and abs(self.excess) <= FLAT * abs(
            self.predicted.loss_value
        )

    @property
    def excess(self) -> float:
        """The found loss minus the minimum; NaN without a prediction."""
        exact = math.nan if self.predicted is None else self.predicted.loss_value
        return self.found.loss_value - exact

    @property
    def is_uniform(self) -> bool:
        """Whether all classes have one size, and therefore the same scores and bias."""
        return self.problem.is_balanced

    def list_quantities(self) -> dict[str, Quantity]:
        """Return the quantities of this problem; without a bias there is none of it."""
        leave_out = {"bias"} if self.problem.bias_mode == "none" else set()
        return {name: each for name, each in QUANTITIES.items() if name not in leave_out}

    def list_rows(self) -> list[list[str]]:
        """Return the cells of a table: quantity, predicted, found, difference.

        Scores and bias have three rows: their means, and the least and the largest value that was
        found or, where the classes differ, the two values of the class with the largest difference.
        """
        rows = []
        for name, quantity in self.list_quantities().items():
            mean = ", mean" if quantity.of_classes and not self.is_uniform else ""
            rows.append(self._format_row(quantity.title + mean, name, name))
            if not quantity.of_classes:
                continue
            if self.is_uniform:
                rows += [
                    self._format_row(f"{quantity.title}, {end}", name, f"{name}_{end}")
                    for end in ("min", "max")
                ]
            elif name in self.class_differences:
                rows.append(self._format_worst(name, quantity))
        return rows

    def list_class_rows(self) -> list[list[str]]:
        """Return the cells of a table of the classes: class, samples, quantities, difference.

        Classes of one size share a row, because their exact values are equal. A quantity's cell has
        the predicted value, or "-", and the mean of the found ones.
        """
        rows = []
        sizes = np.asarray(self.problem.class_sizes)
        for size in dict.fromkeys(self.problem.class_sizes):
            members = np.flatnonzero(sizes == size)
            cells = [_name_range(members), f"{size:.6g}"]
            for quantity in self.list_quantities().values():
                if quantity.of_classes:
                    exact = self.expected[quantity.of_classes]
                    found = np.take(self.measured[quantity.of_classes], members).mean()
                    shown = format_number(None if exact is None else exact[members[0]])
                    cells.append(f"{shown} | {format_number(found)}")
            differences = [values[members].max() for values in self.class_differences.values()]
            rows.append([*cells, f"{max(differences):.1e}" if differences else "-"])
        return rows

    def _name_class(self, name: str, index: int) -> str:
        return name if self.is_uniform else f"{name} of class {index}"

    def _format_row(self, title: str, expected: str, measured: str) -> list[str]:
        value, found = self.expected[expected], self.measured[measured]
        difference = "" if value is None else f"{found - value:.1e}"
        return [title, format_number(value), format_number(found), difference]

    def _format_worst(self, name: str, quantity: Quantity) -> list[str]:
        """Return the row of the class with the largest difference."""
        differences = self.class_differences[name]
        worst = int(np.argmax(differences))
        exact = self.expected[quantity.of_classes][worst]
        found = self.measured[quantity.of_classes][worst]
        title = f"{quantity.title}, class {worst}"
        numbers = [format_number(exact), format_number(found)]
        return [title, *numbers, f"{differences[worst]:.1e} at most"]


def compare(
    problem: Problem,
    predicted: Prediction | None,
    found: FoundMinimum,
    collapse: Mapping[str, float],
    uncertain: str | None = None,
) -> Comparison:
    """Compare a found minimum with the prediction.

    Args:
        problem: the problem.
        predicted: its exact minimum; None if it is not certified.
        found: the minimum that L-BFGS arrived at.
        collapse: the found point's values of the quantities `COLLAPSE_QUANTITIES`, by name.
        uncertain: why the minimum is not certified.
    """
    objection = uncertain
    feature_dim = found.weight.shape[1]
    if predicted is not None and feature_dim < predicted.min_feature_dim:
        objection = (
            f"the minimum needs d >= {predicted.min_feature_dim}, and d = {feature_dim}, where the "
            "problem is not convex"
        )
    expected = collect_expected(problem, None if objection else predicted)
    measured = collect_measured(problem, found, collapse)
    return Comparison(problem, predicted, found, objection, expected, measured)


def collect_expected(problem: Problem, predicted: Prediction | None) -> dict[str, Any]:
    """Return the `expected` of a `Comparison`; every value is None without a prediction."""
    if predicted is None:
        return dict.fromkeys(_list_names([*QUANTITIES, "gap"]))
    values = {
        "positive_scores": predicted.positive_scores,
        "negative_scores": predicted.negative_scores,
        "biases": predicted.biases,
    }
    found = _summarise(problem, values)
    others = predicted.others
    found |= {"negative_score_min": float(others.min()), "negative_score_max": float(others.max())}
    if predicted.bias is None:  # its level is free, or there is no bias
        found |= {"bias": None, "bias_min": None, "bias_max": None}
    return found | {
        "weight_norms": predicted.weight_norms.tolist(),
        "feature_norms": predicted.feature_norms.tolist(),
        "loss_value": predicted.loss_value,
        "weight_norm_squared": predicted.weight_norm_squared,
        **{name: predicted.collapse[name] for name in COLLAPSE_QUANTITIES},
        "gap": predicted.gap,
    }


def collect_measured(
    problem: Problem, found: FoundMinimum, collapse: Mapping[str, float]
) -> dict[str, Any]:
    """Return the `measured` of a `Comparison`.

    Where the level of the bias is free, `biases` have the mean 0, as the prediction's, and `bias`
    is the level that was found.
    """
    own, others = found.positive_scores, found.negative_scores
    level = found.bias.mean() if problem.bias_level_is_free else 0.0
    counts = np.bincount(found.labels)
    means = {
        "positive_scores": np.bincount(found.labels, own) / counts,
        "negative_scores": np.bincount(found.labels, others.mean(axis=1)) / counts,
        "biases": found.bias,
    }
    values = _summarise(problem, means) | {"biases": (found.bias - level).tolist()}
    for name, group in (("positive_score", own), ("negative_score", others)):
        values |= {f"{name}_min": float(group.min()), f"{name}_max": float(group.max())}
    lengths = np.linalg.norm(found.features, axis=1)
    return values | {
        "weight_norms": np.linalg.norm(found.weight, axis=1).tolist(),
        "feature_norms": (np.bincount(found.labels, lengths) / counts).tolist(),
        "loss_value": found.loss_value,
        "weight_norm_squared": float(np.square(found.weight).sum()),
        "gradient": found.gradient_norm,
        **{name: float(collapse[name]) for name in COLLAPSE_QUANTITIES},
    }


def format_number(value: float | None) -> str:
    """Return six significant digits; "-" where there is no value."""
    return "-" if value is None else f"{value + 0.0:.6g}"  # no -0


def _summarise(problem: Problem, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the values of the classes, their means, and the least and the largest."""
    summary: dict[str, Any] = {}
    sizes = np.asarray(problem.class_sizes)
    for name, quantity in CLASS_QUANTITIES.items():
        each = values[quantity.of_classes]
        weights = np.ones_like(sizes) if name == "bias" else sizes
        summary |= {quantity.of_classes: each.tolist(), name: average(each, weights)}
        summary |= {f"{name}_min": float(each.min()), f"{name}_max": float(each.max())}
    return summary


def _list_names(quantities: list[str]) -> list[str]:
    """List the names of the values of these quantities."""
    names = []
    for name in quantities:
        names.append(name)
        if name in CLASS_QUANTITIES:
            names += [CLASS_QUANTITIES[name].of_classes, f"{name}_min", f"{name}_max"]
    return [*names, "weight_norms", "feature_norms"]


def _find_largest(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the largest of the values [N] of each class, [K]; a NaN counts as the largest."""
    largest = np.zeros(labels.max() + 1)
    np.maximum.at(largest, labels, values)
    return largest


def _name_range(members: np.ndarray) -> str:
    """Return "3", "0-49", or "0-9, 30 more" for classes that do not follow one another."""
    steps = np.flatnonzero(np.diff(members) > 1)
    last = members[steps[0]] if len(steps) else members[-1]
    first = f"{members[0]}" if last == members[0] else f"{members[0]}-{last}"
    rest = len(members) - (last - members[0] + 1)
    return f"{first}, {rest} more" if rest else first
