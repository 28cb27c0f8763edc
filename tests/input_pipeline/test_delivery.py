"""Batches cross to a GPU beside its work: the order of copies and reads on streams of a mock."""

import contextlib
import gc
import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from input_pipeline.delivery import Carrier, send

CPU = torch.device("cpu")


class Streams(TorchDispatchMode):
    """In place of torch.cuda: what is asked of each stream, and which earlier work each waits for.

    A piece of work comes after the piece before it on its stream, and after the work before each
    event that the stream waits for. `before[i]` holds all work that piece i comes after.
    """

    def __init__(self):
        super().__init__()
        self.work, self.before = [], []  # (stream, name, memory) and sets of numbers
        self.main = self.Stream()
        self.current = self.main

    def Stream(self, device=None):
        return Stream(self)

    def Event(self):
        return Event()

    def current_stream(self, device):
        assert device == CPU
        return self.current

    @contextlib.contextmanager
    def stream(self, stream):
        outer, self.current = self.current, stream
        yield
        self.current = outer

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        name = function.overloadpacket.__name__
        if name in ("copy_", "clone"):
            self.work.append((self.current, name, arguments[0].untyped_storage().data_ptr()))
            self.before.append(set(self.current.done))
            self.current.done.add(len(self.work) - 1)
        return result

    def order(self, first, second):
        return first in self.before[second]


class Stream:
    def __init__(self, streams):
        self.streams, self.done = streams, set()

    def wait_event(self, event):
        self.done |= event.done


class Event:
    def __init__(self):
        self.done = set()

    def record(self, stream):
        self.done = set(stream.done)


@pytest.fixture
def streams(monkeypatch):
    kept = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: kept.append(stream))
    mock = Streams()
    mock.kept = kept
    return mock


def read_all(streams, carrier, batches, most=None):
    with streams:
        lent = carrier.carry(iter(batches))
        return [batch.clone() for batch in itertools.islice(lent, most)]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_batches_cross_ahead_of_their_use_and_none_is_overwritten_before_it_is_read(streams, count):
    batches = [torch.full((4 - (i == count - 1), 2), i) for i in range(count)]
    carrier = Carrier(CPU, streams)
    found = read_all(streams, carrier, batches)
    assert all(torch.equal(*pair) for pair in zip(found, batches, strict=True))
    copies, reads = (
        [i for i, w in enumerate(streams.work) if w[1] == n] for n in ("copy_", "clone")
    )
    assert len(copies) == len(reads) == count
    assert {streams.work[i][0] for i in reads} <= {streams.main}
    assert streams.main not in {streams.work[i][0] for i in copies}
    for number, (copy, read) in enumerate(zip(copies, reads, strict=True)):
        assert streams.work[copy][2] == streams.work[read][2]
        assert streams.order(copy, read)
        for later in range(number + 1, count):
            same = streams.work[copies[later]][2] == streams.work[read][2]
            assert same == ((later - number) % 2 == 0)
            assert streams.order(read, copies[later]) == (later - number >= 2)
        if number + 1 < count:
            assert copies[number + 1] < read  # asked for before the work on this batch is
    assert streams.kept == [streams.main] * count


def test_an_epoch_that_is_left_and_another_stream_keep_the_order(streams):
    carrier = Carrier(CPU, streams)
    read_all(streams, carrier, [torch.full((2, 2), i) for i in range(5)], most=2)
    gc.collect()
    side = streams.Stream()
    side.done |= streams.main.done  # as a program does that changes its stream
    with streams.stream(side):
        found = read_all(streams, carrier, [torch.full((3, 2), 10 + i) for i in range(3)])
    assert [int(batch[0, 0]) for batch in found] == [10, 11, 12]
    reads = [i for i, (_, name, _) in enumerate(streams.work) if name == "clone"]
    for number, (_, name, memory) in enumerate(streams.work):
        if name == "copy_":
            assert all(
                streams.order(read, number)
                for read in reads
                if read < number and streams.work[read][2] == memory
            )
    assert streams.kept[-3:] == [side] * 3


def test_on_the_cpu_batches_pass_through():
    batches = [torch.arange(3), torch.arange(2)]
    for ours, theirs in zip(Carrier(CPU).carry(batches), batches, strict=True):
        assert ours is theirs
    assert send(batches[0], CPU) is batches[0]
