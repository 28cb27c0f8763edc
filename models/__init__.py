"""The networks by name: which there are, which options each takes, and how to build one.

torch is imported only when a network is built, so that a script can list the names and answer
`--help` at once.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.errors import UserError

if TYPE_CHECKING:
    from torch import nn

# Images with a side below this many pixels get the paper's variants for 32×32 inputs, the others
# the ImageNet networks: their stems shrink 4-fold or 16-fold, which leaves nothing of a small map.
SMALL_SIDE = 64


@dataclass(frozen=True)
class ModelSpec:
    """Where a network is built, the options it takes besides the classifier's, and its kind."""

    module: str
    options: tuple[str, ...] = ()
    convolutional: bool = False


MODELS: dict[str, ModelSpec] = {
    "ResNet18": ModelSpec("models.resnet", convolutional=True),
    "ResNet34": ModelSpec("models.resnet", convolutional=True),
    "ResNet50": ModelSpec("models.resnet", convolutional=True),
    "ResNet101": ModelSpec("models.resnet", convolutional=True),
    "DenseNet121": ModelSpec("models.densenet", convolutional=True),
    "DenseNet161": ModelSpec("models.densenet", convolutional=True),
    "ViT": ModelSpec("models.vit", ("patch_size", "width", "depth")),
    "Swin": ModelSpec("models.swin", ("patch_size", "width")),
    "MLP": ModelSpec("models.mlp", ("width", "depth")),
}


def canonical_name(name: str) -> str:
    """The key of `MODELS` that `name` means, whatever its case; UserError if there is none."""
    by_lower_case = {known.lower(): known for known in MODELS}
    if name.lower() not in by_lower_case:
        raise UserError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    return by_lower_case[name.lower()]


def build_model(
    name: str,
    num_classes: int,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    *,
    patch_size: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    bias_mode: str = "diverse",
    bias_init_mode: int = 0,
    bias_init_mean: float = 0.0,
    fixed_etf: bool = False,
) -> nn.Module:
    """Build a network with freshly drawn weights (global RNG) and its classifier.

    The network maps images [B, C, H, W] to (logits [B, K], features [B, d]), both float32 under
    autocast, too; `model.feature_dim` is d and `model.fc` the classifier, z = W h − b.

    Args:
        name: a key of `MODELS`, in any case.
        num_classes: K ≥ 2.
        image_shape: (C, H, W) in pixels. Sides below `SMALL_SIDE` select the 32×32 variants.
        patch_size: side of a patch in pixels (ViT, Swin). None: by the image's side.
        width: features per token (ViT), of the first stage (Swin), or per hidden layer (MLP).
        depth: number of blocks (ViT) or of hidden layers (MLP).
        bias_mode, bias_init_mode, bias_init_mean, fixed_etf: see models.linear.Classifier.

    Raises:
        UserError: an unknown name, an option the network does not take, or a value it cannot use.
    """
    name = canonical_name(name)
    spec = MODELS[name]
    given = {"patch_size": patch_size, "width": width, "depth": depth}
    options = {option: value for option, value in given.items() if value is not None}
    for option, value in options.items():
        _check_option(name, spec, option, value)

    backbone = importlib.import_module(spec.module).build(name, tuple(image_shape), **options)
    classifier = importlib.import_module("models.linear").Classifier
    backbone.fc = classifier(
        backbone.feature_dim, num_classes, bias_mode, bias_init_mode, bias_init_mean, fixed_etf
    )
    return backbone


def _check_option(name: str, spec: ModelSpec, option: str, value: int) -> None:
    if option not in spec.options:
        allowed = ", ".join(spec.options) or "none"
        raise UserError(f"{name} takes no {option} (got {value}); its options: {allowed}")
    if value < 1:
        raise UserError(f"{option} of {name} is {value}: it must be 1 or more")
