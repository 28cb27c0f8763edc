"""The space that checkpoints take: estimates against the files of runs, and what is refused."""

import os
import subprocess
from types import SimpleNamespace

import pytest

import train
from args import complete, parse_settings
from models import build_model
from rundir import space
from rundir.space import estimate_bytes
from tests.helpers import read_refusal, train_here
from training.setup import build_optimizer, count_bytes
from utils import files
from utils.files import can_link, find_existing_parent, format_bytes

# 2.2 MB of weights, so that the archives' headers do not count.
WIDE = ["--model", "MLP", "--width", 512, "--depth", 2, "--sample_size", 4, "--test_sample_size", 2]
WIDE += ["--batch_size", 20, "--save_interval", 0]


def list_settings(*flags):
    return complete(parse_settings([str(word) for word in flags]))


def build_wide():
    return build_model("MLP", 10, (3, 8, 8), width=512, depth=2)


def count_files(directory):
    """Bytes of all weights in a directory, also of temporary files; a file with two names once."""
    entries = [entry.stat() for entry in os.scandir(directory) if "pth" in entry.name]
    return sum({entry.st_ino: entry.st_size for entry in entries}.values())


class Usage:
    """The largest number of bytes that the weights in a directory take, seen at each rename."""

    def __init__(self, monkeypatch, directory, links):
        self.most, replace, link = 0, os.replace, os.link

        def look_and_replace(source, target):
            self.most = max(self.most, count_files(directory))
            replace(source, target)

        def refuse(source, target):
            raise OSError("no links here")

        monkeypatch.setattr(files.os, "fsync", lambda descriptor: None)
        monkeypatch.setattr(files.os, "replace", look_and_replace)
        monkeypatch.setattr(files.os, "link", link if links else refuse)


@pytest.mark.parametrize(
    ("flags", "links"),
    [
        ([], True),
        (["--keep_checkpoints", 1], False),
        (["--keep_checkpoints", 2, "--epoch_save_step", 2, "--optimizer", "AdamW"], True),
        (["--keep_checkpoints", "best"], True),
        (["--epoch_save_step", 3], False),
    ],
)
def test_the_estimate_is_what_the_files_take(tmp_path, monkeypatch, flags, links):
    """At the end it is exact but for headers, and best_model.pth may be a link by chance."""
    settings = list_settings(*WIDE, "--epochs", 6, *flags)
    estimate = estimate_bytes(settings, *count_bytes(build_wide()), links)
    usage = Usage(monkeypatch, tmp_path / "r", links)
    run = train_here(tmp_path, *WIDE, "--epochs", 6, *flags)
    taken = count_files(run)
    surely = estimate.total - (estimate.best if links else 0)
    assert 0.995 * surely <= taken <= 1.01 * estimate.total
    assert 0.75 * estimate.peak <= usage.most <= 1.01 * estimate.peak


def test_the_optimizers_entries_count_its_numbers():
    """Against the state of an optimizer after a step."""
    model = build_model("MLP", 10, (3, 8, 8), width=16, depth=1)
    for name in ("SGD", "AdamW"):
        settings = list_settings("--model", "MLP", "--optimizer", name)
        optimizer = build_optimizer(settings, model)
        for parameter in model.parameters():
            parameter.grad = parameter.detach().clone()
        optimizer.step()
        kept = [tensor for state in optimizer.state.values() for tensor in state.values()]
        expected = sum(tensor.nbytes for tensor in kept if tensor.ndim)
        weights, trainable = count_bytes(model)
        estimate = estimate_bytes(settings, weights, trainable)
        assert estimate.state - estimate.each == expected


def test_epochs_that_are_kept():
    def count(*flags):
        return estimate_bytes(list_settings(*flags), 10**6).epochs

    assert count() == 100
    assert count("--epochs", 10, "--epoch_save_step", 4) == 3
    assert count("--keep_checkpoints", 7) == 7
    assert count("--epochs", 5, "--keep_checkpoints", 7) == 5
    assert count("--keep_checkpoints", "best") == 0


def set_free(monkeypatch, count):
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: SimpleNamespace(free=count))


