"""What reaches a terminal: names are made visible, and no stream that fails ends a command."""

import io
import os
import subprocess
import sys
import unicodedata

import pytest

from tests.helpers import ROOT, SMALL, run, start
from utils.console import (
    Console,
    Progress,
    escape,
    format_table,
    format_time,
    prepare_streams,
)
from utils.files import read_csv


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("émile 汉字 ± …", "émile 汉字 ± …"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred\x7f", r"\x1b[31mred\x7f"),
        ("\x9b31m", r"\u009b31m"),  # C1's one-character form of ESC [
        ("\u202etxt.exe\u2066\u200f", r"\u202etxt.exe\u2066\u200f"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), r"caf\xe9"),
        ("\ud800", r"\ud800"),
        (r"\n", r"\n"),
        ("", ""),
    ],
)
def test_characters_that_act_on_a_terminal_become_visible(text, shown):
    assert escape(text) == shown
    assert escape(shown) == shown


def test_the_escaped_characters_are_those_of_unicodes_tables():
    """Controls, surrogates, separators of lines, and what turns the direction of text."""
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    marks = {"LEFT-TO-RIGHT MARK", "RIGHT-TO-LEFT MARK", "ARABIC LETTER MARK"}
    for character in map(chr, range(0x10000)):
        acts = (
            unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}
            or unicodedata.bidirectional(character) in turning
            or unicodedata.name(character, "") in marks
        )
        assert (escape(character) != character) == acts, hex(ord(character))


def test_lines_stay_and_everything_else_is_escaped(capsys):
    log = io.StringIO()
    Console(log).say("\nrun \x1b[2J\nnext \udce9")
    assert capsys.readouterr().out == log.getvalue() == "\nrun \\x1b[2J\nnext \\xe9\n"


def test_progress_is_escaped(capsys):
    Progress(Console(), "run \x1b[2J", total=2).show(1, "note \u202e")
    said = capsys.readouterr().out
    assert said.startswith(r"run \x1b[2J: 1/2 images")
    assert said.endswith("note \\u202e\n")


def test_what_was_there_already_does_not_count_as_speed(capsys, monkeypatch):
    now = iter([0.0, 10.0])
    monkeypatch.setattr("utils.console.time.monotonic", lambda: next(now))
    progress = Progress(Console(), "run", total=100, unit="split")
    progress.skip(60)
    progress.show(80, "")
    assert capsys.readouterr().out == "run: 80/100 splits, 2 splits/s, 0:10 left\n"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.4, "0:00"),
        (59.6, "1:00"),
        (725, "12:05"),
        (5025, "1:23:45"),
        (359_999, "99:59:59"),
        (360_000, "4 d 04 h"),
        (float("inf"), "?"),
    ],
)
def test_durations(seconds, shown):
    assert format_time(seconds) == shown


def test_a_long_line_is_wrapped_where_it_is_shown_but_not_in_the_log(capsys):
    log = io.StringIO()
    line = " ".join(["word"] * 50) + " " + "x" * 120
    command = f"    {line}"
    Console(log, 100).say(f"{line}\n{command}")
    *wrapped, last, whole = capsys.readouterr().out.splitlines()
    assert all(len(part) <= 100 for part in wrapped) and last == "  " + "x" * 120
    assert " ".join(part.strip() for part in (*wrapped, last)) == line
    assert whole == command and log.getvalue() == f"{line}\n{command}\n"


class Screen(io.StringIO):
    """A terminal of 120 columns that keeps what was drawn."""

    def isatty(self):
        return True

    def fileno(self):
        return 2

    @property
    def drawn(self):
        return [part.strip("\r\n ") for part in self.getvalue().split("\r") if part.strip()]


def look_at_screen(monkeypatch, columns=120):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)  # not in a fixture: pytest puts its own back then
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((columns, 40)))
    return screen


def test_a_bar_of_the_longest_values_keeps_all_figures_in_100_columns(monkeypatch):
    screen = look_at_screen(monkeypatch)
    now = iter([0.0, 1000.0])
    monkeypatch.setattr("utils.console.time.monotonic", lambda: next(now, 1000.0))
    with Progress(
        Console(), "epoch 1000/1000", 12_811_670, left=lambda done: 359_999.0 - done / 1e9
    ) as progress:
        progress.show(6_405_835, "loss 123.4567")
    bar = screen.drawn[-1]
    assert len(bar) <= 100
    for part in ("epoch 1000/1000:  50%", "6406 images/s", "16:40 left", "run 99:59:59 left"):
        assert part in bar
    assert bar.endswith("loss 123.4567")


