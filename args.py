"""The settings of train.py, an entry for each.

The parser, the refusals of flags without effect, config.json, the comparison on a resume and the
names of runs all follow from these entries. Imports no torch and never touches the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from input_pipeline import AUGMENTATIONS, SOURCES, explain_bundled, explain_no_files
from models import (
    BIAS_MODES,
    BIAS_STARTS,
    check_name,
    list_names,
    list_takers,
)
from objective import LOSSES, OPTIMIZERS, SCHEDULES, list_optimizers
from refusals import (
    check_bias_start,
    check_crops,
    explain_fixed_weight,
    explain_given_bias,
    explain_given_shape,
    explain_idle_pretrained,
    explain_idle_sign,
    explain_no_batch_norm,
    explain_no_bias,
    explain_no_cache,
    explain_no_crops,
    explain_unnamed,
    explain_unsized,
    require_option,
    require_taker,
)
from utils.cli import (
    LARGEST_INTEGER,
    SMALLEST_BATCH,
    AbsolutePath,
    Count,
    DeviceNumber,
    Factor,
    Natural,
    NonNegative,
    Parser,
    PathText,
    PlainName,
    Positive,
    ProjectName,
    Real,
    count_or,
    known,
    real_or,
)
from utils.errors import UserError
from utils.registry import describe_names
from utils.resources import count_default_workers
from utils.settings import Table, require, setting

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
GRAPHS = ("auto", "on", "off")
AUTO_GRAPHS = "off"  # --graphs auto on a GPU; becomes "on" once the recorded step has run on one
LARGEST_SIDE = 16_384  # pixels of an image's side: 3 GiB in float32
REFERENCE_BATCH = 128  # --lr is for this batch size, and scales in proportion for others


ModelName = Annotated[str, AfterValidator(check_name)]
Milestones = Annotated[list[Count], Field(min_length=1)]
Share = Annotated[Real, Field(ge=0, lt=1)]
Pair = Annotated[list[Share], Field(min_length=2, max_length=2)]
main = partial(setting, "what to train")
run = partial(setting, "run")
speed = partial(setting, "speed")
data = partial(setting, "data")
network = partial(setting, "network")
start = partial(setting, "start and frozen parts")
classifier = partial(setting, "classifier (logits z = W h - b)")
optimisation = partial(setting, "optimisation")


class Settings(Table):
    """The settings of one run of train.py."""

    model: ModelName = main("ResNet18", list_names())
    dataset: Annotated[str, known(SOURCES, "data set")] = main(
        "digits", describe_names(SOURCES, ", ")
    )
    loss: Annotated[str, known(LOSSES, "loss")] = main("BCE", ", ".join(LOSSES))
    optimizer: Annotated[str, known(OPTIMIZERS, "optimizer")] = main("SGD", ", ".join(OPTIMIZERS))
    lr: Positive = main(0.01, "learning rate for batches of 128, scaled by batch_size/128")
    batch_size: Annotated[int, Field(ge=SMALLEST_BATCH, le=LARGEST_INTEGER)] = main(
        128, "images per step"
    )
    epochs: Count = main(100, "epochs to train")

    gpu_id: DeviceNumber = run(0, "CUDA device number; -1, or no CUDA: the CPU", shapes=False)
    seed: Natural = run(0, "seed of initial weights, sample order, augmentation and dropout")
    save_dir: PathText = run(
        "./model_weights", "where run directories are made", shapes=False, metavar="DIR"
    )
    run_name: PlainName | None = run(
        None,
        "name of the run directory",
        default_text="main settings, those that differ from the defaults, time",
        shapes=False,
    )
    resume: bool = run(
        False, "continue the run of --run_name, or the newest unfinished equal run", shapes=False
    )
    force: bool = run(
        False,
        "replace a run directory; with --resume: start a run where none is",
        why_idle=explain_unnamed,
        shapes=False,
    )
    epoch_save_step: Count = run(
        1, "write epoch_NNN.pth every N epochs and after the last", short="every{}"
    )
    keep_checkpoints: count_or("all", "best") = run(  # type: ignore[valid-type]
        "all",
        "which epoch_NNN.pth stay: all, the newest N, or best: best_model.pth alone",
        shapes=False,
        before="all",
        metavar="N|all|best",
    )
    nc_every: Natural = run(
        0,
        "measure neural collapse in training, every N epochs and after the last; 0: never",
        shapes=False,
        before=0,
    )
    save_interval: Natural = run(
        30, "least seconds between two writes of last.pth in training", shapes=False, before=30
    )
    tensorboard: bool = run(False, "also write metrics as TensorBoard events", shapes=False)
    wandb: ProjectName | None = run(
        None,
        "also log settings and metrics to this project at Weights & Biases",
        default_text="none",
        shapes=False,
        metavar="PROJECT",
    )
    wandb_artifacts: bool = run(
        False,
        "at the end upload best weights, settings, metrics and pictures",
        why_idle=lambda s: None if s.wandb else "it is for --wandb PROJECT",
        shapes=False,
    )

    precision: Annotated[str, known(PRECISIONS, "precision")] = speed(
        "auto",
        "of the layers: fp32, bf16, on GPUs also tf32, fp16; auto: bf16 where it is faster",
        before="fp32",
    )
    compile: bool = speed(
        False, "torch.compile model and loss; takes a minute, needs a C++ compiler", before=False
    )
    graphs: Annotated[str, known(GRAPHS, "choice")] = speed(
        "auto",
        f"replay the training step as one CUDA graph: on, off; auto: {AUTO_GRAPHS} on NVIDIA GPUs",
        before="off",
    )
    sync_bn: bool | None = speed(
        None,
        "torchrun: batch normalisation over the whole batch, not a process's share of it",
        default_text="on below 32 images a share",
        why_idle=explain_no_batch_norm,
        before=None,
        left_open=True,
    )
    deterministic: bool = speed(False, "only bit-reproducible kernels", before=False)

    data_dir: PathText = data(
        "./data",
        "where data sets are, or are downloaded to; folder: the parent of train/ and test/",
        why_idle=lambda s: explain_bundled(s.dataset),
        shapes=False,
        builds="data",
        metavar="DIR",
    )
    img_size: Annotated[int, Field(ge=4, le=LARGEST_SIDE)] | None = data(
        None,
        "side in pixels to which images are resized",
        default_text="the data set's; folder: as they are",
        builds="data",
    )
    sample_size: Count | None = data(
        None, "training images per class, the first N", default_text="all", builds="data"
    )
    imbalance_factor: Factor = data(
        1.0,
        "cut the training set to a long tail: the largest class has X times the images of the last",
        before=1.0,
        builds="data",
        short="lt{:g}",
    )
    test_sample_size: Count | None = data(
        None, "test images per class, the first N", default_text="all", builds="data"
    )
    augment: Annotated[str, known(AUGMENTATIONS, "augmentation")] = data(
        "none", describe_names(AUGMENTATIONS, "; "), short="{}"
    )
    jpeg_draft: bool = data(
        False,
        "decode JPEGs at 1/2, 1/4 or 1/8 of their size if that is twice --img_size; faster",
        why_idle=explain_unsized,
        builds="data",
        before=False,
        short="draft",
    )
    resize_first: bool = data(
        False,
        "crop from images resized as those of the test are, which --cache_dir can keep",
        why_idle=explain_no_crops,
        before=False,
        short="resized",
    )
    cache_dir: AbsolutePath | None = data(
        None,
        "keep the images of a folder there, resized: each file is decoded once; see docs/data.md",
        default_text="nowhere",
        why_idle=explain_no_cache,
        shapes=False,
        before=None,
        metavar="DIR",
    )
    skip_corrupt: bool = data(
        False,
        "leave image files out that can't be decoded; all are checked once, see docs/data.md",
        why_idle=lambda s: explain_no_files(s.dataset),
        builds="data",
        before=False,
        short="skipcorrupt",
    )
    force_listing: bool = data(
        False,
        "read a folder anew that was listed before; needed after files were changed in place",
        why_idle=lambda s: explain_no_files(s.dataset),
        shapes=False,
    )
    num_workers: Natural | None = data(
        None,
        "processes that decode the images of a folder",
        default_text="the usable cores less one, at least one",
        why_idle=lambda s: explain_no_files(s.dataset),
        shapes=False,
    )

    patch_size: Count | None = network(
        None,
        f"{list_takers('patch_size')}: side of a patch in pixels",
        default_text="by the side of the images",
        why_idle=require_option("patch_size"),
        builds="model",
    )
    width: Count | None = network(
        None,
        f"{list_takers('width')}: features of a token, of the first stage, of a hidden layer",
        default_text="the network's",
        why_idle=require_option("width"),
        builds="model",
    )
    depth: Count | None = network(
        None,
        f"{list_takers('depth')}: number of blocks or hidden layers",
        default_text="the network's",
        why_idle=require_option("depth"),
        builds="model",
    )

    bias_mode: Annotated[str, known(BIAS_MODES, "bias mode")] = classifier(
        "diverse", "diverse: one bias per class; unified: one for all; none", builds="model"
    )
    bias_init_mode: Annotated[int, Field(ge=0, le=7)] = classifier(
        0,
        "shape of the initial biases, 0 to 7; 0: uniform in +-1/sqrt(features)",
        why_idle=explain_given_shape,
        builds="initial weights",
    )
    bias_init_mean: real_or(*BIAS_STARTS) = classifier(  # type: ignore[valid-type]
        0.0,
        "added to every initial bias; prior: begin where scores of 0 have the least loss; "
        "predicted: at the exact minimum",
        why_idle=explain_given_bias,
        builds="initial weights",
        short="mean{:g}",
        metavar="X|prior|predicted",
    )
    fixed_etf: bool = classifier(
        False, "fix the weight to a simplex ETF; needs at least K - 1 features", builds="model"
    )

    pretrained: bool = start(
        False,
        "timm: begin with timm's weights, from the hub or --weights",
        why_idle=explain_idle_pretrained,
        builds="initial weights",
        before=False,
        short="pretrained",
    )
    weights: AbsolutePath | None = start(
        None,
        "file of the weights of --pretrained, in timm's layout (.pth, .safetensors)",
        default_text="from the hub",
        why_idle=require("pretrained"),
        builds="initial weights",
        before=None,
        metavar="FILE",
    )
    init_from: AbsolutePath | None = start(
        None,
        "begin with the weights of a run (its last) or of a file, this program's or another's",
        default_text="drawn",
        before=None,
        metavar="PATH",
    )
    init_backbone: bool = start(
        False,
        "of --init_from take all but the classifier, which is drawn",
        why_idle=require("init_from", given=True),
        before=False,
        short="backbone",
    )
    init_bias_added: bool = start(
        False,
        "the classifier of --init_from adds its bias, as torch.nn.Linear does",
        why_idle=explain_idle_sign,
        before=False,
    )
    freeze_backbone: bool = start(
        False,
        "train the classifier alone; the backbone stays in evaluation mode",
        before=False,
        short="frozen",
    )

    schedule: Annotated[str, known(SCHEDULES, "schedule")] = optimisation(
        "cosine", f"{', '.join(SCHEDULES)}; set once per epoch"
    )
    epochs_warmup: Natural = optimisation(0, "epochs of linear rise before the schedule begins")
    min_lr: NonNegative = optimisation(
        1e-5, "end of the cosine schedule", why_idle=require("schedule", "cosine")
    )
    step_milestones: Milestones | None = optimisation(
        None,
        "step schedule: finished epochs after which the rate is multiplied",
        default_text="half and three quarters of --epochs",
        why_idle=require("schedule", "step"),
    )
    step_gamma: Positive = optimisation(
        0.1, "step schedule: the factor", why_idle=require("schedule", "step")
    )
    momentum: Share = optimisation(
        0.9,
        f"{list_optimizers('momentum')}: share of the last step in the next",
        why_idle=require_taker("momentum"),
        before=0.9,
        short="momentum{:g}",
    )
    betas: Pair = optimisation(
        [0.9, 0.999],
        f"{list_optimizers('betas')}: shares of the old means of gradients and of their squares",
        default_text="0.9 0.999",
        why_idle=require_taker("betas"),
        before=[0.9, 0.999],
    )
    clip_grad_norm: Positive | None = optimisation(
        None,
        "largest norm of the gradient over all trained parameters, with the terms of --sep_decay, "
        "before weight decay",
        default_text="off",
        before=None,
        short="clip{:g}",
    )
    accumulate: Count = optimisation(
        1,
        "compute an update of --batch_size images in N parts, one after another; batch "
        "normalisation sees the parts",
        before=1,
        short="acc{}",
    )
    ema: Annotated[Share, Field(gt=0)] | None = optimisation(
        None,
        "also test and keep an average of the weights: at each update DECAY of the old one, "
        "1-DECAY of the weights",
        default_text="off",
        before=None,
        short="ema{:g}",
        metavar="DECAY",
    )
    smoothing: Share = optimisation(0.0, "label smoothing: targets become (1-S) onehot + S/K")
    weight_decay: NonNegative = optimisation(
        5e-4, "decay of all parameters; with --sep_decay: lambda_W", why_idle=explain_fixed_weight
    )
    weight_decay_bias: NonNegative | None = optimisation(
        None,
        "decay of the classifier's bias; with --sep_decay: lambda_b",
        default_text="as --weight_decay; with --sep_decay: 0",
        why_idle=explain_no_bias,
        short="decay{:g}",
    )
    sep_decay: bool = optimisation(
        False,
        "the loss gains lambda_W/2 |W|^2 + lambda_H/2 sum |h|^2 + lambda_b/2 |b|^2; nothing else "
        "decays",
        short="sep",
    )
    feature_decay_rate: NonNegative = optimisation(
        5e-4, "lambda_H of --sep_decay", why_idle=require("sep_decay")
    )

    @property
    def scaled_lr(self) -> float:
        """The learning rate for this batch size."""
        return self.lr * self.batch_size / REFERENCE_BATCH


def build_parser() -> Parser:
    """Return the parser of train.py: a flag for every setting."""
    parser = Parser(
        prog="train.py",
        description="Train a classifier with CE, BCE or MSE and checkpoint every epoch.\n"
        "Without flags: ResNet18 on scikit-learn's digits with BCE and SGD. More: docs/training.md",
    )
    Settings.add_flags(parser)
    return parser


def parse_settings(argv: Sequence[str] | None = None) -> Settings:
    """Return the settings that a command line gives, each checked by itself.

    Exits with status 2 and one line on a mistake.
    """
    parser = build_parser()
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    for name in ("precision", "graphs"):
        if given.get(name, "").lower() == "auto":
            del given[name]  # a resumed run then keeps its own, already resolved
    try:
        return Settings.from_flags(given)
    except UserError as error:
        parser.error(str(error))


def complete(settings: Settings) -> Settings:
    """Check the settings together and fill in the defaults that depend on others.

    Raises UserError.
    """
    settings.refuse_idle()
    check_bias_start(settings)
    if settings.freeze_backbone and settings.fixed_etf and settings.bias_mode == "none":
        raise UserError(
            "--freeze_backbone, --fixed_etf and --bias_mode none leave nothing to train"
        )
    check_crops(settings)
    s, filled = settings, dict[str, Any]()
    if s.epochs_warmup >= s.epochs:
        raise UserError(f"--epochs_warmup {s.epochs_warmup} must be below --epochs {s.epochs}")
    if s.batch_size < SMALLEST_BATCH * s.accumulate:
        raise UserError(
            f"--accumulate {s.accumulate} needs a --batch_size of at least "
            f"{SMALLEST_BATCH * s.accumulate}, not {s.batch_size}: each part has two images or more"
        )
    if s.schedule == "cosine" and s.min_lr > s.scaled_lr:
        raise UserError(f"--min_lr {s.min_lr:g} is above the learning rate {s.scaled_lr:g}")
    if s.schedule == "step":
        filled["step_milestones"] = _check_milestones(s.step_milestones, s.epochs)
    if s.num_workers is None:
        filled["num_workers"] = count_default_workers() if SOURCES[s.dataset].streams else 0
    if s.weight_decay_bias is None:
        filled["weight_decay_bias"] = 0.0 if s.sep_decay else s.weight_decay
    return settings.replace(**filled)


def _check_milestones(milestones: list[int] | None, epochs: int) -> list[int]:
    milestones = milestones or sorted({max(1, epochs // 2), max(1, epochs * 3 // 4)})
    if milestones != sorted(set(milestones)):
        raise UserError("--step_milestones must rise")
    if milestones[-1] >= max(epochs, 2):
        raise UserError(f"--step_milestones {milestones[-1]} must be below --epochs {epochs}")
    return milestones
