"""Batches: what an epoch visits, resuming, workers, and both kinds of split alike."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from input_pipeline import AUGMENTATIONS, loader
from input_pipeline.augmentation import draw_plan, normalise
from input_pipeline.cropping import ResizedCrop
from input_pipeline.decoding import init_worker
from input_pipeline.image_files import crop_and_resize
from input_pipeline.splits import FileSplit, TensorSplit
from tests.helpers import ROOT
from tests.input_pipeline.helpers import COUNT, MEAN, SIZE, STD, make
from utils.errors import UserError

IN_MEMORY = [name for name, entry in AUGMENTATIONS.items() if not entry.crops_files]
KINDS = [(1, name) for name in IN_MEMORY] + [(0, name) for name in AUGMENTATIONS]


def assert_same(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others)
    for (images, targets), (other_images, other_targets) in zip(batches, others, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(targets, other_targets)


def test_plain_epoch_is_the_split_in_order_and_normalised(splits):
    _, split = splits
    loader = make(split)
    batches = list(loader.batches(0))
    assert len(loader) == len(batches) == 5 and loader.num_samples == COUNT
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    torch.testing.assert_close(images, (split.images / 255 - mean) / std)
    assert labels.dtype == torch.int64 and torch.equal(labels, split.labels)
    assert images.dtype == torch.float32 and images.is_contiguous()


def test_shuffled_epoch_visits_every_sample_once_and_epochs_differ(splits):
    _, split = splits
    loader = make(split, shuffle=True)
    first, second = (torch.cat([x for x, _ in loader.batches(epoch)]) for epoch in (0, 1))
    assert not torch.equal(first, second)
    plain = torch.cat([x for x, _ in make(split).batches(0)])
    for shuffled in (first, second):
        sums, expected = shuffled.sum((1, 2, 3)).sort(), plain.sum((1, 2, 3)).sort()
        torch.testing.assert_close(sums.values, expected.values)


@pytest.mark.parametrize("augment", IN_MEMORY)
def test_files_and_tensors_give_identical_batches(splits, augment):
    options = {"shuffle": True, "augment": augment, "rotation": 15.0, "seed": 3}
    files, tensors = (make(split, **options) for split in splits)
    assert_same(files.batches(2), tensors.batches(2))


@pytest.mark.parametrize("augment", IN_MEMORY)
@pytest.mark.parametrize("batches_at_once", [1, 2, 3])
def test_how_many_batches_are_prepared_at_once_changes_nothing(
    splits, monkeypatch, augment, batches_at_once
):
    options = {"shuffle": True, "augment": augment, "rotation": 15.0, "seed": 3}
    expected = list(make(splits[1], **options).batches(2))  # all at once
    monkeypatch.setitem(loader.PIECE_BYTES, "cpu", batches_at_once * 5 * 3 * SIZE * SIZE * 4)
    assert_same(make(splits[1], **options).batches(2), expected)
    assert_same(make(splits[1], **options).batches(2, start_step=1), expected[1:])


@pytest.mark.parametrize(("kind", "augment"), KINDS)
def test_resume_at_any_step_gives_the_rest_of_the_epoch(splits, kind, augment):
    options = {"shuffle": True, "augment": augment, "rotation": 15.0, "seed": 3}
    whole = list(make(splits[kind], **options).batches(1))
    resumed = make(splits[kind], **options)
    for step in range(len(whole) + 1):
        assert_same(resumed.batches(1, step), whole[step:])


@pytest.mark.parametrize("augment", ["DA1+DA2", "RRC+DA2"])
def test_workers_change_nothing(splits, augment):
    options = {"shuffle": True, "augment": augment, "seed": 1}
    alone, helped = (make(splits[0], num_workers=n, **options) for n in (0, 2))
    next(helped.batches(0))  # an epoch left after one step must not leak into the next
    for epoch, step in ((0, 0), (1, 2)):
        assert_same(alone.batches(epoch, step), helped.batches(epoch, step))


@pytest.mark.parametrize(("kind", "augment"), [(0, "RRC+DA2"), (1, "DA1+DA2")])
def test_loading_leaves_the_default_generator_alone(splits, kind, augment):
    state = torch.random.get_rng_state()
    list(make(splits[kind], shuffle=True, augment=augment).batches(0))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("augment", ["DA1", "DA1+DA2"])
def test_augmentation_changes_with_seed_and_epoch(splits, augment):
    def images(seed, epoch):
        loader = make(splits[1], augment=augment, seed=seed)
        return torch.cat([batch for batch, _ in loader.batches(epoch)])

    assert not torch.equal(images(0, 0), images(0, 1))
    assert not torch.equal(images(0, 1), images(1, 0))


def test_crops_belong_to_the_sample_and_leave_the_split_alone(splits):
    """Neither the batch nor the order in which a sample comes changes its crop."""
    files = splits[0]
    whole, shuffled = (
        make(files, augment="RRC", seed=2, batch_size=n, shuffle=n == 4) for n in (COUNT, 4)
    )
    ((images, _),) = whole.batches(1)
    others = torch.cat([batch for batch, _ in shuffled.batches(1)])
    assert torch.equal(others, images[draw_plan(COUNT, seed=2, epoch=1, shuffle=True).order])
    mean, std = (torch.tensor(values) for values in (MEAN, STD))
    crop = ResizedCrop(2)
    for number, path in enumerate(files.paths):
        pixels = crop_and_resize(Image.open(path), crop.draw(1, number, SIZE, SIZE), SIZE)
        expected = normalise(torch.tensor(pixels.transpose(2, 0, 1).copy())[None], mean, std)
        assert torch.equal(images[number], expected[0])
    assert_same(make(whole.split).batches(1), make(files).batches(1))


def test_soft_targets_only_with_da2(splits):
    shapes = {"DA1": (5,), "DA1+DA2": (5, 4), "RRC": (5,), "RRC+DA2": (5, 4)}
    for augment, shape in shapes.items():
        kind = 0 if "RRC" in augment else 1
        _, targets = next(make(splits[kind], augment=augment).batches(0))
        assert targets.shape == shape


@pytest.mark.parametrize("kind", [0, 1], ids=["files", "tensors"])
def test_a_single_last_sample_is_dropped_where_asked(splits, kind):
    kept = make(splits[kind], batch_size=11)
    dropped = make(splits[kind], batch_size=11, drop_single=True)
    assert (len(kept), kept.num_samples) == (3, 23)
    assert (len(dropped), dropped.num_samples) == (2, 22)
    assert [len(x) for x, _ in dropped.batches(0)] == [11, 11]
    unaffected = make(splits[kind], batch_size=10, drop_single=True)
    assert (len(unaffected), unaffected.num_samples) == (3, 23)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_file_is_named(splits, tmp_path, num_workers):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    files = splits[0]
    split = FileSplit([*files.paths[:-1], str(broken)], files.labels, files.image_size)
    # Without `as`, the traceback is in no reference cycle and the workers end at once.
    with pytest.raises(UserError, match=r"^[^\n]*broken\.png can't be decoded[^\n]*$"):
        list(make(split, num_workers=num_workers).batches(0))


def kill_a_worker(others) -> None:
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    killed = workers.pop()
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    time.sleep(0.05)  # a handler of SIGCHLD would raise here, in the middle of other work


@pytest.mark.slow
@pytest.mark.parametrize("between_epochs", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_killed_worker_is_reported_where_a_batch_is_waited_for(splits, between_epochs):
    others = set(multiprocessing.active_children())
    loader = make(splits[0], num_workers=2, batch_size=1)
    batches = loader.batches(0)
    next(batches)
    if between_epochs:
        list(batches)
        batches = loader.batches(1)
    kill_a_worker(others)
    with pytest.raises(UserError, match=r"^a process .* memory ran out: .*--num_workers$"):
        list(batches)


def report_handlers(_):
    return [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]


def test_workers_leave_stopping_to_the_main_process():
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        loader = DataLoader(
            [0], num_workers=1, worker_init_fn=init_worker, collate_fn=report_handlers
        )
        assert list(loader) == [[signal.SIG_IGN, signal.SIG_IGN]]
    finally:
        signal.signal(signal.SIGTERM, before)


KEPT = """
from input_pipeline.loader import BatchLoader
from input_pipeline.splits import FileSplit
import sys, torch
split = FileSplit(sys.argv[1:], torch.arange(len(sys.argv) - 1) % 2, (16, 16))
loader = BatchLoader(split, batch_size=2, device="cpu", mean=(0.5,) * 3, std=(0.5,) * 3,
                     num_classes=2, num_workers=2)
