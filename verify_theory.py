"""Compare the exact minimum of the unconstrained-feature model with one that L-BFGS finds.

python verify_theory.py --loss BCE --num_classes 10 --samples_per_class 12.8 --feature_dim 16

The functions that need torch, scipy or matplotlib import them: `--help` and mistakes do not wait.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from input_pipeline.longtail import compute_tail_sizes
from objective import LOSSES
from theory.setting import DECAY_SWEEP, SWEEPS, Setting, Sweep
from utils.cli import (
    Factor,
    Natural,
    NonNegative,
    Parser,
    PathText,
    Positive,
    Real,
    check_value,
    name_of,
    run_command,
)
from utils.console import escape, format_table
from utils.errors import UserError
from utils.files import check_picture, check_target, write_json

if TYPE_CHECKING:
    from theory.comparison import Comparison

AGREES, DISAGREES, DOES_NOT_APPLY = 0, 1, 4  # exit statuses; utils.cli.MISTAKE is another


@dataclass(frozen=True)
class Request:
    """A complete request: the setting to verify, and the files to write.

    Attributes:
        setting: the setting; a sweep varies one of its attributes.
        class_sizes: ⌈n⌉ samples of each class, or a long tail from ⌈n⌉ on, as train.py cuts it.
        sweep: the sweep; None verifies the setting alone.
        json: the file of numbers; None writes none.
        plot: the file of the picture; None draws none.
    """

    setting: Setting
    class_sizes: list[int]
    sweep: Sweep | None
    json: Path | None
    plot: Path | None


def main(argv: Sequence[str] | None = None) -> int:
    flags = build_parser().parse_args(argv)
    return run_command(
        "verify_theory.py", lambda stop: verify(resolve_request(flags)), stopped="stopped"
    )


def build_parser() -> Parser:
    parser = Parser(
        prog="verify_theory.py",
        description="Compare the exact minimum of the unconstrained-feature model with one that\n"
        "L-BFGS finds in float64.\n"
        "Exit status: 0 they agree, 1 they do not, 2 a mistake,\n"
        "4 the theory does not apply (d too small, imbalanced classes).",
    )
    add_problem_flags(parser)
    add_search_flags(parser)
    return parser


def add_problem_flags(parser: Parser) -> None:
    losses = [name for name, loss in LOSSES.items() if loss.has_exact_minimum]
    classes = Annotated[int, Field(ge=2, le=1000)]
    samples = Annotated[Positive, Field(lt=1e6)]
    dimensions = Annotated[int, Field(ge=1, le=100_000)]
    add = parser.add_argument_group("the problem").add_argument
    add(
        "--loss",
        type=check_value(name_of(losses, "loss")),
        default="BCE",
        metavar="NAME",
        help=f"{', '.join(losses)} (default: BCE)",
    )
    add(
        "--num_classes",
        type=check_value(classes),
        default=10,
        metavar="K",
        help="classes (default: 10)",
    )
    add(
        "--samples_per_class",
        type=check_value(samples),
        default=12.8,
        metavar="N",
        help="samples per class, may be fractional: batch_size/K of mini-batches "
        "(default: 12.8, a batch of 128)",
    )
    add(
        "--feature_dim",
        type=check_value(dimensions),
        metavar="D",
        help="dimension of the features (default: K + 6)",
    )
    for flag, symbol in (("--weight_decay", "W"), ("--feature_decay_rate", "H")):
        add(
            flag,
            type=check_value(Positive),
            default=5e-4,
            metavar="X",
            help=f"lambda_{symbol} (default: 5e-4)",
        )
    add(
        "--weight_decay_bias",
        type=check_value(NonNegative),
        metavar="X",
        help="lambda_b (default: 0)",
    )
    add(
        "--imbalance_factor",
        type=check_value(Factor),
        default=1.0,
        metavar="X",
        help="class k has N X^(-k/(K-1)) samples, rounded down; the theory needs 1 (default: 1)",
    )


def add_search_flags(parser: Parser) -> None:
    starts = Annotated[int, Field(ge=1, le=1000)]
    add = parser.add_argument_group("search and output").add_argument
    add(
        "--bias_init_mean",
        type=check_value(Real),
        metavar="X",
        help="mean of the biases where L-BFGS starts (default: 0; with --sweep bias_decay 10)",
    )
    add(
        "--seed",
        type=check_value(Natural),
        default=0,
        metavar="N",
        help="seed of the random start (default: 0)",
    )
    add(
        "--starts",
        type=check_value(starts),
        default=1,
        metavar="N",
        help="random starts, the lowest minimum counts (default: 1)",
    )
    add(
        "--tolerance",
        type=check_value(Positive),
        default=1e-3,
        metavar="X",
        help="largest difference that agrees: absolute; for loss and |W|^2 relative above 1 "
        "(default: 1e-3)",
    )
    add(
        "--sweep",
        type=check_value(name_of(SWEEPS, "sweep")),
        metavar="NAME",
        help=f"the paper's grid over {' or '.join(SWEEPS)} (default: one setting)",
    )
    add(
        "--json",
        type=check_value(PathText),
        metavar="FILE",
        help="write settings, predicted and found values (default: none)",
    )
    add(
        "--plot",
        type=check_value(PathText),
        metavar="FILE",
        help="draw the setting or the sweep: .png, .pdf or .svg (default: none; "
        "theory_LOSS_SWEEP.png for a sweep)",
    )


def resolve_request(flags: argparse.Namespace) -> Request:
    """Fill in the defaults that depend on other flags. Raises UserError for a mistake."""
    values = vars(flags).copy()
    sweep = SWEEPS.get(values.pop("sweep"))
    json, plot = values.pop("json"), values.pop("plot")
    if sweep and values[sweep.attribute] is not None:
        raise UserError(f"--{sweep.attribute} has no effect here: --sweep {sweep.name} sets it")
    defaults = {
        "feature_dim": flags.num_classes + 6,
        "weight_decay_bias": 0.0,
        "bias_init_mean": sweep.bias_init_mean if sweep else 0.0,
    }
    values |= {name: value for name, value in defaults.items() if values[name] is None}
    setting = Setting(**values)
    if sweep and plot is None:
        plot = f"theory_{setting.loss}_{sweep.name}.png"
    largest = math.ceil(setting.samples_per_class)
    sizes = compute_tail_sizes(largest, setting.num_classes, setting.imbalance_factor)
    request = Request(setting, sizes, sweep, make_path(json), make_path(plot))
    if request.json is not None:
        check_target("--json", request.json)
    if request.plot is not None:
        check_picture("--plot", request.plot)
    if setting.imbalance_factor > 1 and len(set(sizes)) == 1:
        raise UserError(
            f"--imbalance_factor {setting.imbalance_factor:g} has no effect here: with "
            f"--samples_per_class {setting.samples_per_class:g} all classes have one sample"
        )
    return request


def make_path(text: str | None) -> Path | None:
    """Return a path; None for None."""
    return None if text is None else Path(text)


def verify(request: Request) -> int:
    """Verify a setting or a sweep and return the exit status."""
    if request.sweep:
        return verify_sweep(request, request.sweep)
    return verify_setting(request)


def verify_setting(request: Request) -> int:
    """Print the comparison of one setting, and write the requested files."""
    from reproduction.verification import compare_minima

    setting = request.setting
    minima = compare_minima(setting, request.class_sizes)
    print(describe_setting(setting, minima))
    print(format_table(["", "predicted", "found", "difference"], minima.list_rows()))
    if request.json:
        numbers = {"predicted": minima.expected, "found": minima.measured}
        write_json(request.json, {"settings": asdict(setting), **numbers})
    write_picture(request, DECAY_SWEEP, [(setting.weight_decay_bias, minima)])
    if minima.objection:
        print(f"the theory does not apply: {minima.objection}; the values found are not compared")
        return DOES_NOT_APPLY
    worst, name = minima.find_largest_difference()
    agrees = worst <= setting.tolerance
    verdict = "agree" if agrees else "DISAGREE"
    print(f"{verdict}: largest difference {worst:.1e} ({name}), allowed {setting.tolerance:g}")
    if not agrees and minima.is_flat():
        print(
            f"the losses agree to {minima.excess:.1e}: the objective is flat there, "
            "L-BFGS stops early"
        )
    return AGREES if agrees else DISAGREES


def verify_sweep(request: Request, sweep: Sweep) -> int:
    """Print a row for each point of a sweep, and write the requested files."""
    from reproduction.verification import compare_minima

    setting = request.setting
    points = [
        (value, compare_minima(sweep.apply(setting, value), request.class_sizes))
        for value in sweep.values
    ]
    header = [sweep.name, "positive score", "bias", "negative score", "regime", "difference"]
    print("predicted | found")
    print(format_table(header, [list_cells(value, minima) for value, minima in points]))
    write_picture(request, sweep, points)
    if request.json:
        rows = [
            {"value": value, "predicted": minima.expected, "found": minima.measured}
            for value, minima in points
        ]
        write_json(request.json, {"settings": asdict(setting), "points": rows})
    inside = [minima for _, minima in points if not minima.objection]
    worst = max((minima.find_largest_difference()[0] for minima in inside), default=0.0)
    print(f"largest difference {worst:.1e}, allowed {setting.tolerance:g}")
    if worst > setting.tolerance:
        return DISAGREES
    outside = len(points) - len(inside)
    if outside:
        print(
            f"the theory does not apply to {outside} of {len(points)} points: imbalanced classes "
            f"or too small a --feature_dim {setting.feature_dim}"
        )
    return DOES_NOT_APPLY if outside else AGREES


def describe_setting(setting: Setting, minima: Comparison) -> str:
    """Name the setting and how well L-BFGS converged, for people."""
    found = minima.found
    return (
        f"{setting.loss}, K = {setting.num_classes}, n = {setting.samples_per_class:g}, "
        f"d = {setting.feature_dim}, lambda_W = {setting.weight_decay:g}, "
        f"lambda_H = {setting.feature_decay_rate:g}, lambda_b = {setting.weight_decay_bias:g}; "
        f"L-BFGS: {found.iterations} iterations, largest gradient entry {found.gradient_norm:.1e}\n"
    )


def list_cells(value: float, minima: Comparison) -> list[str]:
    """Return a sweep's row: the value, predicted and found numbers, regime, difference."""
    from theory.comparison import format_number

    pairs = [
        f"{format_number(minima.expected[name])} | {format_number(minima.measured[name])}"
        for name in ("positive_score", "bias", "negative_score")
    ]
    difference = "-" if minima.objection else f"{minima.find_largest_difference()[0]:.1e}"
    return [f"{value:g}", *pairs, minima.predicted.regime, difference]


def write_picture(
    request: Request, sweep: Sweep, points: Sequence[tuple[float, Comparison]]
) -> None:
    """Draw the points over the sweep's axis, if the request names a picture."""
    if request.plot is None:
        return
    from figures.style import save_figure
    from figures.sweep import SweepPoint, draw_sweep

    drawn = [SweepPoint(value, minima.expected, minima.measured) for value, minima in points]
    title = f"{request.setting.loss}: minimum of the unconstrained-feature model"
    save_figure(draw_sweep(title, sweep.axis_label, drawn), request.plot)
    print(f"wrote {escape(str(request.plot))}")


if __name__ == "__main__":
    sys.exit(main())