def test_a_narrow_terminal_cuts_the_bar(monkeypatch):
    screen = look_at_screen(monkeypatch, columns=50)
    with Progress(Console(), "epoch 1/2", 100) as progress:
        progress.show(50, "a long note " * 9)
    assert max(map(len, screen.drawn)) == 49


def test_short_work_draws_no_bar_and_long_work_does(monkeypatch):
    screen = look_at_screen(monkeypatch)
    now = [0.0]
    monkeypatch.setattr("utils.console.time.monotonic", lambda: now[0])
    with Progress(Console(), "test", total=4, quick=True) as progress:
        progress.advance(1)
        assert screen.getvalue() == ""
        now[0] = 2.0
        progress.advance(1)
    assert " 50%" in screen.drawn[-1] and "1 images/s, 0:02 left" in screen.drawn[-1]


NOTEBOOK = """
import sys, types
class Widget:
    def __init__(self, *children, **options):
        self.__dict__.update(options)
        self.children = options.get("children", children)
        self.layout = self.style = types.SimpleNamespace()
        self.value = self.bar_style = ""
    def close(self): closed.append(self)
    def keys(self): return []
closed, shown = [], []
Shell = type("ZMQInteractiveShell", (), {"config": {"IPKernelApp": {}}})
def module(name, **content):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(content)
module("IPython", get_ipython=Shell)
module("ipykernel.zmqshell")
module("IPython.display", display=shown.append)
module("ipywidgets", HTML=Widget, FloatProgress=Widget, HBox=Widget)
from utils.console import Console, Progress
with Progress(Console(), "epoch 1/2", 10) as progress:
    progress.show(5, "loss 1.5")
    (box,) = shown
    left, bar, right = box.children
    print(left.value, bar.value, right.value)
print(type(progress._bar).__mro__[1].__module__)
"""


def test_a_notebook_gets_a_live_bar_of_tqdm_auto():
    """With modules that stand for IPython and ipywidgets; stderr is no terminal there."""
    words = [sys.executable, "-W", "error::UserWarning", "-c", NOTEBOOK]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    values, kind = ended.stdout.replace("\u2007", " ").splitlines()
    assert values.startswith("epoch 1/2:  50% 5 ") and "5/10, " in values
    assert values.endswith(" left, loss 1.5")
    assert kind == "tqdm.notebook"


def test_piped_output_has_no_bar(capsys, monkeypatch):
    progress = Progress(Console(), "epoch 1/2", 10, left=lambda done: 100 - done)
    progress.show(5, "loss 1.5")
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.startswith("epoch 1/2: 5/10 images, ")
    assert printed.out.endswith("run 1:35 left, loss 1.5\n")


def test_a_cell_stays_in_its_line_and_the_columns_aligned():
    lines = format_table(["name", "x"], [["a\nb", "1"], ["long name", "10"]]).splitlines()
    assert lines == ["name        x", "---------  --", "a\\nb        1", "long name  10"]


def test_streams_that_are_not_the_interpreters_stay_as_they_are(capsys):
    streams = sys.stdout, sys.stderr
    prepare_streams()
    assert (sys.stdout, sys.stderr) == streams


# A command that prints more than a pipe holds, starts another one, and leaves a file at the end.
COMMAND = """
import subprocess, sys
from pathlib import Path
from utils.cli import print_error, run_command
from utils.console import Console

def work(stop):
    print("\\udce9 \\xe9 \\u6c49")
    for number in range(3):
        Console().say("x" * 99_999)
        print_error("script.py", f"complaint {number}")
    subprocess.run([sys.executable, "-c", "print(1)"], check=True)
    Path(sys.argv[1]).write_text("done", encoding="utf-8")
    print("last words")
    return 3

sys.exit(run_command("script.py", work, stopped="stopped"))
"""


