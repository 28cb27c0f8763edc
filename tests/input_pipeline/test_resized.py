"""Stored images have the pixels of their files, also after kills, changes and a late writer."""

import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from input_pipeline import resized, splits
from input_pipeline.cropping import ResizedCrop
from input_pipeline.load import load_dataset
from input_pipeline.pixel_store import PIXELS, PixelStore
from input_pipeline.resized import keep_resized
from rundir.rebuild import Rebuilder
from rundir.trained import open_run
from tests.helpers import train_here
from utils.console import Console
from utils.errors import UserError

SIDE = 14  # resized to 16
SIZES = [(40, 30), (31, 50), (16, 16), (9, 12), (90, 10), (24, 60), (64, 48), (33, 32)]
STRIP = 4  # too long to be stored

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def root(tmp_path):
    generator = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        folder = tmp_path / "photos" / ("test" if number > 5 else "train") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert("L" if number == 1 else "RGB")
        image.save(folder / f"{number}.{'png' if number % 3 else 'jpg'}")
    return tmp_path / "photos"


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that are decoded in this process."""
    names = []
    for module in (resized, splits):
        real = module.open_rgb

        def record(path, *rest, real=real):
            names.append(os.path.basename(path))
            return real(path, *rest)

        monkeypatch.setattr(module, "open_rgb", record)
    return names


def build_split(root, **options):
    paths = sorted(map(str, root.rglob("*.*")), key=os.path.basename)
    return splits.FileSplit(
        paths, torch.zeros(len(paths), dtype=torch.int64), (SIDE, SIDE), **options
    )


def keep(split, tmp_path, root, fill=True):
    given = {"num_workers": 0, "fill": fill, "console": Console()}
    return keep_resized({"all": split}, root, cache_dir=tmp_path / "c", **given)["all"]


def find_store(tmp_path):
    (place,) = (tmp_path / "c").iterdir()
    return place


@pytest.mark.parametrize(
    "options",
    [{}, {"resized_side": 16}, {"resized_side": 16, "crop": ResizedCrop(3), "resize_first": True}],
    ids=["centre", "centre with margin", "crop"],
)
def test_the_pixels_are_those_of_the_files(tmp_path, root, opened, options):
    split = build_split(root, **options)
    expected = split.fetch(range(len(split)), 2)
    kept = keep(split, tmp_path, root)
    opened.clear()
    assert torch.equal(kept.fetch(range(len(split)), 2), expected)
    assert opened == [f"{STRIP}.png"]
    chosen = [some.select(torch.tensor([6, 1])).fetch([0, 1], 2) for some in (kept, split)]
    assert torch.equal(*chosen)


def test_crops_come_from_the_resized_image(root):
    split = build_split(root, resized_side=16, crop=ResizedCrop(3), resize_first=True)
    small = v2.functional.resize(Image.open(split.paths[0]), [16])
    region = ResizedCrop(3).draw(2, 0, small.height, small.width)
    expected = v2.functional.resized_crop(
        v2.functional.pil_to_tensor(small), *region[:4], [SIDE, SIDE], antialias=True
    )
    expected = expected.flip(-1) if region.mirrored else expected
    assert torch.equal(split.fetch([0], 2)[0], expected)


def test_changed_and_new_files_are_stored_again(tmp_path, root, opened):
    split = build_split(root)
    keep(split, tmp_path, root)
    os.utime(split.paths[0], ns=(0, 5))
    Image.new("RGB", (30, 20), "red").save(split.paths[2])
    kept = keep(split, tmp_path, root, fill=False)
    opened.clear()
    assert torch.equal(kept.fetch(range(3)), split.fetch(range(3)))
    assert opened[:2] == ["0.jpg", "2.png"]  # until they are stored, their files are read
    opened.clear()
    kept = keep(split, tmp_path, root)
    assert set(opened) == {"0.jpg", "2.png"}
    assert kept.fetch([2])[0].amax((1, 2)).tolist() == [255, 0, 0]


@forks
def test_a_fill_that_was_killed_goes_on(tmp_path, root, opened, monkeypatch):
    monkeypatch.setattr(resized, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(resized, "_CHUNK", 1)
    split = build_split(root)
    child = os.fork()
    if child == 0:
        add_rows, commits = PixelStore.add_rows, []

        def add(store, rows):
            add_rows(store, rows)
            commits.append(rows)
            if len(commits) == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        PixelStore.add_rows = add
        try:
            keep(split, tmp_path, root)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.setattr(resized._Filler, "_check_room", lambda *_: None)
    kept = keep(split, tmp_path, root)
    assert opened == [os.path.basename(path) for path in split.paths[3:]]
    assert torch.equal(kept.fetch(range(8)), split.fetch(range(8)))


@forks
def test_of_two_processes_one_fills_and_the_other_waits(tmp_path, root, capfd):
    split = build_split(root)
    expected = split.fetch(range(8))
    read_end, write_end = os.pipe()

    def fill(wait):
        real = resized._Filler._check_room

        def check(*arguments):
            os.write(write_end, b".")  # has the lock
            time.sleep(wait)
            real(*arguments)

        resized._Filler._check_room = check
        try:
            kept = keep(split, tmp_path, root)
            os._exit(0 if torch.equal(kept.fetch(range(8)), expected) else 1)
        finally:
            os._exit(2)

    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            fill(0.3)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert statuses == [0, 0]
    assert os.read(read_end, 9) == b"."  # the other one found all images
    assert "waiting for another process" in capfd.readouterr().out
    alone = tmp_path / "alone"
    keep(split, alone, root)
    sizes = [(find_store(place) / PIXELS).stat().st_size for place in (tmp_path, alone)]
    assert sizes[0] == sizes[1]


def test_what_does_not_fit_is_refused_in_one_line(tmp_path, root, monkeypatch):
    split = build_split(root)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(UserError, match=r"8 images resized to 14 pixels need about .* kB, but"):
            keep(split, tmp_path, root)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--cache_dir: cannot make .*Not a directory"):
        keep_resized({"all": split}, root, cache_dir=tmp_path / "file", num_workers=0, fill=True)
    with open(split.paths[5], "r+b") as file:
        file.truncate(60)
    with pytest.raises(UserError, match=f"{split.paths[5]} can't be decoded"):
        keep(split, tmp_path, root)
    kept = keep(build_split(root).select(torch.arange(5)), tmp_path, root)
    assert torch.equal(kept.fetch(range(5)), split.fetch(range(5)))


def test_a_run_learns_the_same_with_and_without_it(root, tmp_path, opened):
    flags = ["--model", "MLP", "--width", 8, "--depth", 1, "--dataset", "folder", "--epochs", 2]
    flags += ["--data_dir", root, "--img_size", SIDE, "--num_workers", 0, "--batch_size", 3]
    flags += ["--augment", "RRC", "--resize_first"]
    direct = open_run(train_here(tmp_path, *flags, name="direct"))
    stored = open_run(train_here(tmp_path, *flags, "--cache_dir", tmp_path / "c", name="stored"))
    weights = [torch.load(run.directory / "epoch_002.pth") for run in (direct, stored)]
    assert all(torch.equal(a, b) for a, b in zip(*map(dict.values, weights), strict=True))
    assert direct.facts == stored.facts
    opened.clear()
    test = Rebuilder(torch.device("cpu"), ["test"]).data(stored).test
    assert not {"6.jpg", "7.png"} & set(opened)
    expected = load_dataset("folder", root, img_size=SIDE, margin=True).test
    assert torch.equal(test.images, expected.images)
