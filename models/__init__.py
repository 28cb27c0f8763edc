"""The registry of networks, by name, and how to build one.

torch is imported only when a network is built, so that a script can list the names and answer
`--help` at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
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
# The last commit of this program with the networks, and the pixels, that runs without recorded
# versions had.
OLD_COMMIT = "14c9aae"


@dataclass(frozen=True)
class Network:
    """A network.

    Attributes:
        builder: maps (name, image shape, **options) to a network without classifier.
        options: the settings that it takes besides the classifier's.
        convolutional: whether its memory format matters.
        bf16_side: smallest image side in pixels at which bfloat16 is faster on a CPU with matrix
            units for it. On smaller images the casts cost more than the layers gain.
        channels_last_side: the same for channels_last on the CPU in float32.
        patch_sizes: (largest side, patch size) in pixels; the first that fits is the default.
        version: number of the network's definition. A change of what the same weights compute, or
            of their names, raises it, and models.foreign.upgrade_state then reads older weights or
            refuses them.
    """

    builder: str
    options: tuple[str, ...] = ()
    convolutional: bool = False
    bf16_side: float = math.inf
    channels_last_side: float = math.inf
    patch_sizes: tuple[tuple[float, int], ...] = ()
    version: int = 1

    def default_patch_size(self, side: int) -> int:
        """Return the side of a patch in pixels for images of `side` pixels."""
        return next(patch for largest, patch in self.patch_sizes if side <= largest)


_RESNET = Network("models.resnet:build", convolutional=True, bf16_side=16, channels_last_side=32)
_DENSENET = Network("models.densenet:build", convolutional=True, bf16_side=32, channels_last_side=1)
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
    "MLP": Network("models.mlp:build", options=("width", "depth"), version=2),
}


def build_model(
    name: str,
    num_classes: int,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    *,
    bias_mode: str = "diverse",
    bias_init_mode: int = 0,
    bias_init_mean: float = 0.0,
    fixed_etf: bool = False,
    **options: int | None,
) -> nn.Module:
    """Build a network with freshly drawn weights (global RNG) and its classifier.

    The network maps images [B, C, H, W] to (logits [B, K], features [B, d]), both float32, also
    under autocast. `model.feature_dim` is d and `model.fc` the classifier, z = W h − b.

    Args:
        name: a key of `NETWORKS`, in any case.
        num_classes: K ≥ 2.
        image_shape: (C, H, W) in pixels. Sides below `SMALL_SIDE` select the 32×32 variants.
        bias_mode, bias_init_mode, bias_init_mean, fixed_etf: see models.linear.Classifier.
        options: the network's own, such as patch_size, width and depth; None: its default.

    Raises:
        UserError: an unknown name, an option the network does not take, or a value it cannot use.
    """
    name = find_name(name, NETWORKS, "model")
    network = NETWORKS[name]
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    _check_options(name, network, given)
    if network.patch_sizes:
        given.setdefault("patch_size", network.default_patch_size(min(image_shape[1:])))
    backbone: nn.Module = load_function(network.builder)(name, tuple(image_shape), **given)
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
        if value < 1:
            raise UserError(f"{option} of {name} is {value}: it must be 1 or more")


def explain_missing_option(name: str, option: str) -> str | None:
    """Return why an option has no effect for a network; None if the network takes it."""
    return None if option in NETWORKS[name].options else f"{name} has no such setting"


def list_takers(option: str) -> str:
    """List the networks that take an option."""
    return ", ".join(name for name, network in NETWORKS.items() if option in network.options)
