"""Names of the files in a run directory, and the columns of metrics.csv."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from args import Settings

CONFIG = "config.json"
METRICS = "metrics.csv"
LAST = "last.pth"
BEST = "best_model.pth"
NEXT_BEST = "best_model.pth.next"  # the best weights, until last.pth contains their epoch
LOG = "train_log.txt"
LOCK = ".train.lock"  # held by the process that trains
EVENTS = "tensorboard"

NAMED_FIRST = ("model", "dataset", "loss", "optimizer")  # settings that begin the name of a run

METRICS_COLUMNS = (
    "epoch",
    "lr",
    "train_loss",
    "train_top1",
    "train_top5",
    "test_loss",
    "test_top1",
    "test_top5",
    "test_uniform",
    "seconds",
    "images_per_second",
)
EMA_PREFIX = "ema_"  # of the columns of the average of the weights
EMA_COLUMNS = tuple(f"{EMA_PREFIX}{name}" for name in METRICS_COLUMNS if name.startswith("test_"))
# Measures of --nc_every: a row has them for the epochs that were measured.
NC_PREFIX = "train_"
NC_COLUMNS = ("train_nc1", "train_nc2", "train_nc2_h", "train_nc3")


def list_metrics_columns(
    settings: Settings, history: Iterable[Mapping[str, Any]] = ()
) -> list[str]:
    """List the columns of metrics.csv of a run.

    Those of --nc_every are among them if it is on, or if a row of `history` has them: a resume may
    turn it off.
    """
    averaged = settings.ema is not None
    measured = settings.nc_every > 0 or any(name in row for row in history for name in NC_COLUMNS)
    return [
        *METRICS_COLUMNS,
        *(EMA_COLUMNS if averaged else ()),
        *(NC_COLUMNS if measured else ()),
    ]


def spell_for_files(model: str) -> str:
    """Return the name of a network as it stands in the names of files: timm-NAME for timm:NAME."""
    return model.replace(":", "-")


def name_checkpoint(epoch: int) -> str:
    """Return the name of the weights of an epoch."""
    return f"epoch_{epoch:03d}.pth"


def name_ema(epoch: int) -> str:
    """Return the name of the average of the weights after an epoch."""
    return f"ema_{epoch:03d}.pth"


def read_epoch(name: str) -> int | None:
    """Return the epoch of a name such as epoch_001.pth; None for any other name."""
    return _read_number("epoch", name)


def read_ema_epoch(name: str) -> int | None:
    """Return the epoch of a name such as ema_001.pth; None for any other name."""
    return _read_number("ema", name)


def _read_number(stem: str, name: str) -> int | None:
    match = re.fullmatch(rf"{stem}_(\d+)\.pth", name)
    return int(match[1]) if match else None
