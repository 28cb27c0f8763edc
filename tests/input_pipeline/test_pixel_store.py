"""Stored images come back bit for bit; kills, damage and full disks leave what was committed."""

import os
import pickle
import signal
from functools import partial

import numpy as np
import pytest

from input_pipeline import pixel_store
from input_pipeline.pixel_store import INDEX, PIXELS, PixelStore, pack
from utils.errors import UserError

SHAPES = [(4, 5), (3, 7), None, (16, 16), (1, 1)]


def draw(seed, shapes=SHAPES):
    generator = np.random.default_rng(seed)
    return [s and generator.integers(0, 256, (*s, 3), dtype=np.uint8) for s in shapes]


def make_keys(prefix, count=5):
    # A zero byte at the end, which NumPy leaves out of such strings, belongs to the key.
    return np.array([f"{prefix}{number:013d}\0".encode() for number in range(count)], "S16")


def add(store, prefix, images):
    with store.append() as writer:
        writer.write(make_keys(prefix, len(images)), pack(images))


def check(place, prefix, images):
    stored = PixelStore(place).open_images(make_keys(prefix, len(images)))
    for number, image in enumerate(images):
        read = stored.read(number)
        assert (read is None) if image is None else np.array_equal(read, image)


def test_images_come_back(tmp_path):
    store = PixelStore(tmp_path)
    first, second = draw(0), draw(1)
    assert store.open_images(make_keys("ab")).read(0) is None
    add(store, "ab", first)
    images = PixelStore(tmp_path).open_images(make_keys("ab"))
    read = images.read(3)
    add(store, "aa", second)  # while another process reads
    check(tmp_path, "ab", first)
    check(tmp_path, "aa", second)
    assert np.array_equal(images.read(0), first[0]) and np.array_equal(read, first[3])
    chosen = pickle.loads(pickle.dumps(images)).select(np.array([4, 2]))
    assert len(chosen) == 2 and np.array_equal(chosen.read(0), first[4]) and chosen.read(1) is None
    found = store.find(np.concatenate([make_keys("ac"), make_keys("aa")]))
    assert (found["key"][:5] == b"").all() and (found["key"][5:] == make_keys("aa")).all()


# The functions that a writer calls, in their order: a kill before each.
STEPS = ["write", "fsync of pixels", "fsync of index", "rename"]


def write_until_killed(store, step, images):
    calls = []

    def count(function, *arguments):
        calls.append(function)
        if len(calls) > step:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    for name in ("fsync", "replace"):
        setattr(os, name, partial(count, getattr(os, name)))
    with store.append() as writer:
        packed = pack(images)
        writer._file.write(packed[: len(packed) // 2].data)  # a part of it is written over
        writer._file.seek(writer._end)
        count(writer.write, make_keys("b"), packed)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)
def test_a_killed_writer_leaves_what_was_committed(tmp_path, step):
    first, second = draw(0), draw(1)
    add(PixelStore(tmp_path), "a", first)
    child = os.fork()
    if child == 0:
        try:
            write_until_killed(PixelStore(tmp_path), step, second)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    check(tmp_path, "a", first)
    assert (PixelStore(tmp_path).find(make_keys("b"))["key"] == b"").all()
    add(PixelStore(tmp_path), "b", second)
    check(tmp_path, "a", first)
    check(tmp_path, "b", second)
    words = sum(-(-image.size // 8) for image in first + second if image is not None)
    assert (tmp_path / PIXELS).stat().st_size == 8 * words


def test_damage_is_seen(tmp_path):
    images = draw(0)
    add(PixelStore(tmp_path), "a", images)
    pixels = tmp_path / PIXELS
    whole = pixels.read_bytes()
    pixels.write_bytes(whole[:70] + bytes([whole[70] ^ 1]) + whole[71:])
    stored = PixelStore(tmp_path).open_images(make_keys("a"))
    assert np.array_equal(stored.read(0), images[0])
    with pytest.raises(UserError, match="pixels is damaged: remove its directory"):
        stored.read(1)
    pixels.write_bytes(whole[:-8])  # cut off: what is missing is stored again
    with pytest.raises(UserError, match="damaged"):
        stored.read(4)
    assert (PixelStore(tmp_path).find(make_keys("a"))["key"] == b"").tolist() == [False] * 4 + [
        True
    ]
    index = tmp_path / INDEX
    index.write_bytes(index.read_bytes()[:-1] + b"?")
    store = PixelStore(tmp_path)
    assert (store.find(make_keys("a"))["key"] == b"").all()
    old = stored._open()
    add(store, "a", images)
    check(tmp_path, "a", images)
    old.seek(0)
    assert old.read() == whole[:-8]  # who reads the old file is left alone


def test_a_full_disk_is_one_line_and_keeps_what_was_committed(tmp_path):
    resource = pytest.importorskip("resource")
    images, large = draw(0), draw(1, [(90, 90)] * 3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = PixelStore(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
        full = pytest.raises(UserError, match=r"cannot write .*pixels: File too large; what is")
        with full, store.append() as writer:
            writer.write(make_keys("a"), pack(images))
            writer.write(make_keys("b", 3), pack(large))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    check(tmp_path, "a", images)
    assert (PixelStore(tmp_path).find(make_keys("b"))["key"] == b"").all()
    add(PixelStore(tmp_path), "b", large)
    check(tmp_path, "b", large)


def test_checksums_are_sums_of_words():
    words = np.array([2**63, 2**63, 5, 2**64 - 1], np.uint64)
    assert pixel_store.add_up(words) == 4
