"""Fixtures of the input pipeline's tests."""

import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from input_pipeline.splits import FileSplit, TensorSplit
from tests.input_pipeline.helpers import COUNT, SIZE, picture


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch) -> Path:
    """A cache directory of the test's own."""
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes of 3 training and 2 test PNGs of 12×10 pixels."""
    root = tmp_path / "set"
    for split, count in (("train", 3), ("test", 2)):
        for k, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                seed = 100 * k + 10 * count + i
                picture(seed).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        print("noise")
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture(scope="package")
def splits(tmp_path_factory):
    """The same 23 images as a FileSplit of PNGs and as a TensorSplit."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
    paths = [str(folder / f"{i:02}.png") for i in range(COUNT)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    labels = torch.arange(COUNT) % 4
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return FileSplit(paths, labels, (SIZE, SIZE), paths[0]), TensorSplit(images, labels)
