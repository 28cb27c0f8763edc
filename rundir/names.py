"""Names of the files in a run directory, and the columns of metrics.csv."""

from __future__ import annotations

import re

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


def spell_for_files(model: str) -> str:
    """Return the name of a network as it stands in the names of files: timm-NAME for timm:NAME."""
    return model.replace(":", "-")


def name_checkpoint(epoch: int) -> str:
    """Return the name of the weights of an epoch."""
    return f"epoch_{epoch:03d}.pth"


def read_epoch(name: str) -> int | None:
    """Return the epoch of a name such as epoch_001.pth; None for any other name."""
    match = re.fullmatch(r"epoch_(\d+)\.pth", name)
    return int(match[1]) if match else None
