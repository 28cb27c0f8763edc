"""What training.timing finds before a run: sizes of data and networks, and seconds of an image."""

import dataclasses

import pytest
import torch

from args import Settings
from input_pipeline import SOURCES
from input_pipeline.longtail import compute_tail_sizes
from rundir.building import build_data, build_network
from training import timing
from utils.precision import Precision

TINY = {"model": "MLP", "width": 16, "depth": 1, "batch_size": 32}


class Machine:
    """A machine whose clock is its own work: some seconds for a call, and some for each image."""

    def __init__(self, call: float, image: float, first: float = 0.0) -> None:
        self.time, self.call, self.image, self.first = 0.0, call, image, first
        self.sizes: list[int] = []

    def take(self, size: int) -> None:
        self.time += self.call + self.image * size + (0 if self.sizes else self.first)
        self.sizes.append(size)

    def clock(self) -> float:
        return self.time


def test_whole_batches_are_measured_where_they_are_fast():
    machine = Machine(call=0.05, image=0.001, first=2.0)
    seconds = timing.measure_image(machine.take, 128, 5.0, machine.clock)
    assert machine.sizes == [8, 8, 16, 32, 64, 128, 128, 128, 128]
    assert seconds == pytest.approx((0.05 + 0.128) / 128)


def test_short_calls_are_measured_more_often():
    machine = Machine(call=0.01, image=0.0)
    timing.measure_image(machine.take, 4, 5.0, machine.clock)
    assert len(machine.sizes) in (31, 32)  # one that sets up, then 0.3 s


def test_slow_batches_are_measured_in_part():
    machine = Machine(call=0.0, image=0.05)
    seconds = timing.measure_image(machine.take, 128, 5.0, machine.clock)
    assert machine.sizes == [8, 8, 16, 16, 16, 16]  # four of 32 images would take 6.4 s
    assert seconds == pytest.approx(0.05)
    assert machine.time <= 5


def test_a_first_batch_that_takes_all_the_time_counts():
    machine = Machine(call=0.0, image=1.0)
    assert timing.measure_image(machine.take, 128, 5.0, machine.clock) == 1.0
    assert machine.sizes == [8]


def test_a_slow_call_does_not_count():
    machine = Machine(call=0.2, image=0.0)

    def take(size):
        machine.take(size)
        machine.time += 1 if len(machine.sizes) == 4 else 0

    assert timing.measure_image(take, 4, 5.0, machine.clock) == pytest.approx(0.2 / 4)


def test_sizes_are_those_of_the_real_run(tmp_path):
    settings = Settings(**TINY, dataset="digits", sample_size=20, fixed_etf=True)
    images = timing.find_images(settings)
    data = build_data(settings)
    assert images == (data.num_classes, len(data.train), len(data.test), 8)
    weights, trained = timing.count_bytes(settings, images)
    model = build_network(settings, data)
    assert weights == sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert trained == 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0 < trained < weights  # the fixed weight is a part of the state_dict alone


def test_a_long_tail_is_counted():
    settings = Settings(dataset="cifar100", imbalance_factor=50)
    counted = timing.find_images(settings)
    assert counted == (100, sum(compute_tail_sizes(500, 100, 50)), 10_000, 32)


def test_what_is_asked_is_answered():
    cases = [
        Settings(
            **TINY, sample_size=20, optimizer="AdamW", augment="DA1+DA2", bias_init_mean="prior"
        ),
        Settings(**TINY, sample_size=10, sep_decay=True),
        Settings(dataset="folder", data_dir="/nowhere"),
    ]
    request = {"cases": [c.values() for c in cases], "gpu_id": -1, "timed": True, "begun": 0.0}
    lines = list(timing.answer(request))
    assert [line.get("images") for line in lines[:2]] == [[200, 360], [100, 360]]
    assert lines[2]["case"] == 2 and "/nowhere/train is missing" in lines[2]["missing"]
    assert lines[3]["cuda"] is False and lines[3]["device"].startswith("CPU")
    first, second = lines[4:]
    assert (first.pop("case"), second.pop("case")) == (0, 1)
    assert first == second  # the same network, images and batch: measured once
    assert first["network"] == "MLP, 8×8 pixels, batch 32"
    assert min(first["step"], first["test"], first["evaluation"]) > 0
    assert len(list(timing.answer({**request, "timed": False}))) == 3


def test_a_network_that_does_not_fit_leaves_the_others(monkeypatch):
    def measure(settings, *_):
        if settings.model == "MLP":
            raise torch.OutOfMemoryError
        return {"step": 1.0}

    monkeypatch.setattr(timing, "measure", measure)
    cases = [Settings(**TINY), Settings(model="ViT")]
    known = dict.fromkeys(range(2), timing.Images(10, 5, 5, 8))
    lines = list(timing.time_cases(cases, known, torch.device("cpu"), lambda: 0.0))
    assert "out of memory with --batch_size 32" in lines[0]["unmeasured"]
    assert lines[1] == {"case": 1, "step": 1.0}


def test_the_share_of_a_gpu_is_measured(monkeypatch):
    def measure(settings, *_):
        network = f"batch {settings.batch_size}"
        return {"step": 6.0, "test": 3.0, "evaluation": 3.0, "network": network}

    monkeypatch.setattr(timing, "measure", measure)
    known = {0: timing.Images(10, 5, 5, 8)}
    cases = [Settings(**TINY)]
    (line,) = timing.time_cases(cases, known, torch.device("cpu"), lambda: 0.0, gpus=3)
    assert line["network"] == "batch 11 on each of 3 GPUs"  # of 32
    assert (line["step"], line["test"], line["evaluation"]) == (2.0, 1.0, 3.0)


def test_a_step_trains_on_whole_batches():
    settings = Settings(**TINY)
    images = timing.Images(10, 5, 5, 8)
    model = build_network(settings, timing.make_data(settings, images, 2))
    before = model.fc.weight.detach().clone()
    precision = Precision("fp32", torch.device("cpu"))
    timing.build_pass_taker(settings, images, model, precision)(4)
    assert torch.equal(model.fc.weight, before) and not model.training
    timing.build_step_taker(settings, images, model, precision)(4)
    assert not torch.equal(model.fc.weight, before) and model.training


def test_a_source_of_unknown_size(monkeypatch):
    unsized = dataclasses.replace(SOURCES["digits"], sizes=None)
    monkeypatch.setitem(SOURCES, "digits", unsized)
    timing._count.cache_clear()
    request = {"cases": [Settings().values()], "gpu_id": -1, "timed": False, "begun": 0.0}
    assert list(timing.answer(request)) == [
        {"case": 0, "unknown": "the size of digits is not known"}
    ]
    timing._count.cache_clear()
