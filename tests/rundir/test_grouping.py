"""Groups of runs against a brute-force comparison of all pairs."""

import itertools

from args import Settings
from rundir.grouping import group_by, group_by_seed, list_differing


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


def test_groups_by_chosen_settings_pool_all_others():
    assert group_by(GRID, ["loss"]) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert group_by(GRID, ["seed", "lr"]) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert group_by(GRID, []) == [list(range(8))]
