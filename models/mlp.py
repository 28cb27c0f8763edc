"""The authors' MLP: hidden layers of Linear, BatchNorm and ReLU on the flattened image."""

from __future__ import annotations

import math

from torch import Tensor, nn

from models.layers import widen


class MLP(nn.Module):
    """Multi-layer perceptron. Its feature is the last hidden layer, d = width.

    Args:
        image_shape: (C, H, W).
        width: units of each hidden layer.
        depth: number of hidden layers.

    The caller sets `fc` to a classifier of `feature_dim` features.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: int, depth: int) -> None:
        super().__init__()
        self.feature_dim = width
        widths = [math.prod(image_shape)] + [width] * (depth - 1)
        self.layers = nn.Sequential(*(_build_hidden_layer(before, width) for before in widths))
        self.fc = nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [B, C, H, W] -> (logits [B, K], features [B, width])."""
        features = widen(self.layers(images.flatten(1)))
        return self.fc(features), features


def _build_hidden_layer(inputs: int, width: int) -> nn.Sequential:
    # In training BatchNorm subtracts the linear layer's bias with the mean. The authors' files hold
    # it all the same, and it enters the running mean.
    linear = nn.Linear(inputs, width)
    return nn.Sequential(linear, nn.BatchNorm1d(width), nn.ReLU(inplace=True))


def build(name: str, image_shape: tuple[int, int, int], width: int = 1024, depth: int = 6) -> MLP:
    """Build the MLP for images of `image_shape` (C, H, W), still without classifier."""
    return MLP(image_shape, width, depth)
