"""Image files decoded to 8-bit RGB. docs/data.md lists what becomes of each kind of pixel."""

from __future__ import annotations

import os
import stat
import warnings

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile
from torchvision.transforms import v2

from utils.errors import UserError

# Pillow tries these alone: its other decoders serve no file that is listed, and some run programs.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A brighter 16-bit value needs more than the 12 bits that many cameras and scanners have.
_LARGEST_12_BIT = 4095
_LONGEST = 8  # times as long as wide: longer images are cropped before they are resized


class UndecodableError(UserError):
    """A file that was read is not a whole image."""


class _RangeError(ValueError):
    """The pixel values have no range, or do not fill the one that 8 bits are made from."""


def read_size(path: str) -> tuple[int, int]:
    """Read (height, width) in pixels of an image file. Raises UserError if it can't be decoded."""
    image = open_rgb(path)
    return image.height, image.width


def open_rgb(path: str, draft_side: int | None = None) -> Image.Image:
    """Decode the first frame of a file to 8-bit RGB, turned as its EXIF orientation asks.

    Args:
        path: the file.
        draft_side: side in pixels that `fit_square` will be asked for, if a JPEG may be decoded at
            1/2, 1/4 or 1/8 of its size for it. The shorter side of the result has so many pixels
            where that was done. None: the image has its own size.

    Raises UndecodableError if the file can't be decoded, UserError if it can't be read or if its
    values have no known range.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            # A FIFO would be waited for.
            raise UserError(f"{path} is not a regular file: remove it or put an image in its place")
        with warnings.catch_warnings():
            # Pillow warns about odd metadata, which does not affect the pixels.
            warnings.simplefilter("ignore")
            # From a file, not a path: Pillow would map a plain TIFF into memory after it has
            # swapped the sides of an image that is to be turned.
            with open(path, "rb") as file, Image.open(file, formats=_FORMATS) as image:
                return _turn_upright(_decode(image, draft_side), image)
    except (MemoryError, UserError):
        raise
    except _RangeError as error:
        raise UserError(f"{path} can't become 8-bit RGB: {error}") from error
    # Broken data makes Pillow's decoders raise nearly anything: SyntaxError, struct.error, …
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is none of {', '.join(_FORMATS)}"
        reason = reason or type(error).__name__
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not Pillow's
            raise UserError(f"{path} can't be read: {reason}") from error
        line = f"{path} can't be decoded as an image ({reason}): replace it"
        raise UndecodableError(line) from error


def _decode(image: Image.Image, draft_side: int | None) -> Image.Image:
    """Decode an image to RGB, and resize it if it was decoded at a part of its size."""
    drafted = _request_draft(image, draft_side)
    rgb = _to_rgb(image)
    if drafted is None:
        return rgb
    size, extent = drafted
    return rgb.resize(size, Image.Resampling.BILINEAR, box=extent)


def _request_draft(
    image: Image.Image, side: int | None
) -> tuple[tuple[int, int], tuple[float, float, float, float]] | None:
    """Ask a JPEG's decoder for a smaller image, at least twice `side` on the shorter side.

    The decoder averages squares of pixels. With two pixels left for one of the result, the resizing
    still decides which detail remains.

    Returns:
        The size to resize to, whose shorter side is `side`, and the box of the decoded pixels that
        holds the image: the last row and column may lie in part beyond it. None: the image will be
        decoded at its own size, because it is not a JPEG, not large enough, or a strip.
    """
    full, (short, long) = image.size, sorted(image.size)
    if side is None or long > _LONGEST * short:
        return None
    drafted = image.draft(None, (2 * side, 2 * side))
    if drafted is None or image.size == full:
        return None
    # As torchvision's Resize rounds.
    width, height = (side * length // short for length in full)
    return (width, height), drafted[1]


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB; what is transparent becomes white."""
    # The raw mode, known only until the image is loaded. In BMP, 16 is the sum of the channels. A
    # PPM of less than 16 bits has none such, and Pillow scales it.
    has_16_bits = image.format in ("PNG", "PPM", "TIFF") and ";16" in str(
        getattr(image, "tile", "")
    )
    image.load()
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scale_grey(image, has_16_bits)).convert("RGB")
    if has_16_bits:
        _check_16_bit_colours(image)
    alpha = "A" in image.getbands() or "a" in image.getbands()
    palette_alpha = image.palette is not None and image.palette.mode == "RGBA"
    if not (alpha or palette_alpha or "transparency" in image.info):
        return image.convert("RGB")
    background = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")


