"""The part of a grid that --only leaves."""

import itertools

import pytest

from reproduction.grid import build_grid
from reproduction.selection import select_runs
from utils.errors import UserError


def select(runs, *texts):
    return [run.name for run in select_runs(runs, [tuple(text.split("=")) for text in texts])]


def test_every_value_of_every_axis_can_be_chosen():
    """The grid falls apart into the parts of its values, whatever their type."""
    for name, scale in (("bias-mean", "cpu"), ("long-tail", "full"), ("imagenet", "full")):
        runs = build_grid(name, scale, seeds=2)
        for setting in [*dict(runs[0].group), "seed"]:
            values = {str(getattr(run.settings, setting)) for run in runs}
            parts = [select(runs, f"{setting}={value}") for value in values]
            assert sorted(itertools.chain(*parts)) == sorted(run.name for run in runs)


def test_values_are_read_as_the_settings_own_type():
    means = build_grid("bias-mean", "smoke")
    assert select(means, "bias_init_mean=0") == select(means, "bias_init_mean=0.00")
    assert select(means, "bias_init_mean=1e1", "loss=bce", "OPTIMIZER=sgd") == [
        "MLP_digits_BCE_SGD_sep_mean10_decay0_every6_s0"
    ]
    both = select(means, "bias_init_mean=0", "bias_init_mean=10")
    assert both == [run.name for run in means]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["lr=0.1"], "--only: unknown setting of the grid 'lr'"),
        (["lr=0.1"], "dataset, model, loss, optimizer, augment, seed"),
        (["optimizer=Adam"], "--only optimizer=Adam: the grid has optimizer SGD, AdamW"),
        (["seed=x"], "--only seed=x: the grid has seed 0"),
        (["model=Swin"], "the grid has model MLP"),
    ],
)
def test_what_the_grid_does_not_have_is_named(texts, words):
    with pytest.raises(UserError) as refusal:
        select(build_grid("table-cifar", "smoke"), *texts)
    assert words in str(refusal.value)


def test_values_that_no_run_has_together():
    runs = build_grid("bias-mean", "smoke")
    with pytest.raises(UserError, match="none with all of these"):
        select(runs[1:], f"loss={runs[0].settings.loss}", "optimizer=SGD", "bias_init_mean=0")
