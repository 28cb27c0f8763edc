"""Abuse the program for as long as you like, and count what held.

    python tests/campaign.py --minutes 30

Every trial draws from a generator that its name and its number seed: `--only kill --trial 17`
repeats one. A trial fails if a number is wrong, finished work is lost, a command does not end, or
ends in anything but its result or one line and status 2.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import eval_nc
import eval_scores
import eval_tsne
import metrics.stored_rows
import reproduction.flags
import rundir.directory
import train
import verify_theory
from rundir.resuming import read_settings
from rundir.weights import load
from utils.console import format_table
from utils.errors import UserError
from utils.files import read_csv

LONGEST = 120  # seconds after which a command counts as hanging
TIMINGS = ("seconds", "images_per_second")
NAME = "run"
# Dropout, augmentation and a full optimizer state: all that a resume must restore.
SETTINGS = "--model ViT --width 32 --depth 1 --augment DA1+DA2 --optimizer AdamW --lr 0.001"
SETTINGS += " --precision fp32 --sample_size 10 --test_sample_size 10 --batch_size 10"
SETTINGS += " --epochs 4 --gpu_id -1"


class Failure(Exception):
    """A promise that was not kept."""


@dataclass
class Ended:
    """How a command ended: its status (None: it had to be killed) and what it printed."""

    status: int | None
    out: str
    err: str

    def expect(self, *statuses: int) -> Ended:
        """Fail unless it ended in one of the statuses; 2 goes with one line and no traceback."""
        if self.status is None:
            raise Failure(f"it did not end within {LONGEST} s: {self.out[-300:]} {self.err[-300:]}")
        if "Traceback" in self.err or self.status not in statuses:
            raise Failure(f"status {self.status}: {self.err[-1500:] or self.out[-500:]}")
        if self.status == 2 and not self.err.strip():
            raise Failure("status 2 without a line")
        return self


class Command:
    """A command in a fork of this process, which has imported torch already."""

    def __init__(
        self,
        main: Callable[[list[str]], int],
        flags: Sequence[object],
        folder: Path,
        largest_file: int | None = None,
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=folder, prefix="said"))
        words = [str(flag) for flag in flags]
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(target=self._run, args=(main, words, largest_file))
        self.process.start()

    def _run(
        self, main: Callable[[list[str]], int], flags: list[str], largest_file: int | None
    ) -> None:
        for number, name in ((1, "out"), (2, "err")):
            descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, number)
        # Of the process, which ends with them.
        sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        status: Any = 1
        try:
            status = main(flags)
        except SystemExit as leaving:
            status = leaving.code or 0
        except BaseException:
            traceback.print_exc()
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)

    def wait(self) -> Ended:
        """Wait for its end; kill it if it hangs."""
        self.process.join(LONGEST)
        hangs = self.process.is_alive()
        if hangs:
            self.process.kill()
            self.process.join()
        texts = [(self._folder / name).read_text("utf-8", "replace") for name in ("out", "err")]
        return Ended(None if hangs else self.process.exitcode, *texts)


@dataclass
class Arena:
    """What all trials share.

    Attributes:
        folder: where they write; it is removed at the end.
        whole: the run that nothing has happened to, and its evaluation.
        seconds: that its training took.
    """

    folder: Path
    whole: Path = field(init=False)
    seconds: float = field(init=False)

    def __post_init__(self) -> None:
        begun = time.monotonic()
        self.call(train.main, *SETTINGS.split(), "--save_dir", self.folder / "whole", *named())
        self.seconds = time.monotonic() - begun
        self.whole = self.folder / "whole" / NAME
        self.evaluate(self.whole).expect(0)

    def call(self, main: Callable[[list[str]], int], *flags: object) -> Ended:
        return Command(main, flags, self.folder).wait()

    def evaluate(self, run: Path, *flags: object) -> Ended:
        return self.call(eval_nc.main, "--gpu_id", -1, "--load_path", run, *flags)

    def resume(self, run: Path) -> Ended:
        return self.call(train.main, "--resume", "--save_dir", run.parent, *named())

    def make_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))

    def copy(self) -> Path:
        return Path(shutil.copytree(self.whole, self.make_folder() / NAME))

    def check_whole(self, run: Path) -> None:
        """Fail unless a run is, bit for bit, the one that nothing has happened to."""
        names = sorted(path.name for path in self.whole.glob("*.pth"))
        if sorted(path.name for path in run.glob("*.pth")) != names:
            raise Failure(f"it has the files {sorted(path.name for path in run.iterdir())}")
        for name in names:
            check_equal(load(run / name), load(self.whole / name), name)
        check_equal(read_csv(run / "metrics.csv"), read_csv(self.whole / "metrics.csv"), "metrics")
        if list(run.glob(".*.tmp")):
            raise Failure("it left temporary files")

    def check_rows(self, run: Path, apart: Sequence[str] = ()) -> None:
        """Fail if a row of a run's table is not that of the whole run."""
        expected = {(row["epoch"], row["split"]): row for row in read_csv(self.whole / TABLE)}
        for row in read_csv(run / TABLE) if (run / TABLE).exists() else ():
            other = expected[row["epoch"], row["split"]]
            for name, text in row.items():
                if name not in apart and text != other[name]:
                    raise Failure(f"epoch {row['epoch']}: {name} is {text}, not {other[name]}")


