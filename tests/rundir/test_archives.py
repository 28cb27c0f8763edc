"""Checksums of checkpoints, and where they come from."""

import io
import random
import zipfile

import pytest
import torch

from rundir.archives import Origin, read_archive, read_origin
from rundir.weights import load, save
from utils.errors import UserError

WEIGHTS = {"w": torch.arange(1000.0), "b": torch.ones(3)}


@pytest.fixture
def path(tmp_path):
    save(tmp_path / "epoch_003.pth", WEIGHTS, Origin("id", 3))
    return tmp_path / "epoch_003.pth"


def is_flip_found(path, content, position, bit):
    """Flip one bit; return whether it is found. If not, the content must be the old one."""
    flipped = bytearray(content)
    flipped[position] ^= 1 << bit
    path.write_bytes(flipped)
    try:
        loaded = load(path)
    except UserError as error:
        assert str(path) in str(error)
        return True
    assert loaded.keys() == WEIGHTS.keys()
    assert all(torch.equal(loaded[name], WEIGHTS[name]) for name in WEIGHTS)
    return False


def test_no_flipped_bit_changes_a_weight(path):
    """Every flip is found, or lies where nothing is read."""
    content, draw = path.read_bytes(), random.Random(0)
    flips = [(draw.randrange(len(content)), draw.randrange(8)) for _ in range(400)]
    # The weights are 4,012 of the file's bytes.
    assert sum(is_flip_found(path, content, *flip) for flip in flips) > 250


def test_the_damaged_entry_is_named(path):
    content = path.read_bytes()
    at = content.index(torch.arange(1000.0).numpy().tobytes()) + 77
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert torch.load(path, weights_only=True)["w"].shape == (1000,)  # torch does not look
    with pytest.raises(UserError, match=r"epoch_003\.pth is damaged .*data/0"):
        read_archive(path)


def test_the_origin_is_kept_beside_the_weights(path, tmp_path):
    assert read_archive(path).origin == read_origin(path) == Origin("id", 3)
    assert torch.load(path, weights_only=True, mmap=True).keys() == WEIGHTS.keys()
    save(tmp_path / "plain.pth", WEIGHTS)
    assert read_origin(tmp_path / "plain.pth") is None
    assert read_origin(tmp_path / "absent.pth") is None
    save(tmp_path / "ema_003.pth", WEIGHTS, Origin("id", 3, average=True))
    assert read_archive(tmp_path / "ema_003.pth").origin == Origin("id", 3, average=True)


def test_equal_weights_give_equal_files(path):
    first = path.read_bytes()
    save(path, WEIGHTS, Origin("id", 3))
    assert path.read_bytes() == first


def test_files_without_checksums_are_read_and_called_unverified(tmp_path):
    torch.save(WEIGHTS, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, tmp_path / "zeros.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    for name in ("legacy.pth", "zeros.pth"):
        archive = read_archive(tmp_path / name)
        assert not archive.verified
        assert archive.content == (tmp_path / name).read_bytes()
        assert torch.equal(load(tmp_path / name)["w"], WEIGHTS["w"])


def test_an_origin_of_nonsense_is_damage(tmp_path):
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    for number, text in enumerate(
        ('{"run": "a"}', "[]", "[" * 100_000, '{"run": 1, "epoch": "x"}')
    ):
        path = tmp_path / f"{number}.pth"
        path.write_bytes(buffer.getvalue())
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/origin.json", text)
        with pytest.raises(UserError, match=r"\.pth is damaged"):
            read_archive(path)


def test_a_compressed_entry_is_refused(tmp_path):
    """A few bytes could unfold to terabytes."""
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(UserError, match="compressed"):
        load(path)


@pytest.mark.slow
def test_no_flipped_bit_of_a_header_changes_a_weight(path):
    """zipfile and torch read other fields: one flag leaves a tensor of torch's uninitialised."""
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        first = archive.start_dir
        headers = [e.header_offset + i for e in archive.infolist() for i in range(30)]
    positions = [*range(first, len(content)), *headers]
    flips = [(position, bit) for position in positions for bit in range(8)]
    assert sum(is_flip_found(path, content, *flip) for flip in flips) > 1000
