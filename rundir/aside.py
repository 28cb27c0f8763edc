"""Files that a kill leaves newer than last.pth: a resumed run trains their epochs again."""

from __future__ import annotations

from pathlib import Path

from rundir.checkpoints import list_files
from rundir.names import METRICS, read_ema_epoch, read_epoch
from utils.files import rename_whole, write_whole

ENDING = ".aside"


def set_newer_aside(directory: Path, epoch: int, rows: int) -> list[int]:
    """Rename the checkpoints of later epochs than `epoch`, and copy a metrics.csv with their rows.

    Args:
        directory: of the run.
        epoch: the epochs that last.pth contains.
        rows: of metrics.csv; 0 if it is absent or damaged.

    Returns:
        The epochs, in order.

    Raises:
        UserError: a file cannot be renamed or written.
    """
    newer = set()
    for path in list_files(directory):
        number = read_epoch(path.name) or read_ema_epoch(path.name) or 0
        if number > epoch:
            rename_whole(path, _name_aside(path))
            newer.add(number)
    if rows > epoch:  # the older rows are needed under the old name
        content = (directory / METRICS).read_bytes()
        write_whole(_name_aside(directory / METRICS), lambda file: file.write(content))
    return sorted(newer | set(range(epoch + 1, rows + 1)))


def remove_aside(directory: Path) -> None:
    """Remove what was set aside: its epochs have been trained again."""
    for path in list_files(directory):
        if path.name.endswith(ENDING):
            path.unlink(missing_ok=True)


def _name_aside(path: Path) -> Path:
    return path.with_name(path.name + ENDING)
