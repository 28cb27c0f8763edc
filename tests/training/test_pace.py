"""How long a run still takes, against runs whose pace is known."""

import itertools
import math
from types import SimpleNamespace

import pytest

from training import pace
from training.pace import Pace

TRAIN, TEST = 900, 300  # testing costs a third: an epoch is 1,000 images of training


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(pace.time, "monotonic", lambda: now.seconds)
    return now


def make_state(epochs, history=(), seconds=0.0):
    settings = SimpleNamespace(epochs=epochs)
    rows = [{"seconds": taken} for taken in history]
    return SimpleNamespace(settings=settings, epoch=len(rows), history=rows, seconds=seconds)


def test_a_steady_run_counts_down_to_zero(clock):
    """At 0.01 s per image of training the time left falls by one second in each second."""
    state = make_state(epochs=3)
    estimate, begun = Pace(state, TRAIN, TEST), clock.seconds
    assert estimate.estimate_training(0) == math.inf
    for _ in range(3):
        for trained in (300, 900):
            clock.seconds = begun + 10 * state.epoch + 0.01 * trained
            left = 30 - (clock.seconds - begun)
            assert estimate.estimate_training(trained) == pytest.approx(left)
        for tested in (150, 300):
            clock.seconds = begun + 10 * state.epoch + 9 + tested / 300
            left = 30 - (clock.seconds - begun)
            assert estimate.estimate_testing(tested) == pytest.approx(left, abs=1e-9)
        state.history.append({"seconds": 10.0})
        state.epoch += 1
        estimate.begin_epoch()
        assert estimate.estimate_training(0) == pytest.approx(30 - 10 * state.epoch)


def test_a_resume_goes_on_with_the_pace_of_metrics_csv(clock):
    """Two epochs of 10 s, then a stop in the middle of the third, 5 s old."""
    state = make_state(epochs=10, history=[10.0, 10.0], seconds=5.0)
    assert Pace(state, TRAIN, TEST).estimate_training(500) == pytest.approx(75)


def test_old_epochs_are_forgotten(clock):
    state = make_state(epochs=20, history=[500.0] * 5 + [10.0] * pace.RECENT)
    assert Pace(state, TRAIN, TEST).estimate_training(0) == pytest.approx(100)


def test_more_work_than_was_known_is_no_time_less_than_zero(clock):
    state = make_state(epochs=1, history=[])
    estimate = Pace(state, TRAIN, TEST)
    for tested in itertools.repeat(TEST, 2):  # a second network is tested, too
        clock.seconds += 1
        assert estimate.estimate_testing(2 * tested) == 0
