"""The command line: parsers, checked values, and how every command ends. Imports no torch."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from utils.errors import UserError
from utils.registry import find_name, suggest
from utils.signals import Stopped, StopSignal

MISTAKE, NOT_FINITE = 2, 3  # exit statuses: a user's mistake, a loss that is not finite
LARGEST_INTEGER = 2**31 - 1
LONGEST_VALUE = 60  # characters of a refused value that are shown
LARGEST_REAL = 3e38  # the networks compute in float32, whose largest number is just above
HELP_WIDTH, HELP_COLUMN = 100, 28

# Words for pydantic's kinds of error.
REFUSALS = {
    "int_parsing": "is not a whole number",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "int_parsing_size": "is too large",
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "string_type": "is not text",
    "bool_type": "is neither true nor false",
    "list_type": "is not a list",
    "too_short": "must have at least {min_length} value",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
}

# Values of flags and settings. pydantic checks them and words the refusals.
Natural = Annotated[int, Field(ge=0, le=LARGEST_INTEGER)]
Count = Annotated[int, Field(ge=1, le=LARGEST_INTEGER)]
DeviceNumber = Annotated[int, Field(ge=-1, le=LARGEST_INTEGER)]  # -1 is the CPU
Real = Annotated[float, Field(ge=-LARGEST_REAL, le=LARGEST_REAL, allow_inf_nan=False)]
Positive = Annotated[Real, Field(gt=0)]
NonNegative = Annotated[Real, Field(ge=0)]
Factor = Annotated[Real, Field(ge=1)]


def known(names: Iterable[str], kind: str) -> AfterValidator:
    """Return the validator of a name: it accepts any case and returns the spelling of `names`."""
    return AfterValidator(lambda text: find_name(text, names, kind))


def name_of(names: Iterable[str], kind: str) -> Any:
    """Return the type of a name: it accepts any case and takes the spelling of `names`."""
    return Annotated[str, known(names, kind)]


def check_value(kind: Any) -> Callable[[str], Any]:
    """Return an argparse type that checks a flag's text against a type such as `Count`."""
    adapter = TypeAdapter(kind)

    def convert(text: str) -> Any:
        try:
            return adapter.validate_python(text)
        except ValidationError as error:
            raise argparse.ArgumentTypeError(describe_error(error)) from error

    return convert


def describe_error(error: ValidationError) -> str:
    """Describe in a few words the first value that pydantic refuses, and the allowed values."""
    first = error.errors()[0]
    context = first.get("ctx", {})
    if first["type"] == "value_error":
        return str(context["error"])
    value = repr(first["input"])
    if len(value) > LONGEST_VALUE:
        value = f"{value[:LONGEST_VALUE]}…"
    template = REFUSALS.get(first["type"])
    if template is None:
        words = first["msg"].replace("Input should be", "must be")
        return f"{value} {words[0].lower()}{words[1:]}"
    limits = {key: _format_limit(limit) for key, limit in context.items()}
    return f"{value} {template.format(**limits)}"


def _format_limit(limit: object) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


class Parser(argparse.ArgumentParser):
    """Parser that refuses abbreviated flags and ends a mistake in one line and status 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
                prog, max_help_position=HELP_COLUMN, width=HELP_WIDTH
            ),
            **options,
        )
        # argparse would take the value in "--bias_init_mean -1e-3" for an unknown flag.
        self._negative_number_matcher = re.compile(r"-(\d|\.\d|inf$|nan$)", re.IGNORECASE)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; name the nearest known flag for an unknown one."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = suggest(unknown[0].partition("=")[0], flags)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Print a mistake as one line and exit with status 2."""
        message = " ".join(message.split())
        message = message.replace("ignored explicit argument", "takes no value, but was given")
        self.exit(MISTAKE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def add_device_flag(group: Any) -> None:
    """Add `--gpu_id` to a parser or a group of one."""
    group.add_argument(
        "--gpu_id",
        type=check_value(DeviceNumber),
        default=0,
        metavar="N",
        help="CUDA device number; -1, or no CUDA: the CPU (default: 0)",
    )


def add_evaluation_flags(group: Any) -> None:
    """Add the flags of every script that passes images through a network."""
    add_device_flag(group)
    group.add_argument(
        "--batch_size",
        type=check_value(Count),
        default=256,
        metavar="N",
        help="images per pass; changes memory and speed (default: 256)",
    )
    group.add_argument(
        "--data_dir",
        default=None,
        metavar="DIR",
        help="where the data set is, if it has moved (default: as in the run's config.json)",
    )


def run_command(
    program: str,
    body: Callable[[StopSignal], int],
    *,
    stopped: str,
    batch_size: int | None = None,
    explain: Callable[[BaseException], str | None] = lambda error: None,
) -> int:
    """Run the body of a command and return its exit status.

    A mistake of the user's, too little memory and a full disk end in one line on stderr and
    status 2; a stop ends in 128 + the signal's number.

    Args:
        program: the script's name, which begins the line.
        body: the command; its argument remembers a request to stop.
        stopped: the line that a stop before `StopSignal.wait_for_step` prints.
        batch_size: the value that the line about too little memory names; None: no value.
        explain: describes in one line a RuntimeError that a setting causes, else returns None.
    """
    try:
        with StopSignal(stopped) as stop:
            try:
                return body(stop)
            except Stopped:
                return stop.exit_status
    except UserError as error:
        message = str(error)
    except (MemoryError, RuntimeError) as error:
        explanation = explain(error) or _explain_memory(error, batch_size)
        if explanation is None:
            raise
        message = explanation
    except OSError as error:  # a log or an event file on a full disk
        message = f"{error.filename or 'writing'}: {error.strerror or error}"
    print_error(program, message)
    return MISTAKE


def _explain_memory(error: BaseException, batch_size: int | None) -> str | None:
    from utils.device import is_out_of_memory  # imports torch, which is there when it has failed

    if not is_out_of_memory(error):
        return None
    hint = f" with --batch_size {batch_size}: a smaller one may fit" if batch_size else ""
    return f"out of memory{hint}"


def print_error(program: str, message: object) -> None:
    """Print a user's mistake as one line on stderr."""
    print(f"{program}: error: {message}", file=sys.stderr)


def make_directory(flag: str, directory: Path) -> Path:
    """Make the directory that a flag names, if need be. Raises UserError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag}: cannot create {directory}: {error.strerror}") from error
    return directory
