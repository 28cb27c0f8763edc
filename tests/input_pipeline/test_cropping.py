"""Random resized crops of image files: torchvision's draws and pixels, and who gets which."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from input_pipeline import find_resized_side
from input_pipeline.cropping import RATIO, SCALE, Region, ResizedCrop
from input_pipeline.image_files import crop_and_resize, fit_square, open_region, open_rgb
from input_pipeline.load import load_dataset
from input_pipeline.splits import FileSplit, TensorSplit
from rundir.rebuild import Rebuilder
from rundir.trained import open_run
from tests.helpers import train_here
from tests.input_pipeline.helpers import picture
from utils.files import read_csv
from utils.seeds import mix_seed

SIDE = 16
SIZES = [(40, 30), (31, 47), (16, 16), (9, 90), (90, 9), (5, 200), (300, 4), (1, 1), (2, 1), (7, 8)]


def crop_by_torchvision(image, key):
    """RandomResizedCrop with its own defaults, then a flip, from the seed of a sample."""
    transform = v2.Compose([v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip()])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key)
        return transform(image)


@pytest.mark.parametrize("size", SIZES)
def test_draws_and_pixels_are_those_of_torchvision(size):
    image, crop = picture(1, *size), ResizedCrop(seed=3)
    for sample in range(30):
        region = crop.draw(2, sample, image.height, image.width)
        key = mix_seed(3, 2, sample, 1)
        theirs = crop_by_torchvision(v2.functional.pil_to_tensor(image), key)
        ours = crop_and_resize(image, region, SIDE).transpose(2, 0, 1)
        assert np.array_equal(ours, theirs)
        assert np.array_equal(
            crop_and_resize(np.array(image), region, SIDE).transpose(2, 0, 1), ours
        )
        of_pillow = v2.functional.pil_to_tensor(crop_by_torchvision(image, key))
        assert np.abs(ours.astype(int) - of_pillow.numpy()).max() <= 1


def test_extreme_shapes_get_the_central_region():
    def find_regions(height, width):
        return {ResizedCrop(0).draw(0, sample, height, width)[:4] for sample in range(20)}

    assert find_regions(1000, 10) == {(493, 0, 13, 10)}
    assert find_regions(10, 1000) == {(0, 493, 10, 13)}
    assert find_regions(1, 1) == {(0, 0, 1, 1)}


def test_regions_keep_to_the_ranges_and_follow_from_seed_epoch_and_sample():
    regions = [ResizedCrop(0).draw(1, sample, 400, 400) for sample in range(2000)]
    shares = np.array([r.height * r.width / 400**2 for r in regions])
    ratios = np.array([r.width / r.height for r in regions])
    assert shares.min() > 0.99 * SCALE[0] and shares.max() <= SCALE[1]
    assert ratios.min() > 0.97 * RATIO[0] and ratios.max() < 1.03 * RATIO[1]
    # Uniform in the logarithm, and nearly so in the share: large regions do not always fit.
    assert abs(np.log(ratios).mean()) < 0.02 and 0.45 < shares.mean() < 0.54
    assert abs(np.mean([r.mirrored for r in regions]) - 0.5) < 4 * math.sqrt(0.25 / 2000)
    again = ResizedCrop(0).draw(1, 7, 400, 400)
    assert again == regions[7] and isinstance(again, Region)
    others = [ResizedCrop(1).draw(1, 7, 400, 400), ResizedCrop(0).draw(2, 7, 400, 400)]
    assert len({again, regions[8], *others}) == 4


def test_files_are_cropped_upright(tmp_path):
    path = str(tmp_path / "0.png")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture(orientation, 40, 30).save(path, exif=exif)
        region = Region(3, 5, 20, 11, mirrored=orientation % 2 == 0)
        whole = v2.functional.pil_to_tensor(open_rgb(path))
        expected = v2.functional.resized_crop(whole, *region[:4], [SIDE, SIDE])
        if region.mirrored:
            expected = v2.functional.horizontal_flip(expected)
        ours = open_region(path, SIDE, lambda *size, region=region: region, jpeg_draft=True)
        assert np.array_equal(ours.transpose(2, 0, 1), expected)


SIZED = {"img_size": 28, "margin": True}  # 28 · 256/224 = 32


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    for number in range(12):
        folder = root / ("test" if number < 4 else "train") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture(number, 40 + number, 33).save(folder / f"{number:02}.png")
    picture(0, 28, 28).save(folder / "13.png")  # has the result's size, and is resized as all are
    return root


def test_other_images_are_resized_with_a_margin_as_in_torchvisions_references(photos):
    held, streamed = (
        load_dataset("folder", photos, **SIZED, in_memory_bytes=room) for room in (None, 0)
    )
    steps = [v2.Resize(32), v2.CenterCrop(28)]
    for split in ("train", "test"):
        paths, images = getattr(streamed, split).paths, getattr(held, split).images
        for path, image in zip(paths, images, strict=True):
            assert torch.equal(
                image, v2.functional.pil_to_tensor(v2.Compose(steps)(Image.open(path)))
            )
        assert torch.equal(getattr(streamed, split).fetch(range(len(images))), images)
    plain = load_dataset("folder", photos, img_size=28)
    assert held.mean == streamed.mean != plain.mean
    assert held.fingerprints == plain.fingerprints
    strip = picture(5, 400, 30)  # cropped before it is resized
    expected = np.asarray(v2.Compose(steps)(strip), float)
    assert np.abs(np.asarray(fit_square(strip, 28, 32), float) - expected).mean() < 30
    for side, resized in ((224, 256), (288, 329), (32, 37), (4, 5)):
        assert find_resized_side(side) == resized


def test_a_split_that_is_cropped_stays_files(photos):
    data = load_dataset("folder", photos, **SIZED, streamed=["train"])
    assert isinstance(data.train, FileSplit) and isinstance(data.test, TensorSplit)
    room = data.test.images.nbytes  # the training images need none
    data = load_dataset("folder", photos, **SIZED, streamed=["train"], in_memory_bytes=room)
    assert isinstance(data.train, FileSplit) and isinstance(data.test, TensorSplit)


def test_a_run_is_measured_without_crops_and_with_the_margin(photos, tmp_path):
    flags = ["--model", "MLP", "--width", 8, "--depth", 1, "--dataset", "folder", "--epochs", 1]
    flags += ["--data_dir", photos, "--img_size", 28, "--num_workers", 0, "--batch_size", 4]
    directories = {
        augment: train_here(tmp_path, *flags, "--augment", augment, "--nc_every", 1, name=augment)
        for augment in ("RRC", "none")
    }
    rebuilder = Rebuilder(torch.device("cpu"), ["train", "test"], keep_all=True)
    for augment, directory in directories.items():
        run = open_run(directory)
        expected = load_dataset("folder", photos, img_size=28, margin=augment == "RRC")
        data = rebuilder.data(run)
        assert run.facts["mean"] == list(expected.mean)
        for split in ("train", "test"):
            assert torch.equal(getattr(data, split).images, getattr(expected, split).images)
        extracted = rebuilder.extract(run, directory / "epoch_001.pth", "train")
        rows = [row for row in read_csv(directory / "nc_metrics.csv") if row["split"] == "train"]
        assert float(rows[0]["top1"]) == pytest.approx(100 * extracted.top1)
        assert float(rows[0]["nll"]) == pytest.approx(extracted.nll.mean().item(), rel=1e-6)
