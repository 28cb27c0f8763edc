"""The default name of a run: what its settings are, and when it began."""

from __future__ import annotations

import re
import time
from pathlib import Path

from args import Settings
from input_pipeline import name_data
from rundir.names import NAMED_FIRST, spell_for_files

LONGEST_NAME = 180
LONGEST_DATA = 40  # characters of the name of a folder's data set
PATHS = ("weights", "init_from")  # of these settings a run's name has the last part


def format_run_name(settings: Settings) -> str:
    """Return the default name: model, data set, loss, optimizer, other given settings, time."""
    own = {"dataset": _name_data(settings), "model": spell_for_files(settings.model)}
    parts = [str(own.get(name) or getattr(settings, name)) for name in NAMED_FIRST]
    for name, value in settings.get_distinct().items():
        if name in NAMED_FIRST:
            continue
        values = "-".join(map(str, value)) if isinstance(value, list) else value
        values = Path(value).name if name in PATHS else values
        parts.append(name if value is True else f"{name}{values}")
    text = _make_plain("_".join(parts))[:LONGEST_NAME]
    return f"{text}_{time.strftime('%Y%m%d-%H%M%S')}"


def _name_data(settings: Settings) -> str:
    """Return the part of a run's name that a folder's directory gives; "" if that is not plain."""
    return _make_plain(name_data(settings.dataset, settings.data_dir))[:LONGEST_DATA]


def _make_plain(text: str) -> str:
    """Return text without what the name of a directory must not have on any system."""
    return re.sub(r"[^A-Za-z0-9.+_-]", "", text)
