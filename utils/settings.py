"""A table of settings. Flags, config.json and comparisons follow from its entries.

Imports no torch and never touches the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from utils.cli import Parser, describe_error
from utils.errors import UserError

NEW = object()  # a setting that every run has had
METAVARS = {"float": "X", "int": "N", "str": "NAME"}


@dataclass(frozen=True)
class Entry:
    """The facts of a setting besides its name, type, default and help.

    Attributes:
        group: its group of flags in `--help`.
        default_text: the default in words, if it depends on other settings.
        why_idle: maps settings to the reason why a given value has no effect in them, or None.
        shapes: whether it shapes what a run learns, and so the run's identity.
        builds: "data" or "model" if an evaluation needs it to build these again, "initial weights"
            if only the start of training needs it.
        before: the value of runs from before the setting existed.
        short: its form in the name of a run in a grid; None: no form of its own.
        left_open: whether None is decided when a run begins. A run that goes on keeps its value.
        metavar: the value in `--help`; None: by its type.
    """

    group: str
    default_text: str | None = None
    why_idle: Callable[[Any], str | None] = lambda settings: None
    shapes: bool = True
    builds: str | None = None
    before: Any = NEW
    short: str | None = None
    left_open: bool = False
    metavar: str | None = None


def setting(group: str, default: Any, help: str, **facts: Any) -> Any:
    """Declare a setting of a `Table`; `facts` are attributes of its `Entry`."""
    entry: Any = {"entry": Entry(group, **facts)}
    return Field(default, description=help, json_schema_extra=entry)


def require(name: str, value: Any = True, *, given: bool = False) -> Callable[[Any], str | None]:
    """Return the `why_idle` of a setting that has an effect only where another has `value`.

    With `given` any value of the other one will do, but None.
    """
    flag = f"--{name}" if given or value is True else f"--{name} {value}"

    def explain(settings: Any) -> str | None:
        found = getattr(settings, name)
        fits = found is not None if given else found == value
        return None if fits else f"it belongs to {flag}"

    return explain


class Table(BaseModel):
    """Settings; `model_fields_set` holds the names of those that a user gave."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def entries(cls) -> dict[str, Entry]:
        """Return the entry of every setting by its name."""
        extras: dict[str, Any] = {
            name: field.json_schema_extra for name, field in cls.model_fields.items()
        }
        return {name: extra["entry"] for name, extra in extras.items()}

    @classmethod
    def names(cls, **facts: Any) -> list[str]:
        """Return the names of the settings whose entries have all these facts."""
        return [
            name
            for name, entry in cls.entries().items()
            if all(getattr(entry, fact) == value for fact, value in facts.items())
        ]

    @classmethod
    def add_flags(cls, parser: Parser) -> None:
        """Add a flag for every setting, in the order and the groups of the entries."""
        groups: dict[str, Any] = {}
        for name, entry in cls.entries().items():
            if entry.group not in groups:
                groups[entry.group] = parser.add_argument_group(entry.group)
            cls.add_flag(groups[entry.group], name)

    @classmethod
    def add_flag(cls, group: Any, name: str, default_text: str | None = None) -> None:
        """Add the flag of one setting to a parser or a group, with another text for its default."""
        options = _describe_flag(cls, name, default_text)
        group.add_argument(f"--{name}", **options)
        if cls.model_fields[name].annotation == bool | None:
            help = f"the opposite of --{name} (default: off)"
            group.add_argument(
                f"--no_{name}",
                action="store_const",
                const=False,
                default=None,
                dest=name,
                help=help,
            )

    @classmethod
    def from_flags(cls, given: Mapping[str, Any]) -> Self:
        """Check the values that a command line gives. Raises UserError."""
        try:
            return cls(**given)
        except ValidationError as error:
            raise UserError(f"--{error.errors()[0]['loc'][0]}: {describe_error(error)}") from error

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Check settings that a file holds; add the settings that its version did not have.

        Raises a UserError that names what is missing or wrong.
        """
        known = {k: v for k, v in cls.add_before(stored).items() if k in cls.names()}
        for name, field in cls.model_fields.items():
            if name not in known and field.default is not None and field.default is not False:
                raise UserError(f"it has no {name!r}")
        try:
            checked = cls.model_validate(known, strict=True)
        except ValidationError as error:
            raise UserError(f"{error.errors()[0]['loc'][0]}: {describe_error(error)}") from error
        return cls.model_construct(_fields_set=set(), **checked.values())  # no user gave them here

    @classmethod
    def add_before(cls, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return stored settings, and the older values of those that their version did not have."""
        before = {name: e.before for name, e in cls.entries().items() if e.before is not NEW}
        return {**before, **stored}

    def values(self, names: list[str] | None = None) -> dict[str, Any]:
        """Return the values of these settings, or of all, by name."""
        return {name: getattr(self, name) for name in (self.names() if names is None else names)}

    def replace(self, **values: Any) -> Self:
        """Return a copy with other values; the names that a user gave stay known."""
        merged = {**self.values(), **values}
        return self.model_construct(_fields_set=set(self.model_fields_set), **merged)

    def merge_over(self, stored: Table) -> Self:
        """Return the settings that a user gave here, and those of a stored run for the others."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return self.replace(**(stored.values() | given))

    def get_shaping(self) -> dict[str, Any]:
        """Return the settings that shape what a run learns."""
        return self.values(self.names(shapes=True))

    def get_distinct(self) -> dict[str, Any]:
        """Return the given settings that shape a run and differ from their defaults."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        given = self.model_fields_set
        return {k: v for k, v in self.get_shaping().items() if k in given and v != defaults[k]}

    def refuse_idle(self) -> None:
        """Refuse a given setting that has no effect in this combination. Raises UserError."""
        for name, entry in self.entries().items():
            value, default = getattr(self, name), type(self).model_fields[name].default
            given = name in self.model_fields_set and value is not None
            given = given and (value is not False or default is None)
            reason = entry.why_idle(self) if given else None
            if reason:
                flag = f"no_{name}" if value is False else name
                raise UserError(f"--{flag} has no effect here: {reason}")


def _describe_flag(table: type[Table], name: str, default_text: str | None) -> dict[str, Any]:
    """Return the options of argparse's add_argument for a setting; the table checks the value."""
    field, entry = table.model_fields[name], table.entries()[name]
    default = default_text or entry.default_text
    if default is None:
        default = "off" if field.default is False else _format(field.default)
    options: dict[str, Any] = {"help": f"{field.description} (default: {default})", "default": None}
    if field.annotation in (bool, bool | None):
        return {**options, "action": "store_const", "const": True}
    text = str(field.annotation)
    kind = next((kind for kind in METAVARS if kind in text), "str")
    options["metavar"] = entry.metavar or METAVARS[kind]
    if "list" in text:
        options["nargs"] = "+"
    return options


def _format(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
