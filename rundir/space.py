"""The space on the disk that the checkpoints of a run take. Imports no torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from args import Settings
from objective import OPTIMIZERS
from rundir.checkpoints import list_files
from rundir.names import BEST, LAST, METRICS, NEXT_BEST, read_ema_epoch, read_epoch
from utils.errors import UserError
from utils.files import can_link, find_existing_parent, format_bytes, read_csv

if TYPE_CHECKING:
    from rundir.directory import Run


@dataclass(frozen=True)
class Estimate:
    """The bytes of a run's checkpoints.

    Attributes:
        epochs: the epochs whose weights are kept when the run has ended.
        each: bytes of one of these.
        best: bytes of best_model.pth; 0 where it is a second name of a file that is kept.
        state: bytes of last.pth.
        spare: bytes that are taken besides at the worst moment: a file is replaced by a whole
            second one, and an older checkpoint is removed after a newer one is written.
    """

    epochs: int
    each: int
    best: int
    state: int
    spare: int

    @property
    def total(self) -> int:
        """The bytes that are taken when the run has ended."""
        return self.epochs * self.each + self.best + self.state

    @property
    def peak(self) -> int:
        """The bytes that are taken at the worst moment."""
        return self.total + self.spare

    def describe(self) -> str:
        """Describe the files and their sum in one line."""
        parts = [f"{self.epochs} × {format_bytes(self.each)}"] if self.epochs else []
        parts += [f"{BEST} {format_bytes(self.best)}"] if self.best else []
        parts.append(f"{LAST} {format_bytes(self.state)}")
        return f"{' + '.join(parts)} = {format_bytes(self.total)}"


def estimate_bytes(
    settings: Settings,
    weights_bytes: int,
    trainable_bytes: int | None = None,
    links: bool = True,
) -> Estimate:
    """Estimate what the checkpoints of a run take; archives add some hundred bytes a tensor.

    Args:
        settings: of the run.
        weights_bytes: of the network's state_dict.
        trainable_bytes: of the parameters that are trained; None: all of `weights_bytes`.
        links: whether the file system has hard links.
    """
    trained = weights_bytes if trainable_bytes is None else trainable_bytes
    averages = weights_bytes if settings.ema is not None else 0
    state = weights_bytes + averages + OPTIMIZERS[settings.optimizer].buffers * trained
    step, keep = settings.epoch_save_step, settings.keep_checkpoints
    written = 0 if keep == "best" else -(-settings.epochs // step)
    kept = min(keep, written) if isinstance(keep, int) else written
    # With all epochs kept, the best one has a file whose second name is best_model.pth.
    linked = links and step == 1 and keep != "best" and kept == written
    # The best weights wait in a file of their own where no epoch_NNN.pth holds them.
    waiting = weights_bytes if step > 1 or keep == "best" else 0
    # A newer file is written, and that of the best epoch stays until best_model.pth holds it.
    more = min(kept + 2, written) - kept
    each = weights_bytes + averages
    return Estimate(
        epochs=kept,
        each=each,
        best=0 if linked else weights_bytes,
        state=state,
        spare=state + waiting + more * each,
    )


def describe_space(run: Run, weights_bytes: int, trainable_bytes: int) -> str:
    """Describe in one line what the checkpoints of a run take, and what the disk has left.

    What a resume finds is not written again, and what `--force` replaces makes room. A quota is not
    seen. Touches nothing in the run's directory.

    Args:
        run: chosen, and not opened yet.
        weights_bytes, trainable_bytes: see `estimate_bytes`.

    Raises:
        UserError: the disk has less than what is still to be written.
    """
    place = find_existing_parent(run.directory.parent)
    estimate = estimate_bytes(run.settings, weights_bytes, trainable_bytes, can_link(place))
    needed = _count_unwritten(run, estimate.peak) if run.resumed else estimate.peak
    free = shutil.disk_usage(find_existing_parent(run.directory)).free
    replaced = 0 if run.resumed else _count_bytes(_list_all(run.directory))
    if needed > free + replaced:
        more = " more" if run.resumed else ""
        raise UserError(
            f"the checkpoints of {run.directory} take up to {format_bytes(needed)}{more}, and its "
            f"disk has {format_bytes(free + replaced)} left: {_list_remedies(run)}"
        )
    still = f", up to {format_bytes(needed)} still to be written" if run.resumed and needed else ""
    return f"checkpoints: {estimate.describe()}{still}; {format_bytes(free)} free on the disk"


def _list_remedies(run: Run) -> str:
    """List what makes the checkpoints fit. Two settings of a run that goes on cannot change."""
    keep = run.settings.keep_checkpoints
    remedies = ["--keep_checkpoints N or best"] if keep == "all" else []
    remedies += ["--keep_checkpoints best"] if isinstance(keep, int) else []
    if run.resumed:
        return " or ".join(["make room there", *(f"give {remedy}" for remedy in remedies)])
    remedies += ["a larger --epoch_save_step"] if keep == "all" else []
    return f"give {', or '.join([*remedies, 'a --save_dir on another disk'])}"


def _count_unwritten(run: Run, peak: int) -> int:
    """Count the bytes that a run which goes on still needs, of `peak` in all.

    Files newer than last.pth are written again; a resume sets them aside until its end.
    """
    last = run / LAST
    if not last.exists():
        return peak
    if _count_rows(run) >= run.settings.epochs:
        return 0
    saved = last.stat().st_mtime_ns
    present = [run / name for name in (LAST, BEST, NEXT_BEST) if (run / name).exists()]
    for path in list_files(run.directory):
        if read_epoch(path.name) is not None or read_ema_epoch(path.name) is not None:
            present += [path] if path.stat().st_mtime_ns <= saved else []
    return max(0, peak - _count_bytes(present))


def _count_rows(run: Run) -> int:
    try:
        return len(read_csv(run / METRICS))
    except UserError:  # absent or damaged
        return 0


def _list_all(directory: Path) -> list[Path]:
    """List all files below a directory; none if it does not exist."""
    return [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]


def _count_bytes(paths: Iterable[Path]) -> int:
    """Count the bytes of files, each once however many of its names are among them."""
    sizes = {}
    for path in paths:
        status = path.stat()
        sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())
