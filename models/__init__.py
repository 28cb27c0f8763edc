"""The registry of networks, by name, and how to build one.

torch is imported only when a network is built, so that a script can list the names and answer
`--help` at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.registry import find_name, load_function

if TYPE_CHECKING:
    from torch import nn

# Images with a side below this many pixels get the paper's variants for 32×32 inputs. Other images
# get the ImageNet networks: their stems shrink 4-fold or 16-fold and leave nothing of a small map.
SMALL_SIDE = 64
# The kinds of bias a classifier can have: one per class, one for all classes, none.
BIAS_MODES = ("diverse", "unified", "none")
# Starts of the bias that have a name in place of a number: where scores of 0 have the least loss,
# and where the exact minimum has it.
PRIOR, PREDICTED = BIAS_STARTS = ("prior", "predicted")
EXAMPLE = "such as timm:resnet18 or timm:vit_tiny_patch16_224"
# The last commit of this program with the networks, and the pixels, that runs without recorded
# versions had.
OLD_COMMIT = "14c9aae"


@dataclass(frozen=True)
class Network:
    """A network, or a family of networks.

    Attributes:
        builder: maps (name, image shape, **options) to a network without classifier.
        prefix: whether its key is only the beginning of its networks' names; the builder knows the
            names and gets what follows the key.
        options: the settings that it takes besides the classifier's.
        convolutional: whether its memory format matters.
        batch_norm: whether it has batch normalisation; of a family: whether one may have it.
        bf16_side: smallest image side in pixels at which bfloat16 is faster on a CPU with matrix
            units for it. On smaller images the casts cost more than the layers gain.
        channels_last_side: the same for channels_last on the CPU in float32.
        patch_sizes: (largest side, patch size) in pixels; the first that fits is the default.
        rates: by optimizer, a learning rate that trains and one, above it, that left the network
            near chance in short runs on CIFAR-10; both for batches of 128 (docs/training.md).
        version: number of the network's definition. A change of what the same weights compute, or
            of their names, raises it, and models.foreign.upgrade_state then reads older weights or
            refuses them.
    """

    builder: str
    prefix: bool = False
    options: tuple[str, ...] = ()
    convolutional: bool = False
    batch_norm: bool = False
    bf16_side: float = math.inf
    channels_last_side: float = math.inf
    patch_sizes: tuple[tuple[float, int], ...] = ()
    rates: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    version: int = 1

    def default_patch_size(self, side: int) -> int:
        """Return the side of a patch in pixels for images of `side` pixels."""
        return next(patch for largest, patch in self.patch_sizes if side <= largest)


_RESNET = Network(
    "models.resnet:build",
    convolutional=True,
    batch_norm=True,
    bf16_side=16,
    channels_last_side=32,
)
_DENSENET = Network(
    "models.densenet:build",
    convolutional=True,
    batch_norm=True,
    bf16_side=32,
    channels_last_side=1,
)
NETWORKS: dict[str, Network] = {
    "ResNet18": _RESNET,
    "ResNet34": _RESNET,
    "ResNet50": _RESNET,
    "ResNet101": _RESNET,
    "DenseNet121": _DENSENET,
    "DenseNet161": _DENSENET,
    "ViT": Network(
        "models.vit:build",
        options=("patch_size", "width", "depth"),
        bf16_side=1,
        patch_sizes=((16, 2), (SMALL_SIDE - 1, 4), (math.inf, 16)),
        rates={"AdamW": (3e-4, 0.01)},
        version=2,
    ),
    "Swin": Network(
        "models.swin:build",
        options=("patch_size", "width"),
        bf16_side=1,
        # Patches of one pixel let an 8×8 image pass all four stages.
        patch_sizes=((16, 1), (SMALL_SIDE - 1, 2), (math.inf, 4)),
        version=2,
    ),
    # The MLP gains from bfloat16 in large batches only, and gains only seconds.
    "MLP": Network("models.mlp:build", options=("width", "depth"), batch_norm=True, version=2),
    # No speed on a CPU is known of them: there they compute in float32, in torch's usual format.
    "timm:": Network(
        "models.timm_networks:build",
        prefix=True,
        options=("pretrained", "weights"),
        convolutional=True,
        batch_norm=True,
    ),
}


def check_name(text: str) -> str:
    """Return the name of a network as the registry spells it; what follows a prefix stays as it is.

    Whether a family has the network is found out where it is built. Raises UserError.
    """
    for key in list_families():
        if text.lower().startswith(key):
            rest = text[len(key) :]
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", rest):
                raise UserError(f"model {text!r}: {key}NAME is the name of a network, {EXAMPLE}")
            return key + rest
    names = [name for name, network in NETWORKS.items() if not network.prefix]
    try:
        return find_name(text, names, "model")
    except UserError as error:
        raise UserError(f"{error}, {', '.join(f'{key}NAME' for key in list_families())}") from error


def find_network(name: str) -> Network:
    """Return the entry of a network, or of its family. Raises UserError for an unknown name."""
    name = check_name(name)
    family = next((key for key in list_families() if name.startswith(key)), name)
    return NETWORKS[family]


def list_families() -> list[str]:
    """List the keys of `NETWORKS` that only begin the names of their networks."""
    return [key for key, network in NETWORKS.items() if network.prefix]


def list_names() -> str:
    """List the names of all networks, in words for a help text."""
    shown = (f"{key}NAME" if network.prefix else key for key, network in NETWORKS.items())
    return ", ".join(shown)


def share_definition(one: str, other: str) -> bool:
    """Return whether two names are of the same network. timm names weights after a dot."""
    if find_network(one).prefix:
        one, other = one.partition(".")[0], other.partition(".")[0]
    return one == other


def build_model(
    name: str,
    num_classes: int,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    *,
    bias_mode: str = "diverse",
    bias_init_mode: int = 0,
    bias_init_mean: float = 0.0,
    fixed_etf: bool = False,
    **options: int | str | bool | None,
) -> nn.Module:
    """Build a network with freshly drawn weights (global RNG) and its classifier.

    The network maps images [B, C, H, W] to (logits [B, K], features [B, d]), both float32, also
    under autocast. `model.feature_dim` is d and `model.fc` the classifier, z = W h − b.

    Args:
        name: a key of `NETWORKS`, in any case, or a name that begins with one of a family.
        num_classes: K ≥ 2.
        image_shape: (C, H, W) in pixels. Sides below `SMALL_SIDE` select the 32×32 variants.
        bias_mode, bias_init_mode, bias_init_mean, fixed_etf: see models.linear.Classifier.
        options: the network's own, such as patch_size, width and depth; None or False: its default.

    Raises:
        UserError: an unknown name, an option the network does not take, or a value it cannot use.
    """
    name = check_name(name)
    network = find_network(name)
    given: dict[str, Any] = {k: v for k, v in options.items() if v is not None and v is not False}
    _check_options(name, network, given)
    if network.patch_sizes:
        given.setdefault("patch_size", network.default_patch_size(min(image_shape[1:])))
    own_name = name.partition(":")[2] or name
    backbone: nn.Module = load_function(network.builder)(own_name, tuple(image_shape), **given)
    build_classifier = load_function("models.linear:Classifier")
    backbone.fc = build_classifier(
        backbone.feature_dim, num_classes, bias_mode, bias_init_mode, bias_init_mean, fixed_etf
    )
    return backbone


def _check_options(name: str, network: Network, options: Mapping[str, Any]) -> None:
    for option, value in options.items():
        if option not in network.options:
            allowed = ", ".join(network.options) or "none"
            raise UserError(f"{name} takes no {option} (got {value}); its options: {allowed}")
        if isinstance(value, int) and value < 1:
            raise UserError(f"{option} of {name} is {value}: it must be 1 or more")


def explain_missing_option(name: str, option: str) -> str | None:
    """Return why an option has no effect for a network; None if the network takes it."""
    return None if option in find_network(name).options else f"{name} has no such setting"


def explain_high_rate(name: str, optimizer: str, rate: float) -> str | None:
    """Return a warning of a learning rate that is known to be too high; None if it is not.

    `rate` is for batches of 128.
    """
    good, failing = find_network(name).rates.get(optimizer, (0.0, math.inf))
    if rate < failing:
        return None
    return (
        f"warning: {name} stayed near chance with {optimizer} and --lr {failing:g}; "
        f"--lr {good:g} trained it (docs/training.md)"
    )


def list_takers(option: str) -> str:
    """List the networks that take an option."""
    takers = (name for name, network in NETWORKS.items() if option in network.options)
    return ", ".join(name.removesuffix(":") for name in takers)
