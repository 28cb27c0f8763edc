"""The services to which the numbers of a run's epochs go: TensorBoard, Weights & Biases."""

from __future__ import annotations

import contextlib
import hashlib
import netrc
import os
import re
import shlex
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from args import Settings
from rundir.directory import Run
from rundir.names import BEST, CONFIG, METRICS
from utils.errors import UserError

OFFLINE = ("offline", "dryrun", "disabled")  # modes of wandb's without a server
HELP = "run `wandb login`, or set WANDB_MODE=offline"
START_SECONDS = 60  # for wandb's server to answer
FINISH_SECONDS, UPLOAD_SECONDS = 30, 600  # for what is still to be sent, without and with files
LONGEST = 120  # characters of a reason


class Writer(Protocol):
    """A service that takes the numbers of epochs. It never ends training."""

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        """Record the numbers of an epoch by their names."""

    def close(self, status: int) -> None:
        """Record the end of the run; 0 means that it is finished."""


def open_writers(run: Run, settings: Settings, epoch: int, say: Callable[[str], None]) -> list:
    """Open the services that the settings ask for. Raises UserError.

    Args:
        run: the open run directory, with its id.
        settings: of the run.
        epoch: finished epochs.
        say: prints a line.
    """
    writers: list[Writer] = []
    if settings.tensorboard:
        writers.append(TensorBoardWriter(run, epoch))
    if settings.wandb is not None:
        writers.append(WandbWriter(run, settings, say))
    return writers


def check_writers(settings: Settings) -> None:
    """Refuse services that cannot be used, before a run directory is made. Raises UserError."""
    if settings.tensorboard:
        _import_tensorboard()
    if settings.wandb is not None:
        _check_wandb()


def _import_tensorboard() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard needs the package tensorboard: pip install tensorboard"
        ) from error
    return SummaryWriter


class TensorBoardWriter:
    """Events in the run directory; a resume takes back those of epochs that are trained again."""

    def __init__(self, run: Run, epoch: int) -> None:
        self._events = _import_tensorboard()(str(run.events), purge_step=epoch + 1)

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write the events of an epoch."""
        for name, value in values.items():
            self._events.add_scalar(name, value, epoch)
        self._events.flush()

    def close(self, status: int) -> None:
        """Close the file of events."""
        self._events.close()


def _check_wandb() -> None:
    """Refuse `--wandb` where wandb would fail or ask for a key, for which a job would wait.

    Raises UserError: the package is missing, nobody is logged in, or the server does not accept the
    key or does not answer. Offline nothing of this is needed but the package.
    """
    wandb = _import_wandb()
    with _explain_failure(wandb):
        settings = wandb.setup(wandb.Settings(silent=True)).settings
        if settings.mode in OFFLINE:
            return
        if not _find_key(settings):
            raise UserError(f"--wandb: no API key for {settings.base_url}: {HELP}")
        wandb.login(verify=True)


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError("--wandb needs the package wandb: pip install wandb") from error
    return wandb


@contextlib.contextmanager
def _explain_failure(wandb: Any) -> Any:
    """Turn an error of wandb's into a UserError that says what helps."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        wandb.teardown()
        raise UserError(f"--wandb: {_shorten(error)}: {HELP}") from error


def _find_key(settings: Any) -> bool:
    """Return whether wandb finds a key without asking: environment, its settings, or .netrc."""
    if settings.api_key or getattr(settings, "identity_token_file", None):
        return True
    host = urlsplit(settings.base_url).hostname or ""
    for name in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if name and netrc.netrc(Path(name).expanduser()).authenticators(host):
                return True
    return False


def _shorten(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return textwrap.shorten(text, LONGEST, placeholder=" …").rstrip(".")


class WandbWriter:
    """A run at Weights & Biases, with the id of the run directory, so that a resume continues it.

    wandb writes into `wandb/` in the run directory; a process of its own sends the numbers. It
    takes no console output, code or git state. If it fails, one line says so and training goes on.

    Args:
        run: the open run directory, with its id.
        settings: of the run; `wandb` names the project.
        say: prints a line.

    Raises:
        UserError: wandb cannot begin a run.
    """

    def __init__(self, run: Run, settings: Settings, say: Callable[[str], None]) -> None:
        self._wandb, self._directory, self._say = _import_wandb(), run.directory, say
        self._with_files = settings.wandb_artifacts
        with _explain_failure(self._wandb):
            self._run: Any = self._wandb.init(
                project=settings.wandb,
                name=run.name,
                # A run of a version that gave none is known by its name.
                id=run.id or hashlib.sha256(os.fsencode(run.name)).hexdigest()[:32],
                dir=str(run.directory),
                config=settings.values(),
                resume="allow",
                allow_val_change=True,  # a resumed run may have more epochs
                settings=self._build_settings(),
            )
        mode = self._wandb.setup().settings.mode
        if mode not in OFFLINE:
            say(f"wandb: {self._run.url}")
        elif mode != "disabled":
            command = shlex.join(["wandb", "sync", str(Path(self._run.dir).parent)])
            say(f"wandb is offline; to upload this session later:\n    {command}")

    def _build_settings(self) -> Any:
        wanted = {
            "console": "off",
            "silent": True,
            "disable_git": True,
            "disable_code": True,
            "save_code": False,
            "init_timeout": START_SECONDS,
            "finish_timeout": UPLOAD_SECONDS if self._with_files else FINISH_SECONDS,
        }
        known = getattr(self._wandb.Settings, "model_fields", wanted)  # finish_timeout is newer
        return self._wandb.Settings(**{k: v for k, v in wanted.items() if k in known})

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        """Hand over the numbers of an epoch. Those of an epoch that is trained again are equal."""
        self._attempt(lambda: self._run.log({"epoch": epoch, **values}, step=epoch))

    def close(self, status: int) -> None:
        """Send what is left, with the files if they were asked for, and end the run there."""
        if status == 0 and self._with_files:
            self._attempt(self._log_files)
        self._attempt(lambda: self._run.finish(exit_code=status))
        with contextlib.suppress(Exception):  # else it would complain at the program's end
            self._wandb.teardown()

    def _log_files(self) -> None:
        """Upload the best weights, the settings, the metrics, and pictures that are there."""
        name = re.sub(r"[^A-Za-z0-9._-]", "-", self._directory.name)[:LONGEST]
        artifact = self._wandb.Artifact(name, type="run")
        pictures = sorted(path.name for path in self._directory.glob("*.png"))
        for file in (BEST, CONFIG, METRICS, *pictures):
            artifact.add_file(str(self._directory / file), name=file)
        self._run.log_artifact(artifact)

    def _attempt(self, act: Callable[[], object]) -> None:
        if self._run is None:
            return
        try:
            act()
        except Exception as error:  # whatever it is, it must not end training
            self._run = None
            self._say(f"wandb failed and gets no more numbers: {_shorten(error)}")
