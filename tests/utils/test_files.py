"""Whole files: a failed or killed write leaves the old file."""

import os
import secrets
import signal
import stat
import subprocess
import sys
import time

import pytest
import torch

from rundir import weights as checkpoint
from tests.helpers import ROOT
from utils.errors import UserError
from utils.files import (
    GrowingCsv,
    check_target,
    link_whole,
    open_log,
    open_regular,
    read_csv,
    read_json,
    remove_temporaries,
    write_csv,
    write_json,
    write_whole,
)


def test_a_failing_writer_leaves_the_old_file_and_no_leftover(tmp_path):
    path = tmp_path / "a.bin"
    write_whole(path, lambda f: f.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device"):
        write_whole(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_full_disk_is_one_error_for_a_torch_file(tmp_path):
    """A limit on file size stands in for a full disk: the write fails in the middle."""
    code = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from rundir import weights as checkpoint\n"
        "path = Path(sys.argv[1]); checkpoint.save(path, {'a': torch.zeros(3)})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: checkpoint.save(path, {'a': torch.zeros(10**6)})\n"
        "except ValueError as error: print(type(error).__name__, error)\n"
    )
    path = tmp_path / "last.pth"
    command = [sys.executable, "-c", code, str(path)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout.startswith("UserError cannot write"), answer.stderr
    assert "File too large" in answer.stdout  # the system's words for this limit
    assert torch.load(path, weights_only=True)["a"].shape == (3,)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


def test_a_kill_during_the_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    write_whole(path, lambda f: f.write(b"old"))
    code = (
        "import sys, time; from pathlib import Path; from utils.files import write_whole\n"
        "def slow(f): f.write(b'new'); f.flush(); time.sleep(60)\n"
        "write_whole(Path(sys.argv[1]), slow)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
    for _ in range(200):
        if len(list(tmp_path.iterdir())) == 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(tmp_path.iterdir())) == 2
    assert path.read_bytes() == b"old"
    remove_temporaries(tmp_path, "b")
    assert len(list(tmp_path.iterdir())) == 2
    remove_temporaries(tmp_path, "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_link_has_the_content_and_replaces(tmp_path):
    write_whole(tmp_path / "a", lambda f: f.write(b"1"))
    write_whole(tmp_path / "b", lambda f: f.write(b"2"))
    link_whole(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"1"
    write_whole(tmp_path / "a", lambda f: f.write(b"3"))  # replaces the name, not the content
    assert (tmp_path / "b").read_bytes() == b"1"


def test_a_device_or_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "link"):
        with pytest.raises(UserError, match="not a regular file"):
            write_json(tmp_path / name, {})
        with pytest.raises(UserError, match="not a regular file"):
            link_whole(tmp_path / "absent", tmp_path / name)
        with pytest.raises(UserError, match=r"not the name|not a regular file"):
            check_target("--json", tmp_path / name)
        with pytest.raises(UserError, match="not a regular file"):  # and the pipe does not block
            open_regular(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_log_follows_no_link_and_waits_for_no_reader(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(UserError, match=f"cannot write .*{name}"):
            open_log(tmp_path / name)
    assert (tmp_path / "precious").read_text() == "x"
    for line in ("é\n", "\udcff\n"):
        with open_log(tmp_path / "log") as log:
            log.write(line)
    assert (tmp_path / "log").read_bytes() == "é\n\\udcff\n".encode()


def test_a_temporary_file_follows_no_link(tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("x")
    (tmp_path / ".a.json.0.tmp").symlink_to(tmp_path / "precious")
    monkeypatch.setattr(secrets, "token_hex", lambda count: "0")
    with pytest.raises(UserError, match="File exists"):
        write_json(tmp_path / "a.json", {})
    assert (tmp_path / "precious").read_text() == "x"


def test_json_that_is_nested_too_deeply(tmp_path):
    (tmp_path / "c.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="damaged"):
        read_json(tmp_path / "c.json")


class Counted:
    """A cell that counts how often it is formatted."""

    times = 0

    def __str__(self):
        self.times += 1
        return f"{self.times > 0}"


def test_a_growing_csv_is_what_write_csv_writes_and_formats_no_row_again_and_again(tmp_path):
    growing, rows = GrowingCsv(tmp_path / "grown.csv"), []

    def assert_written(columns=("a", "b")):
        growing.write(columns, rows)
        write_csv(tmp_path / "whole.csv", columns, [*rows])
        assert (tmp_path / "grown.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()

    assert_written()
    for number in range(20):
        rows.append({"a": 1 / (number + 1), "b": number})
        assert_written()
        rows[-1]["b"] += 0.5  # the last row may still change
        assert_written()
    rows = [dict(row) for row in rows[:7]]  # as after a resume
    rows[2]["b"] = 7
    assert_written()
    assert_written(("b", "a"))
    rows = [{"a": Counted(), "b": 0} for _ in range(50)]
    for count in range(52):
        growing.write(["a", "b"], rows[:count])
    assert {row["a"].times for row in rows} == {2}  # as the last one, and once for good


def test_csv_keeps_floats_exactly(tmp_path):
    values = [0.1, 1 / 3, 1e-300, float("nan")]
    write_csv(tmp_path / "m.csv", ["x"], [{"x": v} for v in values])
    back = [float(row["x"]) for row in read_csv(tmp_path / "m.csv")]
    assert back[:3] == values[:3]
    assert back[3] != back[3]


def test_json_round_trip_and_damage(tmp_path):
    path = tmp_path / "c.json"
    write_json(path, {"a": [1, None]})
    assert read_json(path) == {"a": [1, None]}
    path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        read_json(path)
    with pytest.raises(UserError, match="does not exist"):
        read_json(tmp_path / "absent.json")


def test_text_is_utf8_in_any_locale_also_names_that_are_not(tmp_path):
    """In a locale without UTF-8, and back in this one."""
    names = ["émile", "汉字", "caf\udce9", "a\u2028b"]
    code = (
        "import sys; from pathlib import Path; from utils.files import *\n"
        "rows = read_json(Path('j.json')); write_json(Path('k.json'), rows)\n"
        "write_csv(Path('c.csv'), ['name'], [{'name': name} for name in rows]); print(rows)\n"
        "write_json(Path('d.json'), [row['name'] for row in read_csv(Path('c.csv'))])"
    )
    write_json(tmp_path / "j.json", names)
    bare = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **bare, "PYTHONIOENCODING": "ascii:backslashreplace"}
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert read_json(tmp_path / "k.json") == names
    # A CSV has no escapes: the byte stays readable as text.
    assert read_json(tmp_path / "d.json") == [*names[:2], r"caf\udce9", names[3]]
    for path in tmp_path.iterdir():
        path.read_bytes().decode("utf-8")


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name, text in (("a.json", '{"a": 1}'), ("a.csv", "a,b\n1,2\n")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert read_csv(tmp_path / "a.csv") == [{"a": "1", "b": "2"}]


def test_json_that_is_nested_deeply_is_damage(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(UserError, match=r"a\.json is damaged: its JSON is nested too deeply"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("read", [read_json, read_csv])
def test_a_fifo_is_refused_and_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match=r"cannot read .*fifo: it is not a regular file"):
        read(tmp_path / "fifo")


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_damaged_checkpoints_are_named(tmp_path, content):
    path = tmp_path / "epoch_001.pth"
    checkpoint.save(path, {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(UserError, match=r"epoch_001\.pth is damaged or not a checkpoint"):
        checkpoint.load(path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"a": subprocess.run}, path)
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.load(path)
