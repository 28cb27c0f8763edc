"""Train a classifier with CE, BCE or MSE, test and checkpoint it every epoch, resume exactly.

    python train.py --gpu_id 0 --model ResNet18 --dataset cifar10 --optimizer SGD --loss BCE \
        --batch_size 128 --lr 0.01
"""

from __future__ import annotations

from collections.abc import Sequence

from rundir.resuming import read_settings
from utils.signals import Stopped, StopSignal, stop_with_parent
from utils.world import hush_torch

STOP_MESSAGE = "stopped before training began"
if __name__ == "__main__":
    read_settings()  # --help and a wrong flag are answered here, before torch is imported
    hush_torch()
    StopSignal(STOP_MESSAGE).install()  # Ctrl-C during the imports is one line, too
    stop_with_parent()

import math
import sys
import time

import torch
from torch import nn

from args import Settings
from input_pipeline.loader import BatchLoader
from input_pipeline.room import find_room
from rundir.building import build_batches, build_precision, build_run_data
from rundir.directory import Run, choose_run
from rundir.names import EMA_PREFIX
from rundir.space import describe_space
from rundir.starting import start_network
from training.collapse import CollapseRecorder
from training.log import RunLog
from training.meter import Meter, NonFiniteLoss
from training.saving import Saver
from training.setup import (
    build_average,
    build_optimizer,
    build_run_step,
    check_processes,
    choose_graphs,
    count_bytes,
    decide_sync_bn,
    describe_norm,
    find_smallest_share,
    pick_run_device,
    place_network,
    set_epoch_rate,
    share_run,
)
from training.state import TrainState
from training.step import Step, check_compiler, explain_compile_error
from training.testing import evaluate
from training.writers import check_writers
from utils.cli import NOT_FINITE, run_command
from utils.precision import Precision, explain_determinism_error, set_determinism
from utils.world import World, join


def train(
    settings: Settings,
    run: Run,
    batches: tuple[BatchLoader, BatchLoader],
    model: nn.Module,
    precision: Precision,
    log: RunLog,
    collapse: CollapseRecorder,
    stop: StopSignal,
    world: World,
) -> None:
    """Train and test epoch by epoch; save the weights and the state after each epoch.

    Raises Stopped after the step in which a stop was requested, with the state saved. Raises
    NonFiniteLoss if training diverged.
    """
    train_batches, test_batches = batches
    tests = test_batches, settings.loss, precision
    optimizer = build_optimizer(settings, model)
    scaler = precision.build_scaler()
    average = build_average(settings, model, optimizer)  # None without --ema
    meter = Meter(len(train_batches), precision.device, world)
    state = TrainState(settings, model, optimizer, scaler, meter, average, world)
    if run.resumed:
        world.take_turns(lambda: state.load(run))
        world.call_first(run.extend_config)
    division = train_batches.division
    step = build_run_step(settings, model, optimizer, scaler, precision, average, division)
    log.begin(state, batches)
    with log, Saver(run, state) as saver:  # writes the files, also at a stop
        for epoch in range(state.epoch + 1, settings.epochs + 1):
            rate = set_epoch_rate(settings, optimizer, epoch)
            row: dict[str, float] = {"epoch": epoch, "lr": rate}
            row |= train_epoch(state, step, train_batches, rate, log, stop, saver)
            world.copy_buffers(model)  # running statistics are those of the first process
            row |= evaluate(model, *tests, log, stop, world)
            if average is not None:
                world.copy_buffers(average.module)
                tested = evaluate(average.module, *tests, log, stop, world)
                row |= {EMA_PREFIX + column: figure for column, figure in tested.items()}
            if not all(map(math.isfinite, row.values())):
                raise NonFiniteLoss(epoch, len(train_batches), rate)
            measured = collapse.measure(model, epoch, stop)
            saver.save_epoch(row | measured.columns, measured)
            log.record_epoch()
    log.end(state)


