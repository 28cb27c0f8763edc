"""Short names of runs, and the groups that share a line in a picture."""

from pathlib import Path

import pytest

from args import Settings
from rundir.bare import Bare
from rundir.config import Versions
from rundir.labels import (
    SHORT,
    describe_runs,
    describe_subject,
    group_runs,
    name_runs,
    shorten_names,
)
from rundir.trained import TrainedRun

LONG = "a_name_of_more_than_32_characters_"


def make_run(directory, facts=None, bare=None, **settings):
    own = Settings.from_flags({"optimizer": "SGD", **settings})
    return TrainedRun(Path(directory), own, facts or {}, "", Versions(), bare=bare)


def make_runs(*settings):
    return [make_run(f"{LONG}{i}", **each) for i, each in enumerate(settings)]


def test_a_description_names_what_differs():
    runs = make_runs(
        {"loss": "CE", "lr": 0.1},
        {"loss": "BCE", "lr": 0.01},
        {"loss": "BCE", "lr": 0.1, "sep_decay": True, "epoch_save_step": 5},
    )
    assert describe_runs(runs) == [
        "CE, SGD, lr 0.1",
        "BCE, SGD, lr 0.01",
        "BCE, SGD, lr 0.1, sep_decay",
    ]
    assert describe_runs(runs, ignore=("lr",)) == ["CE, SGD", "BCE, SGD", "BCE, SGD, sep_decay"]
    assert describe_runs(runs[:1]) == ["CE, SGD"]
    assert describe_runs(runs[1:], head=False) == ["lr 0.01", "lr 0.1, sep_decay"]
    models = make_runs({"model": "ViT"}, {"model": "MLP", "img_size": 16})
    assert describe_runs(models) == ["ViT, BCE, SGD", "MLP, BCE, SGD, img_size 16"]


def test_equal_settings_are_told_apart_by_names():
    runs = make_runs({}, {}, {"loss": "CE"})
    assert describe_runs(runs) == [f"{LONG}0 (BCE, SGD)", f"{LONG}1 (BCE, SGD)", "CE, SGD"]


def test_weights_without_a_record_have_their_name():
    bare = Bare.__new__(Bare)
    object.__setattr__(bare, "documented", False)
    runs = [*make_runs({"lr": 0.2}), make_run("theirs", bare=bare, lr=0.1)]
    assert describe_runs(runs) == ["BCE, SGD", "theirs"]
    assert [group.members for group in group_runs([runs[1], runs[1], runs[0]])] == [[0], [1], [2]]


def test_a_folder_is_named_by_its_directory():
    folder = {"dataset": "folder", "model": "DenseNet121"}
    birds, cats = ({**folder, "data_dir": f"/x/{name}/"} for name in ("birds", "cats"))
    runs = make_runs(birds, cats)
    assert describe_subject(runs[:1]) == "DenseNet121 on birds"
    assert describe_subject(runs) == "DenseNet121"
    assert describe_runs(runs) == ["birds, BCE, SGD", "cats, BCE, SGD"]


def test_short_names_stay():
    short = [make_run("a"), make_run("b", lr=0.1)]
    assert shorten_names(short) == ["a", "b"]
    assert [group.label for group in group_runs(short)] == ["a (BCE, SGD)", "b (BCE, SGD)"]
    assert name_runs([make_run("x/a"), make_run("y/a")]) == ["x/a", "y/a"]
    long = make_run("c" * (SHORT + 1), lr=0.2)
    assert shorten_names([*short, long]) == [
        "BCE, SGD, lr 0.01",
        "BCE, SGD, lr 0.1",
        "BCE, SGD, lr 0.2",
    ]
    assert group_runs([long])[0].label == f"{long.name} (BCE, SGD)"


def test_seeds_are_one_group():
    runs = [make_run(f"{loss}{s}", loss=loss, seed=s) for s in range(3) for loss in ("CE", "BCE")]
    assert group_runs([*runs, make_run("a", lr=0.2)]) == [
        ("CE, SGD, lr 0.01, 3 seeds", [0, 2, 4]),
        ("BCE, SGD, lr 0.01, 3 seeds", [1, 3, 5]),
        ("BCE, SGD, lr 0.2", [6]),
    ]
    twice = [make_run("a"), make_run("b"), make_run("c", seed=1)]
    assert group_runs(twice) == [("BCE, SGD, 3 runs", [0, 1, 2])]


def test_runs_of_other_data_or_without_a_common_point_are_no_group():
    a, b, c = (make_run(f"{i}", {"classes": [name]}, seed=i) for i, name in enumerate("xxy"))
    assert [group.members for group in group_runs([a, b, c])] == [[0, 1], [2]]
    assert [group.members for group in group_runs([a, b, a], [{1, 2}, {2}, {1}])] == [[0, 1], [2]]


@pytest.mark.parametrize("count", [1, 2])
def test_labels_are_unique(count):
    runs = make_runs(*[{"loss": loss, "seed": s} for loss in ("CE", "BCE") for s in range(count)])
    for labels in (describe_runs(runs), shorten_names(runs)):
        assert len(set(labels)) == len(runs)
