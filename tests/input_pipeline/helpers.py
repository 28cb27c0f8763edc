"""Shared by the tests of the input pipeline: image files, and the message of a refusal."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from input_pipeline.load import load_dataset
from input_pipeline.loader import BatchLoader
from tests.helpers import ROOT
from utils.errors import UserError

SIZE = 16
COUNT = 23
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def make(split, **options) -> BatchLoader:
    defaults = {"batch_size": 5, "device": "cpu", "mean": MEAN, "std": STD, "num_classes": 4}
    return BatchLoader(split, **(defaults | options))


def refusal(*args, **options) -> str:
    """The one line that load_dataset refuses with."""
    try:
        load_dataset(*args, **options)
    except UserError as error:
        # pytest.raises would keep the workers in a reference cycle, see iterate_decoded.
        message = str(error)
    else:
        pytest.fail("load_dataset did not refuse")
    assert "\n" not in message
    return message


def shared_archive(name: str) -> Path:
    path = ROOT.parent / "shared" / "data" / name
    if not path.is_file():
        pytest.skip(f"real data {name} is not in ../shared/data")
    return path


def picture(seed: int, width: int = 12, height: int = 10) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels_of(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


def break_file(path: Path, how: str) -> None:
    picture(4).save(path, "JPEG")
    whole = path.read_bytes()
    contents = {"text": b"no image", "empty": b"", "truncated": whole[: len(whole) // 2]}
    path.write_bytes(contents[how])


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(data_dir: Path, train: int, test: int) -> None:
    """Write an MNIST of noise with the digits 0 to 9 in turn."""
    raw = data_dir / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
