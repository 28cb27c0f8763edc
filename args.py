"""Every command's flags, grouped, each with its default, unit and meaning.

Imports no torch: `--help` and a wrong flag are answered at once.
"""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from models import MODELS, canonical_name
from reproduction.experiments import EXPERIMENTS, SCALES
from rundir.config import check_resumable, read_config
from utils.errors import UserError

DATASETS = ("mnist", "cifar10", "cifar100", "digits", "folder")
OPTIMIZERS = ("SGD", "AdamW")
LOSSES = ("CE", "BCE", "MSE")
AUGMENTS = ("none", "DA1", "DA1+DA2")
SCHEDULES = ("cosine", "step", "constant")
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
BIAS_MODES = ("diverse", "unified", "none")
DEFAULT_SAVE_DIR = "./model_weights"
REFERENCE_BATCH = 128  # --lr is for this batch size and scaled in proportion to others
LARGEST_INTEGER = 2**31 - 1
LARGEST_REAL = 3e38  # below float32's, in which the networks compute


class Parser(argparse.ArgumentParser):
    """Refuses abbreviated flags, and ends an error in one line and exit status 2.

    Where the values come from a file instead, `source`, its errors are UserErrors that name it.
    """

    source: Path | None = None

    def __init__(self, **options: Any):
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )

    def error(self, message: str) -> NoReturn:
        message = " ".join(message.split())
        if self.source is not None:
            raise UserError(f"{self.source} is damaged: {message}")
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def train_parser() -> Parser:
    parser = Parser(
        prog="train.py",
        description="Train a classifier with CE, BCE or MSE and checkpoint every epoch.\n"
        "Without flags: ResNet18 on scikit-learn's digits with BCE and SGD.",
    )
    main = parser.add_argument_group("what to train")
    add = main.add_argument
    add(
        "--model",
        type=_model,
        default="ResNet18",
        metavar="NAME",
        help=f"{', '.join(MODELS)}; case does not matter (default: ResNet18)",
    )
    add(
        "--dataset",
        type=_one_of(DATASETS),
        default="digits",
        metavar="NAME",
        help=f"{', '.join(DATASETS)}; folder reads any image tree (default: digits)",
    )
    add(
        "--loss",
        type=_one_of(LOSSES),
        default="BCE",
        metavar="NAME",
        help=f"{', '.join(LOSSES)} (default: BCE)",
    )
    add(
        "--optimizer",
        type=_one_of(OPTIMIZERS),
        default="SGD",
        metavar="NAME",
        help="SGD (momentum 0.9) or AdamW (default: SGD)",
    )

    run = parser.add_argument_group("run")
    add = run.add_argument
    _add_gpu_id(add)
    add(
        "--seed",
        type=_integer(0),
        default=0,
        metavar="N",
        help="seed of initial weights, sample order, augmentation and dropout (default: 0)",
    )
    add(
        "--epochs",
        type=_integer(1),
        default=100,
        metavar="N",
        help="epochs to train (default: 100)",
    )
    add(
        "--save_dir",
        default=DEFAULT_SAVE_DIR,
        metavar="DIR",
        help="where run directories are made (default: ./model_weights)",
    )
    add(
        "--run_name",
        type=_run_name,
        default=None,
        metavar="NAME",
        help="name of the run directory (default: model, data set, loss, optimizer, the settings "
        "that differ from the defaults, time)",
    )
    add(
        "--resume",
        action="store_true",
        help="continue the run of --run_name with its own settings, or the newest unfinished run "
        "of the same configuration; a finished run of schedule step or constant can be given more "
        "--epochs (default: off)",
    )
    add(
        "--force",
        action="store_true",
        help="replace an existing run directory; with --resume: resume where a run exists, start "
        "one where none does (default: off)",
    )
    add(
        "--epoch_save_step",
        type=_integer(1),
        default=1,
        metavar="N",
        help="write epoch_NNN.pth every N epochs and after the last (default: 1)",
    )
    add(
        "--tensorboard",
        action="store_true",
        help="also write the metrics as TensorBoard events into the run directory (default: off)",
    )

    _add_speed(parser)
    data = parser.add_argument_group("data")
    add = data.add_argument
    add(
        "--data_dir",
        default="./data",
        metavar="DIR",
        help="where data sets are, and are downloaded to; for folder, what holds train/<class>/* "
        "and test/<class>/* or val/<class>/* (default: ./data)",
    )
    add(
        "--batch_size",
        type=_integer(2),
        default=128,
        metavar="N",
        help="images per step (default: 128)",
    )
    add(
        "--sample_size",
        type=_integer(1),
        default=None,
        metavar="N",
        help="training images per class, the first N (default: all)",
    )
    add(
        "--imbalance_factor",
        type=_real(1.0),
        default=1.0,
        metavar="X",
        help="cut the training set to a long tail: of K classes, the largest of n images (after "
        "--sample_size), class k keeps the first n X^(-k/(K-1)), rounded down, at least 1, or all "
        "where it has fewer; the test set stays as it is (default: 1, no tail)",
    )
    add(
        "--test_sample_size",
        type=_integer(1),
        default=None,
        metavar="N",
        help="test images per class, the first N (default: all)",
    )
    add(
        "--augment",
        type=_one_of(AUGMENTS),
        default="none",
        metavar="NAME",
        help="none; DA1: random crop with padding of an eighth of the image and horizontal flip, "
        "on cifar100 also rotation within 15 degrees; DA1+DA2: also Mixup (alpha 0.8) or CutMix "
        "(alpha 1.0), one of the two for each batch (default: none)",
    )
    add(
        "--img_size",
        type=_integer(4),
        default=None,
        metavar="PIXELS",
        help="side to which images are resized (default: digits 8, mnist and cifar 32, folder: "
        "as they are if all have one size)",
    )
    add(
        "--num_workers",
        type=_integer(0),
        default=None,
        metavar="N",
        help="processes that decode the images of --dataset folder (default: the CPU's cores, at "
        "most 8)",
    )

    classifier = parser.add_argument_group("classifier (logits z = W h - b)")
    add = classifier.add_argument
    add(
        "--bias_mode",
        type=_one_of(BIAS_MODES),
        default="diverse",
        metavar="NAME",
        help="diverse: one bias per class; unified: one for all; none (default: diverse)",
    )
    add(
        "--bias_init_mode",
        type=_integer(0, 7),
        default=0,
        metavar="0...7",
        help="initial bias of class k of K, d features: 0: uniform in +-1/sqrt(d); 1: k; 2: 64k/K; "
        "3: 2 reversed; 4: ln(96k+1); 5: 4 reversed; 6: by quarters of the classes ln(96K), 0, "
        "ln(96K), 0; 7: by quarters 0, ln(96K), 0, ln(96K) (default: 0)",
    )
    add(
        "--bias_init_mean",
        type=_real(),
        default=0.0,
        metavar="X",
        help="added to every initial bias (default: 0)",
    )
    add(
        "--fixed_etf",
        action="store_true",
        help="fix the classifier's weight to a simplex ETF of unit rows; needs at least K - 1 "
        "features (default: off)",
    )

    model = parser.add_argument_group("model")
    add = model.add_argument
    add(
        "--patch_size",
        type=_integer(1),
        default=None,
        metavar="PIXELS",
        help="ViT: side of a patch (default: 2 for images up to 16 pixels, 4 below 64, else 16); "
        "Swin: the first downscaling (default: 1 up to 16 pixels, 2 below 64, else 4)",
    )
    add(
        "--width",
        type=_integer(1),
        default=None,
        metavar="N",
        help="ViT: token width (default: 512); Swin: channels of the first stage (default: 96); "
        "MLP: hidden units (default: 1024)",
    )
    add(
        "--depth",
        type=_integer(1),
        default=None,
        metavar="N",
        help="ViT: blocks (default: 6); MLP: hidden layers (default: 6)",
    )

    optimisation = parser.add_argument_group("optimisation")
    add = optimisation.add_argument
    add(
        "--lr",
        type=_real(0.0, exclusive=True),
        default=0.01,
        metavar="X",
        help=f"learning rate for batches of {REFERENCE_BATCH}, scaled by "
        f"batch_size/{REFERENCE_BATCH} for others (default: 0.01)",
    )
    add(
        "--schedule",
        type=_one_of(SCHEDULES),
        default="cosine",
        metavar="NAME",
        help="cosine to --min_lr, step, or constant; set once per epoch (default: cosine)",
    )
    add(
        "--epochs_warmup",
        type=_integer(0),
        default=0,
        metavar="N",
        help="epochs of linear rise before the schedule begins (default: 0)",
    )
    add(
        "--min_lr",
        type=_real(0.0),
        default=1e-5,
        metavar="X",
        help="end of the cosine schedule (default: 1e-5)",
    )
    add(
        "--step_milestones",
        type=_integer(1),
        nargs="+",
        default=None,
        metavar="EPOCH",
        help="step schedule: finished epochs after which the rate is multiplied (default: half "
        "and three quarters of --epochs)",
    )
    add(
        "--step_gamma",
        type=_real(0.0, exclusive=True),
        default=0.1,
        metavar="X",
        help="step schedule: the factor (default: 0.1)",
    )
    add(
        "--smoothing",
        type=_real(0.0, 1.0),
        default=0.0,
        metavar="S",
        help="label smoothing: targets become (1-S) onehot + S/K (default: 0)",
    )
    add(
        "--weight_decay",
        type=_real(0.0),
        default=5e-4,
        metavar="X",
        help="decay of all parameters by the optimizer; with --sep_decay: lambda_W of the "
        "classifier's weight in the loss (default: 5e-4)",
    )
    add(
        "--weight_decay_bias",
        type=_real(0.0),
        default=None,
        metavar="X",
        help="decay of the classifier's bias alone; with --sep_decay: lambda_b in the loss "
        "(default: as --weight_decay; with --sep_decay: 0)",
    )
    add(
        "--sep_decay",
        action="store_true",
        help="the optimizer decays nothing; the loss gains lambda_W/2 |W|^2 + lambda_H/2 times the "
        "batch's sum of |h|^2 + lambda_b/2 |b|^2 (default: off)",
    )
    add(
        "--feature_decay_rate",
        type=_real(0.0),
        default=5e-4,
        metavar="X",
        help="lambda_H of --sep_decay (default: 5e-4)",
    )
    return parser


