"""Files decoded by this process or by workers, into memory or streamed."""

import multiprocessing
import resource
import subprocess
import sys

import pytest
import torch

from input_pipeline import decoding
from input_pipeline.load import load_dataset
from input_pipeline.pixels import measure_channels
from input_pipeline.room import find_room
from input_pipeline.splits import FileSplit, TensorSplit
from input_pipeline.transfer import share
from rundir.building import build_data
from rundir.resuming import read_settings
from tests.helpers import ROOT
from tests.input_pipeline.helpers import break_file, picture, refusal


def test_workers_decode_the_same(folder, monkeypatch, recwarn):
    monkeypatch.setattr(decoding, "_DECODE_CHUNK", 2)
    # torch would warn that two workers are more than this one core.
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0}, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    alone, helped = (load_dataset("folder", folder, num_workers=n) for n in (0, 2))
    assert torch.equal(alone.train.images, helped.train.images)
    assert alone.mean == helped.mean
    assert not [str(warning.message) for warning in recwarn]


def test_a_large_folder_streams_the_same_images(folder):
    size = 10 * 3 * 10 * 12
    memory = load_dataset("folder", folder, in_memory_bytes=size)
    streamed = load_dataset("folder", folder, in_memory_bytes=size - 1)
    assert isinstance(memory.train, TensorSplit)
    assert isinstance(streamed.train, FileSplit) and isinstance(streamed.test, FileSplit)
    assert torch.equal(streamed.train.fetch(torch.arange(6)), memory.train.images)
    assert torch.equal(streamed.test.fetch([3, 0]), memory.test.images[[3, 0]])
    assert streamed.mean == memory.mean and streamed.image_shape == memory.image_shape


@pytest.mark.parametrize("room", [0, None], ids=["streamed", "in memory"])
def test_stats_of_many_bytes_are_of_evenly_spaced_images(folder, monkeypatch, room):
    """They do not depend on where the images are, which differs from machine to machine."""
    images = load_dataset("folder", folder).train.images
    monkeypatch.setattr("input_pipeline.load._MEASURED_IMAGES", 3)
    for most, measured in ((10 * 3 * 10 * 12, slice(None)), (10 * 3 * 10 * 12 - 1, [0, 2, 4])):
        monkeypatch.setattr("input_pipeline.load.MEASURED_BYTES", most)
        data = load_dataset("folder", folder, in_memory_bytes=room)
        assert isinstance(data.train, TensorSplit if room is None else FileSplit)
        assert (data.mean, data.std) == measure_channels([images[measured]])


