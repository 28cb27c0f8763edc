"""Older checkpoints of a run, which --keep_checkpoints bounds."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from rundir.checkpoints import list_files
from rundir.names import read_ema_epoch, read_epoch
from utils.files import remove


def prune_checkpoints(directory: Path, keep: int | str, needed: Collection[int]) -> list[int]:
    """Remove epoch_NNN.pth and ema_NNN.pth of the epochs that are not to be kept.

    Args:
        directory: of the run.
        keep: all, best (none of them) or the number of the newest epochs that stay.
        needed: epochs that stay in any case.

    Returns:
        The epochs that were removed, in order.

    Raises:
        UserError: a file cannot be removed.
    """
    if keep == "all":
        return []
    files: dict[int, list[Path]] = {}
    for path in list_files(directory):  # ema_NNN.pth first: a kill leaves none without its epoch's
        epoch = read_epoch(path.name) or read_ema_epoch(path.name)
        if epoch:
            files.setdefault(epoch, []).append(path)
    newest = sorted(files)[-keep:] if isinstance(keep, int) else []
    removed = sorted(files.keys() - {*newest, *needed})
    for epoch in removed:
        for path in files[epoch]:
            remove(path)
    return removed