def train_epoch(
    state: TrainState,
    step: Step,
    batches: BatchLoader,
    rate: float,
    log: RunLog,
    stop: StopSignal,
    saver: Saver,
) -> dict[str, float]:
    """Train one epoch, or the rest of it; return its training columns of metrics.csv.

    Raises Stopped after the step in which a stop was requested, NonFiniteLoss if a step diverged.
    In a job of several processes all raise it after the same step.
    """
    state.begin_epoch()
    epoch, meter = state.epoch + 1, state.meter
    begun, seen = time.monotonic(), meter.seen
    state.model.train(not state.settings.freeze_backbone)  # the classifier is the same in both
    with log.watch_training(seen) as progress:
        for images, targets in batches.batches(epoch, state.step):
            size, loss = batches.find_size(state.step), 0.0
            meter.add(*step(images, targets, size), targets, size)
            state.step += 1
            if progress.is_due():
                saver.check()
                loss = meter.estimate_loss()
                progress.show(meter.seen, f"loss {loss:.4f}")
            if stop.poll(alarm=not math.isfinite(loss)):
                break
    summary = meter.read_summary(epoch, rate)  # waits for the device
    if stop.requested:
        raise Stopped
    seconds, images_seen = time.monotonic() - begun, meter.seen - seen
    compile_time = step.take_compile_time()
    if compile_time.seconds:
        log.console.say(compile_time.describe(images_seen))
    if note := step.take_note():
        log.console.say(note)
    speed = compile_time.rate_without(images_seen, seconds)
    return {**summary, "images_per_second": speed}


def run_training(settings: Settings, stop: StopSignal) -> int:
    """Choose the run directory, build data and network, train; return the exit status."""
    world = stop.world = join(gpus=settings.gpu_id >= 0)
    set_determinism(settings.deterministic)
    world.check(lambda: check_processes(settings, world))
    device, device_name = world.check(lambda: pick_run_device(settings, world))
    if settings.compile:
        world.check(lambda: check_compiler(device))
    world.call_first(lambda: check_writers(settings))
    precision = world.check(lambda: build_precision(settings, settings.precision, device))
    # config.json keeps what was resolved: a resumed run goes on in the same way anywhere.
    graphs = world.check(lambda: choose_graphs(settings, device, device_name, world))
    settings = settings.replace(precision=precision.name, graphs=graphs)
    run = world.call_first(lambda: choose_run(settings))
    settings = decide_sync_bn(settings, run, world)
    room = min(world.gather(find_room(device)))
    data = world.take_turns(lambda: build_run_data(settings, run.directory, run.resumed, room))
    torch.manual_seed(settings.seed)
    start = start_network(settings, run, data, world)
    model = place_network(settings, start.model, precision, world)
    least = find_smallest_share(settings, world)
    batches = world.check(lambda: build_batches(settings, data, precision, world, least))
    space = describe_space(run, *count_bytes(model))

    with share_run(run, world):
        if not run.resumed and world.is_first:
            run.write_config(settings, data.facts(), device_name, start.facts)
        log = RunLog(run, settings, world)
        notes = [*start.notes, *describe_norm(settings, world), *data.notes]
        log.introduce(data, model, device_name, notes, space)
        collapse = CollapseRecorder(run, data, batches, log.console, world)
        stop.wait_for_step()
        try:
            train(settings, run, batches, model, precision, log, collapse, stop, world)
        except Stopped:
            log.record_stop()
            raise
        except NonFiniteLoss as error:
            log.console.say(f"train.py: {error}")
            return NOT_FINITE
    return 0


def explain_error(settings: Settings, error: BaseException) -> str | None:
    """Explain in one line an error of torch's that a setting causes; None for any other."""
    reason = explain_compile_error(error) if settings.compile else None
    if reason is None and settings.deterministic:
        reason = explain_determinism_error(error)
    return reason


def main(argv: Sequence[str] | None = None) -> int:
    settings = read_settings(argv)
    return run_command(
        "train.py",
        lambda stop: run_training(settings, stop),
        stopped=STOP_MESSAGE,
        batch_size=settings.batch_size,
        explain=lambda error: explain_error(settings, error),
        divides=True,
    )


if __name__ == "__main__":
    sys.exit(main())