epoch = loader.batches(0)
next(epoch)
sys.loader = epoch, loader  # alive until Python is gone
"""


@pytest.mark.slow
def test_a_loader_that_is_kept_does_not_keep_python_from_ending(splits):
    command = [sys.executable, "-c", KEPT, *splits[0].paths]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("options", "word"),
    [({"augment": "DA3"}, "DA3"), ({"batch_size": 0}, "0"), ({"augment": "rrc"}, "RRC crops")],
)
def test_wrong_settings_are_reported(splits, options, word):
    with pytest.raises(UserError, match=word):
        make(splits[1], **options)


def test_images_that_do_not_fit_on_the_device_are_one_line(splits, monkeypatch):
    def run_out(split, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(TensorSplit, "to", run_out)
    with pytest.raises(UserError, match=r"^the 23 images .* take 1\.6e-05 GiB, .*--sample_size.*$"):
        make(splits[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("kind", "augment"), KINDS)
def test_no_step_waits_for_the_gpu(splits, kind, augment):
    options = {"shuffle": True, "augment": augment, "rotation": 15.0, "batch_size": 3}
    loader = make(splits[kind], device="cuda", **options)
    with torch.cuda.stream(torch.cuda.Stream()):
        batches = loader.batches(0)
        next(batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            rest = list(batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        on_cpu = make(splits[kind], **options).batches(0, 1)
        for (images, targets), (cpu_images, cpu_targets) in zip(rest, on_cpu, strict=True):
            torch.testing.assert_close(images.cpu(), cpu_images)
            torch.testing.assert_close(targets.cpu(), cpu_targets)
