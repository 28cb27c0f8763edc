"""The zip archives that torch.save writes: their checksums, and where a checkpoint comes from.

Imports no torch. torch.load does not look at the checksums.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError
from utils.files import open_regular

ORIGIN = "origin.json"  # the entry that this program adds to an archive
CHUNK = 1 << 20  # bytes read at a time
# RuntimeError: an entry that is marked as encrypted.
DAMAGE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    RuntimeError,
    ValueError,
    EOFError,
)


@dataclass(frozen=True)
class Origin:
    """The epoch whose weights a checkpoint holds, and the `id` in the config.json of its run.

    `average` shows whether they are the average of the weights (`--ema`).
    """

    run: str
    epoch: int
    average: bool = False


@dataclass(frozen=True)
class Archive:
    """A checkpoint's file, read once from its beginning to its end.

    Attributes:
        verified: whether it holds checksums. They have then been compared with the content.
        content: bytes that differ where the content does: the checksums, or the whole content.
        origin: None in a file of another program, or of an earlier version.
        checksums: of the entries, if it is verified.
    """

    verified: bool
    content: bytes
    origin: Origin | None
    checksums: frozenset[int] = frozenset()


def read_archive(path: Path) -> Archive:
    """Read a checkpoint's file and compare its checksums with its content.

    Raises a UserError that names the file if it cannot be read or is damaged.
    """
    with open_regular(path) as file:
        return verify(file, path)


def verify(file: BinaryIO, path: Path) -> Archive:
    """Do the same for an open file, and go back to its beginning. `path` is for the message."""
    try:
        return _verify(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except DAMAGE as error:
        raise UserError(f"{path} is damaged ({error})") from error
    finally:
        file.seek(0)


def _verify(file: BinaryIO) -> Archive:
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return Archive(False, file.read(), None)
    with zipfile.ZipFile(file) as archive:
        entries = [(entry.filename, entry.file_size, entry.CRC) for entry in archive.infolist()]
        # torch writes 0 for every checksum if it is told to compute none.
        if all(crc == 0 for _, size, crc in entries if size):
            file.seek(0)
            return Archive(False, file.read(), None)
        for entry in archive.infolist():
            _read_through(archive, entry)
        checksums = frozenset(crc for _, _, crc in entries)
        return Archive(True, repr(entries).encode(), _read_origin(archive), checksums)


def _read_through(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Read an entry to its end, where zipfile compares the checksum."""
    if entry.compress_type != zipfile.ZIP_STORED:  # it could unfold to any size
        raise ValueError(f"{entry.filename} is compressed, which torch.save never does")
    with archive.open(entry) as content:
        while content.read(CHUNK):
            pass


def _read_origin(archive: zipfile.ZipFile) -> Origin | None:
    names = [name for name in archive.namelist() if name.endswith(f"/{ORIGIN}")]
    if not names:
        return None
    try:
        stored = json.loads(archive.read(names[0]))
        return Origin(str(stored["run"]), int(stored["epoch"]), bool(stored.get("average")))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{ORIGIN} is not as this program writes it") from error


def read_origin(path: Path) -> Origin | None:
    """Read a checkpoint's origin alone; None if it has none or cannot be read."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return _read_origin(archive)
    except (UserError, OSError, *DAMAGE):
        return None


def hold_the_same(one: Path, other: Path) -> bool:
    """Return whether two checkpoints hold the same content, whatever their origin.

    Raises UserError if one cannot be read or is damaged.
    """
    return _list_tensors(one) == _list_tensors(other)


def _list_tensors(path: Path) -> object:
    """Return what differs where the tensors of two files differ."""
    archive = read_archive(path)
    if not archive.verified:
        return archive.content
    with zipfile.ZipFile(path) as opened:
        # The first part of a name is that of the file.
        entries = [(e.filename.partition("/")[2], e.CRC) for e in opened.infolist()]
    return [entry for entry in entries if entry[0] not in (ORIGIN, ".data/serialization_id")]


def add_origin(file: BinaryIO, origin: Origin) -> None:
    """Add the origin to an archive that torch.save has written to `file`; torch.load ignores it."""
    with zipfile.ZipFile(file, "a") as archive:
        top = archive.namelist()[0].partition("/")[0]
        average = {"average": True} if origin.average else {}
        content = json.dumps({"run": origin.run, "epoch": origin.epoch, **average})
        # A fixed time: equal weights of one run give equal files.
        archive.writestr(zipfile.ZipInfo(f"{top}/{ORIGIN}"), content)
