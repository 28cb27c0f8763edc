"""config.json: the settings a run was trained with, and the identity of its data.

Imports no torch, so that a refused command answers at once.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from args import Settings
from input_pipeline import PIXELS, SOURCES
from models import OLD_COMMIT, find_network
from rundir.names import CONFIG
from utils.errors import UserError
from utils.files import read_json

_CHANNELS = ("mean", "std")
# Facts that need not be equal one by one.
_APART = (*_CHANNELS, "fingerprints", "listings", "test_split", "image_files", "skipped")
# Settings of one start of a run.
_UNKEPT = ("resume", "force", "force_listing")
_TITLES = {"train": "training", "test": "test"}
# Mean and std that other sums of the same pixels give, relative to them; and those that another
# decoder of the same files gives, in units of the full range 0…1.
_ROUNDING, _DECODING = 1e-6, 1e-3
_LONGEST = 200  # characters of a value that are shown


class ChangedData(UserError):
    """The data set at hand is not the one that a run was trained on."""


@dataclass(frozen=True)
class Versions:
    """The definitions that a run was trained with; 1 is that of all runs which record none.

    Attributes:
        network: see `models.Network`.
        pixels: see `input_pipeline.PIXELS`.
    """

    network: int = 1
    pixels: int = 1


@dataclass(frozen=True)
class Config:
    """The content of config.json.

    Attributes:
        settings: every resolved setting.
        facts: those of the data set, see `input_pipeline.splits.DataSet.facts`.
        environment: library versions, git commit and device.
        run_id: what its checkpoints name as their run; "" in a run of an earlier version.
        versions: the definitions it was trained with.
        network: the library that its network comes from, the weights that it began with, and the
            biases (`first_bias`) where `bias_init_mean` is a word.
    """

    settings: Settings
    facts: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)
    run_id: str = ""
    versions: Versions = Versions()
    network: dict[str, Any] = field(default_factory=dict)


def read_config(directory: Path) -> Config:
    """Read and check config.json. Raises UserError if it is missing or damaged."""
    path = directory / CONFIG
    if directory.is_dir() and not path.exists():
        raise UserError(f"{directory} is not a run directory: it holds no {CONFIG}")
    content = read_json(path)
    for part in ("settings", "data"):
        if not isinstance(content, dict) or not isinstance(content.get(part), dict):
            raise UserError(f"{path} is damaged: it has no {part!r}")
    try:
        settings = Settings.from_json(content["settings"])
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    environment = content.get("environment")
    environment = environment if isinstance(environment, dict) else {}
    run_id, versions = str(content.get("id", "")), _read_versions(path, content)
    network = content.get("network", {})
    if not isinstance(network, dict) or not all(isinstance(v, dict) for v in network.values()):
        raise UserError(f"{path} is damaged: its network is {_shorten(network)}")
    return Config(settings, content["data"], environment, run_id, versions, network)


def _read_versions(path: Path, content: dict[str, Any]) -> Versions:
    """Read the definitions of a run. Raises UserError for those of a later program."""
    stored = content.get("versions", {})
    if not isinstance(stored, dict) or not all(type(number) is int for number in stored.values()):
        raise UserError(f"{path} is damaged: its versions are {_shorten(stored)}")
    versions = Versions(stored.get("network", 1), stored.get("pixels", 1))
    network = find_network(content["settings"]["model"]).version
    if versions.network > network or versions.pixels > PIXELS:
        raise UserError(f"{path} was written by a later version of this program: update it")
    return versions


def format_config(
    settings: Settings,
    run_name: str,
    run_id: str,
    facts: dict[str, Any],
    environment: dict[str, Any],
    network: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of config.json for a new run."""
    kept = {k: v for k, v in settings.values().items() if k not in _UNKEPT}
    # A path such as "." has no name: another working directory would give the data set another one.
    if SOURCES[settings.dataset].named_by_directory and Path(settings.data_dir).name in ("", ".."):
        kept["data_dir"] = os.path.abspath(settings.data_dir)
    return {
        "settings": {**kept, "run_name": run_name},
        "data": facts,
        "environment": environment,
        "id": run_id,
        "versions": {"network": find_network(settings.model).version, "pixels": PIXELS},
        "network": network,
    }


