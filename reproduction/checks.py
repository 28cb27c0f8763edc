"""Refusals of a grid of runs before its first run begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from args import Settings
from input_pipeline import SOURCES
from objective import OPTIMIZERS
from reproduction.cost import Cost, format_seconds
from reproduction.flags import CLUSTER_FLAGS, DATA_DIR, GRID_FLAGS, PASSED
from reproduction.grid import GridRun
from reproduction.work import Work
from rundir.aside import ENDING
from rundir.names import name_checkpoint
from utils.errors import UserError
from utils.files import format_bytes
from utils.registry import load_function

REPEATS = ("seeds", "jobs", "gpus_per_run")  # numbers that are 1 by default
REMEDIES = "free some, give a --save_dir on another disk, or fewer --models, --seeds or --epochs"


def refuse_idle_flags(given: Mapping[str, Any], work: Work) -> None:
    """Refuse a flag that has no effect in this combination, or that lacks another one.

    Args:
        given: the values of the flags of reproduce.py; None where one was not given.
        work: the runs that follow from them.

    Raises:
        UserError: one line.
    """
    reasons = {}
    if not work.runs:
        counts = [name for name in REPEATS if given[name] > 1]
        idle = (*GRID_FLAGS, *PASSED, "gpu_ids", *CLUSTER_FLAGS, *counts)
        reasons = dict.fromkeys(idle, f"{work.name} trains nothing")
    if not given["launcher"]:
        reasons["job_minutes"] = "it belongs to --launcher"
    if given["launcher"] != "slurm":
        reasons["slurm"] = "it belongs to --launcher slurm"
    used = {run.settings.optimizer for run in work.runs}
    for name in OPTIMIZERS if work.runs else ():
        if name not in used:
            reasons[f"lr_{name}"] = f"no run uses {name}"
    if work.runs and (reason := _explain_idle_copy(work)):
        reasons["copy_of"] = reason
    for name, reason in reasons.items():
        if given[name] is not None:
            raise UserError(f"--{name} has no effect here: {reason}")
    streams = any(SOURCES[run.settings.dataset].streams for run in work.runs)
    if streams and given["data_dir"] == DATA_DIR and not given["dry_run"]:
        raise UserError("an image folder needs --data_dir, which holds train/ and test/ or val/")
    known = work.experiment.datasets
    if given["copy_of"] is not None and given["copy_of"] not in known:
        raise UserError(
            f"--copy_of {given['copy_of']}: the paper's numbers for {work.name} are of "
            f"{', '.join(known)}"
        )


def _explain_idle_copy(work: Work) -> str | None:
    if not any(SOURCES[run.settings.dataset].named_by_directory for run in work.runs):
        return "it is for --dataset folder"
    if work.experiment.published is None:
        return f"there are no published numbers for {work.name}"
    if work.experiment.sizes:
        return f"{work.name} knows the paper's data by their size"
    return None


def refuse_other_classes(work: Work, copy_of: str) -> None:
    """Refuse a folder with other classes than the data set of which it is called a copy.

    Raises UserError.
    """
    count = load_function("input_pipeline.folder:count_classes")(Path(work.data_dir))
    known = SOURCES[copy_of].num_classes
    if count != known:
        raise UserError(f"--copy_of {copy_of}: {work.data_dir} has {count} classes, not {known}")


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
