"""The authors' Swin Transformer: attention within shifted windows (Liu et al. 2021).

It differs from the original: one table of relative positions per block, which all heads share; no
bias of queries, keys and values; no LayerNorm between the stages; windows that cover the whole map
are shifted, too.

Between the layers a map is channels-last, [B, side, side, channels].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import SMALL_SIDE
from models.layers import widen
from utils.errors import UserError

LAYERS = (2, 2, 6, 2)
HEAD_WIDTH = 32
MLP_RATIO = 4


def split_windows(x: Tensor, window: int) -> Tensor:
    """Split [B, S, S, C] -> [B, number of windows, window², C], windows and pixels row by row."""
    batch, side, _, channels = x.shape
    count = side // window
    x = x.reshape(batch, count, window, count, window, channels).transpose(2, 3)
    return x.reshape(batch, count**2, window**2, channels)


def join_windows(x: Tensor, side: int) -> Tensor:
    """Invert `split_windows`: [B, number of windows, window², C] -> [B, side, side, C]."""
    batch, windows, pixels, channels = x.shape
    count, window = round(windows**0.5), round(pixels**0.5)
    x = x.reshape(batch, count, count, window, window, channels).transpose(2, 3)
    return x.reshape(batch, side, side, channels)


def index_offsets(window: int) -> Tensor:
    """Return the entry of the table for each pair of pixels, int64 [window², window²].

    The table [2·window−1, 2·window−1] has a row for each offset from the query down to the key,
    and a column for each offset to the right. Its entries are counted row by row.
    """
    row = torch.arange(window).repeat_interleave(window)
    column = torch.arange(window).repeat(window)
    down = row[None, :] - row[:, None] + window - 1
    right = column[None, :] - column[:, None] + window - 1
    return down * (2 * window - 1) + right


def find_wrapped_pairs(side: int, window: int, shift: int) -> Tensor:
    """Find pairs that meet only because the map wraps: bool [windows, window², window²].

    Shifting brings the first `shift` rows and columns to the far side, into windows with pixels
    from the opposite edge of the image. These pixels must not attend to each other.
    """
    wrapped = (torch.arange(side) >= side - shift).long()
    region = 2 * wrapped[:, None] + wrapped[None, :]
    region = split_windows(region[None, :, :, None], window)[0, :, :, 0]
    return region[:, :, None] != region[:, None, :]


def choose_window(side: int, nominal: int) -> int:
    """Return the largest divisor of a map's `side` that is not above the nominal window."""
    return max(window for window in range(1, nominal + 1) if side % window == 0)


