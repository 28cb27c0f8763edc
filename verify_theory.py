"""Hold the unconstrained-feature model, minimised by L-BFGS in float64, against its exact minimum.

python verify_theory.py --loss BCE --num_classes 10 --samples_per_class 12.8 --feature_dim 16
"""

from args import SWEEPS, verify_theory_parser
from utils.signals import StopSignal

if __name__ == "__main__":
    verify_theory_parser().parse_args()  # --help and a wrong flag are answered at once
    StopSignal("stopped").install()

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from figures.style import save_figure
from figures.sweep import SweepPoint, sweep_figure
from input_pipeline.longtail import compute_tail_sizes
from metrics.neural_collapse import neural_collapse
from theory.minimiser import Found, Problem, minimise
from theory.minimum import Prediction, predict
from utils.console import table
from utils.errors import UserError
from utils.files import check_picture, check_target, write_json

FLAT = 1e-6  # a loss this near, relatively, is that of the minimum for all L-BFGS can see
AGREES, DISAGREES, MISTAKE, DOES_NOT_APPLY = 0, 1, 2, 4


def main(argv: list[str] | None = None) -> int:
    args = verify_theory_parser().parse_args(argv)
    try:
        with StopSignal("stopped"):
            check_arguments(args)
            return sweep(args) if args.sweep else verify(args)
    except UserError as error:
        print(f"verify_theory.py: error: {error}", file=sys.stderr)
        return MISTAKE


def check_arguments(args: argparse.Namespace) -> None:
    """Fill in what depends on other flags; refuse what cannot be. Raises UserError."""
    if args.feature_dim is None:
        args.feature_dim = args.num_classes + 6
    swept = {"bias_decay": "weight_decay_bias", "bias_init_mean": "bias_init_mean"}.get(args.sweep)
    if swept and getattr(args, swept) is not None:
        raise UserError(f"--{swept} has no effect here: --sweep {args.sweep} sets it")
    if args.weight_decay_bias is None:
        args.weight_decay_bias = 0.0
    if args.bias_init_mean is None:
        # The paper's sweep of the bias decay starts at a mean of 10.
        args.bias_init_mean = 10.0 if args.sweep == "bias_decay" else 0.0
    if args.sweep and args.plot is None:
        args.plot = f"theory_{args.loss}_{args.sweep}.png"
    if args.json is not None:
        check_target("--json", Path(args.json))
    if args.plot is not None:
        check_picture("--plot", Path(args.plot))
    if args.imbalance_factor > 1 and len(set(class_sizes(args))) == 1:
        raise UserError(
            f"--imbalance_factor {args.imbalance_factor:g} has no effect here: with "
            f"--samples_per_class {args.samples_per_class:g} all classes have one sample"
        )


def verify(args: argparse.Namespace) -> int:
    """One setting: table, JSON, verdict."""
    predicted, found = predict_for(args), find_for(args)
    expected, measured = predicted_values(predicted), found_values(found)
    reason = why_not_applicable(args, predicted)
    if reason:
        expected = dict.fromkeys(expected)  # nothing is claimed
    print(describe(args, found))
    print(comparison(expected, measured))
    if args.json:
        content = {"settings": settings_of(args), "predicted": expected, "found": measured}
        write_json(Path(args.json), content)
    if args.plot:
        point = SweepPoint(args.weight_decay_bias, expected, measured)
        save_figure(sweep_figure(args.loss, "bias_decay", [point]), Path(args.plot))
        print(f"wrote {args.plot}")
    if reason:
        print(f"the theory does not apply: {reason}; the values found stand for themselves")
        return DOES_NOT_APPLY
    worst, name = largest_difference(expected, measured)
    agrees = worst <= args.tolerance
    verdict = "agree" if agrees else "DISAGREE"
    print(f"{verdict}: largest difference {worst:.1e} ({name}), allowed {args.tolerance:g}")
    excess = found.loss_value - predicted.loss_value
    if not agrees and abs(excess) <= FLAT * abs(predicted.loss_value):
        print(f"the losses agree to {excess:.1e}: the objective is flat there, L-BFGS stops early")
    return AGREES if agrees else DISAGREES


