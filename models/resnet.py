"""ResNets (He et al. 2016): torchvision's, with the paper's stem for small images."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models import resnet

from models import SMALL_SIDE
from models.layers import replace_convolutions, widen

_LAYERS = {
    "ResNet18": (resnet.BasicBlock, [2, 2, 2, 2]),
    "ResNet34": (resnet.BasicBlock, [3, 4, 6, 3]),
    "ResNet50": (resnet.Bottleneck, [3, 4, 6, 3]),
    "ResNet101": (resnet.Bottleneck, [3, 4, 23, 3]),
}


class ResNet(resnet.ResNet):
    """torchvision's ResNet that returns its features too; parameter names are unchanged.

    Args:
        block: torchvision's BasicBlock or Bottleneck.
        layers: number of blocks in each of the four stages.
        image_shape: (C, H, W). A side below 64 pixels selects a 3×3 stem of stride 1 without
            max-pooling, so that a 32×32 image ends in a 4×4 map, not in a single pixel.

    The caller sets `fc` to a classifier of `feature_dim` features.
    """

    def __init__(
        self,
        block: type[resnet.BasicBlock | resnet.Bottleneck],
        layers: list[int],
        image_shape: tuple[int, int, int],
    ) -> None:
        super().__init__(block, layers, num_classes=1)
        width: Any = self.fc.in_features
        self.feature_dim: int = width
        self.fc: nn.Module = nn.Identity()
        channels, *sides = image_shape
        small = min(sides) < SMALL_SIDE
        if small:
            self.conv1 = nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        replace_convolutions(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [B, C, H, W] -> (logits [B, K], features [B, d])."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        features = self.avgpool(widen(x)).flatten(1)
        return self.fc(features), features


def build(name: str, image_shape: tuple[int, int, int]) -> ResNet:
    """Build a ResNet for images of `image_shape` (C, H, W), still without classifier."""
    return ResNet(*_LAYERS[name], image_shape)
