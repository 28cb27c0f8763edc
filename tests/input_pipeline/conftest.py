"""Fixtures of the input pipeline's tests."""

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.input_pipeline.helpers import picture


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
