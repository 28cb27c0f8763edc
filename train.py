"""Train a classifier with CE, BCE or MSE, test and checkpoint it every epoch, resume exactly.

    python train.py --gpu_id 0 --model ResNet18 --dataset cifar10 --optimizer SGD --loss BCE \
        --batch_size 128 --lr 0.01
"""

from args import DEFAULT_SAVE_DIR, parse_train_args, scaled_learning_rate
from utils.signals import Stopped, StopSignal

if __name__ == "__main__":
    parse_train_args()  # --help and a wrong flag are answered here, before torch is imported
    StopSignal().install()  # Ctrl-C during the imports is one line, too

import argparse
import shlex
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from input_pipeline.load import find_image_side, load_dataset
from input_pipeline.loader import BatchLoader
from input_pipeline.splits import DataSet
from metrics.accuracy import correct_counts, uniform_accuracy
from models import build_model
from objective.losses import LOSSES
from objective.objective import Objective
from objective.optimizers import build_optimizer, set_learning_rate
from objective.schedules import learning_rate
from rundir.config import (
    check_data,
    completed,
    extend_config,
    read_config,
    shaping_settings,
    write_config,
)
from rundir.directory import Run, choose_run
from rundir.names import BEST, LAST, METRICS
from rundir.weights import load, rng_state, save, save_weights, set_rng_state
from training.meter import Meter, NonFiniteLoss
from training.step import Step, check_compiler, is_compile_error
from utils.console import Console, Progress
from utils.device import is_out_of_memory, pick_device, synchronise
from utils.errors import UserError
from utils.files import read_csv, write_csv
from utils.precision import (
    autocast,
    is_nondeterministic,
    memory_format,
    resolve_precision,
    set_determinism,
)
from utils.seeds import mix_seed

COLUMNS = (
    "epoch",
    "lr",
    "train_loss",
    "train_top1",
    "train_top5",
    "test_loss",
    "test_top1",
    "test_top5",
    "test_uniform",
    "seconds",
    "images_per_second",
)
EXIT_MISTAKE, EXIT_NOT_FINITE = 2, 3


@dataclass
class Position:
    """Where a run stands: `epoch` epochs are finished, and `step` steps of the next one."""

    epoch: int = 0
    step: int = 0
    best: float = -1.0
    history: list[dict[str, Any]] = field(default_factory=list)


def train(
    args: argparse.Namespace,
    run: Run,
    data: DataSet,
    model: nn.Module,
    device: torch.device,
    console: Console,
    stop: StopSignal,
) -> None:
    """The training loop: epochs, batches, loss, step; then the test, the checkpoint, the row."""
    train_batches, test_batches = build_loaders(args, data, device)
    base_rate = scaled_learning_rate(vars(args))
    optimizer = build_optimizer(
        args.optimizer,
        model,
        base_rate,
        # With --sep_decay the decay is a term of the loss instead.
        weight_decay=0.0 if args.sep_decay else args.weight_decay,
        bias_decay=0.0 if args.sep_decay else args.weight_decay_bias,
    )
    objective = build_objective(args)
    train_step = Step(model, optimizer, objective, args.precision, device, args.compile)
    meter = Meter(len(train_batches), device)
    position = Position()
    if run.resumed:
        position = restore(run, args, model, optimizer, train_step.scaler, meter, device)
        write_csv(run / METRICS, COLUMNS, position.history)
        console.say(f"resuming after {describe(position)} of {args.epochs}")
        if position.epoch == args.epochs:
            console.say("nothing is left to do")
    events = open_tensorboard(run, position.epoch) if args.tensorboard else None

    for epoch in range(position.epoch + 1, args.epochs + 1):
        rate = learning_rate(
            epoch,
            base=base_rate,
            epochs=args.epochs,
            schedule=args.schedule,
            warmup=args.epochs_warmup,
            minimum=args.min_lr,
            milestones=args.step_milestones or (),
            gamma=args.step_gamma,
        )
        set_learning_rate(optimizer, rate)
        first_step, position.step = position.step, 0
        if first_step == 0:
            meter.reset()
            torch.manual_seed(mix_seed(args.seed, epoch, 0, 0))  # dropout; resumed steps restore it
        started, seen = time.monotonic(), meter.seen
        progress = Progress(
            console, f"epoch {epoch}/{args.epochs}", train_batches.num_samples, start=seen
        )

        model.train()
        for step, (images, targets) in enumerate(
            train_batches.batches(epoch, first_step), start=first_step
        ):
            meter.add(*train_step(images, targets), targets)
            if progress.due():
                meter.check_finite(epoch, rate)
                progress.show(meter.seen, f"loss {meter.mean_loss():.4f}")
            if stop.requested:
                meter.check_finite(epoch, rate)
                position.epoch, position.step = epoch - 1, step + 1
                progress.close()
                save_position(run, args, model, optimizer, train_step.scaler, meter, position)
                raise Stopped
        meter.check_finite(epoch, rate)
        synchronise(device)
        train_seconds = time.monotonic() - started
        progress.close()

        compiling = train_step.take_compile_time()
        if compiling.seconds:
            console.say(
                f"compiled in {compiling.seconds:.1f} s, {compiling.place(meter.seen - seen)}"
            )
        tested = evaluate(model, test_batches, args.loss, args.precision, stop)
        if tested is None:
            position.epoch, position.step = epoch - 1, len(train_batches)
            save_position(run, args, model, optimizer, train_step.scaler, meter, position)
            raise Stopped
        if not tested["finite"]:
            raise NonFiniteLoss(epoch, len(train_batches), rate)
        row = {
            "epoch": epoch,
            "lr": rate,
            **meter.summary(),
            **{key: tested[key] for key in COLUMNS if key in tested},
            "seconds": time.monotonic() - started,
            "images_per_second": compiling.rate_without(meter.seen - seen, train_seconds),
        }
        is_best = row["test_top1"] > position.best
        position = Position(
            epoch, 0, max(position.best, row["test_top1"]), [*position.history, row]
        )
        save_weights(
            model,
            run.directory,
            epoch,
            regular=epoch % args.epoch_save_step == 0 or epoch == args.epochs,
            best=run / BEST if is_best else None,
        )
        # The order matters: last.pth commits the epoch, and metrics.csv is rebuilt from it.
        save_position(run, args, model, optimizer, train_step.scaler, None, position)
        write_csv(run / METRICS, COLUMNS, position.history)
        write_events(events, row)
        console.say(epoch_line(row, args.epochs))
    console.say(f"finished {plural(args.epochs, 'epoch')}, best test top-1 {position.best:.2f} %")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: BatchLoader,
    loss: str,
    precision: str,
    stop: StopSignal,
) -> dict[str, Any] | None:
    """Loss and accuracies in percent over a split in evaluation mode; None if a stop came first."""
    model.eval()
    collected, labels = [], []
    context = autocast(precision, batches.device)
    for images, targets in batches.batches(epoch=0):
        with context:
            collected.append(model(images)[0])
        labels.append(targets)
        if stop.requested:
            return None
    logits, labels = torch.cat(collected), torch.cat(labels)
    if not torch.isfinite(logits).all():
        return {"finite": False}
    top1, top5 = (100 * (hits / len(labels)) for hits in correct_counts(logits, labels).tolist())
    return {
        "finite": True,
        "test_loss": LOSSES[loss](logits, labels).item(),
        "test_top1": top1,
        "test_top5": top5,
        "test_uniform": 100 * uniform_accuracy(logits, labels)[0],
    }


