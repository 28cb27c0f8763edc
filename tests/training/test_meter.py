"""training/meter.py against sums written out."""

import pytest
import torch

from training.meter import PENDING, Meter, NonFiniteLoss

SIZES = [4] * (2 * PENDING + 3) + [3]  # an epoch's last batch is smaller
CPU = torch.device("cpu")


def steps(soft=False):
    generator = torch.Generator().manual_seed(0)
    for size in SIZES:
        loss, decay = torch.rand(2, generator=generator)
        logits = torch.randn(size, 7, generator=generator)
        targets = torch.randint(7, (size,), generator=generator)
        if soft:
            targets = torch.rand(size, 7, generator=generator)
        yield loss + decay, loss, logits, targets


@pytest.mark.parametrize("soft", [False, True])
def test_means_and_counts_by_hand(soft):
    meter = Meter(len(SIZES), CPU)
    total, hits, top5 = 0.0, 0, 0
    for objective, loss, logits, targets in steps(soft):
        meter.add(objective, loss, logits, targets)
        total += loss.item() * len(targets)
        for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
            label = target.index(max(target)) if soft else target
            rank = sum(other > row[label] for other in row)
            hits += rank < 1
            top5 += rank < 5
    assert meter.seen == sum(SIZES)
    found = meter.read_summary(1, 0.1)
    assert found["train_loss"] == pytest.approx(total / sum(SIZES), rel=1e-12)
    assert found["train_top1"] == 100 * hits / sum(SIZES)
    assert found["train_top5"] == 100 * top5 / sum(SIZES)


@pytest.mark.parametrize("stop", [0, 1, PENDING, PENDING + 5])
def test_reading_and_resuming_change_no_bit(stop):
    whole, first, second = (Meter(len(SIZES), CPU) for _ in range(3))
    for number, step in enumerate(steps()):
        whole.add(*step)
        if number < stop:
            first.add(*step)
            assert first.estimate_loss() > 0
        else:
            if number == stop:
                second.load_state_dict(first.state_dict())
            second.add(*step)
    assert second.read_summary(1, 0.1) == whole.read_summary(1, 0.1)
    assert second.seen == whole.seen


@pytest.mark.parametrize("at", [0, PENDING, len(SIZES) - 1])
def test_the_first_step_that_diverged_is_named(at):
    meter = Meter(len(SIZES), CPU)
    for number, (objective, *rest) in enumerate(steps()):
        meter.add(objective / 0 if number >= at else objective, *rest)
    with pytest.raises(NonFiniteLoss, match=f"epoch 3, step {at + 1}, learning rate 0.1;"):
        meter.read_summary(3, 0.1)


def test_reset_forgets_all():
    meter = Meter(len(SIZES), CPU)
    for step in steps():
        meter.add(*step)
    meter.reset()
    assert meter.seen == 0
    one = next(steps())
    meter.add(*one)
    assert meter.estimate_loss() == one[1].item()
