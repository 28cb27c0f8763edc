"""Image files of any kind become 8-bit RGB, or are refused in one line."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from input_pipeline.image_files import fit_square, open_rgb
from input_pipeline.load import load_dataset
from tests.helpers import ROOT
from tests.input_pipeline.helpers import picture, pixels_of
from utils.errors import UserError

RAMP = np.array([[0, 1, 257], [6000, 30000, 65535]])
LEVELS = [[0, 0, 1], [23, 117, 255]]
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # TIFF's sample formats


def write_tiff(path, data: bytes, shape, bits: int, kind: int, photometric: int = 1) -> None:
    """A grey TIFF of one strip, of any type of sample."""
    height, width = shape
    data += bytes(len(data) % 2)
    shorts = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height}
    entries = {tag: (3, value) for tag, value in (shorts | {339: kind}).items()}
    entries |= {273: (4, 8), 279: (4, len(data))}
    table = b"".join(struct.pack("<HHII", t, k, 1, v) for t, (k, v) in sorted(entries.items()))
    count = struct.pack("<H", len(entries))
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + count + table + bytes(4))


def write_png(path, rows: np.ndarray, colour: int, transparent: tuple[int, ...] = ()) -> None:
    """A PNG of 16 bits a channel: [H, W, C]; colour is PNG's colour type."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width = rows.shape[:2]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    if transparent:
        header += chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    data = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    end = chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + end)


def read(path) -> np.ndarray:
    return np.asarray(open_rgb(str(path)))


def refuse(path) -> str:
    with pytest.raises(UserError) as caught:
        open_rgb(str(path))
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK"])
def test_modes_of_8_bits_are_pillows(tmp_path, mode):
    path = tmp_path / "0.tif"
    picture(5).convert(mode).save(path)
    np.testing.assert_array_equal(read(path), picture(5).convert(mode).convert("RGB"))


def test_grey_of_16_bits_keeps_its_range(tmp_path):
    path = tmp_path / "0.tif"
    write_tiff(path, RAMP.astype("<u2").tobytes(), RAMP.shape, 16, UNSIGNED)
    np.testing.assert_array_equal(read(path), np.stack([LEVELS] * 3, -1))
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / "0.png")
    (tmp_path / "0.pgm").write_bytes(b"P5 3 2 65535\n" + RAMP.astype(">u2").tobytes())
    for name in ("0.png", "0.pgm"):
        np.testing.assert_array_equal(read(tmp_path / name), read(path))


def test_grey_whose_file_states_12_bits_keeps_its_range(tmp_path):
    # 0, 1, 2048 and 4095 in three bytes a pair.
    write_tiff(tmp_path / "0.tif", bytes.fromhex("000001800fff"), (2, 2), 12, UNSIGNED)
    assert read(tmp_path / "0.tif")[..., 0].tolist() == [[0, 0], [128, 255]]
    (tmp_path / "0.pgm").write_bytes(b"P5 2 1 4095\n" + np.array([2048, 4095], ">u2").tobytes())
    assert read(tmp_path / "0.pgm")[..., 0].tolist() == [[128, 255]]
    (tmp_path / "1.pgm").write_bytes(b"P5 2 1 4095\n" + np.array([16, 48], ">u2").tobytes())
    assert read(tmp_path / "1.pgm")[..., 0].tolist() == [[1, 3]]  # dark, but of a known range
    (tmp_path / "2.pgm").write_bytes(b"P5 2 1 65535\n" + np.array([16, 4095], ">u2").tobytes())
    assert "4095 of 65535" in refuse(tmp_path / "2.pgm")


def test_floats_from_0_to_1_are_scaled(tmp_path):
    values = np.array([[-1e-4, 0, 0.2], [0.5, 1, 1.0001]], "<f4")
    write_tiff(tmp_path / "0.tif", values.tobytes(), values.shape, 32, FLOAT)
    assert read(tmp_path / "0.tif")[..., 1].tolist() == [[0, 0, 51], [128, 255, 255]]


