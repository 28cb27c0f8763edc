"""The network with which a run begins: drawn, from a library, or from the weights of a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from args import Settings
from input_pipeline.splits import DataSet
from models import BIAS_STARTS, explain_high_rate, share_definition
from rundir.archives import CHUNK
from rundir.bare import Bare
from rundir.building import build_network
from rundir.checkpoints import check_origin, list_files
from rundir.config import read_config
from rundir.directory import Run
from rundir.first_bias import describe_first_bias, find_first_bias
from rundir.foreign import (
    explain_misfit,
    list_keys,
    read_content,
    translate_content,
    translate_own,
)
from rundir.names import CONFIG, LAST, read_epoch
from rundir.opening import read_own_epoch
from rundir.weights import Checkpoint, open_checkpoint
from utils.errors import UserError
from utils.world import ALONE, World

CLASSIFIER = "fc."  # what the names of its tensors begin with


@dataclass(frozen=True)
class Start:
    """The network of a run, before it is placed on a device.

    Attributes:
        model: with the weights of the beginning, unless a resume loads others.
        facts: where they come from, and a bias that was computed, for config.json.
        notes: lines for the log.
    """

    model: nn.Module
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """The weights of a file that --init_from names.

    Attributes:
        path: the file.
        state: tensors by our names.
        facts: what identifies it.
        is_own: whether a config.json beside it records its network.
    """

    path: Path
    state: dict[str, Tensor]
    facts: dict[str, Any]
    is_own: bool


def start_network(settings: Settings, run: Run, data: DataSet, world: World = ALONE) -> Start:
    """Build the network of a run, drawn from the global generator, with the weights to begin with.

    A resumed run with a saved state needs none of these weights: their source may be gone.

    Raises UserError if they cannot be read or do not fit, or are not those of the run's beginning,
    or if --bias_init_mean is a word that has no value for this run.
    """
    goes_on = run.resumed and (run / LAST).exists()
    start = world.take_turns(lambda: _build_start(settings, run, data, goes_on))
    if settings.bias_init_mean in BIAS_STARTS and not goes_on:
        _begin_bias(start, settings, data, world)
    return start


def _begin_bias(start: Start, settings: Settings, data: DataSet, world: World) -> None:
    """Put the biases of --bias_init_mean predicted or prior into a network."""
    classifier: Any = start.model.fc
    sizes = data.class_sizes
    assert sizes is not None
    # A prediction may take minutes, and all processes need the same one.
    values = world.call_first(lambda: find_first_bias(settings, sizes, classifier.in_features))
    classifier.begin_bias(values)
    start.facts["first_bias"] = {"values": values}
    start.notes.append(describe_first_bias(settings.bias_init_mean, values))


def _build_start(settings: Settings, run: Run, data: DataSet, goes_on: bool) -> Start:
    model = build_network(settings, data, initial=not goes_on)
    start = Start(model)
    _note_library(start, settings, data, run)
    warning = explain_high_rate(settings.model, settings.optimizer, settings.lr)
    if warning and not run.resumed:
        start.notes.append(warning)
    if not goes_on:
        recorded = read_config(run.directory).network if run.resumed else {}
        if settings.weights is not None:
            start.facts["weights"] = _describe_file(Path(settings.weights))
            _check_unchanged("weights", start.facts, recorded)
        if settings.init_from is not None:
            source = read_source(settings, data.num_classes)
            start.notes.append(fill_network(model, source, settings.init_backbone))
            start.facts["init_from"] = source.facts
            _check_unchanged("init_from", start.facts, recorded)
    if settings.freeze_backbone:
        freeze_backbone(model)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        start.notes.append(f"the backbone is frozen; {trained:,} parameters are trained")
    return start


def freeze_backbone(model: nn.Module) -> None:
    """Exclude all parameters but the classifier's from training."""
    for name, parameter in model.named_parameters():
        if not name.startswith(CLASSIFIER):
            parameter.requires_grad_(False)


def _note_library(start: Start, settings: Settings, data: DataSet, run: Run) -> None:
    """Record the library that a network comes from, and what its user should know."""
    found = getattr(start.model, "description", None)
    if found is None:
        return
    start.facts[found["library"]] = found
    version = f"{found['library']} {found['version']}"
    if run.resumed:
        before = read_config(run.directory).network.get(found["library"], {}).get("version")
        if before != found["version"]:
            start.notes.append(f"the network is of {version}, {before} before")
        return
    if not settings.pretrained:
        start.notes.append(f"the network is of {version}")
        return
    weights = settings.weights or found.get("hf_hub_id") or found.get("url")
    note = f"the network is of {version}, its weights are those of {weights}"
    if any(
        round(ours - theirs, 3)
        for name in ("mean", "std")
        for ours, theirs in zip(getattr(data, name), found.get(name, ()), strict=False)
    ):
        note += "; images are normalised by the data set's mean and std, not by the weights'"
    start.notes.append(note)
    if unused := getattr(start.model, "unused", ()):
        start.notes.append(f"the network has no place for {list_keys(unused)} of these weights")


