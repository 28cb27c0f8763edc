"""The authors' Vision Transformer: pre-norm, 10 heads of 64 and an MLP of 512 at any width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import Dropout, attention, widen
from utils.errors import UserError

HEADS, HEAD_WIDTH = 10, 64
HIDDEN_WIDTH = 512
DROPOUT, EMBEDDING_DROPOUT = 0.2, 0.1


def split_patches(images: Tensor, side: int) -> Tensor:
    """Split images [B, C, H, W] -> patches [B, (H/side)·(W/side), side²·C], row by row.

    The numbers of a patch are in the order row, column, channel.
    """
    x = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention over tokens [B, N, width]; the heads' width is independent of it.

    softmax(q kᵀ/√64) v per head, dropout after the output projection.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * HEADS * HEAD_WIDTH, bias=False)
        self.out = nn.Linear(HEADS * HEAD_WIDTH, width)
        self.dropout = Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_WIDTH))  # [B, N, 3, heads, 64]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, 64]
        x = attention(q, k, v).transpose(1, 2).flatten(2)
        return self.dropout(self.out(x))


class Block(nn.Module):
    """Pre-norm transformer block; the MLP's hidden width does not follow the tokens' width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, HIDDEN_WIDTH),
            nn.GELU(),
            Dropout(DROPOUT),
            nn.Linear(HIDDEN_WIDTH, width),
            Dropout(DROPOUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Vision Transformer. Its feature is the normalised class token, d = width.

    Args:
        image_shape: (C, H, W), H and W divisible by patch_size.
        patch_size: side of a patch in pixels.
        width: features of a token.
        depth: number of blocks.

    The caller sets `fc` to a classifier of `feature_dim` features.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], patch_size: int, width: int, depth: int
    ) -> None:
        super().__init__()
        channels, height, width_px = image_shape
        patches = (height // patch_size) * (width_px // patch_size)
        self.feature_dim = width
        self.patch_size = patch_size
        self.patches = nn.Linear(patch_size**2 * channels, width)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 1 + patches, width))
        self.dropout = Dropout(EMBEDDING_DROPOUT)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [B, C, H, W] -> (logits [B, K], features [B, width])."""
        x = self.patches(split_patches(images, self.patch_size))  # [B, patches, width]
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.blocks(self.dropout(x + self.position))
        features = self.norm(widen(x[:, 0]))
        return self.fc(features), features


def build(
    name: str,
    image_shape: tuple[int, int, int],
    patch_size: int,
    width: int = 512,
    depth: int = 6,
) -> ViT:
    """Build the ViT for images of `image_shape` (C, H, W), still without classifier.

    Raises:
        UserError: a patch size that does not divide the image's sides.
    """
    _, height, width_px = image_shape
    if height % patch_size or width_px % patch_size:
        raise UserError(
            f"{name} cannot cut {height}×{width_px} images into patches of {patch_size} pixels: "
            "choose a patch_size that divides both sides"
        )
    return ViT(image_shape, patch_size, width, depth)