def run_in_shell(tmp_path, redirection, **environment):
    """Run COMMAND with its streams redirected; returns its status, stdout and stderr."""
    done = tmp_path / "done"
    line = f'"$@" {redirection}'
    words = ["bash", "-c", line, "bash", sys.executable, "-c", COMMAND, str(done)]
    options = {"env": {**os.environ, "PYTHONUTF8": "0", **environment}, "cwd": ROOT}
    ended = subprocess.run(words, capture_output=True, timeout=60, **options)
    assert done.read_text(encoding="utf-8") == "done", ended.stderr
    return ended.returncode, ended.stdout, ended.stderr.decode()


COMPLAINTS = "".join(f"script.py: error: complaint {number}\n" for number in range(3))
FULL = "warning: cannot write to stdout: No space left on device; going on without\n"


@pytest.mark.parametrize(
    ("redirection", "said", "complaints"),
    [
        (">&-", b"", COMPLAINTS),
        ("2>&-", b"last words\n", ""),
        (">&- 2>&- <&-", b"", ""),
        ("> /dev/full", b"", FULL + COMPLAINTS),
        ("2> /dev/full", b"last words\n", ""),
        ("> /dev/full 2> /dev/full", b"", ""),
        ("| head -c 3 > /dev/null; exit ${PIPESTATUS[0]}", b"", COMPLAINTS),
    ],
)
def test_work_goes_on_without_a_stream(tmp_path, redirection, said, complaints):
    status, out, err = run_in_shell(tmp_path, redirection)
    assert (status, out[-len(b"last words\n") :], err) == (3, said, complaints)


def test_a_closed_stream_is_not_written_into_the_next_file(tmp_path):
    """The number of a closed stream would go to the next file that is opened."""
    code = (
        "import os, sys; from utils.console import prepare_streams; prepare_streams()\n"
        "file = open(sys.argv[1], 'w'); os.write(1, b'a library prints'); os.system('echo a child')"
    )
    words = ["sh", "-c", '"$@" >&- <&-', "sh", sys.executable, "-c", code, str(tmp_path / "file")]
    subprocess.run(words, cwd=ROOT, check=True)
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, rb"\udce9 \xe9 \u6c49"),
        ({"PYTHONIOENCODING": "ascii"}, rb"\udce9 \xe9 \u6c49"),
        ({"PYTHONIOENCODING": "latin-1"}, b"\\udce9 \xe9 \\u6c49"),
        ({"PYTHONIOENCODING": "utf-8"}, rb"\udce9 " + "é 汉".encode()),
    ],
)
def test_what_a_stream_cannot_encode_is_replaced(tmp_path, environment, first):
    status, out, err = run_in_shell(tmp_path, "", **environment)
    assert (status, err) == (3, COMPLAINTS)
    assert out.splitlines()[0] == first
    assert out.endswith(b"1\nlast words\n")


def test_a_full_terminal_that_does_not_block_is_waited_for(tmp_path):
    """Another program may make a shared pipe non-blocking: nothing is lost."""
    code = "import os; os.set_blocking(1, False)\n" + COMMAND
    words = [sys.executable, "-c", code, str(tmp_path / "done")]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, timeout=60)
    assert ended.returncode == 3, ended.stderr
    assert len(ended.stdout) > 300_000
    assert ended.stdout.endswith(b"last words\n")


def test_help_is_shown_in_any_encoding(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    shown = run("benchmarks/train_speed.py", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert r"JPEGs of 500\xd7375" in shown.stdout


@pytest.mark.slow
def test_training_ends_well_with_nobody_to_read_and_a_name_that_is_no_utf8(tmp_path):
    save_dir = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    here = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    flags = [*SMALL, "--epochs", 2, "--gpu_id", -1, "--run_name", "r", "--save_dir"]
    with open("/dev/full", "w") as full, pytest.MonkeyPatch.context() as patch:
        for name, value in here.items():
            patch.setenv(name, value)
        process = start("train.py", *flags, os.fsdecode(save_dir), stdout=full)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, FULL)
    directory = tmp_path / os.fsdecode(b"caf\xe9") / "r"
    assert len(read_csv(directory / "metrics.csv")) == 2
    assert r"caf\xe9" in (directory / "train_log.txt").read_text(encoding="utf-8")
