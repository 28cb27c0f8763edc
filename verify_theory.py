"""Compare the exact minimum of the unconstrained-feature model with one that L-BFGS finds.

python verify_theory.py --loss BCE --num_classes 10 --samples_per_class 12.8 --feature_dim 16
python verify_theory.py --loss CE --class_sizes 40 20 10 5 --smoothing 0.1

The functions that need torch, scipy or matplotlib import them: `--help` and mistakes do not wait.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from objective import LOSSES
from theory.problem import BIAS_MODES, divide_batch
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
SIZES_SHOWN = 20  # sizes of classes up to which there is a table of the classes
NUM_CLASSES, SAMPLES = 10, 12.8  # the paper's batch of 128
Classes = Annotated[int, Field(ge=2, le=1000)]
Size = Annotated[Positive, Field(lt=1e6)]


@dataclass(frozen=True)
class Request:
    """A complete request: the setting to verify, and the files to write.

    Attributes:
        setting: the setting; a sweep varies one of its attributes.
        sweep: the sweep; None verifies the setting alone.
        json: the file of numbers; None writes none.
        plot: the file of the picture; None draws none.
    """

    setting: Setting
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
        "4 no prediction (d too small, or a minimum that is not certified).",
    )
    add_problem_flags(parser)
    add_search_flags(parser)
    return parser


def add_problem_flags(parser: Parser) -> None:
    losses = [name for name, loss in LOSSES.items() if loss.has_exact_minimum]
    dimensions = Annotated[int, Field(ge=1, le=100_000)]
    add = parser.add_argument_group("the problem").add_argument
    add(
        "--loss",
        type=check_value(name_of(losses, "loss")),
        default="BCE",
        metavar="NAME",
        help=f"{', '.join(losses)} (default: BCE)",
    )
    add_class_flags(parser)
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
        "--smoothing",
        type=check_value(Annotated[NonNegative, Field(lt=1)]),
        default=0.0,
        metavar="S",
        help="label smoothing: targets become (1-S) onehot + S/K (default: 0)",
    )
    add(
        "--bias_mode",
        type=check_value(name_of(BIAS_MODES, "kind of bias")),
        default="diverse",
        metavar="NAME",
        help=f"{', '.join(BIAS_MODES)}: one for each class, one for all, none (default: diverse)",
    )


def add_class_flags(parser: Parser) -> None:
    add = parser.add_argument_group("the classes").add_argument
    add(
        "--num_classes",
        type=check_value(Classes),
        metavar="K",
        help=f"classes (default: {NUM_CLASSES}, or as many as --class_sizes names)",
    )
    add(
        "--samples_per_class",
        type=check_value(Size),
        metavar="N",
        help="samples per class, their mean if they differ; may be fractional: batch_size/K of "
        f"mini-batches (default: {SAMPLES}, a batch of 128)",
    )
    add(
        "--imbalance_factor",
        type=check_value(Factor),
        metavar="X",
        help="sizes fall like X^(-k/(K-1)): the first class has X times those of the last "
        "(default: 1)",
    )
    add(
        "--class_sizes",
        type=check_value(Size),
        nargs="+",
        metavar="N",
        help="samples of each of 2 to 1000 classes, may be fractional (default: from the three "
        "flags above)",
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
    refuse_flags_of_no_bias(flags)
    values |= resolve_classes(flags)
    defaults = {
        "feature_dim": values["num_classes"] + 6,
        "weight_decay_bias": 0.0,
        "bias_init_mean": sweep.bias_init_mean if sweep else 0.0,
    }
    values |= {name: value for name, value in defaults.items() if values[name] is None}
    setting = Setting(**values)
    if sweep and plot is None:
        plot = f"theory_{setting.loss}_{sweep.name}.png"
    request = Request(setting, sweep, make_path(json), make_path(plot))
    if request.json is not None:
        check_target("--json", request.json)
    if request.plot is not None:
        check_picture("--plot", request.plot)
    return request


def refuse_flags_of_no_bias(flags: argparse.Namespace) -> None:
    """Refuse what changes the bias where there is none. Raises UserError."""
    if flags.bias_mode != "none":
        return
    for name in ("weight_decay_bias", "bias_init_mean", "sweep"):
        if getattr(flags, name) is not None:
            raise UserError(f"--{name} has no effect here: --bias_mode none has no bias")


def resolve_classes(flags: argparse.Namespace) -> dict[str, Any]:
    """Return the values of `Setting` that describe the classes. Raises UserError for a mistake."""
    if flags.class_sizes is not None:
        return check_class_sizes(flags)
    num_classes = NUM_CLASSES if flags.num_classes is None else flags.num_classes
    samples = SAMPLES if flags.samples_per_class is None else flags.samples_per_class
    factor = 1.0 if flags.imbalance_factor is None else flags.imbalance_factor
    shares = [factor ** (-k / (num_classes - 1)) for k in range(num_classes)]
    return {
        "num_classes": num_classes,
        "samples_per_class": samples,
        "imbalance_factor": factor,
        "class_sizes": divide_batch(samples * num_classes, shares),
    }


def check_class_sizes(flags: argparse.Namespace) -> dict[str, Any]:
    """Return what `resolve_classes` does, of sizes that are given. Raises UserError."""
    sizes = flags.class_sizes
    for name in ("samples_per_class", "imbalance_factor"):
        if getattr(flags, name) is not None:
            raise UserError(f"--{name} has no effect here: --class_sizes sets the sizes")
    if flags.num_classes not in (None, len(sizes)):
        raise UserError(
            f"--num_classes is {flags.num_classes}, and --class_sizes has {len(sizes)} values: "
            "give as many, or leave out --num_classes"
        )
    if not 2 <= len(sizes) <= 1000:
        raise UserError(f"--class_sizes has {len(sizes)} values: it must have 2 to 1000")
    return {"num_classes": len(sizes), "class_sizes": sizes}


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
    minima = compare_minima(setting)
    print(describe_setting(setting, minima))
    print(format_table(["", "predicted", "found", "difference"], minima.list_rows()))
    print_classes(minima)
    if request.json:
        numbers = {"predicted": minima.expected, "found": minima.measured}
        write_json(request.json, {"settings": asdict(setting), **numbers})
    write_picture(request, DECAY_SWEEP, [(setting.weight_decay_bias, minima)])
    if minima.objection:
        print(f"no prediction: {minima.objection}; the values found are not compared")
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


def print_classes(minima: Comparison) -> None:
    """Print a row for each size of classes, where there are several but not too many."""
    if 1 < len(set(minima.problem.class_sizes)) <= SIZES_SHOWN:
        titles = [each.title for each in minima.list_quantities().values() if each.of_classes]
        print("\nclasses: predicted | found")
        header = ["class", "samples", *titles, "difference"]
        print(format_table(header, minima.list_class_rows()))


def verify_sweep(request: Request, sweep: Sweep) -> int:
    """Print a row for each point of a sweep, and write the requested files."""
    from reproduction.verification import compare_minima

    setting = request.setting
    points = [(value, compare_minima(sweep.apply(setting, value))) for value in sweep.values]
    print("predicted | found" if points[0][1].is_uniform else "means: predicted | found")
    regime = ["regime"] if find_regime(points[0][1]) else []
    header = [sweep.name, "positive score", "bias", "negative score", *regime, "difference"]
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
        reasons = dict.fromkeys(minima.objection for _, minima in points if minima.objection)
        print(
            f"no prediction for {outside} of {len(points)} points: {'; '.join(map(str, reasons))}"
        )
    return DOES_NOT_APPLY if outside else AGREES


def describe_setting(setting: Setting, minima: Comparison) -> str:
    """Name the setting and how well L-BFGS converged, for people."""
    found, predicted = minima.found, minima.predicted
    more = {
        f"smoothing = {setting.smoothing:g}": setting.smoothing > 0,
        f"bias {setting.bias_mode}": setting.bias_mode != "diverse",
    }
    parts = [
        setting.loss,
        f"K = {setting.num_classes}",
        f"n = {describe_sizes(setting.class_sizes)}",
        f"d = {setting.feature_dim}",
        f"lambda_W = {setting.weight_decay:g}",
        f"lambda_H = {setting.feature_decay_rate:g}",
        f"lambda_b = {setting.weight_decay_bias:g}",
        *(text for text, applies in more.items() if applies),
    ]
    gap = (
        "" if predicted is None else f"\nprediction: at most {predicted.gap:.1e} above the minimum"
    )
    return (
        f"{', '.join(parts)}\nL-BFGS: {found.iterations} iterations, "
        f"largest gradient entry {found.gradient_norm:.1e}{gap}\n"
    )


def describe_sizes(sizes: Sequence[float]) -> str:
    """Return the size of all classes, or the largest and the smallest."""
    low, high = min(sizes), max(sizes)
    return f"{high:g}" if low == high else f"{high:g} to {low:g}"


def find_regime(minima: Comparison) -> str | None:
    """Return the regime of the closed form; None where it does not apply."""
    from theory.minimum import find_closed_form

    closed = find_closed_form(minima.problem)
    return None if closed is None else closed.regime


def list_cells(value: float, minima: Comparison) -> list[str]:
    """Return a sweep's row: the value, predicted and found numbers, any regime, the difference."""
    from theory.comparison import format_number

    pairs = [
        f"{format_number(minima.expected[name])} | {format_number(minima.measured[name])}"
        for name in ("positive_score", "bias", "negative_score")
    ]
    difference = "-" if minima.objection else f"{minima.find_largest_difference()[0]:.1e}"
    regime = find_regime(minima)
    return [f"{value:g}", *pairs, *([regime] if regime else []), difference]


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
