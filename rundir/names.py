"""Names of the files in a run directory."""

from __future__ import annotations

CONFIG, METRICS, LAST, BEST, LOG = (
    "config.json",
    "metrics.csv",
    "last.pth",
    "best_model.pth",
    "train_log.txt",
)