def _add_speed(parser: Parser) -> None:
    add = parser.add_argument_group("speed").add_argument
    add(
        "--precision",
        type=_one_of(PRECISIONS),
        default="auto",
        metavar="NAME",
        help="fp32, tf32 or fp16 (GPU), bf16 of the layers; classifier, features, loss and metrics "
        "are float32. auto: bf16 on GPUs that have it, and on CPUs that are fast in it for ViT, "
        "Swin, ResNet from 16 pixels and DenseNet from 32 pixels on, else fp32 (default: auto)",
    )
    add(
        "--compile",
        action="store_true",
        help="torch.compile model and loss, with CUDA graphs on a GPU: a minute or more at the "
        "first steps; needs a C++ compiler (default: off)",
    )
    add(
        "--deterministic",
        action="store_true",
        help="only bit-reproducible kernels, on a GPU slower (default: off)",
    )


def _add_gpu_id(add: Callable[..., Any]) -> None:
    add(
        "--gpu_id",
        type=_integer(-1),
        default=0,
        metavar="N",
        help="CUDA device number; -1, or no CUDA: the CPU (default: 0)",
    )


def demo_parser() -> Parser:
    parser = Parser(
        prog="demo.py",
        description="Train a network on scikit-learn's digits with CE and with BCE, compare them."
        "\nEarlier demo runs in --save_dir are replaced.",
    )
    add = parser.add_argument
    add("--model", type=_model, default="ResNet18", metavar="NAME", help="(default: ResNet18)")
    add("--epochs", type=_integer(1), default=15, metavar="N", help="epochs (default: 15)")
    add("--seed", type=_integer(0), default=0, metavar="N", help="seed of both (default: 0)")
    _add_gpu_id(add)
    add(
        "--save_dir",
        default=DEFAULT_SAVE_DIR,
        metavar="DIR",
        help="where demo_CE and demo_BCE are made (default: ./model_weights)",
    )
    return parser


