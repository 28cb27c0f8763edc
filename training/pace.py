"""How long a run still takes."""

from __future__ import annotations

import math
import time

from training.state import TrainState

RECENT = 5  # finished epochs whose time counts: a resumed run may be on a faster machine
TEST_SHARE = 1 / 3  # work of testing an image, in those of training one: forward without backward


class Pace:
    """Estimate of the time that a run still takes, tests and saving included.

    It follows from the seconds of the last finished epochs, which metrics.csv keeps over a resume,
    and from the time and the progress of the epoch after them. Nothing is read from the device.

    Args:
        state: of the run.
        train_images, test_images: that an epoch trains and tests on.
    """

    def __init__(self, state: TrainState, train_images: int, test_images: int) -> None:
        self._state, self._train_images = state, train_images
        self._epoch_work = train_images + TEST_SHARE * test_images
        self._begun = time.monotonic() - state.seconds

    def begin_epoch(self) -> None:
        """Start the clock of an epoch."""
        self._begun = time.monotonic()

    def estimate_training(self, trained: float) -> float:
        """Return the seconds left while an epoch trains, with `trained` of its images done.

        Infinite before the first image of a run.
        """
        return self._estimate(trained)

    def estimate_testing(self, tested: float) -> float:
        """Return the seconds left while an epoch is tested, with `tested` of the images done."""
        return self._estimate(self._train_images + TEST_SHARE * tested)

    def _estimate(self, done: float) -> float:
        recent = self._state.history[-RECENT:]
        work = len(recent) * self._epoch_work + done
        seconds = sum(row["seconds"] for row in recent) + time.monotonic() - self._begun
        epochs_left = self._state.settings.epochs - self._state.epoch
        left = max(0.0, epochs_left * self._epoch_work - done)
        return left * seconds / work if work else math.inf
