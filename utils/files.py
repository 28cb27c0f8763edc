"""Files that are whole at every moment: written under another name, then renamed."""

import contextlib
import csv
import io
import json
import operator
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from utils.errors import UserError

LONGEST_NAME = 200  # bytes: endings are added to the names that users give
# Flags of os.open that some systems do not have. O_BINARY: Windows would change the ends of lines.
BINARY, NONBLOCK, NOFOLLOW = (
    getattr(os, name, 0) for name in ("O_BINARY", "O_NONBLOCK", "O_NOFOLLOW")
)
PICTURES = (".png", ".pdf", ".svg")  # endings of the files that matplotlib writes here


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`.

    A kill, a full disk or a power failure at any moment leaves the old file or the new one, never a
    part of one. `write` gets a new file, open for reading and writing. Raises UserError if the file
    cannot be written; the old file at `path` then stays.
    """
    _refuse_special(path)
    temporary = name_temporary(path)
    try:
        # O_EXCL: the file is new, and no link is followed.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | BINARY, 0o666)
        with open(descriptor, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    # torch reports a failed write of the underlying file as RuntimeError.
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cannot write {path}: {_find_reason(error)}; nothing written before is lost"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def link_whole(source: Path, path: Path) -> None:
    """Give the file at `source` the second name `path`, without a copy; replace a file there.

    Falls back to a copy on file systems without hard links. Raises UserError as `write_whole`.
    """
    _refuse_special(path)
    temporary = name_temporary(path)
    try:
        os.link(source, temporary)
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError:
        write_whole(path, lambda file: file.write(source.read_bytes()))
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()  # two names of one file: os.replace leaves both


def rename_whole(source: Path, path: Path) -> None:
    """Rename a file to a name in its directory; replace a file there. Raises UserError."""
    _refuse_special(path)
    try:
        os.replace(source, path)
    except OSError as error:
        raise UserError(f"cannot rename {source} to {path.name}: {error.strerror}") from error
    _sync_directory(path.parent)


def remove(path: Path) -> None:
    """Remove a file, if it is still there. Raises UserError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot remove {path}: {error.strerror}") from error


def _refuse_special(path: Path) -> None:
    """Refuse to replace a device, a pipe, a socket or a directory. Raises UserError."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot write {path}: it is not a regular file")


def _sync_directory(directory: Path) -> None:
    """Make a rename last through a power failure, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; a device or a pipe, which could block for ever, is refused.

    Raises UserError.
    """
    try:
        # NONBLOCK: to open a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | NONBLOCK | BINARY)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"cannot read {path}: it is not a regular file")
    return open(descriptor, "rb")


def open_log(path: Path) -> TextIO:
    """Open a regular file for lines at its end, in UTF-8; no link is followed. Raises UserError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | NONBLOCK | NOFOLLOW | BINARY
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"cannot write {path}: it is not a regular file")
    return open(descriptor, "a", encoding="utf-8", errors="backslashreplace")


def check_target(flag: str, path: Path) -> None:
    """Raise UserError, naming the flag, if no file can be put at `path`."""
    if not path.name or path.is_dir():
        raise UserError(f"{flag} {str(path)!r} is not the name of a file")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise UserError(f"{flag}: the name of the file is longer than {LONGEST_NAME} bytes")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{flag}: {path.absolute().parent} is not a directory")
    try:
        _refuse_special(path)
    except UserError as error:
        raise UserError(f"{flag}: {error}") from error


def check_picture(flag: str, path: Path) -> None:
    """Raise UserError, naming the flag, if no picture can be put at `path`."""
    check_target(flag, path)
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"{flag} {str(path)!r}: the name must end in .png, .pdf or .svg")


def can_link(directory: Path) -> bool:
    """Return whether a file in a directory can have a second name; nothing stays there."""
    first, second = (name_temporary(directory / "link") for _ in range(2))
    try:
        first.touch(exist_ok=False)
        os.link(first, second)
        return True
    except OSError:
        return False
    finally:
        for path in (first, second):
            with contextlib.suppress(OSError):
                path.unlink()


def find_existing_parent(path: Path) -> Path:
    """Return the path itself if it exists, else the nearest directory above it that does."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def format_bytes(count: float) -> str:
    """Format a number of bytes in decimal units: "44.7 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.95:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def name_temporary(path: Path) -> Path:
    """Return a new name, which nobody can guess, for a temporary file beside `path`."""
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")


def remove_temporaries(directory: Path, *names: str) -> None:
    """Remove the temporary files that a killed writer of `names` (may hold *) left behind.

    The caller must know that nobody writes these files now.
    """
    for name in names:
        for leftover in directory.glob(f".{name}*.tmp"):
            with contextlib.suppress(OSError):
                leftover.unlink()


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
    """Open UTF-8 text, with or without a byte order mark. Raises UserError as `open_regular`."""
    return io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="")


def read_json(path: Path) -> Any:
    """Read JSON. Raises UserError if `path` is missing or is not JSON."""
    file = _open_text(path)
    try:
        with file:
            return json.load(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {_find_reason(error)}") from error
    except RecursionError as error:
        raise UserError(f"{path} is damaged: its JSON is nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: not valid JSON ({error})") from error


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Write `rows` whole or not at all, as `format_csv` does. Raises UserError."""
    content = encode(format_csv(columns, rows))
    write_whole(path, lambda file: file.write(content))


def format_csv(columns: Sequence[str], rows: Sequence[dict[str, Any]], header: bool = True) -> str:
    """Format `rows` in full precision: repr of a float reads back as the same float."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class GrowingCsv:
    """A CSV file that is written whole again and again, with more rows each time.

    The text of a row that another one follows is kept and not made again: such a row, the same
    object, must not change. So a file of thousands of rows costs little more than its bytes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] = []
        self._known: list[dict[str, Any]] = []  # rows whose text is kept
        self._text = ""

    def write(self, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
        """Write `rows` whole or not at all, as `write_csv` does. Raises UserError."""
        earlier = rows[:-1]
        common = earlier[: len(self._known)]
        if list(columns) != self._columns or not (
            len(common) == len(self._known) and all(map(operator.is_, common, self._known))
        ):
            self._columns, self._known, self._text = list(columns), [], format_csv(columns, [])
        new = earlier[len(self._known) :]
        self._known += new
        self._text += format_csv(columns, new, header=False)
        content = encode(self._text + format_csv(columns, rows[-1:], header=False))
        write_whole(self._path, lambda file: file.write(content))


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read the rows of `path` as text. Raises UserError if it cannot be read."""
    file = _open_text(path)
    try:
        with file:
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