def eval_nc_parser() -> Parser:
    parser = Parser(
        prog="eval_nc.py",
        description="Measure neural collapse, feature properties and scores of runs' checkpoints.\n"
        "Writes nc_metrics.csv and nc_curves.png into each run directory.",
    )
    add = parser.add_argument_group("what to evaluate").add_argument
    add(
        "--load_path",
        nargs="+",
        required=True,
        metavar="RUN",
        help="run directories; several are also drawn into one picture (default: none, required)",
    )
    add(
        "--split",
        type=_one_of(("train", "test", "both")),
        default="both",
        metavar="NAME",
        help="train (without augmentation), test or both (default: both)",
    )
    add(
        "--checkpoints",
        default="all",
        metavar="WHICH",
        help="all, last, best, or epochs such as 1,5,10-20 (default: all)",
    )
    add(
        "--force",
        action="store_true",
        help="compute again what nc_metrics.csv holds of unchanged checkpoints (default: off)",
    )
    add(
        "--out",
        default=None,
        metavar="DIR",
        help="where the picture of several runs goes (default: the first run's directory)",
    )

    add = parser.add_argument_group("how").add_argument
    _add_evaluation(add)
    add(
        "--precision",
        type=_one_of(PRECISIONS[1:]),
        default="fp32",
        metavar="NAME",
        help="fp32, tf32 (CUDA), bf16 or fp16 of the network; the measures are computed in "
        "float64 (default: fp32)",
    )
    add(
        "--num_workers",
        type=_integer(0),
        default=None,
        metavar="N",
        help="processes that decode a folder's images (default: as in the run's config.json)",
    )

    bare = parser.add_argument_group(
        "directories of bare epoch_NNN.pth without a config.json (--model and --dataset required)"
    )
    add = bare.add_argument
    add("--model", type=_model, default=None, metavar="NAME", help="the network (default: none)")
    add(
        "--dataset",
        type=_one_of(DATASETS),
        default=None,
        metavar="NAME",
        help="the data set (default: none)",
    )
    for name in ("img_size", "sample_size", "test_sample_size", "patch_size", "width", "depth"):
        add(
            f"--{name}",
            type=_integer(1),
            default=None,
            metavar="N",
            help="as in train.py --help (default: train.py's)",
        )
    add(
        "--imbalance_factor",
        type=_real(1.0),
        default=None,
        metavar="X",
        help="as in train.py --help (default: train.py's)",
    )
    add(
        "--bias_added",
        action="store_true",
        help="the classifier that wrote the weights adds its bias, as torch.nn.Linear does; ours "
        "subtracts it (default: off)",
    )
    return parser


