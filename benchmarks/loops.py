"""The loops of train_speed.py. Each yields after every step the seconds that it compiled.

(a) conventional: PIL images, torchvision transforms, DataLoader workers, float32, contiguous, and
    an .item() of loss and accuracy in every step, as a newcomer would write it, with torch's
    defaults; a worker for each usable core;
(a2) the same with two workers;
(b) train.py: its own batches, step and meter, in the resolved precision of --precision;
(c) ceiling: the step of (b) on one resident batch, with no data work and no metrics;
(d) batches: the batches of (b), decoded, augmented and delivered, with no step;
(e) whole epoch: train.py's training, test and saving, in benchmarks/epochs.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Generator
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from benchmarks.bench import Bench
from benchmarks.images import get_training_images
from input_pipeline import AUGMENTATIONS
from input_pipeline.splits import DataSet, FileSplit, Split, TensorSplit
from objective import LOSSES
from objective.optimizers import build_optimizer
from rundir.building import build_batches, build_network, build_precision
from training.meter import Meter
from training.setup import build_objective
from training.step import Step, build_step
from utils.errors import UserError
from utils.precision import Precision
from utils.registry import load_function

RATE, DECAY = 1e-3, 5e-4  # steps this small do not overflow

Seconds = Generator[float, None, None]


class Images(torch.utils.data.Dataset):
    """PIL images and labels, as torchvision's data sets give them."""

    def __init__(self, split: Split, transform: Callable) -> None:
        self.labels, self.transform = split.labels.tolist(), transform
        if isinstance(split, TensorSplit):
            self.paths = None
            self.arrays = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        else:
            self.paths = split.paths

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.paths is None:
            image = Image.fromarray(self.arrays[index])
        else:
            image = Image.open(self.paths[index]).convert("RGB")
        return self.transform(image), self.labels[index]


def build_conventional_transform(data: DataSet, augment: str) -> Callable:
    """Build torchvision's transforms of a PIL image, with none, DA1 or RRC for `augment`."""
    side, augmentation = data.side, AUGMENTATIONS[augment]
    steps: list[Any] = []
    if augmentation.crops_files:
        steps += [transforms.RandomResizedCrop(side), transforms.RandomHorizontalFlip()]
    elif isinstance(data.train, FileSplit):
        steps += [transforms.Resize(side), transforms.CenterCrop(side)]
    if augmentation.transforms:
        steps += [transforms.RandomCrop(side, padding=side // 8), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    return transforms.Compose(steps)


def build_plain_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """Build an optimizer as torch's documentation shows it. Raises UserError for another one."""
    if name == "SGD":
        return torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=DECAY)
    if name == "AdamW":
        return torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    raise UserError(f"--optimizer {name}: the conventional loop has none; add --loops b c d e")


def run_conventionally(bench: Bench, data: DataSet, device: torch.device) -> Seconds:
    """Run loop (a)."""
    settings = bench.settings
    workers = settings.num_workers or 0
    transform = build_conventional_transform(data, settings.augment)
    loader = torch.utils.data.DataLoader(
        Images(get_training_images(data), transform),
        batch_size=settings.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )
    model = draw_network(bench, data).to(device)
    loss_function = load_function(LOSSES[settings.loss].function)
    optimizer = build_plain_optimizer(settings.optimizer, model)
    model.train()
    total_loss, total_correct, seen = 0.0, 0, 0
    while True:
        for images, targets in loader:
            images, targets = images.to(device), targets.to(device)
            optimizer.zero_grad()
            logits, _ = model(images)
            loss = loss_function(logits, targets)
            loss.backward()
            optimizer.step()
            total_loss += loss.item() * len(targets)
            total_correct += (logits.argmax(1) == targets).sum().item()
            seen += len(targets)
            yield 0.0


def run_as_train(bench: Bench, data: DataSet, device: torch.device) -> Seconds:
    """Run loop (b).

    With images in memory an epoch has --steps batches. Each turn then has its share of the work for
    many steps at once: order, augmentation, counting.
    """
    batch_size, split = bench.settings.batch_size, get_training_images(data)
    if isinstance(split, TensorSplit):
        split = take_first(split, bench.steps * batch_size)
        data = dataclasses.replace(data, train=split)
    model, step = prepare_step(bench, data, device)
    last = len(split) // batch_size - 1
    meter = Meter(last + 1, device)
    model.train()
    for number, (images, targets) in iterate_full_batches(bench, data, device):
        meter.add(*step(images, targets), targets)
        if number == last:
            meter.read_summary(1, RATE)
            meter.reset()
        yield step.take_compile_time().seconds


def run_step_alone(bench: Bench, data: DataSet, device: torch.device) -> Seconds:
    """Run loop (c): repeat the step of (b) on its first batch."""
    model, step = prepare_step(bench, data, device)
    images, targets = prepare_first_batch(bench, data, device)
    model.train()
    while True:
        step(images, targets)
        yield step.take_compile_time().seconds


def run_batches_alone(bench: Bench, data: DataSet, device: torch.device) -> Seconds:
    """Run loop (d)."""
    for _ in iterate_full_batches(bench, data, device):
        yield 0.0


def take_first(split: Split, count: int) -> Split:
    """Return the first `count` images, or all."""
    return split.select(torch.arange(min(len(split), count)))


def iterate_full_batches(
    bench: Bench, data: DataSet, device: torch.device
) -> Generator[tuple[int, tuple[Tensor, Tensor]], None, None]:
    """Iterate over train.py's batches, epoch after epoch, with their number in the epoch.

    The last, smaller batch of an epoch is left out: its step takes less time.
    """
    loader, _ = build_batches(bench.settings, data, choose_bench_precision(bench, device))
    full = len(get_training_images(data)) // bench.settings.batch_size
    for epoch in itertools.count(1):
        yield from itertools.islice(enumerate(loader.batches(epoch)), full)


def prepare_first_batch(bench: Bench, data: DataSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first batch of the first epoch."""
    batches = iterate_full_batches(bench, data, device)
    _, batch = next(batches)
    batches.close()  # ends the workers
    return batch


def draw_network(bench: Bench, data: DataSet) -> nn.Module:
    """Build the network with the same initial weights in every loop."""
    torch.manual_seed(0)
    return build_network(bench.settings, data)


def prepare_step(bench: Bench, data: DataSet, device: torch.device) -> tuple[nn.Module, Step]:
    """Build network and step as train.py makes them, in the memory format of `bench.layout`."""
    precision = choose_bench_precision(bench, device)
    model = precision.place(draw_network(bench, data))
    optimizer = build_optimizer(bench.settings.optimizer, model, RATE, DECAY, DECAY)
    step = build_step(
        model,
        optimizer,
        precision.build_scaler(),
        build_objective(bench.settings),
        precision,
        compiled=bench.settings.compile,
        graphs=bench.graphs,
    )
    return model, step


def choose_bench_precision(bench: Bench, device: torch.device) -> Precision:
    """Choose train.py's precision and memory format, or the one that `bench.layout` names."""
    precision = build_precision(bench.settings, bench.settings.precision, device)
    if bench.layout is None:
        return precision
    return dataclasses.replace(precision, memory_format=getattr(torch, bench.layout))
