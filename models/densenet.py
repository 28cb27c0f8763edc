"""DenseNets (Huang et al. 2017): torchvision's, with the paper's stem for small images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import densenet

from models import SMALL_SIDE
from models.layers import widen


@dataclass(frozen=True)
class Shape:
    """Layers of each dense block, channels that each layer adds, channels after the stem."""

    blocks: tuple[int, int, int, int]
    growth: int
    stem: int


_STANDARD = {
    "DenseNet121": Shape((6, 12, 24, 16), growth=32, stem=64),
    "DenseNet161": Shape((6, 12, 36, 24), growth=48, stem=96),
}
# Under SMALL_SIDE pixels the paper halves DenseNet121's channels; it has no small DenseNet161.
_SMALL = {
    "DenseNet121": Shape((6, 12, 24, 16), growth=16, stem=32),
    "DenseNet161": _STANDARD["DenseNet161"],
}


class DenseNet(densenet.DenseNet):
    """torchvision's DenseNet that returns its features too.

    Parameter names are torchvision's. Only the classifier has another name, `fc`.

    Args:
        shape: numbers of layers and channels.
        image_shape: (C, H, W). A side below 64 pixels drops the pooling after the stem.

    The caller sets `fc` to a classifier of `feature_dim` features.
    """

    def __init__(self, shape: Shape, image_shape: tuple[int, int, int]) -> None:
        super().__init__(shape.growth, shape.blocks, shape.stem, num_classes=1)
        self.feature_dim = self.classifier.in_features
        del self.classifier
        self.fc = nn.Identity()
        channels, *sides = image_shape
        conv0 = nn.Conv2d(channels, shape.stem, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(conv0.weight)
        self.features.conv0 = conv0
        halvings = 2
        if min(sides) < SMALL_SIDE:
            self.features.pool0 = nn.Identity()
            halvings = 1
        self._fit_transitions([-(-side // 2**halvings) for side in sides])

    def _fit_transitions(self, sides: list[int]) -> None:
        """Stop halving a side of the map once it is one pixel; `sides` are those after the stem.

        An 8×8 image reaches the third transition as a single pixel, and a 2×2 average would leave
        nothing of it. The pooling of larger maps is torchvision's own. (A pooling that rounds up
        would also change maps of odd size, e.g. of 28×28 images.)
        """
        for index in (1, 2, 3):
            transition = getattr(self.features, f"transition{index}")
            kernel = (min(2, sides[0]), min(2, sides[1]))
            transition.pool = nn.AvgPool2d(kernel)
            sides = [max(1, side // 2) for side in sides]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [B, C, H, W] -> (logits [B, K], features [B, d])."""
        for module in self.features:
            x = run_dense_block(module, x) if isinstance(module, nn.ModuleDict) else module(x)
        maps = F.relu(x, inplace=True)
        features = F.adaptive_avg_pool2d(widen(maps), 1).flatten(1)
        return self.fc(features), features


def run_dense_block(block: nn.ModuleDict, x: Tensor) -> Tensor:
    """Map [B, C, H, W] to the block's input and the channels that each of its layers adds.

    Each layer appends to the maps before it. torchvision joins all earlier parts anew in every
    layer. Backward then adds the gradients of a part one layer after the other, which is half of a
    block's operations. The sums here have the same terms in the same order: no bit differs.
    """
    layer: Any
    for layer in block.values():
        added = layer.conv1(layer.relu1(layer.norm1(x)))
        added = layer.conv2(layer.relu2(layer.norm2(added)))
        x = torch.cat([x, added], 1)
    return x


def build(name: str, image_shape: tuple[int, int, int]) -> DenseNet:
    """Build DenseNet121 or 161 for images of `image_shape` (C, H, W), still without classifier."""
    shapes = _SMALL if min(image_shape[1:]) < SMALL_SIDE else _STANDARD
    return DenseNet(shapes[name], image_shape)