def check_data(directory: Path, stored: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse a data set that is not the one the run of `directory` was trained on.

    Facts that only one of the two has are not compared: earlier versions stored fewer. Mean and
    std may differ by rounding. Those of image files may differ by more if the files are the same,
    because decoders differ. `DataSet.normalised_as` then gives the run its own.

    Args:
        directory: of the run.
        stored: the facts in its config.json.
        found: those of the data set at hand.

    Raises:
        ChangedData: a fact differs, and which.
        UserError: config.json is damaged.
    """
    _check_channels(directory, stored)
    difference = _find_changed_fact(stored, found) or _find_changed_files(stored, found)
    if difference is None:
        tolerance = _find_tolerance(stored, found)
        difference = _find_changed_channels(stored, found, tolerance)
    if difference is None:
        return
    before, now = stored.get("test_split"), found.get("test_split")
    moved = f" (the test set was in {before}/, is in {now}/)" if before and before != now else ""
    raise ChangedData(
        f"the data set has changed since {directory} was trained: {difference}{moved}"
    )


def find_skipped(directory: Path, facts: dict[str, Any]) -> dict[str, list[str]] | None:
    """Return the files that a run has left out, by split; None if its facts name none.

    Raises UserError if config.json is damaged.
    """
    found = facts.get("skipped")
    if found is None:
        return None
    lists = list(found.values()) if isinstance(found, dict) else [None]
    if not all(
        isinstance(names, list) and all(isinstance(n, str) for n in names) for names in lists
    ):
        raise UserError(f"{directory / CONFIG} is damaged: skipped is {_shorten(found)}")
    return dict(found)


def _check_channels(directory: Path, stored: dict[str, Any]) -> None:
    """Raise UserError if the stored mean or std is not one that images can be normalised by."""
    for key in _CHANNELS:
        values = stored.get(key, [1.0, 1.0, 1.0])
        fits = isinstance(values, list) and len(values) == 3 and all(map(_is_finite, values))
        if not fits or (key == "std" and min(values) <= 0):
            raise UserError(f"{directory / CONFIG} is damaged: {key} is {_shorten(values)}")


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf


def _find_changed_fact(stored: dict[str, Any], found: dict[str, Any]) -> str | None:
    """Describe the first fact that differs, of those that must be equal."""
    for key in found:
        if key not in _APART and key in stored and stored[key] != found[key]:
            before, now = (_shorten(facts[key]) for facts in (stored, found))
            return f"{key} was {before}, is {now}"
    return None


def _shorten(value: object) -> str:
    text = str(value)
    return f"{text[:_LONGEST]}…" if len(text) > _LONGEST else text


def _find_changed_files(stored: dict[str, Any], found: dict[str, Any]) -> str | None:
    """Describe the first split whose fingerprint differs."""
    for split, fingerprint in found.get("fingerprints", {}).items():
        if _get_hash(stored, "fingerprints", split) in (None, fingerprint):
            continue
        same_list = _get_hash(stored, "listings", split) == found["listings"][split]
        of_files = found.get("image_files", False)
        if same_list:
            part = "contents of the files" if of_files else "pixels of the images"
        else:
            part = "names, sizes or labels of the files" if of_files else "labels"
        return f"the {part} of the {_TITLES[split]} set are not the same"
    return None


def _get_hash(facts: dict[str, Any], kind: str, split: str) -> Any:
    """Return a hash of a split; None where an earlier version stored none."""
    hashes = facts.get(kind)
    return hashes.get(split) if isinstance(hashes, dict) else None


def _find_tolerance(stored: dict[str, Any], found: dict[str, Any]) -> float:
    """Return by how much mean and std may differ, besides rounding, where no fingerprint does."""
    agreeing = any(
        _get_hash(stored, "fingerprints", split) == fingerprint
        for split, fingerprint in found.get("fingerprints", {}).items()
    )
    return _DECODING if agreeing and found.get("image_files") else 0.0


def _find_changed_channels(
    stored: dict[str, Any], found: dict[str, Any], tolerance: float
) -> str | None:
    """Describe the mean or std that differs by more than rounding and `tolerance`."""
    for key in _CHANNELS:
        pairs = zip(stored.get(key, ()), found.get(key, ()), strict=False)
        if not all(math.isclose(*pair, rel_tol=_ROUNDING, abs_tol=tolerance) for pair in pairs):
            # Rule 1 for pixels had no fingerprints, and read some kinds of files differently.
            older = found.get("image_files") and "fingerprints" not in stored
            hint = (
                f" (or read by the rules before commit {OLD_COMMIT}, see docs/data.md)"
                if older
                else ""
            )
            return f"{key} was {stored[key]}, is {found[key]}{hint}"
    return None
