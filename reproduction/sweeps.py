"""The experiment that trains nothing: sweeps of the unconstrained-feature model, and its table."""

from __future__ import annotations

import itertools

from reproduction.pictures import Call, Drawing
from reproduction.results import Result
from reproduction.work import Work

DRAWN_SWEEPS = ("bias_decay", "bias_init_mean")  # names of theory.setting.SWEEPS
BATCH = 128  # images of a batch in the paper's runs; the classes share them
DISAGREES = 1  # exit status of verify_theory.py if the found minimum is not the predicted one


def find_results(work: Work) -> list[Result]:
    """Return predicted, found and published scores for each number of classes."""
    from reproduction.theory import compute_results

    return compute_results(work.scale.classes)


def draw_sweeps(work: Work) -> Drawing:
    """Draw scores and bias over the decay and the initial mean of the bias, for each loss."""
    pictures, calls = [], []
    settings = itertools.product(work.experiment.losses, DRAWN_SWEEPS, work.scale.swept_classes)
    for loss, sweep, classes in settings:
        files = work.out / f"{loss}_{sweep}_K{classes}"
        flags = ["--loss", loss, "--sweep", sweep, "--num_classes", str(classes)]
        flags += ["--samples_per_class", str(BATCH / classes)]
        flags += ["--json", f"{files}.json", "--plot", f"{files}.png"]
        calls.append(Call("verify_theory", flags, accepted=(0, DISAGREES)))
        pictures.append(work.out / f"{files.name}.png")
    return Drawing(pictures, calls)
