"""Checkpoints: state_dicts for evaluation, and the full state from which a run resumes exactly."""

from __future__ import annotations

import contextlib
import io
import re
import textwrap
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from rundir.archives import Archive, Origin, add_origin, verify
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


@dataclass(frozen=True)
class Checkpoint:
    """An open file of weights, whose checksums have been compared with its content.

    Attributes:
        path: its name, for messages.
        archive: what was read of it.
        file: the file, at its beginning.
    """

    path: Path
    archive: Archive
    file: BinaryIO

    def load(self) -> Any:
        """Load its tensors to the CPU; only tensors and plain containers are accepted.

        They are those that `archive` was read from, also if the file is written meanwhile: the
        tensors' checksums are compared, or the content that has been read is used. Raises a
        UserError that names the file if it is damaged or not a checkpoint.
        """
        source = self.file if self.archive.verified else io.BytesIO(self.archive.content)
        try:
            state = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a different type for every kind of damage
            reason = explain_refusal(str(error) or type(error).__name__)
            if not reason and not zipfile.is_zipfile(source):
                reason = "it is cut off or was not written by torch.save"
            raise UserError(f"{self.path} is damaged or not a checkpoint ({reason})") from error
        # torch reads an archive by other fields of its headers than zipfile does: a flipped bit
        # there can leave a tensor unread.
        if self.archive.verified and not compute_checksums(state) <= self.archive.checksums:
            raise UserError(f"{self.path} is damaged (torch reads other tensors than were written)")
        return state


@contextlib.contextmanager
def open_checkpoint(path: Path) -> Iterator[Checkpoint]:
    """Open a checkpoint and compare its checksums with its content.

    Raises a UserError that names the file if it is missing or damaged.
    """
    with open_regular(path) as file:
        yield Checkpoint(path, verify(file, path), file)


def load(path: Path) -> Any:
    """Read a checkpoint to the CPU, as `Checkpoint.load` does. Raises UserError."""
    with open_checkpoint(path) as checkpoint:
        return checkpoint.load()


def compute_checksums(state: Any) -> set[int]:
    """Compute the CRC-32 of each storage of the tensors in nested containers on the CPU."""
    storages: dict[int, torch.UntypedStorage] = {}
    waiting = [state]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, list | tuple | set):
            waiting += part
        elif isinstance(part, Tensor) and part.layout == torch.strided:
            storages[part.untyped_storage().data_ptr()] = part.untyped_storage()
    return {_compute_checksum(storage) for storage in storages.values() if storage.nbytes()}


def _compute_checksum(storage: torch.UntypedStorage) -> int:
    values = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[call-overload]
    return zlib.crc32(values.numpy().data)


def explain_refusal(message: str) -> str:
    """Explain in few words why torch.load refused a file; "" if it is no file of torch's."""
    found = re.search(r"GLOBAL (\S+) was not an allowed global", message)
    if found:
        return f"it holds a {found[1]}, which could run code: save the state_dict alone"
    if "Weights only load failed" in message:
        return textwrap.shorten(message.rpartition("WeightsUnpickler error:")[2], 90)
    return textwrap.shorten(message, 90, placeholder=" …") if "PytorchStream" in message else ""


def read_rng_state(device: torch.device) -> dict[str, Any]:
    """Return the states of the generators of dropout; the data's draws need none.

    They are those of the CPU and of the device, as tensors on the CPU; None without a GPU.
    """
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore the states that `read_rng_state` returned, as far as this device has them."""
    torch.set_rng_state(state["cpu"].cpu())
    cuda = state["cuda"]
    if isinstance(cuda, list):  # an earlier version saved those of all GPUs
        cuda = cuda[device.index] if device.type == "cuda" and device.index < len(cuda) else None
    if device.type == "cuda" and cuda is not None:
        torch.cuda.set_rng_state(cuda.cpu(), device)
