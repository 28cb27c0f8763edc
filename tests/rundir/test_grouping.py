"""Groups of runs against a brute-force comparison of all pairs."""

import itertools

import pytest

from args import Settings
from rundir.grouping import find_setting, format_value, group_by_seed, list_differing, rank
from utils.errors import UserError


def make(**values):
    return Settings(**values)


GRID = [
    make(loss=loss, lr=lr, seed=seed, run_name=f"{loss}{lr}{seed}", gpu_id=seed)
    for seed, lr, loss in itertools.product((0, 1), (0.1, 0.2), ("CE", "BCE"))
]


def differ_only_in_seed(first, second):
    ours, theirs = first.get_shaping(), second.get_shaping()
    return all(ours[name] == theirs[name] for name in ours if name != "seed")


def test_runs_of_a_group_differ_only_in_the_seed():
    groups = group_by_seed(GRID)
    assert groups == [[0, 4], [1, 5], [2, 6], [3, 7]]
    together = {pair for group in groups for pair in itertools.product(group, group)}
    for pair in itertools.product(range(len(GRID)), repeat=2):
        assert (pair in together) == differ_only_in_seed(*(GRID[i] for i in pair))


def test_settings_that_differ():
    assert list_differing(GRID) == ["loss", "lr"]  # not the names and devices of the runs
    assert list_differing(GRID, ignore=()) == ["loss", "lr", "seed"]
    assert list_differing(GRID[:1]) == list_differing([]) == []
    assert group_by_seed([]) == []


def test_lists_are_compared_by_their_values():
    steps = [make(step_milestones=list(each)) for each in ((1, 2), (1, 2), (1, 3))]
    assert group_by_seed(steps) == [[0, 1], [2]]
    assert list_differing(steps) == ["step_milestones"]


def test_values_are_sorted_as_what_they_are():
    def sort(name, values):
        return sorted(values, key=lambda value: rank(name, value))

    assert sort("lr", [10.0, 9, None, 0.5]) == [None, 0.5, 9, 10.0]
    assert sort("loss", ["MSE", "BCE", "CE"]) == ["CE", "BCE", "MSE"]
    assert sort("model", ["ResNet101", "ResNet18", "other"]) == ["ResNet18", "ResNet101", "other"]
    assert sort("run_name", ["r10", "r9", "R1", "", "9"]) == ["", "9", "R1", "r9", "r10"]
    assert sort("x", ["a", 1, [2, 1], True, None, [1, 3]]) == [None, 1, True, [1, 3], [2, 1], "a"]


def test_values_for_people():
    values = [0.1, 1e-5, 0.123456789, 5.0, True, None, [1, 20], "ResNet18"]
    words = ["0.1", "1e-05", "0.123456789", "5", "on", "-", "1-20", "ResNet18"]
    assert [format_value(value) for value in values] == words


def test_settings_are_found_in_any_case():
    assert find_setting("LR") == "lr" and find_setting("run", ["run"]) == "run"
    with pytest.raises(UserError, match="did you mean optimizer"):
        find_setting("optimiser")
    with pytest.raises(UserError):
        find_setting("resume")  # no run keeps it