@pytest.mark.parametrize(
    ("values", "bits", "kind", "word"),
    [
        (np.array([0, 128, 255], "<f4"), 32, FLOAT, "0…1"),
        (np.array([-1, 0, 1], "<f4"), 32, FLOAT, "from -1 to 1"),
        (np.array([0, np.nan, 1], "<f4"), 32, FLOAT, "nan"),
        (np.array([0, 128, 255], "<i4"), 32, SIGNED, "32 bits"),
        (np.array([0, 128, 255], "<u4"), 32, UNSIGNED, "32 bits"),
        (np.array([0, 128, 32767], "<i2"), 16, SIGNED, "signed"),
        (np.array([0, 128, 4095], "<u2"), 16, UNSIGNED, "4095 of 65535"),
    ],
)
def test_values_of_no_known_range_are_refused(tmp_path, values, bits, kind, word):
    write_tiff(tmp_path / "0.tif", values.tobytes(), (1, 3), bits, kind)
    assert word in refuse(tmp_path / "0.tif")


def test_a_black_image_of_16_bits_is_read_and_one_with_white_at_zero_is_refused(tmp_path):
    black = bytes(6)
    write_tiff(tmp_path / "0.tif", black, (1, 3), 16, UNSIGNED)
    assert not read(tmp_path / "0.tif").any()
    write_tiff(tmp_path / "1.tif", black, (1, 3), 16, UNSIGNED, photometric=0)
    assert "white" in refuse(tmp_path / "1.tif")


def test_colours_of_16_bits_keep_their_upper_8_or_are_refused(tmp_path):
    colours = np.array([[[0, 256, 65535], [4096, 1, 2]]])
    write_png(tmp_path / "0.png", colours, 2)
    assert read(tmp_path / "0.png").tolist() == [[[0, 1, 255], [16, 0, 0]]]
    write_png(tmp_path / "1.png", colours // 16, 2)
    assert "of 65535" in refuse(tmp_path / "1.png")
    write_png(tmp_path / "2.png", colours, 2, transparent=(0, 256, 65535))
    assert "transparent" in refuse(tmp_path / "2.png")
    # What lies under a transparent pixel is not white light.
    grey_and_alpha = np.array([[[4095, 65535], [3000, 0]]])
    write_png(tmp_path / "3.png", grey_and_alpha, 4)
    assert "of 65535" in refuse(tmp_path / "3.png")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(tmp_path, mode):
    image = picture(1).convert(mode)
    alpha = np.arange(120, dtype=np.uint8).reshape(10, 12) * 2
    alpha[0], alpha[1] = 0, 255
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "0.png")
    colours = np.asarray(picture(1).convert(mode).convert("RGB"), float)
    share = alpha[..., None] / 255
    np.testing.assert_allclose(
        read(tmp_path / "0.png"), share * colours + (1 - share) * 255, atol=1
    )
    assert (read(tmp_path / "0.png")[0] == 255).all()
    np.testing.assert_array_equal(read(tmp_path / "0.png")[1], colours[1])


@pytest.mark.parametrize("ending", ["png", "gif"])
@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_is_white(tmp_path, mode, ending):
    if (mode, ending) == ("RGB", "gif"):
        pytest.skip("GIF has palettes only")
    image = Image.fromarray(np.array([[10, 20, 30]], np.uint8)).convert(mode)
    hidden = (20, 20, 20) if mode == "RGB" else 20
    image.save(tmp_path / f"0.{ending}", transparency=hidden)
    assert read(tmp_path / f"0.{ending}")[0, :, 0].tolist() == [10, 255, 30]


def test_a_palette_with_alpha_is_laid_over_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    image.putpalette([0, 0, 0, 100, 100, 100, 200, 200, 200])
    image.save(tmp_path / "0.png", transparency=bytes([255, 0, 102]))
    assert read(tmp_path / "0.png")[0, :, 0].tolist() == [0, 255, 233]


