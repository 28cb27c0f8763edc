"""Checkpoints: state_dicts for evaluation, and the full state from which a run resumes exactly."""

from __future__ import annotations

import re
import textwrap
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

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
            reason = explain_refusal(str(error) or type(error).__name__)
            if not reason and not zipfile.is_zipfile(path):
                reason = "it is cut off or was not written by torch.save"
            raise UserError(f"{path} is damaged or not a checkpoint ({reason})") from error


def explain_refusal(message: str) -> str:
    """Explain in few words why torch.load refused a file; "" if it is no file of torch's."""
    found = re.search(r"GLOBAL (\S+) was not an allowed global", message)
    if found:
        return f"it holds a {found[1]}, which could run code: save the state_dict alone"
    if "Weights only load failed" in message:
        return textwrap.shorten(message.rpartition("WeightsUnpickler error:")[2], 90)
    return textwrap.shorten(message, 90, placeholder=" …") if "PytorchStream" in message else ""


def read_rng_state() -> dict[str, Any]:
    """Return the states of the generators of dropout; the data's draws need none."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_rng_state(state: dict[str, Any]) -> None:
    """Restore the states that `read_rng_state` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([generator.cpu() for generator in state["cuda"]])
