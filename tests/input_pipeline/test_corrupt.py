"""A tree of JPEGs of all kinds, some of which are broken: what is decoded, named and left out."""

import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from input_pipeline import corrupt, states
from input_pipeline.decoding import decode_some
from input_pipeline.load import find_image_side, identify_dataset, load_dataset
from tests.helpers import train_here
from tests.input_pipeline.helpers import break_file, picture, refusal
from utils.errors import UserError
from utils.files import read_json

PER_CLASS = {"train": 240, "test": 60}
CLASSES = ("ant", "bee", "cat")
SIDE = 12
BROKEN = ("text", "empty", "truncated")
BASE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))


def write_kind(path, number: int) -> None:
    """A JPEG of the kind of this number: progressive, grey, CMYK, turned by EXIF, plain."""
    width, height, left = 14 + number % 17, 14 + number % 23, number % 29
    image = BASE.crop((left, left, left + width, left + height))
    kind, options = number % 5, {"quality": 90}
    if kind == 1:
        image = image.convert("L")
    elif kind == 2:
        image = image.convert("CMYK")
    elif kind == 3:
        exif = Image.Exif()
        exif[0x0112] = 1 + number // 5 % 8
        options["exif"] = exif
    image.save(path, "JPEG", progressive=kind == 0 or number % 7 == 0, **options)


