"""The command line: parsers, checked values, and how every command ends. Imports no torch."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from utils.console import escape, prepare_streams
from utils.errors import UserError
from utils.registry import find_name, suggest
from utils.sharing import read_sharers
from utils.signals import Stopped, StopSignal
from utils.world import claim_line, get_world, leave, read_rank, refuse_several

MISTAKE, NOT_FINITE = 2, 3  # exit statuses: a user's mistake, a loss that is not finite
LARGEST_INTEGER = 2**31 - 1
SMALLEST_BATCH = 2  # batch normalisation needs two images
LONGEST_VALUE = 60  # characters of a refused value that are shown
LONGEST_FILE_NAME, LONGEST_PATH = 255, 3500  # bytes; Linux has 4096 for a path with what is added
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
    "too_short": "must be {min_length} or more values",
    "too_long": "must be {max_length} or fewer values",
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


def _check_path(text: str) -> str:
    """Return a path with its leading "~" expanded, which a shell leaves in "--flag=~/x"."""
    path = os.path.expanduser(text)
    if not path:
        raise UserError("'' is not the name of a file or directory")
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise UserError(f"{shorten(path)} is too long: a path has at most {LONGEST_PATH} bytes")
    longest = max(path.split(os.sep), key=lambda name: len(os.fsencode(name)))
    if len(os.fsencode(longest)) > LONGEST_FILE_NAME:
        words = f"is too long: a name has at most {LONGEST_FILE_NAME} bytes"
        raise UserError(f"{shorten(longest)} {words}")
    return path


def shorten(value: object) -> str:
    """Return the beginning of a value's repr, for a message."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


PathText = Annotated[str, AfterValidator(_check_path)]
# Of a file that shapes a run: the same one has the same name from every working directory.
AbsolutePath = Annotated[PathText, AfterValidator(os.path.abspath)]


def _check_plain_name(text: str) -> str:
    """Return the name of a directory that holds no path and nothing that is not printable."""
    # In a locale without UTF-8 a name comes as surrogates, one for a byte.
    shown = text
    with contextlib.suppress(UnicodeEncodeError):
        shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    plain = Path(text).name == text and shown.isprintable() and len(shown.encode()) <= 200
    if not plain or text in ("", ".", "..") or text.startswith("-"):
        raise UserError(f"{shorten(text)} is not a plain directory name of at most 200 bytes")
    return text


PlainName = Annotated[str, AfterValidator(_check_plain_name)]


def _check_project(text: str) -> str:
    """Return the name of a project at Weights & Biases, which has rules of its own."""
    if not re.fullmatch(r"[^/\\#?%:\s][^/\\#?%:]{0,127}", text) or not text.isprintable():
        raise UserError(f"{shorten(text)} is no name of a project: 1 to 128 characters but /\\#?%:")
    return text


ProjectName = Annotated[str, AfterValidator(_check_project)]


def known(names: Iterable[str], kind: str) -> AfterValidator:
    """Return the validator of a name: it accepts any case and returns the spelling of `names`."""
    return AfterValidator(lambda text: find_name(text, names, kind))


def name_of(names: Iterable[str], kind: str) -> Any:
    """Return the type of a name: it accepts any case and takes the spelling of `names`."""
    return Annotated[str, known(names, kind)]


def count_or(*words: str) -> Any:
    """Return the type of a whole number of at least 1, or one of these words in any case."""
    listed = ", ".join(words)

    def check(value: int | str) -> int | str:
        text = str(value).lower()
        if text in words:
            return text
        if not text.isdecimal() or not 1 <= int(text) <= LARGEST_INTEGER:
            raise UserError(f"{shorten(value)} is not {listed} or a whole number from 1 on")
        return int(text)

    return Annotated[int | str, AfterValidator(check)]


def real_or(*words: str) -> Any:
    """Return the type of a real number, or one of these words in any case."""
    number = TypeAdapter(Real)

    def check(value: float | str) -> float | str:
        text = str(value).lower()
        if text in words:
            return text
        try:
            return number.validate_python(value)
        except ValidationError as error:
            parsed = error.errors()[0]["type"] != "float_parsing"
            also = "" if parsed else f"{suggest(text, words)}; allowed are also {', '.join(words)}"
            raise UserError(f"{describe_error(error)}{also}") from error

    return Annotated[float | str, AfterValidator(check)]


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
    value = shorten(first["input"])
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
        prepare_streams()
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = suggest(unknown[0].partition("=")[0], flags)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Print a mistake as one line and exit with status 2; of several processes one prints."""
        message = escape(" ".join(message.split()))
        message = message.replace("ignored explicit argument", "takes no value, but was given")
        self.exit(MISTAKE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def print_help(self, file: Any = None) -> None:
        """Print the help; of several processes one does."""
        if read_rank() == 0:
            super().print_help(file)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Exit with a message; of several processes one prints it."""
        super().exit(status, message if message and claim_line() else None)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # argparse drops "--" among the values; in "--flag=--" it is the value.
        if arg_strings == ["--"] and action.option_strings:
            value = self._get_value(action, "--")  # type: ignore[attr-defined]
            return value if action.nargs is None else [value]
        return super()._get_values(action, arg_strings)  # type: ignore[misc]