def build_objective(args: argparse.Namespace) -> Objective:
    """The loss, and the decay terms of --sep_decay."""
    decays = args.weight_decay, args.feature_decay_rate, args.weight_decay_bias
    return Objective(args.loss, args.smoothing, decays if args.sep_decay else None)


def build_loaders(
    args: argparse.Namespace, data: DataSet, device: torch.device
) -> tuple[BatchLoader, BatchLoader]:
    """The training batches, shuffled and augmented, and the test batches, in order and plain."""
    common = {
        "batch_size": args.batch_size,
        "device": device,
        "mean": data.mean,
        "std": data.std,
        "num_classes": data.num_classes,
        "num_workers": args.num_workers,
        "memory_format": memory_format(device, args.model, args.precision, data.side),
    }
    train_batches = BatchLoader(
        data.train,
        shuffle=True,
        augment=args.augment,
        rotation=15.0 if args.dataset == "cifar100" else 0.0,
        seed=args.seed,
        drop_single=True,
        **common,
    )
    if len(train_batches) == 0:
        raise UserError("the training set has a single image: at least two are needed")
    return train_batches, BatchLoader(data.test, **common)


def save_position(
    run: Run,
    args: argparse.Namespace,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    meter: Meter | None,
    position: Position,
) -> None:
    """Write last.pth: all that an exact resume needs. Sample order, augmentation and learning rate
    follow from the seed and the epoch, so they have no state."""
    state = {
        "settings": shaping_settings(vars(args)),
        "position": vars(position),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "meter": meter.state_dict() if meter is not None else None,
        "rng": rng_state(),
    }
    save(run / LAST, state)


