"""Numbers of the authors' networks, and entries and images filled as for these numbers.

authors.json was computed with the authors' published code, commit 30346e9: for 32×32 images and
K = 10, in float64, with the weights of `fill_entries` and the images of `fill_images`. It has the
number of parameters, the logits [2, 10] and the first 8 features of each image. An entry of a
state_dict is its name and its shape. For ResNet and DenseNet, which have torchvision's, it has only
their hash.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

AUTHORS = json.loads(Path(__file__).with_name("authors.json").read_text(encoding="utf-8"))


def hash_numbers(count: int, entry: int, offset: int = 0) -> Tensor:
    """Return `count` numbers of an entry, float64 in ±1/2; the same on any machine."""
    x = np.arange(count, dtype=np.uint64) + np.uint64(1 + offset)
    x += np.uint64(1_000_003) * np.uint64(entry)
    for factor in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93):
        x *= np.uint64(factor)  # wraps
        x ^= x >> np.uint64(32)
    return torch.from_numpy((x >> np.uint64(11)) / 2**53 - 0.5)


def fill_entry(name: str, shape: tuple[int, ...], entry: int) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("mask"):
        return torch.zeros(shape)
    u = hash_numbers(math.prod(shape), entry).view(shape)
    if len(shape) > 1:
        return u * math.sqrt(12 / math.prod(shape[1:]))
    if name.endswith("running_var"):
        return 1 + u
    return 1 + u / 2 if name.endswith("weight") else u


def fill_entries(entries: list[str]) -> dict[str, Tensor]:
    """Return the state_dict of "name and shape" entries, in float64."""
    state = {}
    for index, line in enumerate(entries):
        name, *shape = line.split()
        state[name] = fill_entry(name, tuple(map(int, shape)), index)
    return state


def fill_images() -> Tensor:
    return math.sqrt(12) * hash_numbers(2 * 3 * 32 * 32, 0, offset=77).view(2, 3, 32, 32)