def is_broken(split: str, number: int) -> bool:
    return number % 40 == (3 if split == "train" else 11)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """900 JPEGs, every fortieth of which is broken."""
    root = tmp_path_factory.mktemp("jpegs")
    for split, count in PER_CLASS.items():
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                path = root / split / name / f"{number:03}.jpg"
                if is_broken(split, number):
                    break_file(path, BROKEN[number // 40 % 3])
                else:
                    write_kind(path, number)
    return root


def list_names(split: str, broken: bool, classes=CLASSES) -> list[str]:
    numbers = [i for i in range(PER_CLASS[split]) if is_broken(split, i) == broken]
    return [f"{name}/{number:03}.jpg" for name in classes for number in numbers]


def decode(path) -> torch.Tensor:
    """Pillow's own decoding and turning, torchvision's resizing and cropping."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    image = v2.functional.resize(image, [SIDE], antialias=True)
    return v2.functional.pil_to_tensor(v2.functional.center_crop(image, [SIDE, SIDE]))


def test_the_default_names_the_first_and_skipping_leaves_out_all(tree):
    options = {"img_size": SIDE, "num_workers": 0}
    first = tree / "train" / list_names("train", broken=True)[0]
    assert f"{first} can't be decoded" in refusal("folder", tree, **options)
    data = load_dataset("folder", tree, **options, skip_corrupt=True)
    for split, part in (("train", data.train), ("test", data.test)):
        names = list_names(split, broken=False)
        assert torch.equal(part.images, torch.stack([decode(tree / split / n) for n in names]))
        labels = [CLASSES.index(name.split("/")[0]) for name in names]
        assert part.labels.tolist() == labels
        assert data.skipped[split] == list_names(split, broken=True)
    assert data.class_sizes == [234] * 3
    note = "train/: skipped 18 of 720 files, which can't be decoded: ant/003.jpg, ant/043.jpg"
    assert any(line.startswith(note) and "and 13 more" in line for line in data.notes)
    # Workers and the place of the images change nothing; what was left out once stays out.
    streamed = load_dataset(
        "folder", tree, img_size=SIDE, num_workers=1, skip_corrupt=True, in_memory_bytes=0
    )
    assert streamed.facts() == data.facts()
    assert torch.equal(streamed.test.fetch(range(9)), data.test.images[:9])
    found = identify_dataset("folder", tree, skip_corrupt=True, skipped=data.skipped)
    assert found["fingerprints"] == data.facts()["fingerprints"]
    assert found["skipped"] == data.facts()["skipped"]


def test_a_selection_is_of_the_good_files(tree):
    options = {"img_size": SIDE, "skip_corrupt": True, "in_memory_bytes": 0}
    data = load_dataset("folder", tree, **options, sample_size=5, test_sample_size=12)
    for part, split, count in ((data.train, "train", 5), (data.test, "test", 12)):
        good = [list_names(split, False, [name])[:count] for name in CLASSES]
        expected = [str(tree / split / name) for names in good for name in names]
        assert list(part.paths) == expected
    tail = load_dataset("folder", tree, **options, imbalance_factor=9)
    assert tail.class_sizes == [234, 78, 26]
    message = refusal("folder", tree, **options, sample_size=235)
    assert "more than the 234 train images" in message


@pytest.fixture
def small(folder):
    """The folder of 3 and 2 images a class, with a broken one first in each split's cat."""
    for split in ("train", "test"):
        break_file(folder / split / "cat" / "0.png", "truncated")
    return folder


def test_a_class_without_a_good_image_is_refused(small):
    break_file(small / "test" / "cat" / "1.png", "text")
    message = refusal("folder", small, skip_corrupt=True)
    assert f"none of the 2 images of class 'cat' in {small / 'test'} can be decoded" in message


def test_what_is_not_corrupt_is_an_error_all_the_same(small, monkeypatch):
    assert find_image_side("folder", small, None) == 10  # of the first good image
    odd = small / "train" / "dog" / "1.png"
    Image.fromarray(np.full((10, 12), 4000, np.uint16)).save(odd)  # 12 bits in 16
    assert f"{odd} can't become 8-bit RGB" in refusal("folder", small, skip_corrupt=True)
    plain = os.stat

    def fail(path, *args, **options):
        if str(path) == str(odd):
            raise OSError(5, "Input/output error", str(path))
        return plain(path, *args, **options)

    monkeypatch.setattr("input_pipeline.image_files.os.stat", fail)
    with pytest.raises(UserError, match="can't be read: Input/output error"):
        corrupt.is_corrupt(str(odd))


@pytest.fixture
def checked(monkeypatch) -> list[str]:
    """The files that are checked, with a cache that is used for small sets and recent files."""
    files = []
    plain = corrupt.is_corrupt

    def record(path):
        files.append(path)
        return plain(path)

    monkeypatch.setattr(corrupt, "is_corrupt", record)
    monkeypatch.setattr(states, "_COSTLY", 0)
    monkeypatch.setattr(states, "_SETTLED", -(10**12))
    return files


@pytest.mark.parametrize("kept", [False, True], ids=["listed anew", "kept listing"])
def test_each_file_is_checked_once(small, checked, monkeypatch, kept):
    if kept:
        monkeypatch.setattr("input_pipeline.listing_cache.LOOKED_AT", 0)
    first = load_dataset("folder", small, skip_corrupt=True)
    assert len(checked) == 10 and first.skipped == {"train": ["cat/0.png"], "test": ["cat/0.png"]}
    again = load_dataset("folder", small, skip_corrupt=True, num_workers=1)
    assert again.facts() == first.facts()
    assert len(checked) == 10
    # A corrupt file that is mended in place is seen. A run goes on without it.
    mended = small / "train" / "cat" / "0.png"
    with open(mended, "r+b") as file:
        picture(8).save(file, "PNG")
    found = load_dataset("folder", small, skip_corrupt=True)
    assert checked[10:] == [str(mended)] and found.skipped["train"] == []
    again = load_dataset("folder", small, skip_corrupt=True, skipped=first.skipped)
    assert again.facts() == first.facts() and len(checked) == 11


def test_a_stop_keeps_what_was_checked(small, checked, monkeypatch):
    monkeypatch.setattr("input_pipeline.decoding._DECODE_CHUNK", 1)
    plain, left = corrupt.decode_some, [4]

    def stop_after(*args):
        for flags in decode_some(*args):
            yield flags
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

    monkeypatch.setattr(corrupt, "decode_some", stop_after)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("folder", small, skip_corrupt=True)
    monkeypatch.setattr(corrupt, "decode_some", plain)
    load_dataset("folder", small, skip_corrupt=True)
    assert len(checked) == 10


def test_a_run_names_what_it_skips_and_goes_on_without_it(small, tmp_path, capsys):
    for number in range(3, 9):
        break_file(small / "train" / "dog" / f"{number}.png", "text")
    flags = ["--dataset", "folder", "--data_dir", small, "--num_workers", 0, "--model", "MLP"]
    flags += ["--width", 4, "--depth", 1, "--batch_size", 2, "--skip_corrupt"]
    directory = train_here(tmp_path, *flags, "--epochs", 1)
    shown, log = capsys.readouterr().out, (directory / "train_log.txt").read_text()
    names = ["cat/0.png", *(f"dog/{number}.png" for number in range(3, 9))]
    for text in (shown, log):
        assert "skipped 7 of 12 files" in text and "dog/6.png" in text
    assert all(f"skipped of the train set: {name}\n" in log for name in names)
    assert "dog/8.png" not in shown
    config = read_json(directory / "config.json")
    assert config["data"]["skipped"] == {"train": names, "test": ["cat/0.png"]}
    assert config["settings"]["skip_corrupt"] and "force_listing" not in config["settings"]
    picture(8).save(small / "train" / "cat" / "0.png")  # mended: the run's samples are the same
    import eval_nc

    assert eval_nc.main(["--load_path", str(directory), "--gpu_id", "-1"]) == 0
    rows = (directory / "nc_metrics.csv").read_text().splitlines()
    assert len(rows) == 3
