"""Why a setting has no effect beside others, and why others do not go together.

The entries of args.py name these functions. They take any object whose attributes are settings.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from input_pipeline import AUGMENTATIONS, explain_no_files
from models import BIAS_STARTS, PREDICTED, PRIOR, explain_missing_option, find_network
from objective import LOSSES, explain_untaken
from theory.problem import LOSSES as PRIOR_LOSSES
from utils.errors import UserError
from utils.settings import require


def require_option(name: str) -> Callable[[Any], str | None]:
    """Return the `why_idle` of a setting that belongs to some networks alone."""
    return lambda s: explain_missing_option(s.model, name)


def require_taker(name: str) -> Callable[[Any], str | None]:
    """Return the `why_idle` of a setting that belongs to some optimizers alone."""
    return lambda s: explain_untaken(s.optimizer, name)


def explain_no_batch_norm(settings: Any) -> str | None:
    has_it = find_network(settings.model).batch_norm
    return None if has_it else f"{settings.model} has no batch normalisation"


def explain_no_bias(settings: Any) -> str | None:
    return "--bias_mode none leaves no bias" if settings.bias_mode == "none" else None


def explain_idle_pretrained(settings: Any) -> str | None:
    given = "--init_from gives the weights" if settings.init_from else None
    return explain_missing_option(settings.model, "pretrained") or given


def explain_given_bias(settings: Any) -> str | None:
    whole = settings.init_from and not settings.init_backbone
    return "--init_from gives the biases" if whole else explain_no_bias(settings)


def explain_given_shape(settings: Any) -> str | None:
    start = settings.bias_init_mean
    named = f"--bias_init_mean {start} gives the biases" if start in BIAS_STARTS else None
    return explain_given_bias(settings) or (named if settings.bias_init_mode != 0 else None)


def explain_idle_sign(settings: Any) -> str | None:
    alone = "--init_backbone leaves the classifier out" if settings.init_backbone else None
    return require("init_from", given=True)(settings) or alone or explain_no_bias(settings)


def explain_unsized(settings: Any) -> str | None:
    sized = "without --img_size images keep their size" if settings.img_size is None else None
    return explain_no_files(settings.dataset) or sized


def explain_no_crops(settings: Any) -> str | None:
    crops = AUGMENTATIONS[settings.augment].crops_files
    return None if crops else f"--augment {settings.augment} does not crop image files"


def explain_no_cache(settings: Any) -> str | None:
    if settings.jpeg_draft:
        return "--jpeg_draft makes other pixels at each side; leave one of the two out"
    crops = AUGMENTATIONS[settings.augment].crops_files
    if crops and not settings.resize_first:
        return f"--augment {settings.augment} crops the files' own pixels; add --resize_first"
    return explain_unsized(settings)


def explain_unnamed(settings: Any) -> str | None:
    new = settings.run_name is None and not settings.resume
    return "without --run_name a run gets a new directory" if new else None


def explain_fixed_weight(settings: Any) -> str | None:
    fixed = settings.sep_decay and settings.fixed_etf
    return "--sep_decay decays the weight alone, which --fixed_etf fixes" if fixed else None


def explain_no_problem(settings: Any) -> str | None:
    """Return why the minimum that a run approaches is not known; None if it is."""
    reasons = {
        "without --sep_decay no term limits the features": not settings.sep_decay,
        f"--loss {settings.loss} has none": not LOSSES[settings.loss].has_exact_minimum,
        f"--augment {settings.augment} changes the targets with every batch": AUGMENTATIONS[
            settings.augment
        ].mixes_labels,
        "--fixed_etf fixes the weight": settings.fixed_etf,
        "--freeze_backbone fixes the features": settings.freeze_backbone,
        "--weight_decay is 0": settings.weight_decay == 0,
        "--feature_decay_rate is 0": settings.feature_decay_rate == 0,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def check_bias_start(settings: Any) -> None:
    """Raise UserError if no --bias_init_mean of this name can be had, whatever the data are."""
    start, loss = settings.bias_init_mean, settings.loss
    if start == PREDICTED and (reason := explain_no_problem(settings)):
        raise UserError(
            f"--bias_init_mean predicted: the exact minimum is not known here, {reason}; "
            "use prior or a number"
        )
    if start == PRIOR and loss not in PRIOR_LOSSES:
        raise UserError(f"--bias_init_mean prior is not known for --loss {loss}: use a number")
    if start == PRIOR and loss == "CE" and settings.bias_mode == "unified":
        raise UserError(
            "--bias_init_mean prior has no effect here: --loss CE does not see one bias for all "
            "classes; leave it out"
        )


def check_crops(settings: Any) -> None:
    """Raise UserError if image files are to be cropped, but there are none, or to no known size."""
    augment, dataset = settings.augment, settings.dataset
    if not AUGMENTATIONS[augment].crops_files:
        return
    if reason := explain_no_files(dataset):
        raise UserError(f"--augment {augment} crops image files: {reason}; use DA1 or DA1+DA2")
    if settings.img_size is None:
        raise UserError(f"--augment {augment} needs --img_size, the side of its crops")
