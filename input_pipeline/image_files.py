"""Image files decoded to 8-bit RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torchvision.transforms import v2

from utils.errors import UserError


def read_size(path: str) -> tuple[int, int]:
    """Read (height, width) in pixels of an image file. Raises UserError if it can't be decoded."""
    image = open_rgb(path)
    return image.height, image.width


def open_rgb(path: str) -> Image.Image:
    """Decode a file to 8-bit RGB. Raises UserError if it can't be decoded."""
    try:
        with Image.open(path) as image:
            return _to_rgb(image)
    except MemoryError:
        raise
    # Broken data makes Pillow's decoders raise nearly anything: SyntaxError, struct.error, …
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        reason = reason or type(error).__name__
        raise UserError(f"{path} can't be decoded as an image ({reason}): replace it") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    # Pillow would clip 16-bit grey at 255 and show white.
    grey = np.round(np.clip(np.asarray(image), 0, 65535) / 257)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def fit_square(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to `side` pixels and crop the centre square."""
    resized = v2.functional.resize(image, [side], v2.InterpolationMode.BILINEAR, antialias=True)
    return v2.functional.center_crop(resized, [side, side])