def read_source(settings: Settings, num_classes: int) -> Source:
    """Read the weights that --init_from names, with the names of our networks.

    A run directory stands for its newest epoch_NNN.pth, or else its last.pth.

    Raises UserError if nothing is there, it is damaged, or of another network.
    """
    assert settings.init_from is not None
    path = Path(settings.init_from)
    if not path.exists():
        raise UserError(f"--init_from {path} does not exist")
    if path.is_dir():
        path = _choose_weights(path)
    is_own = (path.parent / CONFIG).exists()
    if is_own and settings.init_bias_added:
        raise UserError(
            f"--init_bias_added has no effect here: {path.parent} is a run of this program"
        )
    with open_checkpoint(path) as checkpoint:
        facts = _describe_content(checkpoint)
        if is_own:
            state = _read_own(checkpoint, settings, facts)
        else:
            bare = Bare(bias_added=settings.init_bias_added)
            content = read_content(checkpoint)
            state = translate_content(path, content, bare, settings.model, num_classes)
    return Source(path, state, facts, is_own)


def _choose_weights(directory: Path) -> Path:
    """Return the newest weights in a run directory. Raises UserError."""
    if not (directory / CONFIG).exists():
        raise UserError(f"--init_from {directory} is not a run directory: name a file of weights")
    epochs = {read_epoch(path.name): path for path in list_files(directory)}
    saved = {epoch: path for epoch, path in epochs.items() if epoch is not None}
    if saved:
        return saved[max(saved)]
    if (directory / LAST).exists():
        return directory / LAST
    raise UserError(f"--init_from {directory} holds no weights yet")


def _read_own(
    checkpoint: Checkpoint, settings: Settings, facts: dict[str, Any]
) -> dict[str, Tensor]:
    """Read a checkpoint of a run of ours, and add what identifies it to `facts`."""
    path, config = checkpoint.path, read_config(checkpoint.path.parent)
    model = config.settings.model
    if not share_definition(model, settings.model):
        raise UserError(f"--init_from {path} is of {model}, this run is of {settings.model}")
    check_origin(path, checkpoint.archive.origin, config.run_id)
    content = read_content(checkpoint)
    if path.name == LAST:
        try:
            epoch, content = content["position"]["epoch"], content["model"]
        except (KeyError, TypeError, IndexError) as error:
            raise UserError(f"{path} is damaged: it holds no weights") from error
    else:
        epoch = read_own_epoch(path)
    facts.update(run_name=path.parent.name, run=config.run_id, epoch=epoch)
    return translate_own(path, content, model, config.versions.network)


def _describe_content(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the name of an open file and the hash of its content."""
    digest = hashlib.sha256()
    checkpoint.file.seek(0)
    while chunk := checkpoint.file.read(CHUNK):
        digest.update(chunk)
    checkpoint.file.seek(0)
    return {"file": checkpoint.path.name, "sha256": digest.hexdigest()}


def _describe_file(path: Path) -> dict[str, Any]:
    with open_checkpoint(path) as checkpoint:
        return _describe_content(checkpoint)


def _check_unchanged(name: str, facts: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Refuse other weights than those that a run without a saved state began with."""
    before = recorded.get(name)
    if isinstance(before, dict) and before.get("sha256") != facts[name]["sha256"]:
        raise UserError(f"--{name}: {facts[name]['file']} has changed since the run began")


def fill_network(model: nn.Module, source: Source, backbone_only: bool) -> str:
    """Put the weights of a source into a network; return the line for the log.

    Entries of another program's file that the network has no place for are left out with
    `backbone_only`: they may be its classifier. Raises a UserError that names the misfit.
    """
    state, unused = source.state, list[str]()
    if backbone_only:
        fresh = {k: v for k, v in model.state_dict().items() if k.startswith(CLASSIFIER)}
        state = {k: v for k, v in state.items() if not k.startswith(CLASSIFIER)} | fresh
        if not source.is_own:
            wanted = model.state_dict()
            unused = [key for key in state if key not in wanted]
            state = {key: value for key, value in state.items() if key in wanted}
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        hint = (
            ""
            if backbone_only or not _fits_without(model, state)
            else ("; --init_backbone takes the rest")
        )
        raise UserError(
            f"--init_from {source.path} does not fit the network: "
            f"{explain_misfit(model, state)}{hint}"
        ) from error
    epoch = source.facts.get("epoch")
    part = "the backbone begins" if backbone_only else "begins"
    note = f"{part} with the weights of {source.path}"
    note += "" if epoch is None else f" (epoch {epoch})"
    return note + (f"; it has no place for {list_keys(unused)}" if unused else "")


def _fits_without(model: nn.Module, state: dict[str, Tensor]) -> bool:
    """Return whether a state_dict fits a network but for the classifier."""
    wanted = model.state_dict()
    names = {key for key in (*wanted, *state) if not key.startswith(CLASSIFIER)}
    return all(
        key in wanted and key in state and wanted[key].shape == state[key].shape for key in names
    )
