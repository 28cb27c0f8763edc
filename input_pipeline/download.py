"""Downloads through torchvision. A failure ends in one line."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from torchvision.datasets import CIFAR10, MNIST

from utils.errors import UserError

_DOWNLOAD_TIMEOUT = 15  # seconds without an answer
# A failed connection, a full disk or a cut-off archive raise one of these.
_DOWNLOAD_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    http.client.HTTPException,
    tarfile.TarError,
    zlib.error,
)


def download(
    dataset: type[MNIST | CIFAR10], data_dir: Path, archives: list[str], source: str, folder: Path
) -> None:
    """Download and unpack a set through torchvision, without its output on the console.

    Args:
        dataset: torchvision's class.
        data_dir: its root.
        archives: names of the files that are absent.
        source: the address where they are published.
        folder: where they belong.

    Raises:
        UserError: the download failed. The message has archives, source and folder, so that a
            person can put them there by hand.
    """
    timeout = socket.getdefaulttimeout()
    try:
        # torchvision sets no time limit, and an unanswered connection would hang for minutes.
        socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
        with _silence():
            dataset(data_dir, download=True)
    except _DOWNLOAD_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        broken = [archive for archive in archives if (folder / archive).is_file()]
        note = f" in place of the incomplete {', '.join(broken)} there" if broken else ""
        raise UserError(
            f"{dataset.__name__} is not in {data_dir} and can't be downloaded ({reason}): "
            f"get {', '.join(archives)} from {source} and put it into {folder}{note}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Drop what is printed, but keep a progress bar that a person can see on a terminal."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if not sys.stderr.isatty():
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield
