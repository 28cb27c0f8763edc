"""Folder data sets that a command writes: whole or not at all, and known again later."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import name_temporary, read_json, write_json

RECORD = "written_by.json"  # beside train/ and test/, which alone `--dataset folder` reads


def is_written(folder: Path, facts: Mapping[str, Any]) -> bool:
    """Return whether the folder is there, written from the same facts.

    Raises UserError if something else is in its place.
    """
    if not folder.exists() and not folder.is_symlink():
        return False
    record = folder / RECORD
    if not record.is_file():
        raise UserError(
            f"{folder} exists and was not written by this command: choose another --out"
        )
    if read_json(record) == dict(facts):
        return True
    raise UserError(
        f"{folder} was written with other flags or data: delete it or choose another --out"
    )


def write_folder(folder: Path, facts: Mapping[str, Any], fill: Callable[[Path], object]) -> None:
    """Let `fill` write a folder data set beside `folder`, then rename it to `folder`.

    A kill or a power failure at any moment leaves no `folder`, or the whole one. What a kill by
    SIGKILL leaves is a hidden folder `.NAME.….tmp` beside it. Raises UserError.
    """
    temporary = name_temporary(folder)
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        write_json(temporary / RECORD, dict(facts))
        if hasattr(os, "sync"):  # one for all files: syncing each of 58,000 takes minutes
            os.sync()
        temporary.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