TABLE = "nc_metrics.csv"


def named() -> list[str]:
    return ["--run_name", NAME]


def check_equal(found: Any, expected: Any, where: str) -> None:
    """Fail unless two states are equal bit for bit, times apart."""
    if isinstance(expected, torch.Tensor):
        if not torch.equal(found, expected):
            raise Failure(f"{where} differs")
    elif isinstance(expected, Mapping):
        if found.keys() != expected.keys():
            raise Failure(f"{where} has other parts")
        for key in expected:
            if key not in TIMINGS:
                check_equal(found[key], expected[key], f"{where}: {key}")
    elif isinstance(expected, list | tuple):
        if len(found) != len(expected):
            raise Failure(f"{where} has another length")
        for number, pair in enumerate(zip(found, expected, strict=True)):
            check_equal(*pair, f"{where}[{number}]")
    elif found != expected:
        raise Failure(f"{where} is {found!r}, not {expected!r}")


# --- Trials. Each returns in a few words what it has tried. ---


def kill(arena: Arena, draw: random.Random) -> str:
    """kill −9 one or several times, then resume to the end."""
    run, count = arena.make_folder() / NAME, draw.randint(1, 3)
    for _ in range(count):
        started = (run / "config.json").exists()
        flags = ["--resume"] if started else SETTINGS.split()
        command = Command(train.main, [*flags, "--save_dir", run.parent, *named()], arena.folder)
        time.sleep(draw.uniform(0, 1.2 * arena.seconds))
        command.process.kill()
        command.process.join()
    finish(arena, run)
    return f"{count} kills"


def finish(arena: Arena, run: Path) -> None:
    """Resume a run, or start it if nothing of it is there; it must end as the whole one."""
    flags = [*SETTINGS.split(), "--save_dir", run.parent, *named(), "--resume", "--force"]
    arena.call(train.main, *flags).expect(0)
    arena.check_whole(run)


def stop(arena: Arena, draw: random.Random) -> str:
    """A signal at any moment ends training in its status, and nothing is lost."""
    run, number = arena.make_folder() / NAME, draw.choice(["SIGTERM", "SIGINT", "SIGHUP"])
    flags = [*SETTINGS.split(), "--save_dir", run.parent, *named()]
    command = Command(train.main, flags, arena.folder)
    time.sleep(draw.uniform(0.2, 1.2) * arena.seconds)
    signum = getattr(signal, number)
    with suppress(ProcessLookupError):
        os.kill(command.process.pid or 0, signum)
    ended = command.wait()
    # Before the program handles signals, Python or the system ends it in its own way.
    if "KeyboardInterrupt" not in ended.err and ended.status != -signum:
        ended.expect(0, 128 + signum)
    finish(arena, run)
    return number