def test_transparent_grey_of_16_bits_is_white(tmp_path):
    write_png(tmp_path / "0.png", RAMP[..., None], 0, transparent=(1,))
    assert read(tmp_path / "0.png")[..., 0].tolist() == [[0, 255, 1], LEVELS[1]]


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_turns_the_image(tmp_path, ending):
    upright = picture(2).resize((120, 100))  # JPEG's blocks stay alike when turned
    array = np.asarray(upright)
    turned_back = {  # the stored pixels that each orientation turns into `upright`
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.transpose(1, 0, 2),
        6: np.rot90(array, 1),
        7: array[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(array, -1),
    }
    for orientation, pixels in turned_back.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.{ending}"
        Image.fromarray(np.ascontiguousarray(pixels)).save(
            path, exif=exif, lossless=True, quality=95, subsampling=0
        )
        difference = np.abs(read(path).astype(int) - array)
        assert difference.max() <= (0 if ending != "jpg" else 12), orientation


@pytest.mark.parametrize("mode", ["L", "I;16", "CMYK", "RGB", "1", "P"])
@pytest.mark.parametrize("orientation", [1, 5, 6, 8])
def test_a_plain_tiff_is_turned_in_any_mode(tmp_path, mode, orientation):
    """Without compression Pillow would map the file into memory, in the shape of the turned one."""
    pixels = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (8, 1))
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16) * 257)
    elif mode != "L":
        image = image.convert(mode)
    image.save(tmp_path / "0.tif", tiffinfo={0x0112: orientation})
    image.save(tmp_path / "plain.tif")
    stored = read(tmp_path / "plain.tif")
    turns = {1: stored, 5: stored.transpose(1, 0, 2), 6: np.rot90(stored, -1), 8: np.rot90(stored)}
    assert np.array_equal(read(tmp_path / "0.tif"), turns[orientation])


def test_broken_exif_data_turns_nothing(tmp_path):
    picture(1).save(tmp_path / "0.png", exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    assert np.array_equal(read(tmp_path / "0.png"), picture(1))


def test_an_animation_is_its_first_frame(tmp_path):
    frames = [picture(seed).convert("L") for seed in (1, 2)]
    for ending in ("gif", "png", "tif"):
        path = tmp_path / f"0.{ending}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert np.array_equal(read(path)[..., 0], frames[0])


def test_other_formats_are_refused_whatever_their_name(tmp_path):
    (tmp_path / "0.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert "none of JPEG, PNG" in refuse(tmp_path / "0.png")
    picture(1).save(tmp_path / "1.png", "TGA")
    assert "none of JPEG, PNG" in refuse(tmp_path / "1.png")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "0.png")
    (tmp_path / "1.png").symlink_to("/dev/zero")
    (tmp_path / "2.png").mkdir()
    for number in range(3):
        assert "not a regular file" in refuse(tmp_path / f"{number}.png")


def test_an_image_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    picture(1).save(tmp_path / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    assert np.array_equal(read(tmp_path / "0.png"), picture(1))  # 120: Pillow only warns
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 59)
    assert "exceeds limit" in refuse(tmp_path / "0.png")


def test_img_size_fits_the_shorter_side_and_crops_the_centre(folder):
    exact = picture(1, 8, 8)
    exact.save(folder / "test" / "cat" / "0.png")
    tall = picture(2, 9, 20)
    tall.save(folder / "test" / "cat" / "1.png")
    data = load_dataset("folder", folder, img_size=8)
    assert data.image_shape == (3, 8, 8)
    assert torch.equal(data.test.images[0], pixels_of(folder / "test" / "cat" / "0.png"))
    crop = v2.Compose([v2.Resize(8), v2.CenterCrop(8), v2.PILToTensor()])
    assert torch.equal(data.test.images[1], crop(tall))


def crop_whole(image: Image.Image, side: int) -> np.ndarray:
    """torchvision's way: resize the whole image, crop the centre."""
    return np.asarray(v2.Compose([v2.Resize(side), v2.CenterCrop(side)])(image))


@pytest.mark.parametrize("side", [5, 31])
def test_images_up_to_8_times_as_long_as_wide_are_torchvisions(side):
    for width, height in ((48, 6), (6, 48), (33, 20)):
        image = picture(3, width, height)
        assert np.array_equal(fit_square(image, side), crop_whole(image, side))


@pytest.mark.parametrize("side", [5, 31])
@pytest.mark.parametrize("length", [161, 162, 255])
def test_longer_images_differ_by_less_than_a_pixel_of_the_result(length, side):
    ramp = np.tile(np.arange(length, dtype=np.uint8), (20, 1))
    for array in (ramp, ramp.T):
        image = Image.fromarray(np.ascontiguousarray(array))
        difference = crop_whole(image, side).astype(int) - np.asarray(fit_square(image, side))
        assert np.abs(difference).max() <= 20 / side / 2 + 1  # half a pixel and rounding


STRIP = """
import resource, sys
from PIL import Image
from input_pipeline.image_files import fit_square, open_rgb
Image.new("1", (60000, 1)).save(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert fit_square(open_rgb(sys.argv[1]), 224).size == (224, 224)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_a_strip_takes_little_memory(tmp_path):
    command = [sys.executable, "-c", STRIP, str(tmp_path / "0.png")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 20_000  # KiB
