"""The loops that train_speed.py times; each yields after every step the seconds that it compiled.

(a) conventional: PIL images, torchvision transforms, DataLoader workers, float32, contiguous, and
    an .item() of loss and accuracy in every step, as a newcomer would write it;
(b) train.py: its own batches, step and meter, in the precision that --precision resolves to;
(c) ceiling: the step of (b) on one resident batch, with no data work and no metrics;
(d) batches: the batches of (b), decoded, augmented and delivered, with no step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from args import Settings
from input_pipeline.splits import DataSet, FileSplit, Split, TensorSplit
from models import NETWORKS
from objective import LOSSES
from objective.optimizers import build_optimizer
from rundir.rebuild import build_batches, build_network
from train import build_step
from training.meter import Meter
from training.setup import build_objective
from training.step import Step
from utils.precision import Precision, choose_precision
from utils.registry import load_function

RATE, DECAY = 1e-3, 5e-4  # too small a step to end in an overflow
Seconds = Generator[float, None, None]
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Task:
    """What the loops train.

    Attributes:
        settings: of train.py, complete, the precision resolved.
        steps: of a turn.
        layout: the name of a torch.memory_format in place of train.py's.
        graphs: compile with CUDA graphs.
    """

    settings: Settings
    steps: int
    layout: str | None = None
    graphs: bool = True


def get_train(data: DataSet) -> Split:
    """Return the training split, which is loaded here always."""
    assert data.train is not None
    return data.train


class Images(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """PIL images and labels, as torchvision's data sets give them."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.labels, self.transform = split.labels.tolist(), transform
        self.paths = split.paths if isinstance(split, FileSplit) else None
        if isinstance(split, TensorSplit):
            self.arrays = split.images.permute(0, 2, 3, 1).contiguous().numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.paths is None:
            image = Image.fromarray(self.arrays[index])
        else:
            image = Image.open(self.paths[index]).convert("RGB")
        return self.transform(image), self.labels[index]


def build_transform(data: DataSet, augmented: bool) -> Callable[[Image.Image], torch.Tensor]:
    """Compose torchvision's transforms of a PIL image, with DA1 where `augmented`."""
    side = data.side
    steps: list[Any] = []
    if isinstance(data.train, FileSplit):
        steps += [transforms.Resize(side), transforms.CenterCrop(side)]
    if augmented:
        steps += [transforms.RandomCrop(side, padding=side // 8), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    composed: Callable[[Image.Image], torch.Tensor] = transforms.Compose(steps)
    return composed


def run_conventional(task: Task, data: DataSet, device: torch.device) -> Seconds:
    """Run loop (a)."""
    settings = task.settings
    workers = settings.num_workers or 0
    loader = torch.utils.data.DataLoader(
        Images(get_train(data), build_transform(data, augmented=settings.augment != "none")),
        batch_size=settings.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )
    model = draw_network(task, data).to(device)
    compute_loss = load_function(LOSSES[settings.loss].function)
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "SGD":
        optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=DECAY)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    model.train()
    total_loss, total_correct, seen = 0.0, 0, 0
    while True:
        for images, targets in loader:
            images, targets = images.to(device), targets.to(device)
            optimizer.zero_grad()
            logits, _ = model(images)
            loss = compute_loss(logits, targets)
            loss.backward()
            optimizer.step()
            total_loss += loss.item() * len(targets)
            total_correct += (logits.argmax(1) == targets).sum().item()
            seen += len(targets)
            yield 0.0


def run_as_train_does(task: Task, data: DataSet, device: torch.device) -> Seconds:
    """Run loop (b).

    An epoch of images in memory has --steps batches, so that each turn has its share of what is
    done for many steps at once: order, augmentation, counting.
    """
    batch_size, split = task.settings.batch_size, get_train(data)
    if isinstance(split, TensorSplit):
        split = split.select(torch.arange(min(len(split), task.steps * batch_size)))
        data = replace(data, train=split)
    model, step = build_training(task, data, device)
    last = len(split) // batch_size - 1
    meter = Meter(last + 1, device)
    model.train()
    for number, (images, targets) in iterate_full_batches(task, data, device):
        meter.add(*step(images, targets), targets)
        if number == last:
            meter.check_finite(1, RATE)
            meter.read_summary()
            meter.reset()
        yield step.take_compile_time().seconds


def run_ceiling(task: Task, data: DataSet, device: torch.device) -> Seconds:
    """Run loop (c): the step of (b) on its first batch again and again."""
    model, step = build_training(task, data, device)
    images, targets = get_first_batch(task, data, device)
    layout = choose_layout(task, data, device).memory_format
    images = images.contiguous(memory_format=layout)
    model.train()
    while True:
        step(images, targets)
        yield step.take_compile_time().seconds


def run_batches_alone(task: Task, data: DataSet, device: torch.device) -> Seconds:
    """Run loop (d)."""
    for _ in iterate_full_batches(task, data, device):
        yield 0.0


LOOPS: dict[str, Callable[[Task, DataSet, torch.device], Seconds]] = {
    "a": run_conventional,
    "b": run_as_train_does,
    "c": run_ceiling,
    "d": run_batches_alone,
}


def iterate_full_batches(
    task: Task, data: DataSet, device: torch.device
) -> Generator[tuple[int, Batch], None, None]:
    """Yield (number in the epoch, batch) of train.py, epoch after epoch.

    The last, smaller batch of an epoch is left out: it is no fair step.
    """
    loader, _ = build_batches(task.settings, data, choose_layout(task, data, device))
    full = len(get_train(data)) // task.settings.batch_size
    for epoch in itertools.count(1):
        yield from itertools.islice(enumerate(loader.batches(epoch)), full)


def get_first_batch(task: Task, data: DataSet, device: torch.device) -> Batch:
    """Return the first batch of train.py."""
    batches = iterate_full_batches(task, data, device)
    _, batch = next(batches)
    batches.close()  # ends the workers
    return batch


def draw_network(task: Task, data: DataSet) -> nn.Module:
    """Build the network with the weights of seed 0."""
    torch.manual_seed(0)
    return build_network(task.settings, data)


def build_training(task: Task, data: DataSet, device: torch.device) -> tuple[nn.Module, Step]:
    """Build network and step as train.py does, in the memory format of `choose_layout`."""
    precision = choose_layout(task, data, device)
    model = precision.place(draw_network(task, data))
    optimizer = build_optimizer(task.settings.optimizer, model, RATE, DECAY, DECAY)
    step = build_step(
        model,
        optimizer,
        precision.build_scaler(),
        build_objective(task.settings),
        precision,
        task.settings.compile,
        task.graphs,
    )
    return model, step


def choose_layout(task: Task, data: DataSet, device: torch.device) -> Precision:
    """Return the task's precision, in the memory format that it names or else train.py's."""
    network = NETWORKS[task.settings.model]
    chosen = choose_precision(
        task.settings.precision,
        device,
        data.side,
        convolutional=network.convolutional,
        bf16_side=network.bf16_side,
        channels_last_side=network.channels_last_side,
    )
    if task.layout is None:
        return chosen
    return replace(chosen, memory_format=getattr(torch, task.layout))