def kill_evaluation(arena: Arena, draw: random.Random) -> str:
    """kill −9 an evaluation, then repeat it: the table is whole at both times."""
    run = arena.copy()
    (run / TABLE).unlink()
    flags = ["--gpu_id", -1, "--load_path", run]
    command = Command(eval_nc.main, flags, arena.folder)
    time.sleep(draw.uniform(0, 0.8))
    command.process.kill()
    command.process.join()
    arena.check_rows(run)
    arena.evaluate(run).expect(0)
    arena.check_rows(run)
    if len(read_csv(run / TABLE)) != 8 or list(run.glob(".nc_metrics*.tmp")):
        raise Failure(f"{len(read_csv(run / TABLE))} rows of 8, or temporary files")
    return "eval_nc.py"


def full_disk(arena: Arena, draw: random.Random) -> str:
    """A file cannot grow beyond a size, as on a full disk; then there is room again."""
    run = arena.make_folder() / NAME
    largest = int(10 ** draw.uniform(2, 5.5))
    flags = [*SETTINGS.split(), "--save_dir", run.parent, *named()]
    Command(train.main, flags, arena.folder, largest).wait().expect(0, 2)
    if (run / "config.json").exists() or not run.exists():
        finish(arena, run)
    copied = arena.copy()
    (copied / TABLE).unlink()
    flags = ["--gpu_id", -1, "--load_path", copied]
    Command(eval_nc.main, flags, arena.folder, largest).wait().expect(0, 2)
    arena.check_rows(copied)
    arena.evaluate(copied).expect(0)
    arena.check_rows(copied)
    return f"{largest} bytes"


def corrupt(path: Path, draw: random.Random) -> str:
    """Flip bits, cut, blank or lengthen a file."""
    content = bytearray(path.read_bytes())
    at = draw.randrange(max(1, len(content)))
    how = draw.choice(["flip", "flip", "flip", "cut", "blank", "insert"])
    if how == "flip" and content:
        content[at] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del content[at:]
    elif how == "blank":
        length = min(len(content) - at, draw.randint(1, 512))
        content[at : at + length] = bytes(length)
    elif how == "insert":
        content[at:at] = draw.randbytes(draw.randint(1, 64))
    path.unlink()  # best_model.pth may be a second name of an epoch's file
    path.write_bytes(content)
    return how


def damaged_weights(arena: Arena, draw: random.Random) -> str:
    """A damaged checkpoint gives its own numbers or none, also where its row is kept."""
    run = arena.copy()
    path = draw.choice([*sorted(run.glob("epoch_*.pth")), run / "best_model.pth"])
    how = corrupt(path, draw)
    if draw.random() < 0.5:
        (run / TABLE).unlink()
    which = draw.choice(["all", "last", "best"])
    ended = arena.evaluate(run, "--checkpoints", which).expect(0, 2)
    if ended.status == 2 and path.name not in ended.err:
        raise Failure(f"{path.name} is not named: {ended.err}")
    arena.check_rows(run)
    return how


def damaged_headers(arena: Arena, draw: random.Random) -> str:
    """A flipped bit in the headers of the archive, which hold no content, changes no number."""
    run = arena.copy()
    path = draw.choice([run / "epoch_001.pth", run / "last.pth"])
    with zipfile.ZipFile(path) as archive:
        first, entries = archive.start_dir, archive.infolist()
    content = bytearray(path.read_bytes())
    if draw.random() < 0.7:
        at = draw.randrange(first, len(content))
    else:
        at = draw.choice(entries).header_offset + draw.randrange(30)
    content[at] ^= 1 << draw.randrange(8)
    path.unlink()
    path.write_bytes(content)
    if path.name == "epoch_001.pth":
        (run / TABLE).unlink()
        arena.evaluate(run, "--checkpoints", "1").expect(0, 2)
        arena.check_rows(run)
        return path.name
    expected = load(arena.whole / "last.pth")
    try:
        check_equal(load(path), expected, "last.pth")
    except UserError:
        arena.resume(run).expect(2)
    return path.name


