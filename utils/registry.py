"""Registries: names that are found in any case, and functions that are named as text.

An entry names its function as "package.module:function", so that a registry imports nothing heavy.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from utils.errors import UserError


def load_function(reference: str) -> Callable[..., Any]:
    """Import the function that "package.module:function" names."""
    module, _, name = reference.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def find_name(text: str, names: Iterable[str], kind: str) -> str:
    """Return the name that `text` means, in any case.

    Args:
        text: what a user wrote.
        names: the known names.
        kind: the kind of thing that they name, for the message.

    Raises:
        UserError: there is none; the message names the nearest one and all others.
    """
    known = {name.lower(): name for name in names}
    if text.lower() in known:
        return known[text.lower()]
    listed = ", ".join(known.values())
    raise UserError(f"unknown {kind} {text!r}{suggest(text, known.values())}: use one of {listed}")


def suggest(text: str, names: Iterable[str]) -> str:
    """Return " (did you mean NAME?)" for the nearest of `names`, or "" if none is near.

    A name that begins with the text comes first.
    """
    known = {name.lower(): name for name in names}
    begun = [name for name in known if text and name.startswith(text.lower())]
    near = begun or difflib.get_close_matches(text.lower(), known, n=1, cutoff=0.55)
    return f" (did you mean {known[near[0]]}?)" if near else ""


def describe_names(registry: Mapping[str, Any], separator: str) -> str:
    """List the names of a registry, each with the `help` of its entry if that has one."""
    return separator.join(f"{k}: {v.help}" if v.help else k for k, v in registry.items())
