"""Loop (e): whole epochs of train.py, in a run directory: what a user waits for."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import train
from args import complete
from benchmarks.bench import Bench
from benchmarks.images import get_training_images
from benchmarks.loops import RATE, Seconds, choose_bench_precision, draw_network, take_first
from input_pipeline.loader import BatchLoader
from input_pipeline.splits import DataSet
from rundir.building import build_batches
from rundir.directory import Run
from training.collapse import CollapseRecorder
from training.log import RunLog
from utils.signals import Stopped, StopSignal
from utils.world import ALONE

MANY_EPOCHS = 1_000_000
TRAINING_PER_TEST = 5  # images: CIFAR has 50,000 and 10,000


class Gate:
    """Training batches whose every epoch waits until it may begin.

    train() thereby takes turns with other loops. Everything else is the loader's own.
    """

    def __init__(self, loader: BatchLoader) -> None:
        self._loader = loader
        self._arrived, self._opened = threading.Semaphore(0), threading.Semaphore(0)
        self._closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def batches(self, *args: Any, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Wait, then yield the epoch's batches. Raises Stopped once the gate is closed."""
        self._arrived.release()
        self._opened.acquire()
        if self._closed:
            raise Stopped
        yield from self._loader.batches(*args, **options)

    def open(self) -> None:
        """Let one epoch begin."""
        self._opened.release()

    def close(self) -> None:
        """End training where the next epoch would begin."""
        self._closed = True
        self._opened.release()

    def wait(self, training: Future[None]) -> None:
        """Wait until the epoch before is finished. Raises the error that ended `training`."""
        self._arrived.acquire()
        if training.done():
            training.result()

    def announce_end(self, _: Future[None]) -> None:
        """Wake `wait`: training has ended."""
        self._arrived.release()


def run_epochs(bench: Bench, data: DataSet, device: torch.device) -> Seconds:
    """Run loop (e). It yields after each epoch: training on --steps batches, test and saving.

    The test set has a fifth as many images as an epoch. A file that is still being written when
    the next epoch may begin does not count. `settings.save_dir` is the place of the run directory.
    """
    training_images = take_first(get_training_images(data), bench.steps * bench.settings.batch_size)
    assert data.test is not None
    test_images = take_first(data.test, max(1, len(training_images) // TRAINING_PER_TEST))
    data = dataclasses.replace(data, train=training_images, test=test_images)
    train_batches, test_batches = build_batches(
        bench.settings, data, choose_bench_precision(bench, device)
    )
    gate: Any = Gate(train_batches)
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train_in_directory, bench, data, device, (gate, test_batches))
        training.add_done_callback(gate.announce_end)
        try:
            gate.wait(training)
            while True:
                gate.open()
                gate.wait(training)
                yield 0.0
        finally:
            gate.close()
            with contextlib.suppress(Stopped):
                training.result()


def train_in_directory(
    bench: Bench,
    data: DataSet,
    device: torch.device,
    batches: tuple[BatchLoader, BatchLoader],
) -> None:
    """Call train() as train.py does, in a new run directory. Its lines go to train_log.txt only.

    Raises Stopped where the batches do.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)  # each thread has its own
    graphs = "on" if bench.graphs else "off"
    settings = complete(bench.settings.replace(epochs=MANY_EPOCHS, lr=RATE, graphs=graphs))
    precision = choose_bench_precision(bench, device)
    model = precision.place(draw_network(bench, data))
    run = Run(Path(settings.save_dir) / "epochs", False, settings)
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        run,
    ):
        run.write_config(settings, data.facts(), str(device))
        log = RunLog(run, settings)
        collapse = CollapseRecorder(run, data, batches, log.console)
        train.train(settings, run, batches, model, precision, log, collapse, StopSignal(), ALONE)