def restore(
    run: Run,
    args: argparse.Namespace,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    meter: Meter,
    device: torch.device,
) -> Position:
    """Load last.pth into model, optimizer, loss scaler, meter and generators.

    The start if there is none yet. Raises UserError if it is damaged or of other settings.
    """
    if not (run / LAST).exists():
        # metrics.csv gets its first row after the first last.pth.
        if (run / METRICS).exists() and read_csv(run / METRICS):
            raise UserError(f"{run / LAST} is missing: nothing to resume from; --force starts over")
        return Position()
    state = load(run / LAST, device)
    try:
        if completed(state["settings"]) != shaping_settings(vars(args)):
            raise ValueError("it was written with other settings")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        if state["meter"] is not None:
            meter.load_state_dict(state["meter"])
        set_rng_state(state["rng"])
        return Position(**state["position"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = textwrap.shorten(str(error), 90, placeholder=" …")
        raise UserError(f"{run / LAST} does not fit the run's config.json: {reason}") from error


def describe(position: Position) -> str:
    steps = f" and {plural(position.step, 'step')}" if position.step else ""
    return f"{plural(position.epoch, 'epoch')}{steps}"


def tail_of(data: DataSet) -> str:
    sizes = data.class_sizes
    return (
        f"; the largest class has {plural(max(sizes), 'training image')}, the smallest {min(sizes)}"
    )


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {row['epoch']:3d}/{epochs}  lr {row['lr']:.2e}  "
        f"train loss {row['train_loss']:.4g} top-1 {row['train_top1']:6.2f} %  "
        f"test loss {row['test_loss']:.4g} top-1 {row['test_top1']:6.2f} % "
        f"uniform {row['test_uniform']:6.2f} %  "
        f"{row['seconds']:.1f} s  {row['images_per_second']:.0f} images/s"
    )


def open_tensorboard(run: Run, epoch: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard: the package tensorboard is not installed") from error
    return SummaryWriter(str(run / "tensorboard"), purge_step=epoch + 1)


def write_events(events: Any, row: dict[str, Any]) -> None:
    if events is None:
        return
    for key, value in row.items():
        if key != "epoch":
            events.add_scalar(key, value, row["epoch"])
    events.flush()


def resume_command(run: Run, args: argparse.Namespace) -> str:
    words = ["python", "train.py", "--resume", "--run_name", run.name]
    if Path(args.save_dir) != Path(DEFAULT_SAVE_DIR):
        words += ["--save_dir", args.save_dir]
    return shlex.join(words)


def run_training(args: argparse.Namespace, stop: StopSignal) -> int:
    """Choose the run directory, build data and model, train; returns the exit status."""
    set_determinism(args.deterministic)
    device, device_name = pick_device(args.gpu_id)
    if args.compile:
        check_compiler(device)
    # Kept in config.json as resolved: a resumed run goes on in the same precision anywhere.
    side = find_image_side(args.dataset, args.data_dir, args.img_size)
    args.precision = resolve_precision(args.precision, device, args.model, side)
    settings = {key: value for key, value in vars(args).items() if key != "distinct"}
    run = choose_run(settings, args.distinct)
    data = load_dataset(
        args.dataset,
        args.data_dir,
        img_size=args.img_size,
        sample_size=args.sample_size,
        imbalance_factor=args.imbalance_factor,
        test_sample_size=args.test_sample_size,
        num_workers=args.num_workers,
    )
    torch.manual_seed(args.seed)
    model = build_model(
        args.model,
        data.num_classes,
        data.image_shape,
        **{option: getattr(args, option) for option in ("patch_size", "width", "depth")},
        **{key: getattr(args, key) for key in ("bias_mode", "bias_init_mode", "bias_init_mean")},
        fixed_etf=args.fixed_etf,
    ).to(device, memory_format=memory_format(device, args.model, args.precision, data.side))

    run.open()
    if run.resumed:
        check_data(run.directory, read_config(run.directory)["data"], data.facts())
        extend_config(run, args.epochs)
    else:
        write_config(run, settings, data.facts(), device_name)
    console = Console(run.log)
    parameters = sum(p.numel() for p in model.parameters())
    console.say(
        f"{args.model} ({parameters:,} parameters) on {args.dataset} with {args.loss}, "
        f"{args.optimizer}, {len(data.train):,} training and {len(data.test):,} test images"
        f"{tail_of(data) if args.imbalance_factor > 1 else ''}"
    )
    console.say(f"run directory {run.directory}, device {device_name}, {args.precision}")
    stop.wait_for_step()
    try:
        train(args, run, data, model, device, console, stop)
    except Stopped:
        console.say(f"stopped, state saved; resume with: {resume_command(run, args)}")
        return stop.exit_status
    except NonFiniteLoss as error:
        console.say(f"train.py: {error}")
        return EXIT_NOT_FINITE
    return 0


def explained(error: MemoryError | RuntimeError, args: argparse.Namespace) -> str | None:
    """What a user can do about an error of torch's; None if it is a defect."""
    if is_out_of_memory(error):
        return f"out of memory with --batch_size {args.batch_size}: a smaller one may fit"
    reason = textwrap.shorten(str(error), 90, placeholder=" …")
    if args.compile and is_compile_error(error):
        return f"--compile: torch.compile failed here ({reason}); the run works without it"
    if args.deterministic and is_nondeterministic(error):
        return f"--deterministic: {args.model} has an operation without such a kernel ({reason})"
    return None


def main(argv: list[str] | None = None) -> int:
    args = parse_train_args(argv)
    try:
        with StopSignal() as stop:
            return run_training(args, stop)
    except UserError as error:
        message = str(error)
    except (MemoryError, RuntimeError) as error:
        message = explained(error, args)
        if message is None:
            raise
    except OSError as error:  # the log or an event file on a full disk
        message = f"{error.filename or 'writing'}: {error.strerror or error}"
    print(f"train.py: error: {message}", file=sys.stderr)
    return EXIT_MISTAKE


if __name__ == "__main__":
    sys.exit(main())
