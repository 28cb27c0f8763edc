"""Files that are whole at every moment: written under another name, then renamed."""

import contextlib
import csv
import io
import json
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from utils.errors import UserError

PICTURES = (".png", ".pdf", ".svg")  # endings of the files that matplotlib writes here


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`.

    A kill or a full disk at any moment leaves the old file or the new one, never a part of one.
    Raises UserError if the file cannot be written; the old file at `path` then stays.
    """
    temporary = name_temporary(path)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    # torch reports a failed write of the underlying file as RuntimeError.
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(
            f"cannot write {path}: {_find_reason(error)}; nothing written before is lost"
        ) from error


def link_whole(source: Path, path: Path) -> None:
    """Give the file at `source` the second name `path`, without a copy; replace a file there.

    Falls back to a copy on file systems without hard links. Raises UserError as `write_whole`.
    """
    temporary = name_temporary(path)
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        os.replace(temporary, path)
    except OSError:
        write_whole(path, lambda file: file.write(source.read_bytes()))


def check_target(flag: str, path: Path) -> None:
    """Raise UserError, naming the flag, if no file can be put at `path`."""
    if not path.name or path.is_dir():
        raise UserError(f"{flag} {str(path)!r} is not the name of a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{flag}: {path.absolute().parent} is not a directory")


def check_picture(flag: str, path: Path) -> None:
    """Raise UserError, naming the flag, if no picture can be put at `path`."""
    check_target(flag, path)
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"{flag} {str(path)!r}: the name must end in .png, .pdf or .svg")


def name_temporary(path: Path) -> Path:
    """Return the name of the temporary file beside `path`."""
    return path.with_name(f".{path.name}.tmp")


def remove_temporaries(directory: Path) -> None:
    """Remove the temporary files that a killed writer left in `directory`."""
    for leftover in directory.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` whole or not at all. Raises UserError."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(encode(text)))


def encode(text: str) -> bytes:
    r"""Return text as UTF-8. A byte that is no UTF-8 in a file's name becomes the text "\udcNN".

    In JSON this is the escape that `read_json` undoes.
    """
    return text.encode("utf-8", "backslashreplace")


def _open_text(path: Path) -> TextIO:
    """Open a regular file as UTF-8 whatever the locale, also one with a byte order mark.

    A FIFO or a device could keep the reader waiting without end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"cannot read {path}: it is not a regular file")
    return open(path, encoding="utf-8-sig", newline="")


def read_json(path: Path) -> Any:
    """Read JSON. Raises UserError if `path` is missing or is not JSON."""
    try:
        with _open_text(path) as file:
            return json.load(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {_find_reason(error)}") from error
    except RecursionError as error:
        raise UserError(f"{path} is damaged: its JSON is nested too deeply") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is damaged: not valid JSON ({error})") from error


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Write `rows` whole or not at all, as `format_csv` does. Raises UserError."""
    content = encode(format_csv(columns, rows))
    write_whole(path, lambda file: file.write(content))


def format_csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """Format `rows` in full precision: repr of a float reads back as the same float."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read the rows of `path` as text. Raises UserError if it cannot be read."""
    try:
        with _open_text(path) as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {_find_reason(error)}") from error


def _find_reason(error: BaseException) -> str:
    """Return the system's words for an error on one line; torch hides them in its context."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error.__context__, OSError):
        return _find_reason(error.__context__)
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