SWEPT = ("bias_init_mean", "weight_decay_bias")


def eval_scores_parser() -> Parser:
    parser = Parser(
        prog="eval_scores.py",
        description="Draw violins of decision scores and biases of several runs, one panel per "
        "loss and optimizer.\nWrites the picture and, beside it, the numbers as CSV.",
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="run directories")
    add(
        "--by",
        type=_one_of((*SWEPT, "run")),
        default=None,
        metavar="NAME",
        help="what the x axis tells: bias_init_mean, weight_decay_bias or run (default: the first "
        "of these that differs between the runs)",
    )
    add(
        "--split",
        type=_one_of(("train", "test")),
        default="train",
        metavar="NAME",
        help="train or test (default: train)",
    )
    add(
        "--checkpoint",
        default="last",
        metavar="WHICH",
        help="last, best or the number of an epoch (default: last)",
    )
    add(
        "--out",
        required=True,
        metavar="FILE",
        help="the picture: .png, .pdf or .svg; the numbers go to FILE with .csv, the outlines of "
        "the violins to FILE with _outlines.csv in place of the ending",
    )
    _add_evaluation(add)
    return parser


def eval_tsne_parser() -> Parser:
    parser = Parser(
        prog="eval_tsne.py",
        description="Draw t-SNE embeddings of runs' features, the runs side by side.\n"
        "Writes a picture per epoch (tsne_epoch_NNN), tsne.gif over them, and tsne.csv.",
    )
    add = parser.add_argument_group("what to draw").add_argument
    add("runs", nargs="+", metavar="RUN", help="run directories of one data set, a panel for each")
    add(
        "--checkpoints",
        default="last",
        metavar="WHICH",
        help="last, all, best, or epochs such as 1,5,10-20; those that all runs have are drawn "
        "(default: last)",
    )
    add(
        "--split",
        type=_one_of(("train", "test")),
        default="train",
        metavar="NAME",
        help="train (without augmentation) or test (default: train)",
    )
    add(
        "--samples_per_class",
        type=_integer(1),
        default=300,
        metavar="N",
        help="the first N samples of each class, or all where there are fewer (default: 300)",
    )
    add(
        "--classes",
        default=None,
        metavar="NAMES",
        help="names or numbers (from 0) of the classes to draw, such as cat,dog,7 (default: all)",
    )
    add(
        "--out",
        default=None,
        metavar="DIR",
        help="where the files go (default: tsne in the first run's directory)",
    )
    add(
        "--format",
        type=_one_of(("png", "pdf", "svg")),
        default="png",
        metavar="NAME",
        help="png, pdf or svg of the pictures (default: png)",
    )
    add(
        "--fps",
        type=_real(0.0, below=50.5, exclusive=True),
        default=2.0,
        metavar="X",
        help="epochs per second of the GIF, at most 50; the last is held longer (default: 2)",
    )

    add = parser.add_argument_group("how").add_argument
    add(
        "--perplexity",
        type=_real(1.0, exclusive=True),
        default=30.0,
        metavar="X",
        help="effective number of neighbours, at most a third of the samples drawn (default: 30)",
    )
    add("--seed", type=_integer(0), default=0, metavar="N", help="of the embeddings (default: 0)")
    _add_evaluation(add)
    return parser