def damaged_state(arena: Arena, draw: random.Random) -> str:
    """A damaged last.pth is refused, or the run goes on as if nothing had happened."""
    run = arena.make_folder() / NAME
    command = Command(
        train.main, [*SETTINGS.split(), "--save_dir", run.parent, *named()], arena.folder
    )
    while not (run / "last.pth").exists() and command.process.is_alive():
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.6) * arena.seconds)
    command.process.kill()
    command.process.join()
    saved = (run / "last.pth").read_bytes()
    how = corrupt(run / "last.pth", draw)
    ended = arena.resume(run).expect(0, 2)
    if ended.status == 2:
        (run / "last.pth").write_bytes(saved)
        arena.resume(run).expect(0)
    arena.check_whole(run)
    return how


def damaged_texts(arena: Arena, draw: random.Random) -> str:
    """config.json, metrics.csv or a table is damaged: a line or the right numbers."""
    run = arena.copy()
    name = draw.choice(["config.json", "metrics.csv", "nc_metrics.json"])
    how = corrupt(run / name, draw)
    ended = arena.evaluate(run, "--checkpoints", draw.choice(["all", "best", "1-2"]))
    ended.expect(0, 2)
    if "was written by a later version" not in ended.err:
        arena.check_rows(run)
    return f"{name}, {how}"


VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    10**400,
    1.5,
    "",
    "x" * 300,
    "\ud800",
    [],
    {},
    [[]],
    {"a": 1},
]


def strange_config(arena: Arena, draw: random.Random) -> str:
    """config.json with parts removed or replaced by values of other types."""
    run = arena.copy()
    content = json.loads((run / "config.json").read_text("utf-8"))
    for _ in range(draw.randint(1, 3)):
        part = draw.choice([content, content["settings"], content["data"]])
        if not isinstance(part, dict) or not part:
            break
        key = draw.choice(sorted(part))
        if key in ("settings", "data"):
            continue
        if draw.random() < 0.4:
            del part[key]
        else:
            part[key] = draw.choice(VALUES)
    text = json.dumps(content)
    if draw.random() < 0.05:
        text = text.replace(":", ":" + "[" * 100_000, 1)
    (run / "config.json").write_text(text, "utf-8")
    for main in (eval_nc.main, eval_tsne.main, eval_scores.main):
        flags: list[object] = ["--load_path"] if main is eval_nc.main else []
        flags += [run, "--gpu_id", -1]
        if main is eval_tsne.main:
            flags += ["--samples_per_class", 4, "--perplexity", 3]
        if main is eval_scores.main:
            flags += ["--out", run / "scores.png"]
        arena.call(main, *flags).expect(0, 2)
    arena.resume(run).expect(0, 2)
    return "config.json"


def slow_down(
    main: Callable[[list[str]], int], module: Any, name: str, draw: random.Random
) -> Callable[[list[str]], int]:
    """Return a command that waits each time before it calls a function: the others get ahead."""
    seed = draw.random()

    def slow_main(flags: list[str]) -> int:
        own = random.Random(f"{seed} {os.getpid()}")
        function = getattr(module, name)

        def wait_and_call(*words: Any, **options: Any) -> Any:
            time.sleep(own.uniform(0, 0.2))
            return function(*words, **options)

        setattr(module, name, wait_and_call)
        return main(flags)

    return slow_main


def race(arena: Arena, draw: random.Random) -> str:
    """Several starts of one name, or of none: one trains, or each its own."""
    folder, count = arena.make_folder(), draw.randint(2, 4)
    unnamed = draw.random() < 0.4
    flags = [*SETTINGS.split(), "--save_dir", folder, *([] if unnamed else named())]
    main = slow_down(train.main, rundir.directory, "describe_environment", draw)
    commands = []
    for _ in range(count):
        commands.append(Command(main, flags, arena.folder))
        time.sleep(draw.choice([0, 0, 0.05, arena.seconds]))
    ends = [command.wait().expect(0, 2) for command in commands]
    runs = [path for path in folder.iterdir() if (path / "config.json").exists()]
    trained = sum(ended.status == 0 for ended in ends)
    if trained != len(runs) or trained != (count if unnamed else 1):
        raise Failure(f"{trained} of {count} ended well, there are {len(runs)} runs")
    for run in runs:
        arena.check_whole(run)
    return f"{count} {'unnamed' if unnamed else 'of one name'}"


