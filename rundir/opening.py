"""Runs and weights as the eval scripts open them: our run directories, the authors', any others."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from args import Settings
from input_pipeline import PIXELS, SOURCES
from input_pipeline.load import identify_dataset
from models import find_network
from rundir.archives import hold_the_same
from rundir.bare import Bare, describe_bare, list_given_flags
from rundir.checkpoints import (
    find_best_epoch,
    list_files,
    pick_epochs,
    select_averages,
    select_checkpoints,
)
from rundir.config import Versions, read_config
from rundir.foreign import find_bias_mode, read_state
from rundir.names import BEST, CONFIG, LAST, read_ema_epoch, read_epoch
from rundir.trained import ChosenRun, TrainedRun
from utils.errors import UserError

ENDINGS = (".pth.tar", ".pth", ".pt", ".ckpt", ".safetensors")
UNKNOWN_EPOCH = 0  # the epoch of weights whose file does not show it


def open_chosen_runs(
    paths: Sequence[str], selection: str, args: argparse.Namespace
) -> list[ChosenRun]:
    """Open several runs as `open_chosen_run` does.

    Raises UserError also if all have a config.json, which makes flags for bare weights idle.
    """
    runs = [open_chosen_run(Path(path), selection, args) for path in paths]
    given = list_given_flags(args)
    if given and all(run.facts for run in runs):
        raise UserError(f"--{given[0]} has no effect here: it stands in the run's {CONFIG}")
    return runs


def open_chosen_run(path: Path, selection: str, args: argparse.Namespace) -> ChosenRun:
    """Open a run directory or a file of weights, and choose its checkpoints.

    Args:
        path: a directory of this program, of the authors' or of any other, or a single file.
        selection: `last`, `all`, `best`, epochs such as 1,5,10-20; for weights without a
            config.json also names of files.
        args: the flags of `rundir.bare`, and `ema`: whether to choose averages of the weights.

    Raises:
        UserError: nothing is there, it is damaged, or the flags do not describe it.
    """
    directory = path if path.is_dir() else path.parent
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if (directory / CONFIG).exists():
        return _open_own(path, directory, selection, args.ema)
    if args.ema:
        raise UserError(f"--ema has no effect here: {path} is of no run with a {CONFIG}")
    if path.is_dir():
        chosen = select_weights(directory, selection)
    else:
        chosen = {read_number(path) or UNKNOWN_EPOCH: path}
    settings, bare = describe_bare(path, directory, args)
    if not path.is_dir():
        directory = path.with_name(f"{strip_ending(path.name)}_eval")
    if "bias_mode" not in list_given_flags(args):
        settings = settings.replace(bias_mode=find_mode(chosen, bare, settings))
    versions = Versions(find_network(settings.model).version, PIXELS)
    return ChosenRun(directory, settings, {}, "", versions, chosen, bare=bare)


def _open_own(path: Path, directory: Path, selection: str, average: bool) -> ChosenRun:
    """Open a run directory of this program, or a file in it."""
    config = read_config(directory)
    if average and config.settings.ema is None:
        raise UserError(f"--ema has no effect here: {directory} was trained without --ema")
    if path.is_dir():
        select = select_averages if average else select_checkpoints
        chosen = select(directory, selection)
    else:
        chosen = {read_own_epoch(path, average): path}
    return ChosenRun(
        directory,
        config.settings,
        config.facts,
        config.run_id,
        config.versions,
        chosen,
        network=config.network,
        average=average,
    )


def read_own_epoch(path: Path, average: bool | None = None) -> int:
    """Return the epoch of a file that a user chose in a run directory. Raises UserError.

    Args:
        path: of the file.
        average: whether it must be an average of the weights, or must not; None: either.
    """
    weights, averages = read_epoch(path.name), read_ema_epoch(path.name)
    if average is not True:
        if path.name == BEST:
            return find_best_epoch(path.parent)
        if weights is not None:
            return weights
    if average is not False and averages is not None:
        return averages
    names = "ema_NNN.pth" if average else f"epoch_NNN.pth or {BEST}"
    hint = "; --ema evaluates an average" if averages is not None else ""
    raise UserError(f"{path} is no checkpoint of {path.parent}: {names}{hint}")


def select_weights(directory: Path, selection: str) -> dict[int, Path]:
    """Choose files of weights in a directory of another program, by epoch.

    The number at the end of a file's name is its epoch. Where no name has one, the best model or
    the only file is enough for `all` and `last`. Raises UserError.
    """
    files = [path for path in list_files(directory) if path.name.endswith(ENDINGS)]
    files = [path for path in files if path.name != LAST]
    by_name = {path.name: path for path in files}
    words = [word.strip() for word in selection.split(",")]
    if all(word in by_name for word in words):
        return number_files([by_name[word] for word in words])
    numbered = number_files([path for path in files if read_number(path) is not None])
    if selection == "best":
        if BEST not in by_name:
            raise UserError(f"{directory / BEST} does not exist")
        return {find_equal_epoch(by_name[BEST], numbered): by_name[BEST]}
    if numbered:
        return pick_epochs(directory, numbered, selection)
    alone = [by_name[BEST]] if BEST in by_name else files
    if selection in ("all", "last") and len(alone) == 1:
        return {UNKNOWN_EPOCH: alone[0]}
    if files:
        listed = ", ".join(path.name for path in files[:4])
        raise UserError(
            f"{directory}: no file of weights has a name that ends in a number; name the files, "
            f"such as --checkpoints {files[0].name} (there are {listed})"
        )
    raise UserError(
        f"{directory} holds neither a {CONFIG} nor weights (names that end in {', '.join(ENDINGS)})"
    )


def number_files(files: list[Path]) -> dict[int, Path]:
    """Return files by the number at the end of their names, or else by their position from 1.

    Raises UserError if two have the same.
    """
    found: dict[int, Path] = {}
    for position, path in enumerate(files, start=1):
        number = read_number(path)
        twin = found.setdefault(position if number is None else number, path)
        if twin != path:
            raise UserError(f"{twin} and {path.name} are both of epoch {number or position}")
    return dict(sorted(found.items()))


def strip_ending(name: str) -> str:
    """Return the name of a file of weights without its ending."""
    ending = next((ending for ending in ENDINGS if name.endswith(ending)), "")
    return name.removesuffix(ending)


def read_number(path: Path) -> int | None:
    """Return the number at the end of a file's name, before its ending; None if there is none."""
    match = re.search(r"(\d{1,9})$", strip_ending(path.name))
    return int(match[1]) if match else None


