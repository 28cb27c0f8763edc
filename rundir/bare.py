"""Weights without a config.json: their flags, and what the authors' args.txt records of a run.

Imports no torch.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from args import Settings
from models import BIAS_MODES, find_network
from utils.cli import Parser, check_value, name_of
from utils.errors import UserError
from utils.files import open_regular

ARGUMENTS = "args.txt"  # the authors' record of a run: the repr of an argparse.Namespace
STEMS = {"small": 32, "imagenet": 224}  # and an image side in pixels for which it is built
NEEDED = ("model", "dataset")
# The settings to give where no file records them.
BARE_SETTINGS = [
    name
    for name in (*NEEDED, *Settings.names(builds="data"), *Settings.names(builds="model"))
    if name not in ("data_dir", "fixed_etf")
]
BARE_FLAGS = (*BARE_SETTINGS, "bias_added", "classifier", "stem", "mean", "std")
# One argument in that repr; values that are no string, number or constant are passed over.
ARGUMENT = re.compile(r"[(\s](\w+)=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[\w.+-]+)(?=[,)])")
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[Share, Field(gt=0)]
Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Bare:
    """The facts of weights without a config.json that no weight shows.

    Attributes:
        documented: whether an args.txt records how they were trained.
        bias_added: whether the file's classifier adds its bias; ours subtracts it.
        classifier: the name of the file's classifier; "" if it is fc, or the only one possible.
        stem: of a convolutional network, a key of `STEMS`; None: by the images' side.
        mean, std: per channel, in units of the full range 0…1; None: the data set's.
    """

    documented: bool = False
    bias_added: bool = False
    classifier: str = ""
    stem: str | None = None
    mean: Channels | None = None
    std: Channels | None = None


def add_bare_flags(parser: Parser) -> None:
    """Add the flags for weights without a config.json."""
    group = parser.add_argument_group(
        "weights without a config.json (--model and --dataset required if there is no args.txt)"
    )
    for name in BARE_SETTINGS:
        texts = {**dict.fromkeys(NEEDED, "none"), "bias_mode": "as the weights have it"}
        Settings.add_flag(group, name, default_text=texts.get(name))
    add = group.add_argument
    add(
        "--bias_added",
        action="store_const",
        const=True,
        help="the weights' classifier adds its bias, as torch.nn.Linear does (default: off)",
    )
    add(
        "--classifier",
        metavar="NAME",
        help="the classifier's name in the file, such as head (default: fc, or the only possible)",
    )
    add(
        "--stem",
        type=check_value(name_of(STEMS, "stem")),
        metavar="NAME",
        help="first layers of a ResNet or DenseNet: small, imagenet (default: by the images' side)",
    )
    for name, kind in (("mean", Share), ("std", PositiveShare)):
        add(
            f"--{name}",
            type=check_value(kind),
            nargs="+",
            metavar="X",
            help=f"{name} of the images, one number or three, in 0 to 1 (default: the data set's)",
        )


def parse_with_bare_flags(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse flags, and check these together. Exits with status 2 and one line on a mistake."""
    args: argparse.Namespace = parser.parse_args(argv)
    try:
        Settings.from_flags(_list_given(args, BARE_SETTINGS))
        for name in ("mean", "std"):
            _read_channels(name, getattr(args, name))
    except UserError as error:
        parser.error(str(error))
    return args


def list_given_flags(args: argparse.Namespace) -> list[str]:
    """Return the names of the flags for bare weights that a user gave."""
    return list(_list_given(args, BARE_FLAGS))


