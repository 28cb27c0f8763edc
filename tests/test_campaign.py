"""A short form of the abuse campaign: each kind of trial once."""

import random
from types import SimpleNamespace

import pytest

from tests import campaign


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    return campaign.Arena(tmp_path_factory.mktemp("arena"))


@pytest.mark.slow
@pytest.mark.parametrize("name", campaign.TRIALS)
def test_it_holds(arena, name):
    campaign.TRIALS[name](arena, random.Random(f"short {name}"))


def test_a_failure_is_counted_shown_and_repeatable(monkeypatch, capsys):
    def fail(arena, draw):
        raise campaign.Failure(f"drew {draw.random()}")

    monkeypatch.setattr(campaign, "Arena", lambda folder: SimpleNamespace(folder=folder))
    monkeypatch.setitem(campaign.TRIALS, "flags", fail)
    printed = []
    for trial in (3, 3, 4):
        assert campaign.main(["--only", "flags", "--trial", str(trial)]) == 1
        printed.append(capsys.readouterr().out)
    assert printed[0].partition("drew")[2][:20] == printed[1].partition("drew")[2][:20]
    assert printed[0].partition("drew")[2][:20] != printed[2].partition("drew")[2][:20]
    assert "--only flags --trial 3 --seed 0" in printed[0]
    assert printed[0].splitlines()[-1].split()[:4] == ["all", "1", "0", "1"]