def race_of_evaluations(arena: Arena, draw: random.Random) -> str:
    """Several evaluations of one run: every row is there in the end."""
    run = arena.copy()
    (run / TABLE).unlink()
    main = slow_down(eval_nc.main, metrics.stored_rows, "write_csv", draw)
    chosen = draw.sample("1234", k=draw.randint(2, 4))
    commands = [
        Command(main, ["--gpu_id", -1, "--load_path", run, "--checkpoints", epoch], arena.folder)
        for epoch in chosen
    ]
    for command in commands:
        command.wait().expect(0)
    arena.check_rows(run)
    if len(read_csv(run / TABLE)) != 2 * len(chosen):
        raise Failure(f"{len(read_csv(run / TABLE))} rows of {2 * len(chosen)}")
    return f"{len(commands)} at once"


class Attack:
    """An object whose pickle runs code when it is loaded."""

    def __init__(self, draw: random.Random, mark: Path) -> None:
        self._call = draw.choice(
            [
                (os.system, (f"touch {mark}",)),
                (os.mkdir, (str(mark),)),
                (exec, (f"open({str(mark)!r}, 'w')",)),
                (eval, (f"open({str(mark)!r}, 'w')",)),
                (open, (str(mark), "w")),
            ]
        )

    def __reduce__(self) -> Any:
        return self._call


def hostile_pickle(arena: Arena, draw: random.Random) -> str:
    """A pickle that would run code is refused wherever weights are read."""
    run, mark = arena.copy(), arena.make_folder() / "mark"
    victim = draw.choice(["last.pth", "best_model.pth", "epoch_001.pth"])
    attack = Attack(draw, mark)
    stored: Any = draw.choice([attack, [attack], {"fc.weight": attack}])
    (run / victim).unlink()
    if draw.random() < 0.3:
        (run / victim).write_bytes(pickle.dumps(stored, draw.randint(0, 4)))
    else:
        torch.save(stored, run / victim)
    if victim == "last.pth":
        arena.resume(run).expect(2)
    else:
        which = "best" if victim == "best_model.pth" else "1"
        arena.evaluate(run, "--checkpoints", which).expect(2)
    if mark.exists():
        raise Failure("it ran code")
    return victim


def hostile_state(arena: Arena, draw: random.Random) -> str:
    """A last.pth with tensors of other shapes, types or parts never reaches the optimizer."""
    run = arena.make_folder() / NAME
    shutil.copytree(arena.whole, run)
    state = load(run / "last.pth")
    holders = [state["model"], state["optimizer"]["state"], state["position"], state["rng"], state]
    holder: Any = draw.choice(holders)
    if holder is state["optimizer"]["state"]:
        holder = holder[draw.choice(sorted(holder))]
    key = draw.choice(list(holder))
    value = holder[key]
    others: list[Any] = [None, 3, "x", torch.zeros(2), torch.zeros(10**6), [], {}]
    if isinstance(value, torch.Tensor):
        others += [value.double(), value.flatten()[:1], value.unsqueeze(0), value.bool()]
    holder[key] = draw.choice(others)
    torch.save(state, run / "last.pth")
    # Two epochs are left: a state that is taken is used.
    content = json.loads((run / "config.json").read_text("utf-8"))
    content["settings"]["epochs"] = 6
    (run / "config.json").write_text(json.dumps(content), "utf-8")
    arena.resume(run).expect(0, 2, 3)
    return str(key)


TEXTS = [
    "",
    "-",
    "--",
    "nan",
    "inf",
    "-1",
    "0",
    "1e400",
    "10" * 200,
    "x" * 300,
    "é",
    "\udcff",
    "$_x",
]
TEXTS += [
    "\udcff",
    "../x",
    "/dev/null",
    "a\nb",
    "\x1b[2J",
    "ResNet18",
    "bce",
    "1",
    "2",
    "0.5",
    "true",
    "{}",
]
PARSERS: dict[str, Callable[[list[str]], Any]] = {
    "train.py": read_settings,
    "eval_nc.py": eval_nc.parse_flags,
    "eval_scores.py": eval_scores.parse_flags,
    "eval_tsne.py": eval_tsne.parse_flags,
    "reproduce.py": reproduction.flags.parse_flags,
    "verify_theory.py": lambda words: verify_theory.build_parser().parse_args(words),
}


