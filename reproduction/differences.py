"""What differs between a run and the paper's run whose numbers stand beside its own, in words."""

from __future__ import annotations

from pathlib import Path

from input_pipeline import AUGMENTATIONS, SOURCES
from reproduction.grid import GridRun
from reproduction.work import Work, format_setting
from rundir.config import read_config
from rundir.names import CONFIG
from utils.errors import UserError
from utils.registry import load_function


def list_differences(work: Work, run: GridRun) -> list[str]:
    """List the data, the network and the settings in which a run differs from the paper's.

    Raises UserError if its config.json is damaged.
    """
    model, paper = run.settings.model, run.stands_for
    lines = [f"data: {text}"] if (text := _describe_data(work, run)) else []
    if not work.experiment.network_known:
        lines.append(f"network: {model}, theirs is not known")
    elif model != paper["model"]:
        lines.append(f"network: {model}, not {paper['model']}")
    settings = (
        f"{name} {format_setting(name, ours)}, not {format_setting(name, theirs)}"
        for name, (ours, theirs) in run.differences.items()
    )
    return [*lines, *settings]


def _describe_data(work: Work, run: GridRun) -> str:
    """Describe the data of a run that are not the paper's; "" for the paper's own."""
    dataset, theirs = run.settings.dataset, run.stands_for["dataset"]
    ours, title = work.label(run)["dataset"], work.name_dataset(theirs)
    if run.is_copy:
        files = f"image files{_name_endings(work)} that --copy_of calls a copy of {title}"
        return ", ".join([f"{ours}, {files}", *_list_treatments(run), *_list_sizes(work, run)])
    if dataset != theirs:
        return f"{ours}, not {title}"
    return ", ".join(_list_sizes(work, run))


def _list_sizes(work: Work, run: GridRun) -> list[str]:
    """List the numbers of images if the folder of a run does not have the paper's."""
    dataset, theirs = run.settings.dataset, run.stands_for["dataset"]
    known = work.experiment.sizes.get(dataset, ())[1:] or SOURCES[theirs].sizes
    if not ((work.locate(run) / CONFIG).exists() and SOURCES[dataset].streams and known):
        return []
    facts = read_config(work.locate(run)).facts
    sizes = (facts.get("train_size", 0), facts.get("test_size", 0))
    if sizes == tuple(known):
        return []
    return [f"{sizes[0]:,} and {sizes[1]:,} images, not {known[0]:,} and {known[1]:,}"]


def _name_endings(work: Work) -> str:
    """Name the endings of a folder's files; "" if the folder is no longer there."""
    try:
        endings = load_function("input_pipeline.folder:find_endings")(Path(work.data_dir))
    except UserError:
        return ""
    return f" ({', '.join(endings)})"


def _list_treatments(run: GridRun) -> list[str]:
    """List how images of a folder are treated that the paper's data set would be treated by."""
    ours, theirs = SOURCES[run.settings.dataset], SOURCES[run.stands_for["dataset"]]
    found = []
    if (ours.mean, ours.std) != (theirs.mean, theirs.std):
        found.append("normalised by their own mean and standard deviation")
    rotates = bool(AUGMENTATIONS[run.settings.augment].transforms)
    if rotates and ours.rotation != theirs.rotation:
        found.append(f"rotated by up to {ours.rotation:g}°, not {theirs.rotation:g}°")
    return found
