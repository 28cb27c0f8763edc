"""The loops that train_speed.py times; each yields after every step the seconds that it compiled.

(a) conventional: PIL images, torchvision transforms, DataLoader workers, float32, contiguous, and
    an .item() of loss and accuracy in every step, as a newcomer would write it;
(b) train.py: its own batches, step and meter, in the precision that --precision resolves to;
(c) ceiling: the step of (b) on one resident batch, with no data work and no metrics;
(d) batches: the batches of (b), decoded, augmented and delivered, with no step.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import nn
from torchvision import transforms

import train
from input_pipeline.splits import DataSet, FileSplit, TensorSplit
from models import build_model
from objective.losses import LOSSES
from objective.optimizers import build_optimizer
from training.meter import Meter
from training.step import Step
from utils.precision import memory_format

RATE, DECAY = 1e-3, 5e-4  # too small a step to end in an overflow


class Images(torch.utils.data.Dataset):
    """PIL images and labels, as torchvision's data sets give them."""

    def __init__(self, split: TensorSplit | FileSplit, transform: Callable) -> None:
        self.labels, self.transform = split.labels.tolist(), transform
        if isinstance(split, TensorSplit):
            self.paths = None
            self.arrays = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        else:
            self.paths = split.paths

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.paths is None:
            image = Image.fromarray(self.arrays[index])
        else:
            image = Image.open(self.paths[index]).convert("RGB")
        return self.transform(image), self.labels[index]


def conventional_transform(data: DataSet, augmented: bool) -> Callable:
    """torchvision's transforms of a PIL image, with DA1 where `augmented`."""
    side = data.side
    steps: list[Any] = []
    if isinstance(data.train, FileSplit):
        steps += [transforms.Resize(side), transforms.CenterCrop(side)]
    if augmented:
        steps += [transforms.RandomCrop(side, padding=side // 8), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    return transforms.Compose(steps)


def conventional(args: argparse.Namespace, data: DataSet, device: torch.device) -> Iterator[float]:
    """Loop (a)."""
    loader = torch.utils.data.DataLoader(
        Images(data.train, conventional_transform(data, augmented=args.augment != "none")),
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.num_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=args.num_workers > 0,
    )
    model = network(args, data).to(device)
    loss_function = LOSSES[args.loss]
    if args.optimizer == "SGD":
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
            loss = loss_function(logits, targets)
            loss.backward()
            optimizer.step()
            total_loss += loss.item() * len(targets)
            total_correct += (logits.argmax(1) == targets).sum().item()
            seen += len(targets)
            yield 0.0


def as_train_does(args: argparse.Namespace, data: DataSet, device: torch.device) -> Iterator[float]:
    """Loop (b).

    Of images in memory an epoch has --steps batches, so that each turn has its share of what is
    done for many steps at once: order, augmentation, counting.
    """
    if isinstance(data.train, TensorSplit):
        count = min(len(data.train), args.steps * args.batch_size)
        data = replace(data, train=data.train.select(torch.arange(count)))
    model, step = prepared(args, data, device)
    last = len(data.train) // args.batch_size - 1
    meter = Meter(last + 1, device)
    model.train()
    for number, (images, targets) in full_batches(args, data, device):
        meter.add(*step(images, targets), targets)
        if number == last:
            meter.check_finite(1, RATE)
            meter.summary()
            meter.reset()
        yield step.take_compile_time().seconds


def ceiling(args: argparse.Namespace, data: DataSet, device: torch.device) -> Iterator[float]:
    """Loop (c): the step of (b) on its first batch again and again."""
    model, step = prepared(args, data, device)
    images, targets = first_batch(args, data, device)
    images = images.contiguous(memory_format=layout(args, data, device))
    model.train()
    while True:
        step(images, targets)
        yield step.take_compile_time().seconds


def batches_alone(args: argparse.Namespace, data: DataSet, device: torch.device) -> Iterator[float]:
    """Loop (d)."""
    for _ in full_batches(args, data, device):
        yield 0.0


LOOPS: dict[str, Callable[..., Iterator[float]]] = {
    "a": conventional,
    "b": as_train_does,
    "c": ceiling,
    "d": batches_alone,
}


def full_batches(
    args: argparse.Namespace, data: DataSet, device: torch.device
) -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
    """(number in the epoch, batch) of train.py, epoch after epoch.

    The last, smaller batch of an epoch is left out: it is no fair step.
    """
    loader, _ = train.build_loaders(args, data, device)
    full = len(data.train) // args.batch_size
    for epoch in itertools.count(1):
        yield from itertools.islice(enumerate(loader.batches(epoch)), full)


def first_batch(
    args: argparse.Namespace, data: DataSet, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    batches = full_batches(args, data, device)
    _, batch = next(batches)
    batches.close()  # ends the workers
    return batch


def network(args: argparse.Namespace, data: DataSet) -> nn.Module:
    torch.manual_seed(0)
    return build_model(args.model, data.num_classes, data.image_shape)


def prepared(
    args: argparse.Namespace, data: DataSet, device: torch.device
) -> tuple[nn.Module, Step]:
    """Network and step as train.py makes them, in the memory format of `layout`."""
    model = network(args, data).to(device, memory_format=layout(args, data, device))
    optimizer = build_optimizer(args.optimizer, model, RATE, weight_decay=DECAY, bias_decay=DECAY)
    objective = train.build_objective(args)
    step = Step(model, optimizer, objective, args.precision, device, args.compile, args.graphs)
    return model, step


def layout(args: argparse.Namespace, data: DataSet, device: torch.device) -> torch.memory_format:
    """The memory format that `args.layout` names; where it is None, train.py's."""
    if args.layout is not None:
        return getattr(torch, args.layout)
    return memory_format(device, args.model, args.precision, data.side)