def _scale_grey(image: Image.Image, has_16_bits: bool) -> np.ndarray:
    """Scale grey values of more than 8 bits to uint8 [H, W]. Raises _RangeError.

    Args:
        image: of a mode I, I;16 or F.
        has_16_bits: the file has 16 bits for a value and states no smaller range.
    """
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:
        # Pillow turns such values of 8 bits round, but not these.
        raise _RangeError("white is the zero of its values: save it with black as zero")
    values = np.asarray(image)
    if image.mode == "F":
        return _scale_floats(values)
    # 16-bit grey of PNG and PPM has the mode I in some versions of Pillow.
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise _RangeError("its integers are signed or of 32 bits: save them as 8 or unsigned 16")
    (bits,) = tags.get(BITSPERSAMPLE, (16,))
    full = 2**bits - 1
    if has_16_bits:
        _check_brightness(int(values.max()))
    transparent = image.info.get("transparency")
    if transparent is not None:
        values = np.where(values == transparent, full, values)
    return np.round(values * (255 / full)).astype(np.uint8)


def _scale_floats(values: np.ndarray) -> np.ndarray:
    """Scale floats of the range 0…1 to uint8. Raises _RangeError for others, and for NaN."""
    levels = np.round(values * 255.0)
    # Rounding first lets pass the little that resampling adds beyond 0 and 1.
    if not (levels.min() >= 0 and levels.max() <= 255):
        raise _RangeError(
            f"its float values reach from {values.min():.6g} to {values.max():.6g}: "
            "scale them to 0…1"
        )
    return levels.astype(np.uint8)


def _check_16_bit_colours(image: Image.Image) -> None:
    """Raise _RangeError if the upper 8 bits, which are all that Pillow keeps, say too little."""
    if "transparency" in image.info:
        # Pillow would compare the 8 bits with all 16 of the transparent colour.
        raise _RangeError("it has 16 bits per channel and a transparent colour: use an alpha one")
    extrema = np.atleast_2d(image.getextrema())
    highest = [
        high for band, (_, high) in zip(image.getbands(), extrema, strict=True) if band in "RGBL"
    ]
    _check_brightness(257 * int(max(highest, default=0)))


def _check_brightness(highest: int) -> None:
    """Raise _RangeError if the 16-bit values, with this maximum, would be nearly black."""
    if 0 < highest <= _LARGEST_12_BIT:
        raise _RangeError(
            f"its 16-bit values reach {highest} of 65535, so that all would be nearly black: "
            "scale 12-bit data to 0…65535, or save 8 bits"
        )


def _turn_upright(rgb: Image.Image, source: Image.Image) -> Image.Image:
    """Turn the pixels as the EXIF data of `source` asks; broken data asks nothing."""
    if source.format == "TIFF":
        return rgb  # Pillow turned it when it loaded it
    try:
        orientation = source.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    except Exception:  # as its decoders do
        return rgb
    return rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb


def fit_square(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to `side` pixels and crop the centre square.

    The pixels are those of torchvision's Resize and CenterCrop. Images more than 8 times as long as
    wide are cropped first: a strip of 60000×1 pixels would take gigabytes when resized whole. There
    the crop may lie elsewhere by up to half a pixel of the result.
    """
    short, long = sorted(image.size)
    if long > _LONGEST * short:
        left, top = ((length - short) / 2 for length in image.size)
        box = (left, top, left + short, top + short)
        return image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    resized = v2.functional.resize(image, [side], v2.InterpolationMode.BILINEAR, antialias=True)
    return v2.functional.center_crop(resized, [side, side])