GIB, CUDA = 2**30, torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("device", "host", "gpu", "room"),
    [
        ("cpu", 24 * GIB, 1, 6 * GIB),
        ("cpu", 0, 1, GIB // 4),
        ("cuda", 24 * GIB, 80 * GIB, 6 * GIB),
        ("cuda", 128 * GIB, 80 * GIB, 20 * GIB),
        ("cuda", 128 * GIB, GIB // 8, GIB // 4),
    ],
)
def test_a_quarter_of_the_free_memory_holds_images(monkeypatch, device, host, gpu, room):
    monkeypatch.setattr("input_pipeline.room.read_available_memory", lambda: host)
    monkeypatch.setattr("input_pipeline.room.measure_free_memory", lambda device: gpu)
    assert find_room(torch.device(device)) == room
    assert device == "cuda" or find_room() == room


def test_a_full_device_lets_images_be_streamed(folder, monkeypatch):
    for module in ("input_pipeline.load", "rundir.building"):
        monkeypatch.setattr(f"{module}.find_room", lambda device=None: 0 if device == CUDA else GIB)
    settings = read_settings(["--dataset", "folder", "--data_dir", str(folder)])
    for device, kind in ((None, TensorSplit), (CUDA, FileSplit)):
        assert isinstance(build_data(settings, device=device, num_workers=0).train, kind)
    assert isinstance(load_dataset("folder", folder).train, TensorSplit)


@pytest.mark.parametrize("in_memory", [True, False])
def test_mixed_sizes_are_reported_with_both_files(folder, in_memory):
    odd = folder / "train" / "dog" / "1.png"
    picture(3, 7, 9).save(odd)
    message = refusal("folder", folder, in_memory_bytes=None if in_memory else 0)
    for part in (str(folder / "train" / "cat" / "0.png"), "12×10", str(odd), "7×9", "--img_size"):
        assert part in message


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("how", ["text", "empty", "truncated"])
def test_a_file_that_is_no_whole_image_is_named(folder, how, num_workers):
    path = folder / "train" / "dog" / "1.jpg"
    break_file(path, how)
    message = refusal("folder", folder, num_workers=num_workers)
    assert f"{path} can't be decoded" in message and "Traceback" not in message


DECODE = """
import resource, sys, torch
from input_pipeline.decoding import decode_whole
from input_pipeline.splits import FileSplit
from utils.errors import UserError
side, workers, files, *paths = sys.argv[1:]
if int(files):
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(files),) * 2)
split = FileSplit(paths, torch.zeros(len(paths), dtype=torch.int64), (int(side), int(side)))
try:
    images = decode_whole(split, int(workers)).images
    assert torch.equal(images, decode_whole(split, 0).images)
    print("right")
except UserError as error:
    print(error)
"""


def decode(paths, *, side: int = 8, workers: int = 1, files: int = 0, shm: str = "") -> str:
    """What a process prints that decodes, with /dev/shm of another size where one is given."""
    command = [sys.executable, "-W", "ignore", "-c", DECODE, *map(str, (side, workers, files))]
    command += map(str, paths)
    if shm:
        mount = f"mount -t tmpfs -o size={shm} tmpfs /dev/shm"
        isolate = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
        try:
            allowed = subprocess.run([*isolate, mount], capture_output=True).returncode == 0
        except FileNotFoundError:
            allowed = False
        if not allowed:
            pytest.skip("this system does not let /dev/shm be mounted")
        command = [*isolate, f'{mount} && exec "$@"', "sh", *command]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.strip()


@pytest.fixture
def files(folder):
    return sorted(folder.rglob("*.png"))


@pytest.mark.slow
def test_batches_need_no_room_in_dev_shm(files):
    # 10 images of 3 MB in one batch.
    assert decode(files, side=1024, shm="64k") == "right"


@pytest.mark.slow
def test_a_full_dev_shm_is_reported(files):
    line = decode(files, shm="4k")
    assert "/dev/shm" in line and "--shm-size" in line and "--num_workers 0" in line


@pytest.mark.slow
def test_few_file_descriptors_are_reported(files):
    line = decode(files, workers=8, files=30)  # enough to start some of them
    assert "30 open files are too few for --num_workers 8" in line and "ulimit -n" in line


def die_of_memory(self, indices, epoch):
    raise MemoryError


def test_a_worker_without_memory_is_reported(folder, monkeypatch):
    if torch.multiprocessing.get_start_method() != "fork":
        pytest.skip("the workers don't share this process's patched class")
    monkeypatch.setattr(FileSplit, "fetch", die_of_memory)
    assert "--num_workers" in refusal("folder", folder, num_workers=1)


def test_descriptors_that_run_out_in_a_worker_are_reported(folder, monkeypatch):
    if torch.multiprocessing.get_start_method() != "fork":
        pytest.skip("the workers don't share this process's patched function")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def share_without_descriptors(images):
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            return share(images)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    monkeypatch.setattr(decoding, "share", share_without_descriptors)
    assert "open files" in refusal("folder", folder, num_workers=1)


def receive(queue, answers):
    images = queue.get()
    answers.put((type(images), images.dtype, tuple(images.shape), int(images.sum())))


def test_shared_images_arrive_as_a_tensor():
    images = torch.randint(0, 256, (5, 3, 7, 9), dtype=torch.uint8)
    queue, answers = multiprocessing.Queue(), multiprocessing.Queue()
    receiver = multiprocessing.Process(target=receive, args=(queue, answers))
    receiver.start()
    queue.put(share(images))
    expected = (torch.Tensor, torch.uint8, (5, 3, 7, 9), int(images.sum()))
    assert answers.get(timeout=60) == expected
    receiver.join()
