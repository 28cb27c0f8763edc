"""The flags of reproduce.py. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from args import ModelName, Settings
from input_pipeline import SOURCES
from objective import OPTIMIZERS
from reproduction import EXPERIMENTS, SCALES
from utils.cli import (
    Count,
    Natural,
    Parser,
    PathText,
    Positive,
    add_device_flag,
    check_value,
    name_of,
)

JOB_MINUTES = 240
DATA_DIR = "./data"

# Flags that change the grid, in the order of a report's command, and those of a cluster.
FILE_FLAGS = ("jpeg_draft", "resize_first", "skip_corrupt")  # of image files
OVERRIDES = (
    "epochs",
    "sample_size",
    "test_sample_size",
    *(f"lr_{name}" for name in OPTIMIZERS),
    *FILE_FLAGS,
)
# Flags of train.py that change no result.
PASSED = ("cache_dir", "num_workers", "force_listing")
GRID_FLAGS = ("dataset", "copy_of", "models", "only", *OVERRIDES)
CLUSTER_FLAGS = ("launcher", "job_minutes", "slurm")

# Options of sbatch on which the number of processes and their GPUs depend.
TASK_OPTIONS = ("ntasks", "ntasks-per-node", "gpus", "gpus-per-node", "gpus-per-task", "gpu-bind")

Thousand = Annotated[int, Field(ge=1, le=1000)]
Minutes = Annotated[int, Field(ge=1, le=100_000)]


def parse_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags and check those of the place together.

    Exits with status 2 and one line on a mistake.
    """
    parser = build_parser()
    args: argparse.Namespace = parser.parse_args(argv)
    numbers = args.gpu_ids or ()
    twice = next((number for number in numbers if numbers.count(number) > 1), None)
    if twice is not None:
        parser.error(f"argument --gpu_ids: {twice} is named twice")
    each = args.gpus_per_run
    if len(numbers) % each:
        runs = f"runs of --gpus_per_run {each}"
        parser.error(f"argument --gpu_ids: {len(numbers)} GPUs cannot be divided into {runs}")
    if args.jobs is None:
        args.jobs = max(1, len(numbers) // each)
    if args.jobs * each < len(numbers):
        idle = " ".join(map(str, numbers[args.jobs * each :]))
        parser.error(f"argument --gpu_ids: with --jobs {args.jobs} no run uses {idle}")
    if numbers and args.launcher == "slurm":
        parser.error("argument --gpu_ids: SLURM gives each job GPUs of its own")
    if problem := find_slurm_problem(dict(args.slurm or ()), each):
        parser.error(f"argument --slurm: {problem}")
    return args


def find_slurm_problem(options: dict[str, str], processes: int) -> str:
    """Find what is wrong with options of sbatch for jobs of so many processes; "" if nothing."""
    nodes = options.get("nodes", "1")
    if not (nodes.isdecimal() and int(nodes) > 0):
        return f"nodes={nodes} is not a whole number above 0"
    if processes % int(nodes):
        return f"--gpus_per_run {processes} cannot be divided by nodes={nodes}"
    ours = [name for name in options if name.replace("_", "-") in TASK_OPTIONS]
    if processes > 1 and ours:
        return f"{ours[0]} follows from --gpus_per_run and nodes=N"
    return ""


def build_parser() -> Parser:
    listed = "\n".join(f"  {name:<13}{each.title}" for name, each in EXPERIMENTS.items())
    parser = Parser(
        prog="reproduce.py",
        description="Rerun an experiment of the paper and put the result beside the published one."
        "\nTrains what is missing, evaluates, draws, and writes report.md, CSV and pictures. The "
        "same command\nstarted again goes on where it was. Exit status: 0 all runs have results, "
        "2 not,\n129, 130 and 143 stopped by SIGHUP, SIGINT and SIGTERM.\n\nexperiments:\n"
        f"{listed}\n\nThe paper's settings for ImageNet are not known: at full scale, imagenet "
        "follows torchvision's\nreferences.",
    )
    add_grid_flags(parser.add_argument_group("what to run"))
    add_place_flags(parser.add_argument_group("how"))
    add_cluster_flags(parser.add_argument_group("on a cluster, through submitit"))
    return parser


def add_grid_flags(group: Any) -> None:
    def add(flag: str, kind: Any, help: str, metavar: str = "NAME", **options: Any) -> None:
        group.add_argument(flag, type=check_value(kind), help=help, metavar=metavar, **options)

    add("experiment", name_of(EXPERIMENTS, "experiment"), "see above", metavar="EXPERIMENT")
    scales = "; ".join(f"{name}: {scale.what}" for name, scale in SCALES.items())
    add("--scale", name_of(SCALES, "scale"), f"{scales} (default: smoke)", default="smoke")
    in_place = "in place of the scale's {} (default: {}; full: the paper's)"
    datasets = ", ".join(f"{n} {', '.join(s.datasets)}" for n, s in SCALES.items() if s.datasets)
    networks = ", ".join(f"{n} {', '.join(s.models)}" for n, s in SCALES.items() if s.models)
    add("--dataset", name_of(SOURCES, "data set"), in_place.format("data sets", datasets))
    add(
        "--copy_of",
        name_of(SOURCES, "data set"),
        "the data set that a folder holds a copy of, such as cifar10 as JPEG: the paper's numbers "
        "stand beside ours (default: none)",
    )
    add("--models", ModelName, in_place.format("networks", networks), nargs="+")
    group.add_argument(
        "--only",
        type=check_assignment,
        nargs="+",
        action="extend",
        metavar="SETTING=VALUE",
        help="the part of the grid with these values, such as optimizer=SGD augment=DA1; several "
        "of a setting are all taken (default: the grid)",
    )
    seeds = "runs of each setting, with seeds 0 to N-1; reported as mean and standard deviation"
    add("--seeds", Thousand, f"{seeds} (default: 1)", metavar="N", default=1)
    for name in ("epochs", "sample_size", "test_sample_size"):
        add(f"--{name}", Count, "as in train.py --help (default: the scale's)", metavar="N")
    for name in OPTIMIZERS:
        full = f"full: {SCALES['full'].rates.get(name, 0.01):g}"
        rates = f"(default: the experiment's or the scale's; {full})"
        add(f"--lr_{name}", Positive, f"learning rate with {name} {rates}", metavar="X")
    for name in FILE_FLAGS:
        Settings.add_flag(group, name)


def add_place_flags(group: Any) -> None:
    devices = group.add_mutually_exclusive_group()
    add_device_flag(devices)
    devices.add_argument(
        "--gpu_ids",
        type=check_value(Natural),
        nargs="+",
        metavar="N",
        help="in place of --gpu_id: several CUDA devices, handed out to the runs (default: none)",
    )
    group.add_argument(
        "--data_dir",
        type=check_value(PathText),
        default=DATA_DIR,
        metavar="DIR",
        help=f"as in train.py (default: {DATA_DIR})",
    )
    for name in PASSED:
        Settings.add_flag(group, name)
    group.add_argument(
        "--jobs",
        type=check_value(Thousand),
        metavar="N",
        help="runs at a time, which share cores, GPUs and their memory (default: 1; with "
        "--gpu_ids: one on each)",
    )
    group.add_argument(
        "--gpus_per_run",
        type=check_value(Thousand),
        default=1,
        metavar="N",
        help="processes of each run, started by torchrun, with a GPU each; with --gpu_id -1 they "
        "share the cores (default: 1)",
    )
    group.add_argument(
        "--dry_run",
        action="store_true",
        help="print the training commands, one a line, and on stderr what they would take; train "
        "nothing (default: off)",
    )
    group.add_argument(
        "--yes",
        action="store_true",
        help="train at full scale without CUDA, too, which takes days (default: off)",
    )
    group.add_argument(
        "--save_dir",
        type=check_value(PathText),
        metavar="DIR",
        help="where run directories are made (default: model_weights/reproduce-SCALE)",
    )
    group.add_argument(
        "--out",
        type=check_value(PathText),
        metavar="DIR",
        help="where report.md, CSV and pictures go (default: results/EXPERIMENT)",
    )


def add_cluster_flags(group: Any) -> None:
    group.add_argument(
        "--launcher",
        type=check_value(name_of(("local", "slurm"), "launcher")),
        metavar="NAME",
        help="slurm: a job array, --jobs of it at a time, requeued when preempted; local: the same "
        "on this machine (default: processes of this command)",
    )
    group.add_argument(
        "--job_minutes",
        type=check_value(Minutes),
        metavar="N",
        help="time limit of a job, after which it is requeued and resumes "
        f"(default: {JOB_MINUTES})",
    )
    group.add_argument(
        "--slurm",
        type=split_assignment,
        nargs="+",
        metavar="KEY=VALUE",
        help="more parameters of sbatch, such as partition=gpu cpus-per-task=8; nodes=M divides "
        "--gpus_per_run among M nodes (default: none)",
    )


def check_assignment(text: str) -> str:
    """Return a text of the form KEY=VALUE, for argparse. Raises ArgumentTypeError."""
    return "=".join(split_assignment(text))


def split_assignment(text: str) -> tuple[str, str]:
    """Split KEY=VALUE -> (KEY, VALUE), for argparse. Raises ArgumentTypeError."""
    key, sign, value = text.partition("=")
    if not (key and sign):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    return key, value