def sweep(args: argparse.Namespace) -> int:
    """The paper's grid of one setting: a table, a picture, and whether all points agree."""
    points, rows, worst, outside = [], [], 0.0, 0
    for value in SWEEPS[args.sweep]:
        setting = "weight_decay_bias" if args.sweep == "bias_decay" else "bias_init_mean"
        at = argparse.Namespace(**{**vars(args), setting: value})
        predicted, found = predict_for(at), find_for(at)
        expected, measured = predicted_values(predicted), found_values(found)
        difference = None
        if why_not_applicable(at, predicted):
            expected = dict.fromkeys(expected)  # nothing is claimed
            outside += 1
        else:
            difference, _ = largest_difference(expected, measured)
            worst = max(worst, difference)
        points.append(SweepPoint(value, expected, measured))
        shown = ("positive_score", "bias", "negative_score")
        pairs = [f"{number(expected[key])} | {number(measured[key])}" for key in shown]
        shown_difference = "-" if difference is None else f"{difference:.1e}"
        rows.append([f"{value:g}", *pairs, predicted.regime, shown_difference])
    header = [args.sweep, "positive score", "bias", "negative score", "regime", "difference"]
    print("predicted | found")
    print(table(header, rows))
    save_figure(sweep_figure(args.loss, args.sweep, points), Path(args.plot))
    print(f"wrote {args.plot}")
    if args.json:
        content = {"settings": settings_of(args), "points": [vars(point) for point in points]}
        write_json(Path(args.json), content)
    print(f"largest difference {worst:.1e}, allowed {args.tolerance:g}")
    if worst > args.tolerance:
        return DISAGREES
    if outside:
        print(
            f"the theory does not apply to {outside} of {len(points)} points: imbalanced classes "
            f"or too small a --feature_dim {args.feature_dim}"
        )
        return DOES_NOT_APPLY
    return AGREES


def predict_for(args: argparse.Namespace) -> Prediction:
    return predict(
        args.loss,
        args.num_classes,
        args.samples_per_class,
        args.weight_decay,
        args.feature_decay_rate,
        args.weight_decay_bias,
    )


def find_for(args: argparse.Namespace) -> Found:
    """Minimise problem (1). A fractional n is ⌈n⌉ samples per class at λ_H n/⌈n⌉."""
    sizes = class_sizes(args)
    share = args.samples_per_class / sizes[0]
    problem = Problem(
        args.loss,
        sizes,
        args.feature_dim,
        args.weight_decay,
        args.feature_decay_rate * share,
        args.weight_decay_bias,
    )
    return minimise(problem, bias_mean=args.bias_init_mean, seed=args.seed, starts=args.starts)


def class_sizes(args: argparse.Namespace) -> list[int]:
    """Samples of each class: ⌈n⌉, or with --imbalance_factor train.py's profile from there."""
    largest = math.ceil(args.samples_per_class)
    return compute_tail_sizes(largest, args.num_classes, args.imbalance_factor)


def why_not_applicable(args: argparse.Namespace, predicted: Prediction) -> str | None:
    if len(set(class_sizes(args))) > 1:
        return "the classes are imbalanced"
    if args.feature_dim < predicted.min_feature_dim:
        return (
            f"the regime is {predicted.regime}, which needs d >= {predicted.min_feature_dim}, "
            f"and d = {args.feature_dim}"
        )
    return None


def predicted_values(predicted: Prediction) -> dict[str, float | None]:
    """What the exact minimum says of every number that is compared."""
    collapsed = {"nc1": 0.0, "nc2_h": 0.0, "nc3": 0.0}
    if predicted.positive_score == predicted.negative_score:
        collapsed = dict.fromkeys(collapsed)  # no class means to speak of
    nc2 = predicted_nc2(predicted)
    return {
        "positive_score": predicted.positive_score + 0.0,  # no -0
        "negative_score": predicted.negative_score + 0.0,
        "bias": predicted.bias,
        "loss_value": predicted.loss_value,
        "weight_norm_squared": predicted.weight_norm_squared,
        "nc1": collapsed["nc1"],
        "nc2": nc2,
        "nc2_h": collapsed["nc2_h"],
        "nc3": collapsed["nc3"],
    }


