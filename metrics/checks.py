"""Conversion and checks of inputs, and chunks of rows that bound temporary memory.

A conversion or check that fails raises ValueError. Where several processes share the samples
(`world`), it is decided on all of them and raised on every process.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from metrics.features import Features, HostFeatures
from metrics.sums import count_rows
from utils.world import ALONE, World

# What the public functions take besides `HostFeatures`.
Numbers = Tensor | np.ndarray | Sequence[Any]

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

# Numbers in a float64 chunk. The CPU gets 4 MiB: larger chunks leave the cache and were up to ten
# times slower. Other devices get 64 MiB, enough to fill them.
CPU_CHUNK = 1 << 19
DEVICE_CHUNK = 1 << 23


def split_rows(tensor: Features, width: int = 0) -> Iterator[slice]:
    """Slice the rows of `tensor` [N, d], so that float64 [rows, max(d, width)] is small."""
    numbers = CPU_CHUNK if tensor.device.type == "cpu" else DEVICE_CHUNK
    size = max(1, numbers // max(tensor.shape[1], width, 1))
    return (slice(first, first + size) for first in range(0, len(tensor), size))


@overload
def as_tensor(values: Numbers, name: str) -> Tensor: ...


@overload
def as_tensor(values: Features | Numbers, name: str) -> Features: ...


def as_tensor(values: Features | Numbers, name: str) -> Features:
    """Return a tensor or `HostFeatures` as it is, and an array or nested lists as a tensor.

    A NumPy array keeps its type and is not copied, if torch knows the type and its order in memory.
    Lists become float64 or int64. Raises ValueError, which names the input, for anything but
    numbers in rows of one length.
    """
    if isinstance(values, Tensor | HostFeatures):
        return values
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of several lengths
        raise ValueError(f"{name}: no array of numbers: {error}") from error
    kind = array.dtype.kind
    if kind not in "biuf":
        raise ValueError(f"{name}: no array of numbers, but of {array.dtype}")
    if kind == "u" or array.dtype.itemsize > 8 or not array.dtype.isnative:
        array = array.astype(np.int64 if kind in "iu" else np.float64)
    with warnings.catch_warnings():  # torch warns of read-only arrays, which nothing here writes to
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(np.ascontiguousarray(array))


def check_logits(logits: Numbers, labels: Numbers, world: World = ALONE) -> tuple[Tensor, Tensor]:
    """Return logits [N, K] and labels int64 [N] as tensors on the logits' device, if sound."""
    logits, labels = as_tensor(logits, "logits"), as_tensor(labels, "labels")
    world.check(partial(_check_own_logits, logits, labels, world))
    if count_rows(len(labels), world) == 0:
        raise ValueError("logits and labels are empty")
    return logits, labels.to(logits.device, torch.int64)


def _check_own_logits(logits: Tensor, labels: Tensor, world: World) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            "logits must be [N, K] and labels [N], "
            f"not {list(logits.shape)} and {list(labels.shape)}"
        )
    if logits.shape[1] < 2 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating point of at least 2 classes, not {logits.dtype} "
            f"of {logits.shape[1]}"
        )
    check_labels(labels, logits.shape[1])
    check_finite("logits", logits, world)


def check_score_inputs(
    features: Features | Numbers, labels: Numbers, weight: Numbers, world: World = ALONE
) -> tuple[Features, Tensor, Tensor]:
    """Return features, labels as int64 and weight as float64, on one device, if all are sound."""
    features, labels = as_tensor(features, "features"), as_tensor(labels, "labels")
    weight = as_tensor(weight, "weight")
    check_features(features, labels, world)
    check_weight(weight, features)
    world.check(partial(_check_own_values, features, labels, len(weight), world))
    device = features.device
    return features, labels.to(device, torch.int64), weight.to(device, torch.float64)


def _check_own_values(features: Features, labels: Tensor, num_classes: int, world: World) -> None:
    check_labels(labels, num_classes)
    check_finite("features", features, world)


def check_features(features: Features, labels: Tensor, world: World = ALONE) -> None:
    """Refuse anything but features [N, d] and labels [N]."""
    world.check(partial(_check_shapes, features, labels))
    if count_rows(len(labels), world) == 0:
        raise ValueError("features and labels are empty")


def _check_shapes(features: Features, labels: Tensor) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or features.shape[1] == 0:
        raise ValueError(
            "features must be [N, d] and labels [N], "
            f"not {list(features.shape)} and {list(labels.shape)}"
        )
    if not features.is_floating_point():
        raise ValueError(f"features must be floating point, not {features.dtype}")


def check_weight(weight: Tensor, features: Features) -> None:
    """Refuse anything but a weight [K, d] for features [N, d]."""
    if weight.ndim != 2 or weight.shape[1] != features.shape[1]:
        raise ValueError(
            "weight must be [K, d] for features [N, d], "
            f"not {list(weight.shape)} for {list(features.shape)}"
        )
    if len(weight) < 2:
        raise ValueError(f"weight has {len(weight)} class(es); at least 2 are needed")
    check_finite("weight", weight)


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse labels that are not integers from 0 to num_classes − 1."""
    sound = labels.dtype in INTEGERS
    if sound and len(labels):  # a process of several may have no samples
        sound = bool(labels.min() >= 0 and labels.max() < num_classes)
    if not sound:
        raise ValueError(f"labels must be integers from 0 to {num_classes - 1}")


def count_classes(labels: Tensor, num_classes: int | None, world: World = ALONE) -> int:
    """Return K, by default the largest of the labels [N] + 1, if it is at least 2."""
    if num_classes is None:
        num_classes = max(world.gather(int(labels.max()) + 1 if len(labels) else 0))
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; at least 2 are needed")
    return num_classes


def check_classes(
    labels: Tensor, num_classes: int, device: torch.device, world: World = ALONE
) -> Tensor:
    """Return labels as int64 on the device, if they are in range and leave no class empty."""
    world.check(partial(check_labels, labels, num_classes))
    labels = labels.to(device, torch.int64)
    counts = world.total(torch.bincount(labels, minlength=num_classes))
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        some = ", ".join(map(str, empty[:5])) + (", …" if len(empty) > 5 else "")
        raise ValueError(f"labels: no samples of class {some} (of {num_classes} classes)")
    return labels


def check_finite(name: str, tensor: Features, world: World = ALONE) -> None:
    """Refuse a tensor [N, d] that holds NaN or infinity; the message names the first such row.

    This looks at the rows of this process only, whose number the message names if there are more.
    """
    for rows in split_rows(tensor):
        finite = torch.isfinite(tensor[rows])
        if not finite.all():
            row = rows.start + finite.all(dim=1).int().argmin().item()
            place = f"row {row}" if world.size == 1 else f"row {row} of process {world.rank}"
            raise ValueError(f"{name} not finite: {place} holds NaN or infinity")