def _list_given(args: argparse.Namespace, names: tuple[str, ...] | list[str]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _read_channels(name: str, values: list[float] | None) -> Channels | None:
    if values is None:
        return None
    if len(values) not in (1, 3):
        raise UserError(f"--{name}: give one number or three, not {len(values)}")
    first, second, third = values * 3 if len(values) == 1 else values
    return first, second, third


def describe_bare(where: Path, directory: Path, args: argparse.Namespace) -> tuple[Settings, Bare]:
    """Describe the weights at `where`, by the flags and by the args.txt in `directory`.

    Returns:
        Settings, which are complete but for the bias mode of the weights, and the other facts.
        Flags come before args.txt.

    Raises:
        UserError: neither gives model and data set, or args.txt is damaged.
    """
    recorded = read_arguments(directory / ARGUMENTS)
    flags = Settings.from_flags(_list_given(args, BARE_SETTINGS))
    for name in NEEDED:
        if name not in recorded and name not in flags.model_fields_set:
            raise UserError(f"{where} has no config.json: give --model and --dataset")
    bare = Bare(
        documented=bool(recorded),
        bias_added=bool(args.bias_added),
        classifier=args.classifier or "",
        stem=args.stem,
        mean=_read_channels("mean", args.mean),
        std=_read_channels("std", args.std),
    )
    return _complete(flags, recorded), bare


def _complete(flags: Settings, recorded: Mapping[str, Any]) -> Settings:
    """Merge flags over what is recorded. Raises UserError for a flag without effect."""
    others = {k: v for k, v in recorded.items() if k not in flags.model_fields_set}
    settings = flags.replace(**others)
    settings.refuse_idle()
    if settings.weight_decay_bias is None:
        decay = 0.0 if settings.sep_decay else settings.weight_decay
        settings = settings.replace(weight_decay_bias=decay)
    return settings.replace(num_workers=settings.num_workers or 0)


def read_arguments(path: Path) -> dict[str, Any]:
    """Read the authors' args.txt -> settings by our names; none if there is no such file.

    Nothing is evaluated but literals. Raises UserError if it is not the repr of a Namespace.
    """
    if not path.is_file():
        return {}
    with open_regular(path) as file:
        text = file.read().decode("utf-8", errors="replace").strip()
    values = {name: _read_literal(value) for name, value in ARGUMENT.findall(text)}
    if not text.startswith("Namespace(") or not values.keys() & ARGUMENT_NAMES.keys():
        raise UserError(f"{path} is not what the authors' train.py writes")
    settings: dict[str, Any] = {}
    for theirs, (ours, convert) in ARGUMENT_NAMES.items():
        if values.get(theirs) is not None:
            settings |= _convert(path, theirs, ours, convert, values[theirs])
    return _drop_idle(settings, values)


def _read_literal(text: str) -> Any:
    """Return the value of a literal; None for anything else."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def _convert(
    path: Path, theirs: str, ours: str, convert: Callable[[Any], Any], value: Any
) -> dict[str, Any]:
    """Convert one of the authors' arguments and check it. Raises UserError."""
    try:
        return Settings.from_flags({ours: convert(value)}).values([ours])
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: {theirs}={value!r} is not known here") from error


def _drop_idle(settings: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Complete what follows from several arguments; drop options that the network does not take."""
    options = find_network(settings["model"]).options if "model" in settings else ()
    for name in ("patch_size", "width", "depth"):
        if name not in options:
            settings.pop(name, None)
    if settings.get("model") == "ViT" and "head_dim" in values:
        settings["width"] = values["head_dim"]
    if settings.get("model") == "Swin":  # theirs has one size; their flags are of the ViT
        settings = {k: v for k, v in settings.items() if k not in ("patch_size", "width")}
    if values.get("SOTA") or values.get("MIX"):
        settings["augment"] = "DA1+DA2" if values.get("MIX") else "DA1"
    return settings


# The authors' arguments: our names, and how a value of theirs becomes one of ours. Settings find a
# name in any case.
ARGUMENT_NAMES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "model": ("model", str),
    "dataset": ("dataset", str),
    "loss": ("loss", lambda text: {"CrossEntropy": "CE"}.get(text, text)),
    "optimizer": ("optimizer", str),
    "bias": ("bias_mode", lambda has_bias: BIAS_MODES[0] if has_bias else "none"),
    "ETF_fc": ("fixed_etf", bool),
    "decay_type": ("schedule", str),
    "gamma": ("step_gamma", float),
    "width": ("width", int),
    "depth": ("depth", int),
    "patch_size": ("patch_size", int),
    "img_size": ("img_size", int),
    "sample_size": ("sample_size", int),
    "seed": ("seed", int),
    "epochs": ("epochs", int),
    "batch_size": ("batch_size", int),
    "epoch_save_step": ("epoch_save_step", int),
    "epochs_warmup": ("epochs_warmup", int),
    "bias_init_mode": ("bias_init_mode", int),
    "lr": ("lr", float),
    "weight_decay": ("weight_decay", float),
    "weight_decay_bias": ("weight_decay_bias", float),
    "sep_decay": ("sep_decay", bool),
    "feature_decay_rate": ("feature_decay_rate", float),
    "bias_init_mean": ("bias_init_mean", float),
    "smoothing": ("smoothing", float),
}
