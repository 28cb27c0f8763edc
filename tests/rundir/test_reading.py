"""Checkpoints that are read ahead: once each, one ahead, and as they were verified."""

import os
import threading

import pytest
import torch

from rundir.archives import Origin, read_archive
from rundir.reading import Reader, read_ahead
from rundir.weights import open_checkpoint, save
from utils.errors import UserError

WEIGHTS = {"w": torch.arange(1000.0), "b": torch.ones(3)}


@pytest.fixture
def path(tmp_path):
    save(tmp_path / "epoch_003.pth", WEIGHTS, Origin("id", 3))
    return tmp_path / "epoch_003.pth"


def read(path, epoch=3, run_id="id", missing=("train",)):
    reader = Reader(run_id, lambda archive: archive.content.hex(), lambda *_: list(missing))
    return reader.read(epoch, path)


def test_results_come_in_order_and_one_ahead():
    begun, second = [], threading.Event()

    def double(number):
        begun.append(number)
        if number == 2:
            second.set()
        return 2 * number

    results = read_ahead(double, [1, 2, 3, 4])
    assert next(results) == 2
    assert second.wait(10)  # it is read although nobody has asked for it
    assert begun == [1, 2]
    assert list(results) == [4, 6, 8]
    assert list(read_ahead(double, [])) == []


def test_an_error_is_raised_at_its_place_and_the_thread_ends():
    results = read_ahead(lambda number: 1 / number, [1, 0, 2])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    other = read_ahead(float, ["1", "2", "3"])
    next(other)
    other.close()
    assert not any(thread.name.startswith("read") for thread in threading.enumerate())


def test_a_sound_checkpoint_is_loaded_only_where_a_row_is_missing(path):
    found = read(path)
    assert (found.fault, found.verified, found.missing) == (None, True, ["train"])
    assert found.fingerprint == read_archive(path).content.hex()
    assert torch.equal(found.content["w"], WEIGHTS["w"])
    kept = read(path, missing=())
    assert (kept.fingerprint, kept.content) == (found.fingerprint, None)


def test_faults_are_returned(path, tmp_path):
    for faulty, words in (
        (read(path, run_id="other"), "another run"),
        (read(tmp_path / "absent.pth"), "does not exist"),
    ):
        assert words in str(faulty.fault)
        assert faulty.fingerprint == ""
    torch.save(torch.nn.Linear(1, 1), tmp_path / "code.pth")
    refused = read(tmp_path / "code.pth")  # the file is whole: its rows are those of its print
    assert "could run code" in str(refused.fault)
    assert refused.fingerprint != ""


def test_a_file_that_is_replaced_after_its_verification_gives_the_verified_weights(path):
    with open_checkpoint(path) as checkpoint:
        save(path, {"w": torch.zeros(1000), "b": torch.zeros(3)}, Origin("id", 3))
        assert torch.equal(checkpoint.load()["w"], WEIGHTS["w"])


def test_a_file_that_is_written_after_its_verification_is_refused(path):
    at = path.read_bytes().index(WEIGHTS["w"].numpy().tobytes())
    with open_checkpoint(path) as checkpoint:
        with open(path, "r+b") as file:
            os.pwrite(file.fileno(), b"\x01\x02", at + 100)
        with pytest.raises(UserError, match="other tensors"):
            checkpoint.load()


def test_a_file_without_checksums_gives_the_content_that_was_read(tmp_path):
    path = tmp_path / "legacy.pth"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    at = path.read_bytes().index(WEIGHTS["w"].numpy().tobytes())
    with open_checkpoint(path) as checkpoint:
        with open(path, "r+b") as file:
            os.pwrite(file.fileno(), b"\x01\x02", at + 100)
        assert torch.equal(checkpoint.load()["w"], WEIGHTS["w"])