def predicted_nc2(predicted: Prediction) -> float | None:
    """NC2 of W: its Gram matrix is p (I − 11ᵀ/K) + q 11ᵀ/K, where W Wᵀ shares the singular vectors
    of the scores: p : q = amplitude's singular value a K/(K−1) : the shift's, K|s|."""
    classes = predicted.num_classes
    etf = predicted.positive_score - predicted.negative_score  # a K/(K−1), K−1 times
    common = classes * abs(predicted.common_shift)
    norm = math.sqrt((classes - 1) * etf**2 + common**2)
    if norm == 0:
        return None
    along = etf / norm - 1 / math.sqrt(classes - 1)
    return math.sqrt((classes - 1) * along**2 + (common / norm) ** 2)


def found_values(found: Found) -> dict[str, float]:
    """The same numbers of the point found, with the spread of scores and biases."""
    collapse = neural_collapse(
        torch.from_numpy(found.features.copy()),
        torch.from_numpy(found.labels),
        torch.from_numpy(found.weight.copy()),
        torch.from_numpy(found.bias.copy()),
    )
    groups = {
        "positive_score": found.positive_scores,
        "negative_score": found.negative_scores,
        "bias": found.bias,
    }
    values: dict[str, float] = {}
    for name, group in groups.items():
        values |= {name: group.mean(), f"{name}_min": group.min(), f"{name}_max": group.max()}
    values |= {
        "loss_value": found.loss_value,
        "weight_norm_squared": np.square(found.weight).sum(),
        "gradient": found.gradient_norm,
        **{key: collapse[key] for key in ("nc1", "nc2", "nc2_h", "nc3")},
    }
    return {key: float(value) for key, value in values.items()}


def largest_difference(
    expected: dict[str, float | None], measured: dict[str, float]
) -> tuple[float, str]:
    """The largest of the differences and whose it is: absolute, relative for loss and ‖W‖² above 1.

    Scores and biases count with their whole spread. A bias without a prediction need only be the
    same for all classes.
    """
    differences = {}
    for key, value in expected.items():
        if value is None:
            continue
        scale = max(1.0, abs(value)) if key in ("loss_value", "weight_norm_squared") else 1.0
        ends = [measured[k] for k in (key, f"{key}_min", f"{key}_max") if k in measured]
        differences[key] = max(abs(end - value) for end in ends) / scale
    if expected["bias"] is None:
        differences["spread of the bias"] = measured["bias_max"] - measured["bias_min"]
    # A NaN is no agreement.
    name = max(differences, key=lambda key: (math.isnan(differences[key]), differences[key]))
    return (math.inf if math.isnan(differences[name]) else differences[name]), name


def comparison(expected: dict[str, float | None], measured: dict[str, float]) -> str:
    """The table predicted | found | difference."""
    titles = {
        "positive_score": "positive score",
        "negative_score": "negative score",
        "bias": "bias",
        "loss_value": "loss",
        "weight_norm_squared": "|W|^2",
        "nc1": "NC1",
        "nc2": "NC2 (classifier)",
        "nc2_h": "NC2 (class means)",
        "nc3": "NC3",
    }
    rows = []
    for key, title in titles.items():
        for end in ("_min", "_max") if f"{key}_min" in measured else ("",):
            value, found = expected[key], measured[key + end]
            difference = "" if value is None else f"{found - value:.1e}"
            shown = number(value)
            rows.append([title + end.replace("_", ", "), shown, number(found), difference])
    return table(["", "predicted", "found", "difference"], rows)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def describe(args: argparse.Namespace, found: Found) -> str:
    return (
        f"{args.loss}, K = {args.num_classes}, n = {args.samples_per_class:g}, "
        f"d = {args.feature_dim}, lambda_W = {args.weight_decay:g}, "
        f"lambda_H = {args.feature_decay_rate:g}, lambda_b = {args.weight_decay_bias:g}; "
        f"L-BFGS: {found.iterations} iterations, largest gradient entry {found.gradient_norm:.1e}\n"
    )


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(args).items() if key not in ("json", "plot", "sweep")}


if __name__ == "__main__":
    sys.exit(main())