def test_a_disk_that_is_too_small_is_refused_before_anything_is_made(tmp_path, monkeypatch, capsys):
    place = tmp_path / "runs"
    flags = [*WIDE, "--epochs", 6, "--save_dir", place, "--run_name", "r", "--gpu_id", -1]
    set_free(monkeypatch, 10_000_000)
    line = read_refusal(capsys, train.main, *flags)
    for words in ("10.0 MB", "--keep_checkpoints", "--epoch_save_step", "--save_dir"):
        assert words in line
    assert not place.exists() and not list(tmp_path.iterdir())
    assert train.main([str(word) for word in [*flags, "--keep_checkpoints", "best"]]) == 0
    assert "10.0 MB free on the disk" in capsys.readouterr().out


def test_a_resume_needs_what_is_still_to_be_written(tmp_path, monkeypatch, capsys):
    constant = [*WIDE, "--schedule", "constant"]
    run = train_here(tmp_path, *constant, "--epochs", 4)
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    settings = list_settings(*constant, "--epochs", 6)
    estimate = estimate_bytes(settings, *count_bytes(build_wide()))
    needed = 2 * estimate.each + estimate.state  # two epochs, and the next last.pth
    more = ["--resume", "--save_dir", tmp_path, "--run_name", "r", "--epochs", 6]
    set_free(monkeypatch, 0.99 * needed)
    line = read_refusal(capsys, train.main, *more)
    assert format_bytes(0.99 * needed) in line and "--epoch_save_step" not in line
    assert before == {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    set_free(monkeypatch, 0)
    assert train.main([str(w) for w in more[:5]]) == 0  # nothing is left to be written
    set_free(monkeypatch, needed)
    assert train.main([str(word) for word in more]) == 0
    assert len(list(run.glob("epoch_*.pth"))) == 6


def test_what_a_resume_removes_makes_room(tmp_path, monkeypatch):
    constant = [*WIDE, "--schedule", "constant"]
    run = train_here(tmp_path, *constant, "--epochs", 6)
    set_free(monkeypatch, 0)
    train_here(tmp_path, "--resume", "--epochs", 8, "--keep_checkpoints", 1)
    assert [path.name for path in run.glob("epoch_*.pth")] == ["epoch_008.pth"]
    assert "removed 5 older checkpoints" in (run / "train_log.txt").read_text()


def test_a_run_that_is_replaced_makes_room(tmp_path, monkeypatch, capsys):
    run = train_here(tmp_path, *WIDE, "--epochs", 4)
    set_free(monkeypatch, 0)
    flags = [*WIDE, "--save_dir", tmp_path, "--run_name", "r", "--force", "--gpu_id", -1]
    assert "disk has" in read_refusal(capsys, train.main, *flags, "--epochs", 9)
    assert len(list(run.glob("epoch_*.pth"))) == 4
    train_here(tmp_path, *WIDE, "--epochs", 2, "--force")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount")
def test_a_small_disk(tmp_path, capsys):
    mount = ["mount", "-t", "tmpfs", "-o", "size=9m", "none", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mount is not allowed here")
    try:
        flags = [*WIDE, "--epochs", 6, "--gpu_id", -1, "--save_dir", tmp_path, "--run_name", "r"]
        assert "9.4 MB left" in read_refusal(capsys, train.main, *flags)
        assert not list(tmp_path.iterdir())
        assert train.main([str(word) for word in [*flags, "--keep_checkpoints", "best"]]) == 0
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_helpers_of_the_disk(tmp_path, monkeypatch):
    assert can_link(tmp_path) and not list(tmp_path.iterdir())
    monkeypatch.setattr(files.os, "link", lambda *names: (_ for _ in ()).throw(OSError()))
    assert not can_link(tmp_path) and not list(tmp_path.iterdir())
    assert find_existing_parent(tmp_path / "a" / "b") == tmp_path
    shown = [format_bytes(n) for n in (0, 999, 1000, 999_949, 999_950, 44_700_000, 4.6e9, 2e15)]
    assert shown == [
        "0 bytes", "999 bytes", "1.0 kB", "999.9 kB", "1.0 MB", "44.7 MB", "4.6 GB", "2,000.0 TB"
    ]  # fmt: skip
