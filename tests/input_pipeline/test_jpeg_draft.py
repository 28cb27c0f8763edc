"""JPEGs decoded at a part of their size: which part, how near, and that a run keeps to it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from input_pipeline import image_files
from input_pipeline.cropping import Region
from input_pipeline.image_files import fit_square, open_region, open_rgb
from input_pipeline.load import load_dataset
from input_pipeline.splits import FileSplit
from rundir.rebuild import Rebuilder
from rundir.trained import open_run
from tests.helpers import train_here


def draw(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth colours with some grain, as photos have."""
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (height // 30, width // 30, 3), np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), float)
    grain = generator.normal(0, 6, (height, width, 1))
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).convert(mode)


@pytest.fixture
def decoded(monkeypatch):
    """The sizes in which files were decoded."""
    sizes, convert = [], image_files._to_rgb

    def record(image):
        rgb = convert(image)
        sizes.append(rgb.size)
        return rgb

    monkeypatch.setattr(image_files, "_to_rgb", record)
    return sizes


def test_the_size_is_the_smallest_with_two_pixels_for_one(tmp_path, decoded):
    path = str(tmp_path / "0.jpg")
    generator = np.random.default_rng(1)
    for width, height, side in generator.integers((8, 8, 4), (700, 700, 90), (150, 3)).tolist():
        Image.new("RGB", (width, height)).save(path)
        result = open_rgb(path, side)
        sizes = [(-(-width // part), -(-height // part)) for part in (1, 2, 4, 8)]
        strip = max(width, height) > 8 * min(width, height)
        fitting = [
            size
            for part, size in zip((1, 2, 4, 8), sizes, strict=True)
            if part == 1 or (min(width, height) / part >= 2 * side and not strip)
        ]
        assert decoded[-1] == min(fitting)
        if decoded[-1] == (width, height):
            assert result.size == (width, height)
        else:
            torchvision = image_files.v2.functional.resize(Image.new("L", (width, height)), [side])
            assert result.size == torchvision.size
    assert len({size[0] for size in decoded}) > 50


@pytest.mark.parametrize(("size", "side"), [((496, 368), 64), ((499, 373), 40), ((720, 700), 32)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_pixels_are_those_of_the_whole_image_but_for_rounding(
    tmp_path, decoded, size, side, mode
):
    draw(*size, mode).save(tmp_path / "0.jpg", quality=95)
    path = str(tmp_path / "0.jpg")
    ours, whole = (
        np.asarray(fit_square(open_rgb(path, draft), side), float) for draft in (side, None)
    )
    assert decoded[0] < decoded[1] == size
    assert np.abs(ours - whole).max() <= 6 and np.abs(ours - whole).mean() < 1


@pytest.mark.parametrize("part", [2, 4, 8])
def test_the_decoder_averages_squares_of_pixels(tmp_path, part):
    draw(480, 320).save(tmp_path / "0.jpg", quality=95, subsampling=0)
    side = 320 // part // 2
    whole = np.asarray(open_rgb(str(tmp_path / "0.jpg")), float)
    squares = whole.reshape(320 // part, part, 480 // part, part, 3).mean((1, 3))
    average = Image.fromarray(squares.round().astype(np.uint8))
    expected = np.asarray(fit_square(average, side), float)
    ours = np.asarray(fit_square(open_rgb(str(tmp_path / "0.jpg"), side), side), float)
    assert np.abs(ours - expected).max() <= 4 and np.abs(ours - expected).mean() < 0.6


def test_exif_orientation_turns_the_smaller_image(tmp_path, decoded):
    """Sizes that no part divides: the last row and column lie in part beyond the image."""
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = str(tmp_path / f"{orientation}.jpg")
        draw(499, 373).save(path, exif=exif, quality=95)
        ours, whole = (
            np.asarray(fit_square(open_rgb(path, draft), 40), float) for draft in (40, None)
        )
        assert decoded[-2] == (125, 94) and decoded[-1] == (499, 373)
        assert np.abs(ours - whole).max() <= 6, orientation
        assert np.abs(ours - whole).mean() < 1, orientation


def test_a_crop_is_decoded_for_its_own_size(tmp_path, decoded):
    """Two pixels for one in the region, wherever the turned image has its last row and column."""
    side, path = 16, str(tmp_path / "0.jpg")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        draw(499, 373).save(path, exif=exif, quality=95)
        width, height = (373, 499) if orientation > 4 else (499, 373)
        for size, part in ((373, 8), (255, 4), (127, 2), (63, 1)):
            region = Region(height - size, width - size, size - 1, size, mirrored=size == 127)
            ours, whole = (
                np.asarray(open_region(path, side, choose(region, height, width), draft), float)
                for draft in (True, False)
            )
            assert decoded[-2:] == [(-(-499 // part), -(-373 // part)), (499, 373)]
            difference = np.abs(ours - whole)
            assert (difference.max() > 0) == (part > 1)
            assert difference.mean() < 1, (orientation, part)
            assert difference[1:-1, 1:-1].max() <= 3, (orientation, part)


def choose(region, height, width):
    def find(*size):
        assert size == (height, width)
        return region

    return find


def test_other_files_stay_as_they_are(tmp_path):
    contents = io.BytesIO()
    draw(120, 90).save(contents, "JPEG")
    (tmp_path / "small.jpg").write_bytes(contents.getvalue())
    draw(500, 400).save(tmp_path / "0.png")
    draw(60, 900).save(tmp_path / "strip.jpg")
    for name, side in (("small.jpg", 30), ("0.png", 10), ("strip.jpg", 4)):
        path = str(tmp_path / name)
        assert open_rgb(path, side) == open_rgb(path)


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    for number in range(24):
        folder = root / ("test" if number < 8 else "train") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        draw(150, 120 + number).save(folder / f"{number}.jpg", quality=80)
    return root


def test_a_set_has_other_pixels_and_the_same_identity(photos):
    options = {"img_size": 16, "splits": ["train"]}
    whole = load_dataset("folder", photos, **options)
    memory, streamed = (
        load_dataset("folder", photos, **options, jpeg_draft=True, in_memory_bytes=room)
        for room in (None, 0)
    )
    images = memory.train.images
    assert torch.equal(images, streamed.train.fetch(range(16)))
    assert torch.equal(images[[3, 1]], streamed.train.select(torch.tensor([3, 1])).fetch([0, 1]))
    assert not torch.equal(images, whole.train.images)
    assert memory.mean == streamed.mean != whole.mean
    assert memory.fingerprints == whole.fingerprints
    path = str(photos / "train" / "a" / "8.jpg")
    kept = FileSplit([path], torch.tensor([0]), (128, 150), path, jpeg_draft=True)
    expected = torch.from_numpy(np.array(open_rgb(path)).transpose(2, 0, 1))
    assert torch.equal(kept.fetch([0])[0], expected)  # nothing resizes it


def test_a_run_is_evaluated_on_the_pixels_that_it_was_trained_on(photos, tmp_path):
    flags = ["--model", "MLP", "--width", 8, "--depth", 1, "--dataset", "folder", "--epochs", 1]
    flags += ["--data_dir", photos, "--img_size", 16, "--num_workers", 0, "--batch_size", 8]
    runs = [
        open_run(train_here(tmp_path, *flags, *more, name=name))
        for name, more in (("draft", ["--jpeg_draft"]), ("whole", []))
    ]
    rebuilder = Rebuilder(torch.device("cpu"), ["train", "test"], keep_all=True)
    for run in runs:
        assert rebuilder.identify(run)["fingerprints"] == run.facts["fingerprints"]
        expected = load_dataset("folder", photos, img_size=16, jpeg_draft=run.name == "draft")
        assert torch.equal(rebuilder.data(run).test.images, expected.test.images)
        assert run.facts["mean"] == list(expected.mean)
    assert runs[0].facts["mean"] != runs[1].facts["mean"]