def reproduce_parser() -> Parser:
    parser = Parser(
        prog="reproduce.py",
        description="Rerun an experiment of the paper and put the result beside the published one."
        "\nTrains what is missing, evaluates, draws, and writes report.md, CSV and pictures. The "
        "same command\nstarted again goes on where it was. Exit status: 0 all runs have results, "
        "2 not,\n130 and 143 stopped by SIGINT and SIGTERM.\n\nexperiments:\n"
        + "\n".join(f"  {name:<13}{what.title}" for name, what in EXPERIMENTS.items()),
    )
    add = parser.add_argument_group("what to run").add_argument
    add("experiment", type=_one_of(tuple(EXPERIMENTS)), metavar="EXPERIMENT", help="see above")
    add(
        "--scale",
        type=_one_of(SCALES),
        default="smoke",
        metavar="NAME",
        help="smoke: a small MLP on few digits, minutes on a CPU; cpu: ResNet18 on a sample of "
        "MNIST (or --dataset); full: the paper's setting (default: smoke)",
    )
    add(
        "--dataset",
        type=_one_of(DATASETS),
        default=None,
        metavar="NAME",
        help="in place of the scale's data sets (default: smoke digits, cpu mnist, full the "
        "paper's)",
    )
    add(
        "--models",
        type=_model,
        nargs="+",
        default=None,
        metavar="NAME",
        help="in place of the scale's networks (default: smoke MLP, cpu ResNet18, full the "
        "paper's)",
    )
    add(
        "--seeds",
        type=_integer(1, 1000),
        default=1,
        metavar="N",
        help="runs of each setting, with seeds 0 to N-1; the report gives mean and standard "
        "deviation (default: 1)",
    )
    for name, least in (("epochs", 1), ("sample_size", 1), ("test_sample_size", 1)):
        add(
            f"--{name}",
            type=_integer(least),
            default=None,
            metavar="N",
            help="as in train.py --help (default: the scale's)",
        )
    for name in OPTIMIZERS:
        add(
            f"--lr_{name}",
            type=_real(0.0, exclusive=True),
            default=None,
            metavar="X",
            help=f"learning rate with {name} (default: the scale's; full: 0.01)",
        )

    add = parser.add_argument_group("how").add_argument
    _add_gpu_id(add)
    add("--data_dir", default="./data", metavar="DIR", help="as in train.py (default: ./data)")
    add(
        "--jobs",
        type=_integer(1, 1000),
        default=1,
        metavar="N",
        help="runs at a time (default: 1)",
    )
    add(
        "--dry_run",
        action="store_true",
        help="print the training commands, one a line, and do nothing (default: off)",
    )
    add(
        "--save_dir",
        default=None,
        metavar="DIR",
        help="where run directories are made (default: ./model_weights/reproduce-SCALE)",
    )
    add(
        "--out",
        default=None,
        metavar="DIR",
        help="where report.md, CSV and pictures go (default: ./results/EXPERIMENT)",
    )

    add = parser.add_argument_group("on a cluster, through submitit").add_argument
    add(
        "--launcher",
        type=_one_of(("local", "slurm")),
        default=None,
        metavar="NAME",
        help="slurm: one job array, --jobs of it at a time, requeued when preempted; local: the "
        "same jobs as processes of this machine (default: processes of this command)",
    )
    add(
        "--job_minutes",
        type=_integer(1, 100_000),
        default=None,
        metavar="N",
        help="time limit of a job, after which it is requeued and resumes (default: 240)",
    )
    add(
        "--slurm",
        type=_assignment,
        nargs="+",
        default=None,
        metavar="KEY=VALUE",
        help="more parameters of sbatch, such as partition=gpu cpus-per-task=8 (default: none)",
    )
    return parser


