"""Checkpoints: state_dicts for evaluation, and the full state from which a run resumes exactly."""

from __future__ import annotations

import textwrap
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from rundir.archives import Origin, add_origin, verify
from utils.errors import UserError
from utils.files import open_regular, write_whole


def save(path: Path, state: Any, origin: Origin | None = None) -> None:
    """Write `state` whole or not at all, and where it comes from.

    Raises UserError (full disk, no permission).
    """

    def write(file: BinaryIO) -> None:
        torch.save(state, file)
        if origin is not None:
            add_origin(file, origin)

    write_whole(path, write)


def load(path: Path, device: torch.device | str = "cpu") -> Any:
    """Read a checkpoint; only tensors and plain containers are accepted (weights_only).

    The archive's checksums are compared with its content first. Raises a UserError that names the
    file if it is missing, damaged or not a checkpoint.
    """
    with open_regular(path) as file:
        verify(file, path)
        try:
            return torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # torch raises a different type for every kind of damage
            reason = textwrap.shorten(str(error) or type(error).__name__, 90, placeholder=" …")
            if not zipfile.is_zipfile(path):
                reason = "it is cut off or was not written by torch.save"
            raise UserError(f"{path} is damaged or not a checkpoint ({reason})") from error


def load_weights(
    model: nn.Module, path: Path, device: torch.device, *, bias_added: bool = False
) -> None:
    """Load a state_dict into `model`. Its classifier subtracts the bias.

    `bias_added` means that the file's classifier adds the bias, as torch.nn.Linear does. The
    function then changes its sign. Raises a UserError that names the file if it is damaged or does
    not fit.
    """
    state = load(path, device)
    try:
        if bias_added and "fc.bias" in state:
            state["fc.bias"] = -state["fc.bias"]
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        reason = textwrap.shorten(str(error), 160, placeholder=" …")
        raise UserError(f"{path} does not fit the model ({reason})") from error


def read_rng_state() -> dict[str, Any]:
    """Return the states of the generators of dropout; the data's draws need none."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_rng_state(state: dict[str, Any]) -> None:
    """Restore the states that `read_rng_state` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([generator.cpu() for generator in state["cuda"]])