def parse(name: str, words: list[str]) -> int:
    PARSERS[name](words)
    return 0


def flags(arena: Arena, draw: random.Random) -> str:
    """Random command lines: parsed, or one line and status 2."""
    script = draw.choice(sorted(PARSERS))
    help_text = arena.call(lambda words: parse(script, words), "--help").expect(0).out
    known = sorted({word.strip("[],") for word in help_text.split() if word.startswith("--")})
    for _ in range(10):
        words: list[str] = []
        for _ in range(draw.randint(0, 6)):
            flag = draw.choice(known)
            value = draw.choice(TEXTS)
            words += draw.choice([[flag], [flag, value], [f"{flag}={value}"], [value]])
        words = [word for word in words if "--help" not in word]
        ended = arena.call(lambda found: parse(script, found), *words).expect(0, 2)
        if ended.status == 2 and len(ended.err.strip().splitlines()) != 1:
            raise Failure(f"{script} {words}: {ended.err}")
    return script


TRIALS: dict[str, Callable[[Arena, random.Random], str]] = {
    function.__name__: function
    for function in (
        kill,
        stop,
        kill_evaluation,
        full_disk,
        damaged_weights,
        damaged_headers,
        damaged_state,
        damaged_texts,
        strange_config,
        race,
        race_of_evaluations,
        hostile_pickle,
        hostile_state,
        flags,
    )
}


@dataclass
class Count:
    """Trials of one kind: how many were made, the failed ones in words, and their seconds."""

    tried: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run_trial(arena: Arena, name: str, seed: int, number: int, counts: dict[str, Count]) -> None:
    """Run one trial, count it, and print it if it fails."""
    count, begun = counts[name], time.monotonic()
    before = set(arena.folder.iterdir())
    count.tried += 1
    try:
        TRIALS[name](arena, random.Random(f"{seed} {name} {number}"))
    except Failure as error:
        count.failures.append(str(error))
        repeat = f"--only {name} --trial {number} --seed {seed}"
        print(f"FAILED {name} ({repeat}): {error}", flush=True)
    count.seconds += time.monotonic() - begun
    for path in set(arena.folder.iterdir()) - before:
        shutil.rmtree(path, ignore_errors=True)


def format_counts(counts: Mapping[str, Count]) -> str:
    rows = [
        [
            name,
            f"{c.tried}",
            f"{c.tried - len(c.failures)}",
            f"{len(c.failures)}",
            f"{c.seconds:.0f}",
        ]
        for name, c in counts.items()
        if c.tried
    ]
    total = [sum(int(row[i]) for row in rows) for i in range(1, 5)]
    rows.append(["all", *map(str, total)])
    return format_table(["trial", "tried", "held", "failed", "seconds"], rows)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tests/campaign.py", description=(__doc__ or "").partition("\n\n    ")[0]
    )
    add = parser.add_argument
    add("--minutes", type=float, default=1.0, help="how long to go on (default: 1)")
    add("--only", choices=sorted(TRIALS), metavar="NAME", help=f"one of {', '.join(TRIALS)}")
    add("--trial", type=int, metavar="N", help="repeat this trial of --only alone")
    add("--seed", type=int, default=0, metavar="N", help="of all trials (default: 0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run trials in turn; return 1 if one failed, else 0."""
    args = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    names = [args.only] if args.only else list(TRIALS)
    counts = {name: Count() for name in names}
    end = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        arena = Arena(Path(folder))
        if args.trial is not None:
            run_trial(arena, names[0], args.seed, args.trial, counts)
            end = -math.inf
        number = 0
        while time.monotonic() < end:
            for name in names:
                run_trial(arena, name, args.seed, number, counts)
                if time.monotonic() >= end and number:
                    break
            number += 1
    print(format_counts(counts))
    return int(any(count.failures for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