# What reproduce.py passes over if it does not apply, unlike what always does.
REPRODUCED = (
    *("dataset", "models", "epochs", "sample_size", "test_sample_size", "lr_SGD", "lr_AdamW"),
    *("launcher", "job_minutes", "slurm"),
)


def _assignment(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not (key and sign and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _add_evaluation(add: Callable[..., Any]) -> None:
    """Flags of every script that passes images through a network."""
    _add_gpu_id(add)
    add(
        "--batch_size",
        type=_integer(1),
        default=256,
        metavar="N",
        help="images per pass; changes memory and speed (default: 256)",
    )
    add(
        "--data_dir",
        default=None,
        metavar="DIR",
        help="where the data set is, if it has moved (default: as in the run's config.json)",
    )


BARE_FLAGS = (
    *("model", "dataset", "img_size", "sample_size", "imbalance_factor", "test_sample_size"),
    *("patch_size", "width", "depth", "bias_added"),
)


def bare_settings(args: argparse.Namespace, bias_mode: str) -> dict[str, Any]:
    """Settings as of a config.json for weights that come without one. Raises UserError."""
    for required in ("model", "dataset"):
        if getattr(args, required) is None:
            raise UserError(f"there is no config.json: give --{required}")
    for option in ("patch_size", "width", "depth"):
        if getattr(args, option) is not None and option not in MODELS[args.model].options:
            raise UserError(f"--{option} has no effect here: {args.model} has no such setting")
    settings = {
        key: value for key, value in vars(parse_train_args([])).items() if key != "distinct"
    }
    given = {key: getattr(args, key) for key in BARE_FLAGS if key in settings}
    given = {key: value for key, value in given.items() if value is not None}
    return {**settings, **given, "loss": "", "optimizer": "", "bias_mode": bias_mode}


# The grids of the paper's score figures.
SWEEPS = {
    "bias_decay": (0.5, 0.05, 5e-3, 5e-4, 5e-5, 5e-6),
    "bias_init_mean": (0, 1, 2, 3, 4, 5, 6, 8, 10),
}


def verify_theory_parser() -> Parser:
    parser = Parser(
        prog="verify_theory.py",
        description="Minimise the unconstrained-feature model by L-BFGS in float64 and hold it "
        "against its exact minimum.\nExit status: 0 they agree, 1 they do not, 4 the theory does "
        "not apply (d too small, imbalanced classes).",
    )
    add = parser.add_argument_group("the problem").add_argument
    add(
        "--loss",
        type=_one_of(("CE", "BCE")),
        default="BCE",
        metavar="NAME",
        help="CE or BCE (default: BCE)",
    )
    add(
        "--num_classes",
        type=_integer(2, 1000),
        default=10,
        metavar="K",
        help="classes (default: 10)",
    )
    add(
        "--samples_per_class",
        type=_real(0.0, 1e6, exclusive=True),
        default=12.8,
        metavar="N",
        help="samples per class; for mini-batches batch_size/K, which may be fractional "
        "(default: 12.8, a batch of 128)",
    )
    add(
        "--feature_dim",
        type=_integer(1, 100_000),
        default=None,
        metavar="D",
        help="dimension of the features (default: K + 6)",
    )
    add(
        "--weight_decay",
        type=_real(0.0, exclusive=True),
        default=5e-4,
        metavar="X",
        help="lambda_W (default: 5e-4)",
    )
    add(
        "--feature_decay_rate",
        type=_real(0.0, exclusive=True),
        default=5e-4,
        metavar="X",
        help="lambda_H (default: 5e-4)",
    )
    add(
        "--weight_decay_bias",
        type=_real(0.0),
        default=None,
        metavar="X",
        help="lambda_b (default: 0)",
    )
    add(
        "--bias_init_mean",
        type=_real(),
        default=None,
        metavar="X",
        help="mean of the biases where L-BFGS starts (default: 0; with --sweep bias_decay 10)",
    )
    add(
        "--imbalance_factor",
        type=_real(1.0),
        default=1.0,
        metavar="X",
        help="class k has N X^(-k/(K-1)) samples, rounded down; the theory is of 1 (default: 1)",
    )

    add = parser.add_argument_group("how").add_argument
    add("--seed", type=_integer(0), default=0, metavar="N", help="of the start (default: 0)")
    add(
        "--starts",
        type=_integer(1, 1000),
        default=1,
        metavar="N",
        help="random starts, the lowest end counts (default: 1)",
    )
    add(
        "--tolerance",
        type=_real(0.0, exclusive=True),
        default=1e-3,
        metavar="X",
        help="largest difference that agrees: absolute, for the loss and |W|^2 relative above 1 "
        "(default: 1e-3)",
    )
    add(
        "--sweep",
        type=_one_of(tuple(SWEEPS)),
        default=None,
        metavar="NAME",
        help="bias_decay or bias_init_mean: the paper's grid of it (default: one setting)",
    )
    add(
        "--json",
        default=None,
        metavar="FILE",
        help="write settings, predicted and found values (default: none)",
    )
    add(
        "--plot",
        default=None,
        metavar="FILE",
        help="picture of the setting or the sweep, .png, .pdf or .svg (default: none; of a sweep "
        "theory_LOSS_SWEEP.png)",
    )
    return parser


def parse_train_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The resolved settings of train.py; exits with status 2 and one line on a mistake.

    On `--resume --run_name NAME` the flags that are not given take the run's own values. The
    result's `distinct` holds the given settings that differ from the defaults, for a run's name.
    """
    parser = train_parser()
    given = _given(parser, argv)
    defaults = _defaults(parser)
    if given.get("precision") == defaults["precision"]:
        del given["precision"]  # a resumed run's own, which auto was resolved to
    try:
        settings = {**defaults, **_settings_of_resumed_run(defaults, given), **given}
        _refuse_without_effect(settings, given)
        _resolve(settings)
    except UserError as error:
        parser.error(str(error))
    distinct = {key: value for key, value in given.items() if value != defaults[key]}
    return argparse.Namespace(**settings, distinct=distinct)


def _defaults(parser: Parser) -> dict[str, Any]:
    return {key: parser.get_default(key) for key in vars(parser.parse_args([]))}


def _given(parser: argparse.ArgumentParser, argv: list[str] | None) -> dict[str, Any]:
    """The flags that the command line names, without the defaults of the others."""
    unset = object()
    blank = argparse.Namespace(**{key: unset for key in vars(parser.parse_args([]))})
    parsed = vars(parser.parse_args(argv, blank))
    return {key: value for key, value in parsed.items() if value is not unset}


def _settings_of_resumed_run(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The settings stored by the run that `--resume --run_name` names, if it exists."""
    if not given.get("resume") or not given.get("run_name"):
        return {}
    save_dir = given.get("save_dir", defaults["save_dir"])
    directory = Path(save_dir) / given["run_name"]
    if not (directory / "config.json").exists():
        return {}
    stored = checked_settings(read_config(directory)["settings"], directory / "config.json")
    check_resumable(directory, stored, given)
    return {**stored, "save_dir": save_dir}


def checked_settings(stored: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings of a config.json at `path`, each examined as if it had been given as a flag.

    Raises UserError that names the file and what is wrong in it.
    """
    parser = train_parser()
    defaults = _defaults(parser)
    stored = {key: value for key, value in stored.items() if key in defaults}
    unset = {key for key, default in defaults.items() if default in (None, False)}
    for key, value in {**dict.fromkeys(defaults), **stored}.items():
        if (value is None or value is False) and key not in unset:
            raise UserError(f"{path} is damaged: it has no {key!r}")
    parser.source = path
    return {**stored, **_given(parser, _as_flags(stored))}


def stored_run(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a run directory's config.json: the settings, checked, and the facts of the data set.

    Raises UserError if it is missing or damaged.
    """
    if directory.is_dir() and not (directory / "config.json").exists():
        raise UserError(f"{directory} is not a run directory: it holds no config.json")
    config = read_config(directory)
    return checked_settings(config["settings"], directory / "config.json"), config["data"]


def _as_flags(settings: dict[str, Any]) -> list[str]:
    flags = []
    for key, value in settings.items():
        if value is True:
            flags.append(f"--{key}")
        elif isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        elif value is not None and value is not False:
            flags.append(f"--{key}={value}")  # "=": a negative number is no flag
    return flags


def _refuse_without_effect(settings: dict[str, Any], given: dict[str, Any]) -> None:
    """A flag that does nothing in this combination is a mistake, not to be passed over."""
    model = settings["model"]
    without_effect = {
        **{
            option: f"{model} has no such setting"
            for option in ("patch_size", "width", "depth")
            if option not in MODELS[model].options
        },
        **_when(
            settings["bias_mode"] == "none",
            "--bias_mode none leaves no bias",
            "bias_init_mode",
            "bias_init_mean",
            "weight_decay_bias",
        ),
        **_when(not settings["sep_decay"], "it belongs to --sep_decay", "feature_decay_rate"),
        **_when(
            settings["sep_decay"] and settings["fixed_etf"],
            "--sep_decay decays the classifier's weight alone, which --fixed_etf fixes",
            "weight_decay",
        ),
        **_when(settings["schedule"] != "cosine", "it belongs to --schedule cosine", "min_lr"),
        **_when(
            settings["schedule"] != "step",
            "it belongs to --schedule step",
            "step_milestones",
            "step_gamma",
        ),
        **_when(
            settings["dataset"] != "folder",
            f"{settings['dataset']} is held in memory, only folder is decoded by workers",
            "num_workers",
        ),
        **_when(
            settings["run_name"] is None and not settings["resume"],
            "without --run_name a run gets a new directory",
            "force",
        ),
        **_when(settings["dataset"] == "digits", "digits come with scikit-learn", "data_dir"),
    }
    for flag, reason in without_effect.items():
        if given.get(flag) is not None and given[flag] is not False:
            raise UserError(f"--{flag} has no effect here: {reason}")


def _when(condition: bool, reason: str, *flags: str) -> dict[str, str]:
    return {flag: reason for flag in flags} if condition else {}


def _resolve(settings: dict[str, Any]) -> None:
    """Fill in the defaults that depend on other settings, and check what depends on two."""
    epochs, schedule = settings["epochs"], settings["schedule"]
    if settings["epochs_warmup"] >= epochs:
        raise UserError(
            f"--epochs_warmup {settings['epochs_warmup']} must be below --epochs {epochs}"
        )
    if schedule == "cosine" and settings["min_lr"] > scaled_learning_rate(settings):
        raise UserError(
            f"--min_lr {settings['min_lr']:g} is above the learning rate "
            f"{scaled_learning_rate(settings):g} that it ends"
        )
    if schedule == "step":
        settings["step_milestones"] = settings["step_milestones"] or _default_milestones(epochs)
        if settings["step_milestones"] != sorted(set(settings["step_milestones"])):
            raise UserError("--step_milestones must rise")
        if settings["step_milestones"][-1] >= max(epochs, 2):
            raise UserError(
                f"--step_milestones {settings['step_milestones'][-1]} must be below "
                f"--epochs {epochs}"
            )
    if settings["num_workers"] is None:
        on_disk = settings["dataset"] == "folder"
        settings["num_workers"] = min(8, os.cpu_count() or 1) if on_disk else 0
    if settings["weight_decay_bias"] is None:
        settings["weight_decay_bias"] = 0.0 if settings["sep_decay"] else settings["weight_decay"]


def _default_milestones(epochs: int) -> list[int]:
    return sorted({max(1, epochs // 2), max(1, epochs * 3 // 4)})


def scaled_learning_rate(settings: dict[str, Any]) -> float:
    return settings["lr"] * settings["batch_size"] / REFERENCE_BATCH


def _model(text: str) -> str:
    try:
        return canonical_name(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _one_of(names: tuple[str, ...]):
    """A type that accepts one of `names` in any case and returns it as it is written there."""

    def convert(text: str) -> str:
        found = {name.lower(): name for name in names}.get(text.lower())
        if found is None:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return found

    return convert


def _integer(least: int, most: int = LARGEST_INTEGER):
    span = f"a whole number from {least} on"

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least or value > most:
            raise argparse.ArgumentTypeError(f"{text!r} is not {span}, at most {most}")
        return value

    return convert


def _real(least: float = -math.inf, below: float = math.inf, exclusive: bool = False):
    words = (
        [f"above {least:g}" if exclusive else f"at least {least:g}"] if least > -math.inf else []
    )
    words += [f"below {below:g}"] if below < math.inf else []
    span = " ".join([f"a number within ±{LARGEST_REAL:g}", " and ".join(words)]).strip()

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        low = value > least if exclusive or least == -math.inf else value >= least
        if not (abs(value) <= LARGEST_REAL and low and value < below):
            raise argparse.ArgumentTypeError(f"{text!r} is not {span}")
        return value

    return convert


def _run_name(text: str) -> str:
    plain = Path(text).name == text and text.isprintable() and len(os.fsencode(text)) <= 200
    if not plain or text in ("", ".", "..") or text.startswith("-"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a plain directory name of at most 200 bytes"
        )
    return text