def find_equal_epoch(best: Path, numbered: Mapping[int, Path]) -> int:
    """Return the epoch whose file has the content of the best model, else `UNKNOWN_EPOCH`."""
    for epoch, path in numbered.items():
        try:
            if path.stat().st_size == best.stat().st_size and hold_the_same(path, best):
                return epoch
        except (OSError, UserError):
            continue
    return UNKNOWN_EPOCH


def find_mode(chosen: Mapping[int, Path], bare: Bare, settings: Settings) -> str:
    """Return the kind of bias of the first weights that can be read. Raises UserError if none."""
    num_classes = SOURCES[settings.dataset].num_classes
    first: UserError | None = None
    for path in chosen.values():
        try:
            return find_bias_mode(path, read_state(path, bare, settings.model, num_classes))
        except UserError as error:
            first = first or error
    assert first is not None
    raise first


def find_classes(run: TrainedRun, data_dir: str | None) -> list[str]:
    """Find the class names of a run's data set. Raises UserError."""
    if run.bare is None:
        classes = run.facts.get("classes")
        if not isinstance(classes, list):
            raise UserError(f"{run.directory / CONFIG} is damaged: it does not name the classes")
        return classes
    root = run.settings.data_dir if data_dir is None else data_dir
    found: list[str] = identify_dataset(run.settings.dataset, root, splits=("test",))["classes"]
    return found