class WindowAttention(nn.Module):
    """Multi-head self-attention within the windows of a map [B, side, side, channels].

    Args:
        channels: a multiple of 32, the width of a head.
        side: of the map, in pixels, a multiple of `window`.
        window: side of a window.
        shift: number of pixels by which the windows are shifted; 0 for no shift.
    """

    index: Tensor
    blocked: Tensor | None

    def __init__(self, channels: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.side, self.window, self.shift = side, window, shift
        self.windows = (side // window) ** 2
        self.heads = channels // HEAD_WIDTH
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)
        self.relative_bias = nn.Parameter(torch.randn(2 * window - 1, 2 * window - 1))
        # Both follow from the shape: checkpoints need not hold them.
        self.register_buffer("index", index_offsets(window), persistent=False)
        blocked = find_wrapped_pairs(side, window, shift) if shift else None
        self.register_buffer("blocked", blocked, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.roll((-self.shift, -self.shift), dims=(1, 2)) if self.shift else x
        qkv = self.qkv(split_windows(x, self.window)).unflatten(-1, (3, self.heads, HEAD_WIDTH))
        # Windows and heads share a dimension: the fused kernels take four dimensions. The score
        # bias of every window then broadcasts over the batch, without a copy for each image.
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=self.score_bias().to(q.dtype))
        x = x.unflatten(1, (self.windows, self.heads)).transpose(2, 3).flatten(3)
        x = join_windows(self.out(x), self.side)
        return x.roll((self.shift, self.shift), dims=(1, 2)) if self.shift else x

    def score_bias(self) -> Tensor:
        """Return the addend of q kᵀ/√32, −∞ where blocked.

        [1, windows · heads, window², window²], or [1, 1, …] where all of them have the same.
        """
        bias = self.relative_bias.flatten()[self.index]  # [window², window²]
        if self.blocked is None:
            return bias[None, None]
        bias = bias.masked_fill(self.blocked, float("-inf"))
        return bias[:, None].expand(-1, self.heads, -1, -1).flatten(0, 1)[None]


class Block(nn.Module):
    """Pre-norm Swin block on maps [B, side, side, channels]."""

    def __init__(self, channels: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, side, window, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, MLP_RATIO * channels),
            nn.GELU(),
            nn.Linear(MLP_RATIO * channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Embedding of images [B, C, H, W] as patches [B, H/factor, W/factor, width]."""

    def __init__(self, channels: int, width: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.project = nn.Linear(channels * factor**2, width)

    def forward(self, images: Tensor) -> Tensor:
        # The numbers of a patch are in the order channel, row, column.
        return self.project(F.pixel_unshuffle(images, self.factor).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Layer [B, S, S, C] -> [B, S/factor, S/factor, 2C]: factor² neighbours become one patch."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.project = nn.Linear(factor**2 * channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        side = x.shape[1] // self.factor
        x = split_windows(x, self.factor).flatten(2).unflatten(1, (side, side))
        return self.project(x)


def build_stage(channels: int, side: int, nominal_window: int, depth: int) -> nn.Sequential:
    """Build `depth` blocks; every second one shifts its windows."""
    window = choose_window(side, nominal_window)
    shifts = [(index % 2) * (window // 2) for index in range(depth)]
    return nn.Sequential(*(Block(channels, side, window, shift) for shift in shifts))


class Swin(nn.Module):
    """Swin Transformer of four stages; the feature is the normalised mean patch, d = 8 · width.

    Args:
        image_shape: (C, side, side), the side divisible by the product of the factors.
        width: channels of the first stage, a multiple of 32. Each stage doubles them.
        factors: each stage shrinks the map by this factor before its blocks.
        window: nominal side of a window; a stage uses the largest divisor of its map's side
            up to that.

    The caller sets `fc` to a classifier of `feature_dim` features.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        width: int,
        factors: tuple[int, int, int, int],
        window: int,
    ) -> None:
        super().__init__()
        channels, side, _ = image_shape
        layers: list[nn.Module] = []
        for index, (factor, depth) in enumerate(zip(factors, LAYERS, strict=True)):
            if index == 0:
                layers.append(PatchEmbedding(channels, width, factor))
            else:
                layers.append(PatchMerging(width, factor))
                width *= 2
            side //= factor
            layers.append(build_stage(width, side, window, depth))
        self.layers = nn.Sequential(*layers)
        self.feature_dim = width
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [B, C, side, side] -> (logits [B, K], features [B, 8 · width])."""
        features = self.norm(widen(self.layers(images)).mean(dim=(1, 2)))
        return self.fc(features), features


def build(
    name: str,
    image_shape: tuple[int, int, int],
    patch_size: int,
    width: int = 96,
) -> Swin:
    """Build the Swin for images of `image_shape` (C, H, W), still without classifier.

    For images below 64 pixels the last stage does not shrink the map and windows are 4×4, as
    published. For larger images factors and 7×7 windows are those of the original Swin-T.

    Raises:
        UserError: images that are not square, a side that the four stages cannot divide, or a
            width that is no multiple of 32.
    """
    _, side, width_px = image_shape
    if side != width_px:
        raise UserError(f"{name} needs square images, but these are {side}×{width_px}: resize them")
    if width % HEAD_WIDTH:
        raise UserError(f"the width of {name} is {width}: it must be a multiple of {HEAD_WIDTH}")
    small = side < SMALL_SIDE
    downscaling = patch_size * (4 if small else 8)
    if side % downscaling:
        raise UserError(
            f"{name} with patches of {patch_size} pixels shrinks images by {downscaling}, which "
            f"does not divide their side of {side}: choose another patch_size or resize them"
        )
    factors = (patch_size, 2, 2, 1 if small else 2)
    return Swin(image_shape, width, factors, window=4 if small else 7)
