"""Refusals of a grid of runs before its first run begins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from args import Settings
from input_pipeline import SOURCES
from reproduction.cost import Cost, format_seconds
from reproduction.grid import GridRun
from reproduction.work import Work
from rundir.aside import ENDING
from rundir.names import name_checkpoint
from utils.errors import UserError
from utils.files import format_bytes
from utils.registry import load_function

REMEDIES = "free some, give a --save_dir on another disk, or fewer --models, --seeds or --epochs"


def refuse_lost_checkpoints(work: Work) -> None:
    """Refuse a run that has trained an epoch which will be measured, and has lost its weights.

    Experiments share runs: another one, or --keep_checkpoints, may have kept fewer. Raises
    UserError.
    """
    for run in work.runs:
        directory, trained = work.locate(run), work.count_epochs(run)
        names = [name_checkpoint(e) for e in work.list_needed_epochs(run) if e <= trained]
        present = {path.name.removesuffix(ENDING) for path in directory.glob("epoch_*")}
        lost = [name for name in names if name not in present]
        if lost:
            others = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise UserError(
                f"{directory} has lost {lost[0]}{others}, which {work.name} measures: remove that "
                "directory to train the run again, or give another --save_dir"
            )


def refuse_cost(work: Work, cost: Cost, *, confirmed: bool) -> None:
    """Refuse runs whose data is missing, which do not fit the disk, or which take far too long.

    Args:
        work: the runs.
        cost: what is left to do of them.
        confirmed: whether `--yes` was given.

    Raises:
        UserError: one line, with the figures.
    """
    if not cost.to_do:
        return
    if cost.missing:
        raise UserError(cost.missing)
    if not cost.fits:
        raise UserError(
            f"--save_dir {work.save_dir}: up to {format_bytes(cost.needed)} are still to be "
            f"written, but its disk has {format_bytes(cost.free)} free: {REMEDIES}"
        )
    if needs_confirmation(work, cost) and not confirmed:
        raise UserError(explain_confirmation(cost))


def needs_confirmation(work: Work, cost: Cost) -> bool:
    """Return whether runs of the paper's size would train without a GPU."""
    return cost.timed and cost.to_do > 0 and work.scale.is_papers and not cost.figures.cuda


def explain_confirmation(cost: Cost) -> str:
    """Explain what it means to train at full scale without CUDA, and what to do."""
    known = cost.training + cost.evaluation
    time = f"about {format_seconds(known)}" if known else "an unknown time"
    device = cost.figures.device.replace(": ", ", ") or "this machine"
    part = "" if not (known and cost.unknown) else " for a part of the runs"
    return (
        f"full scale without CUDA takes {time}{part} on {device}: give --yes to train all the "
        "same, or use a GPU, --launcher slurm or --scale cpu"
    )


def check_data(runs: Sequence[GridRun], data_dir: str) -> None:
    """Find the data sets of runs as train.py does, each once; download those that are absent.

    The runs then find them, and several at a time do not download the same. Raises UserError.
    """
    identify = load_function("input_pipeline.load:identify_dataset")
    for settings in list_data(runs):
        names = ("sample_size", "imbalance_factor", "test_sample_size")
        identify(settings.dataset, Path(data_dir), **settings.values(list(names)))


def list_data(runs: Iterable[GridRun]) -> list[Settings]:
    """Return the settings of one run for each data set that is read into memory.

    Image files have been listed by training.timing; each run hashes them itself.
    """
    names = ["dataset", *Settings.names(builds="data")]
    by_data = {
        str(run.settings.values(names)): run.settings
        for run in runs
        if not SOURCES[run.settings.dataset].streams
    }
    return list(by_data.values())
