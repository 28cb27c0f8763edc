"""Image files decoded to 8-bit RGB. docs/data.md lists what becomes of each kind of pixel."""

from __future__ import annotations

import math
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile
from torchvision.transforms import v2

from input_pipeline.cropping import Region
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
# The orientations whose turn exchanges the sides, brings the right edge to the left, and brings the
# lower edge to the top.
_EXCHANGED, _FROM_RIGHT, _FROM_BELOW = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
# A brighter 16-bit value needs more than the 12 bits that many cameras and scanners have.
_LARGEST_12_BIT = 4095
_LONGEST = 8  # times as long as wide: longer images are cropped before they are resized


Choose = Callable[[int, int], Region]


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
    with _open(path) as image:
        return _turn_upright(_decode(image, draft_side), image)


def open_region(path: str, side: int, choose: Choose, jpeg_draft: bool = False) -> np.ndarray:
    """Decode a file as `open_rgb` does, and resize a part of it to uint8 [side, side, 3].

    Args:
        path: the file.
        side: of the result in pixels.
        choose: maps height and width of the whole image to the part; for equal ones it returns an
            equal part.
        jpeg_draft: whether a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size if both sides of
            the part then have at least twice `side` pixels.

    Raises UserError as `open_rgb` does.
    """
    with _open(path) as image:
        drafted = _draft_region(image, side, choose) if jpeg_draft else None
        upright = _turn_upright(_to_rgb(image), image)
    if drafted is None:
        return crop_and_resize(upright, choose(upright.height, upright.width), side)
    return np.asarray(_resize_drafted(upright, drafted, side))


def crop_and_resize(image: Image.Image | np.ndarray, region: Region, side: int) -> np.ndarray:
    """Cut out a part, resize it to uint8 [side, side, 3], and mirror it if the region asks for it.

    The pixels are those of torchvision's resized_crop and horizontal_flip of a uint8 tensor. Those
    of a Pillow image differ by one level at most, and take three times as long to resize.

    Args:
        image: whole, or its pixels, uint8 [H, W, 3].
        region: the part.
        side: of the result in pixels.
    """
    top, left, height, width, mirrored = region
    if isinstance(image, Image.Image):
        pixels = np.array(image.crop((left, top, left + width, top + height)))
    else:
        pixels = image[top : top + height, left : left + width]
    resized = v2.functional.resize(
        torch.from_numpy(pixels).permute(2, 0, 1), [side, side], antialias=True
    )
    found: np.ndarray = resized.permute(1, 2, 0).numpy()
    return found[:, ::-1] if mirrored else found


@dataclass(frozen=True)
class _Draft:
    """A JPEG that will be decoded at 1/`part` of its size.

    Attributes:
        region: the part of the whole image that will be cut out.
        part: 2, 4 or 8.
        full: width and height of the whole image, turned upright, in pixels.
        orientation: of its EXIF data.
    """

    region: Region
    part: int
    full: tuple[int, int]
    orientation: int | None

    def locate(self, decoded: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of the region in the decoded pixels, turned upright.

        Their last row and column may lie in part beyond the image, and are the first once turned.
        """
        left, top = (
            size - length / self.part if self.orientation in edges else 0.0
            for size, length, edges in zip(
                decoded, self.full, (_FROM_RIGHT, _FROM_BELOW), strict=True
            )
        )
        left, top = left + self.region.left / self.part, top + self.region.top / self.part
        right, bottom = left + self.region.width / self.part, top + self.region.height / self.part
        return left, top, min(right, decoded[0]), min(bottom, decoded[1])


def _draft_region(image: Image.Image, side: int, choose: Choose) -> _Draft | None:
    """Ask a JPEG's decoder for 1/8, 1/4 or 1/2 of its size, twice `side` in the region at least.

    Returns None if the image will be decoded at its own size.
    """
    orientation = _read_orientation(image)
    full = image.size[::-1] if orientation in _EXCHANGED else image.size
    region = choose(full[1], full[0])
    largest = min(region.height, region.width) // (2 * side)
    part = next((part for part in (8, 4, 2) if part <= largest), 1)
    # Pillow takes the smallest image that has at least so many pixels. That is 1/part: the quotient
    # of a length and of a part of it rounded down is below twice the part.
    if part == 1 or image.draft(None, (image.width // part, image.height // part)) is None:
        return None
    return _Draft(region, part, full, orientation)


def _resize_drafted(image: Image.Image, draft: _Draft, side: int) -> Image.Image:
    """Do as `crop_and_resize` with an image that was decoded at a part of its size."""
    left, top, right, bottom = draft.locate(image.size)
    # Without this cut the resizing would also read pixels outside of the region.
    x, y = math.floor(left), math.floor(top)
    cut = image.crop((x, y, math.ceil(right), math.ceil(bottom)))
    box = (left - x, top - y, right - x, bottom - y)
    resized = cut.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return _mirror(resized, draft.region)


def _mirror(image: Image.Image, region: Region) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if region.mirrored else image


@contextmanager
def _open(path: str) -> Iterator[Image.Image]:
    """Open a file, and name it in a UserError if it can't be decoded within the block."""
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
                yield image
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
        line = f"{path} can't be decoded as an image ({reason}): replace it, or train without such "
        line += "files (train.py --skip_corrupt)"
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
    orientation = _read_orientation(source)
    return rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb


def _read_orientation(image: Image.Image) -> int | None:
    """Read how the pixels are to be turned, one of `_TURNS`; None or another number: not at all."""
    if image.format == "TIFF":
        return None  # Pillow turns it when it loads it
    try:
        orientation: int | None = image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    except Exception:  # as its decoders do
        return None
    return orientation


def fit_square(image: Image.Image, side: int, resized_side: int | None = None) -> Image.Image:
    """Resize the shorter side to `resized_side` pixels and crop side×side pixels in the centre.

    The pixels are those of torchvision's Resize and CenterCrop. Images more than 8 times as long as
    wide are cropped first: a strip of 60000×1 pixels would take gigabytes when resized whole. There
    the crop may lie elsewhere by up to half a pixel of the result.

    Args:
        image: of any size.
        side: of the result in pixels.
        resized_side: pixels, at least `side`. None: `side`.
    """
    resized_side = resized_side or side
    short, long = sorted(image.size)
    if long > _LONGEST * short:
        extent = short * side / resized_side
        left, top = ((length - extent) / 2 for length in image.size)
        box = (left, top, left + extent, top + extent)
        return image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return v2.functional.center_crop(_resize_shorter(image, resized_side), [side, side])


def _resize_shorter(image: Image.Image, side: int) -> Image.Image:
    return v2.functional.resize(image, [side], v2.InterpolationMode.BILINEAR, antialias=True)


def shrink(image: Image.Image, side: int) -> np.ndarray | None:
    """Resize the shorter side to `side` pixels; return uint8 [H, W, 3].

    `crop_centre` of the result is what `fit_square` gives. Returns None for an image more than 8
    times as long as wide, which is not resized whole.
    """
    short, long = sorted(image.size)
    return np.array(_resize_shorter(image, side)) if long <= _LONGEST * short else None


def crop_centre(pixels: np.ndarray, side: int) -> np.ndarray:
    """Cut side×side pixels from the centre of uint8 [H, W, 3], where torchvision cuts them."""
    height, width = pixels.shape[:2]
    top, left = round((height - side) / 2), round((width - side) / 2)
    return pixels[top : top + side, left : left + side]