def add_device_flag(group: Any) -> None:
    """Add `--gpu_id` to a parser or a group of one."""
    group.add_argument(
        "--gpu_id",
        type=check_value(DeviceNumber),
        default=None,
        metavar="N",
        help="CUDA device number; -1, or no CUDA: the CPU (default: 0)",
    )


def list_device_flags(gpu_id: int | None) -> list[str]:
    """Return `--gpu_id` as words for another command; none if the user has not given it."""
    return [] if gpu_id is None else ["--gpu_id", str(gpu_id)]


def add_evaluation_flags(group: Any) -> None:
    """Add the flags of every script that passes images through a network."""
    group.add_argument(
        "--ema",
        action="store_true",
        help="the averages of the weights (ema_NNN.pth) of runs with --ema (default: off)",
    )
    add_device_flag(group)
    group.add_argument(
        "--batch_size",
        type=check_value(Count),
        default=None,
        metavar="N",
        help="images per pass of a process; changes memory and speed (default: 256, or 1,024 small "
        "ones)",
    )
    group.add_argument(
        "--data_dir",
        type=check_value(PathText),
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
    divides: bool = False,
) -> int:
    """Run the body of a command and return its exit status.

    A mistake of the user's, too little memory and a full disk end in one line on stderr and
    status 2; a stop ends in 128 + the signal's number. Output that cannot be written ends nothing,
    as `prepare_streams` describes. If one process of a job ends so, all do, and one prints.

    Args:
        program: the script's name, which begins the line.
        body: the command; its argument remembers a request to stop.
        stopped: the line that a stop before `StopSignal.wait_for_step` prints.
        batch_size: the value that the line about too little memory names; 0 where the flag was
            not given; None for a command without it.
        explain: describes in one line a RuntimeError that a setting causes, else returns None.
        divides: whether the command divides its work among the processes of a job.
    """
    prepare_streams()
    try:
        if not divides:
            refuse_several(program)
        with StopSignal(stopped) as stop:
            status = _run_body(body, stop)
            leave()
            return status
    except (UserError, MemoryError, RuntimeError, OSError) as error:
        message = _explain_error(error, explain, batch_size)
        if message is None:
            raise
        _print_once(program, message, error)
    get_world().abandon(MISTAKE)
    return MISTAKE


def _explain_error(
    error: BaseException, explain: Callable[[BaseException], str | None], batch_size: int | None
) -> str | None:
    """Explain an error in one line; None for one that is a defect of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):  # a log or an event file on a full disk
        return f"{_name_file(error)}: {error.strerror or error}"
    lost = get_world().explain_loss(error)
    return explain(error) or lost or _explain_device_error(error, batch_size)


def _print_once(program: str, message: str, error: BaseException) -> None:
    """Print why a command fails; of the processes of a job one does."""
    if claim_line(error):
        print_error(program, message)


def _run_body(body: Callable[[StopSignal], int], stop: StopSignal) -> int:
    try:
        return body(stop)
    except Stopped:
        return stop.exit_status


def _name_file(error: OSError) -> str:
    """Return the name of the file that an error is about; "writing" if the system names none."""
    name = error.filename
    return "writing" if name is None or isinstance(name, int) else os.fsdecode(name)


def _explain_device_error(error: BaseException, batch_size: int | None) -> str | None:
    from utils.cuda_problems import explain_cuda_error  # torch is there when it has failed
    from utils.device import is_out_of_memory

    overflow = "Storage size calculation overflowed" in str(error)  # more than 2^63 bytes
    if not (overflow or is_out_of_memory(error)):
        return explain_cuda_error(error)
    share = _describe_share()
    if batch_size is None:
        return f"out of memory{share}"
    advice = "train with a smaller --img_size, --sample_size or network"
    if overflow or 0 < batch_size <= SMALLEST_BATCH:
        return f"out of memory{share}: the data set or the network is too large; {advice}"
    given = f"--batch_size {batch_size}" if batch_size else "the default --batch_size"
    return (
        f"out of memory with {given}{share}: a smaller one may fit; if it does "
        f"not, the data set or the network is too large: {advice}"
    )


def _describe_share() -> str:
    """Describe the share of a GPU that this process was given; "" for a whole one or the CPU."""
    import torch

    sharers = read_sharers()
    if sharers == 1 or not torch.cuda.is_initialized():
        return ""
    return f" in 1/{sharers} of the GPU (fewer --jobs of reproduce.py give each more)"


def print_error(program: str, message: object) -> None:
    """Print a user's mistake as one line on stderr."""
    print(escape(f"{program}: error: {message}"), file=sys.stderr)


def make_directory(flag: str, directory: Path) -> Path:
    """Make the directory that a flag names, if need be. Raises UserError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag}: cannot create {directory}: {error.strerror}") from error
    return directory
