"""The recorded step: replays equal ordinary steps bit for bit, and whatever fails goes on without.

There is no CUDA graph on a CPU. `Tape` stands in for it: it keeps the operations that a step asks
for, with their tensors and numbers, and asks for the same ones again. As in a CUDA graph, a number
that was a float while it was recorded stays what it was.
"""

import contextlib
import importlib.util
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from args import AUTO_GRAPHS, Settings, complete
from input_pipeline.division import Division
from models import build_model
from objective import LOSSES, OPTIMIZERS
from objective.objective import Decays, Objective
from objective.optimizers import build_optimizer, set_learning_rate
from rundir.directory import Run
from rundir.names import METRICS_COLUMNS
from rundir.starting import freeze_backbone
from rundir.weights import load
from tests.helpers import OWN_NETWORKS, SMALL, train_here
from training import recording, snapshot, step
from training.averaging import Average
from training.meter import Meter
from training.setup import choose_graphs
from training.state import TrainState
from utils.device import leave_default_stream
from utils.errors import UserError
from utils.precision import Precision

CPU = torch.device("cpu")
# Of the epochs; exact in float32, in which the kernels read a tensor.
RATES = (2**-10, 2**-11, 3 * 2**-12, 2**-10)
SIZES = (8, 8, 8, 8, 3)  # of an epoch's batches
TINY = {"width": 32, "depth": 1}
SMALLER = {"MLP": {"width": 16, "depth": 2}, "ViT": TINY, "Swin": {"width": 32}}


class Tape(TorchDispatchMode):
    """Records operations and runs them again on the same tensors."""

    def __init__(self, device):
        super().__init__()
        self.calls, self.active = [], False

    def record(self, function):
        self.active = True
        try:
            with self:
                return function()
        finally:
            self.active = False

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        self.calls.append((function, arguments, options or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for function, arguments, options, result in self.calls:
            again = function(*arguments, **options)
            if any(value.alias_info for value in function._schema.returns):
                continue  # a view, or written in place
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor):
                    old.copy_(new)


@pytest.fixture
def tapes(monkeypatch):
    """Record on the CPU; returns the tapes that were made."""
    made = []

    def make(device):
        made.append(Tape(device))
        return made[-1]

    monkeypatch.setitem(recording.GRAPHS, "cpu", make)
    return made


def draw_batches(epoch, soft=False):
    generator = torch.Generator().manual_seed(epoch)
    for size in SIZES:
        images = torch.randn(size, 3, 8, 8, generator=generator)
        labels = torch.randint(4, (size,), generator=generator)
        yield images, torch.eye(4)[labels] * 0.9 + 0.025 if soft else labels


class Trained:
    """A small network in training, with all that train.py gives it."""

    def __init__(self, graphs, name="MLP", loss="BCE", optimizer="SGD", kind="fp32", **options):
        torch.manual_seed(0)
        self.model = build_model(name, 4, (3, 8, 8), **SMALLER.get(name, {})).train()
        if options.get("frozen"):
            freeze_backbone(self.model.eval())
        self.optimizer = build_optimizer(optimizer, self.model, RATES[0], 5e-4, 1e-3)
        precision = Precision(kind, CPU)
        self.scaler = precision.build_scaler()
        objective = Objective(loss, 0.1, Decays(0.03, 0.02, 0.05))
        average = Average(self.model, 0.9, self.optimizer) if options.get("extras") else None
        extras = {"division": Division(SIZES[0], 3), "clip_grad_norm": 0.5, "average": average}
        self.step = step.build_step(
            self.model,
            self.optimizer,
            self.scaler,
            objective,
            precision,
            options.get("compiled", False),
            graphs,
            **(extras if average else {}),
        )
        self.meter = Meter(len(SIZES), CPU)
        settings = complete(Settings())
        self.state = TrainState(
            settings, self.model, self.optimizer, self.scaler, self.meter, average
        )
        self.soft, self.seen, self.steps = options.get("soft", False), [], 0

    def go(self, steps=None, epochs=3):
        """Train, or go on; after `steps` steps in the middle of an epoch stop."""
        state = self.state
        while state.epoch < epochs:
            set_learning_rate(self.optimizer, RATES[state.epoch])
            state.begin_epoch()
            batches = draw_batches(state.epoch, self.soft)
            for images, targets in itertools.islice(batches, state.step, None):
                results = self.step(images, targets)
                self.meter.add(*results, targets)
                self.seen.append([value.clone() for value in results])
                state.step, self.steps = state.step + 1, self.steps + 1
                if self.steps == steps:
                    return self
            self.seen.append(list(map(torch.tensor, self.meter.read_summary(1, 0.1).values())))
            state.finish_epoch(dict.fromkeys(METRICS_COLUMNS, 0.0) | {"epoch": state.epoch + 1})
        return self

    def list_values(self):
        """Everything that a run is: results, weights, buffers, optimizer, scaler, generator."""
        values = [torch.get_rng_state(), *tree_leaves(self.seen), *self.model.state_dict().values()]
        if self.state.average is not None:
            values += self.state.average.module.state_dict().values()
        for entries in self.optimizer.state_dict()["state"].values():
            values += entries.values()
        return values + [torch.tensor(value) for value in self.scaler.state_dict().values()]


def assert_equal(found, expected):
    found, expected = found.list_values(), expected.list_values()
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


KINDS = ("fp32", "bf16", "fp16")
CASES = [
    *(("MLP", *rest) for rest in itertools.product(LOSSES, OPTIMIZERS, KINDS)),
    ("ViT", "BCE", "AdamW", "bf16"),
    ("ViT", "CE", "SGD", "fp32"),
    ("Swin", "MSE", "AdamW", "fp32"),
    ("ResNet18", "BCE", "SGD", "bf16"),
]
ROTATED = [("BCE", "SGD", "bf16"), ("CE", "AdamW", "fp32"), ("MSE", "SGD", "fp32")]
DEEPER = ("ResNet34", "ResNet101", "DenseNet161")  # the same blocks as a smaller network, and more
EVERY = [
    *itertools.product([name for name in OWN_NETWORKS if name not in DEEPER], ROTATED),
    ("ResNet34", ROTATED[0]),
]
EVERY = [(name, *rest) for name, rest in EVERY]
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in EVERY if case not in CASES]
NO_TIMM = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is missing")
SLOW.append(
    pytest.param("timm:test_resnet", "CE", "SGD", "fp32", marks=[pytest.mark.slow, NO_TIMM])
)


@pytest.mark.parametrize(("name", "loss", "optimizer", "kind"), [*CASES, *SLOW])
def test_replays_equal_ordinary_steps_bit_for_bit(tapes, name, loss, optimizer, kind):
    """Epochs of other rates, with dropout seeded anew in each and a short last batch."""
    options = {"name": name, "loss": loss, "optimizer": optimizer, "kind": kind}
    epochs = 3 if name in SMALLER else 2
    expected = Trained(False, **options).go(epochs=epochs).list_values()
    found = Trained(True, **options).go(epochs=epochs)
    assert len(tapes) == 1
    assert found.step.take_note() == ""
    assert found.step.take_compile_time().work == [step.RECORDED]
    for one, other in zip(found.list_values(), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_frozen_backbone_is_recorded_too(tapes, optimizer):
    options = {"optimizer": optimizer, "frozen": True}
    before = Trained(False, **options).model.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    found = Trained(True, **options).go()
    assert_equal(found, Trained(False, **options).go())
    assert len(tapes) == 1
    after = found.model.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("MLP", "fp32"),
        ("MLP", "fp16"),
        pytest.param("ResNet18", "fp32", marks=pytest.mark.slow),
    ],
)
def test_parts_clipping_and_the_average_are_recorded_too(tapes, tmp_path, name, kind):
    """And a stop in the middle of an epoch changes none of it."""
    options = {"name": name, "kind": kind, "extras": True}
    expected = Trained(False, **options).go(epochs=2)
    assert_equal(Trained(True, **options).go(epochs=2), expected)
    assert len(tapes) == 1
    run = Run(tmp_path, True, complete(Settings()))
    stopped = Trained(True, **options).go(6)
    run.write_state(stopped.state.state_dict())
    resumed = Trained(True, **options)
    resumed.state.load(run)
    resumed.go(epochs=2)
    resumed.seen = stopped.seen + resumed.seen
    assert_equal(resumed, expected)
    assert resumed.step.take_note() == ""


def test_a_replay_that_leaves_out_the_average_is_noticed(tapes, monkeypatch):
    """It is part of the state that is compared."""
    trained = Trained(True, extras=True)
    record = recording.Recording.__init__

    def forget(self, *arguments):
        own = trained.state.average._real
        trained.state.average._real = [tensor.clone() for tensor in own]
        record(self, *arguments)
        trained.state.average._real = own

    monkeypatch.setattr(recording.Recording, "__init__", forget)
    trained.go(epochs=1)
    assert "average of " in trained.step.take_note()


def test_mixed_targets_are_recorded_too(tapes):
    assert_equal(Trained(True, soft=True).go(), Trained(False, soft=True).go())
    assert len(tapes) == 1


@pytest.mark.parametrize("case", [("MLP", "BCE", "SGD", "fp16"), ("ViT", "BCE", "AdamW", "fp32")])
@pytest.mark.parametrize(
    "stop", [2, 6, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (1, 9))]
)
def test_a_resumed_run_ends_as_one_that_never_stopped(tapes, tmp_path, case, stop):
    """Stopped before and after the recording, and before an epoch's short batch.

    last.pth of a recorded run goes on in an ordinary one, and the other way round.
    """
    expected = Trained(False, *case).go()
    run = Run(tmp_path, True, complete(Settings()))
    for before, after in ((True, True), (True, False), (False, True)):
        stopped = Trained(before, *case).go(stop)
        run.write_state(stopped.state.state_dict())
        resumed = Trained(after, *case)
        torch.manual_seed(9)
        resumed.state.load(run)
        rates = [group["lr"] for group in resumed.optimizer.param_groups]
        assert {isinstance(rate, Tensor) for rate in rates} == {after}
        resumed.go()
        resumed.seen = stopped.seen + resumed.seen
        assert_equal(resumed, expected)
        assert resumed.step.take_note() == ""
        assert resumed.step.take_compile_time().work == [step.RECORDED] * after


def test_loading_a_state_in_the_middle_records_anew(tapes, tmp_path):
    """Loading replaces the optimizer's tensors, whose addresses the recording knows."""
    run = Run(tmp_path, True, complete(Settings()))
    expected = Trained(False).go()
    found = Trained(True).go(6)
    run.write_state(found.state.state_dict())
    seen = found.seen.copy()
    found.go(9)
    found.state.load(run)
    found.seen = seen
    assert_equal(found.go(), expected)
    assert len(tapes) == 2
    # A rate that became a float would be recorded as the number that it is now.
    found.optimizer.param_groups[0]["lr"] = 0.5
    found.go(epochs=4)
    assert len(tapes) == 3
    assert isinstance(found.optimizer.param_groups[0]["lr"], Tensor)


def test_the_largest_batches_are_recorded(tapes):
    """A resume may begin with an epoch's short batch, and only the others are worth recording."""
    found = Trained(True)
    images, labels = torch.zeros(8, 3, 8, 8), torch.arange(8) % 4
    for _ in range(6):
        found.step(images[:3], labels[:3])
        found.step(images, labels)
    assert len(tapes) == 1
    shapes = {value.shape for value in tree_leaves(tapes[0].calls) if isinstance(value, Tensor)}
    assert (8, 3, 8, 8) in shapes and (3, 3, 8, 8) not in shapes


class Faulty(Tape):
    """A tape that fails to record, or replays something else; `fault` says how."""

    def __init__(self, device, fault):
        super().__init__(device)
        self.fault = fault

    def record(self, function):
        results = super().record(function)
        if self.fault == "refused":
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        if self.fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return results

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if self.fault == f"in {function.overloadpacket.__name__}":
            raise RuntimeError("in the middle of an update")
        return super().__torch_dispatch__(function, types, arguments, options)

    def replay(self):
        updates = [call for call in self.calls if "fused_sgd" in str(call[0])]
        if self.fault == "batch":
            next(x for x in tree_leaves(self.calls) if is_batch(x)).zero_()
        if self.fault == "update":
            self.calls = [call for call in self.calls if call not in updates]
        super().replay()
        if self.fault == "weight":
            updates[0][1][0][0].detach().view(-1)[0] += 0.01
        if self.fault == "numbers":
            torch.rand(1)
        if self.fault == "scale":
            next(call for call in self.calls if "update_scale" in str(call[0]))[1][0].mul_(2)


def is_batch(value):
    return isinstance(value, Tensor) and value.shape == (8, 3, 8, 8)


FAULTS = {
    "refused": "recording failed (RuntimeError: operation not permitted when stream is capturing)",
    "in _fused_sgd_": "recording failed (RuntimeError: in the middle of an update)",
    "in _amp_update_scale_": "recording failed (RuntimeError: in the middle of an update)",
    "memory": "memory is too short for a recording",
    "batch": "the first replay differs from an ordinary step (",
    "update": "the first replay differs from an ordinary step (",
    "weight": "the first replay differs from an ordinary step (",
    "numbers": "the first replay drew other random numbers",
    "scale": "the first replay changed the loss scale",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_recording_that_fails_leaves_an_ordinary_run(monkeypatch, fault):
    made = []

    def make(device):
        made.append(Faulty(device, fault))
        return made[-1]

    monkeypatch.setitem(recording.GRAPHS, "cpu", make)
    found = Trained(True, kind="fp16").go()
    assert_equal(found, Trained(False, kind="fp16").go())
    assert len(made) == 1
    note = found.step.take_note()
    assert FAULTS[fault] in note and "\n" not in note
    assert found.step.take_note() == ""
    assert found.step.take_compile_time().work == [step.NOT_RECORDED]


@pytest.mark.parametrize("copies", range(4))
def test_memory_that_ends_while_the_state_is_copied_leaves_an_ordinary_run(
    tapes, monkeypatch, copies
):
    copy, taken = snapshot.StepState.copy, []

    def copy_some(state, *results):
        taken.append(None)
        if len(taken) > copies:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return copy(state, *results)

    monkeypatch.setattr(snapshot.StepState, "copy", copy_some)
    found = Trained(True, "ViT", optimizer="AdamW").go()
    assert_equal(found, Trained(False, "ViT", optimizer="AdamW").go())
    assert "memory is too short" in found.step.take_note()


def test_an_error_of_the_step_itself_is_not_hidden(tapes):
    found = Trained(True).go(3)
    monkey = found.model.fc
    found.model.fc = torch.nn.Sequential(monkey, torch.nn.Linear(7, 7))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        found.go(4)


def test_a_step_that_overflowed_is_not_the_one_that_is_recorded(tapes):
    """It leaves out its update, so the check would not see one."""
    found, expected = (Trained(graphs, kind="fp16") for graphs in (True, False))
    for one in (found, expected):
        one.scaler.load_state_dict(one.scaler.state_dict() | {"scale": 2.0**24})
    scales = []
    while not tapes:
        scales.append(found.scaler.get_scale())
        found.go(found.steps + 1)
    assert len(scales) > recording.WARM_UP + 1
    assert scales[-2] > scales[-1] == found.scaler.get_scale()
    assert_equal(found.go(), expected.go())


def test_rounding_is_no_difference():
    """Kernels that add up in a changing order; a replay may be as far off as two such steps."""
    weights = torch.linspace(1, 2, 64)
    generator = torch.get_rng_state()

    def take(change, loss=1.0):
        tensors = {"w": weights + change}
        results = {"objective": torch.tensor(loss)}
        return snapshot.Snapshot(tensors, results, {"scale": 4.0}, generator)

    before, once, twice = take(0.0), take(0.1), take(0.1 + 1e-4)
    for change, share, same in (
        (0.1 - 3e-4, 0.0, True),
        (0.1 - 3e-3, 0.0, False),
        (0.1 + 3e-3, 2.0**-4, True),
        (0.1 + 3e-2, 2.0**-4, False),
        (0.0, 2.0**-4, False),
        (torch.nan, 2.0**-4, False),
    ):
        line = snapshot.find_difference(before, (once, twice), take(change), share)
        assert (line == "") == same, (change, share, line)
    exact = snapshot.find_difference(before, (once, once), take(0.1 + 2e-7), 0.0)
    assert exact == ""  # an ulp of the stored numbers
    assert "w by" in snapshot.find_difference(before, (once, once), take(0.1 + 1e-4), 2.0**-13)
    line = snapshot.find_difference(before, (once, twice), take(0.1, 1.1), 2.0**-13)
    assert "objective by 1.0e-01" in line
    diverged = take(torch.nan, torch.inf)
    assert snapshot.find_difference(before, (diverged, diverged), diverged, 2.0**-13) == ""


def test_a_run_says_how_it_goes_on(tapes, tmp_path, capsys, monkeypatch):
    """Recorded where that is possible; resumed where it is not, in the same settings."""
    flags = [*SMALL, "--schedule", "constant"]
    run_dir = train_here(tmp_path, *flags, "--epochs", 2, "--graphs", "on")
    out = capsys.readouterr().out
    assert out.count("recorded in") == 1 and "CUDA graph" not in out
    assert len(tapes) == 1
    monkeypatch.delitem(recording.GRAPHS, "cpu")
    assert train_here(tmp_path, "--resume", "--epochs", 3) == run_dir
    lines = [
        line for line in (run_dir / "train_log.txt").read_text().splitlines() if "CUDA" in line
    ]
    assert len(lines) == 1 and "without a CUDA graph: it needs an NVIDIA GPU" in lines[0]
    state = load(run_dir / "last.pth")
    assert state["position"]["epoch"] == 3 and state["settings"]["graphs"] == "on"
    train_here(tmp_path, *flags, "--force", "--graphs", "on", status=2)
    assert capsys.readouterr().err.count("--graphs on is for one NVIDIA GPU") == 1
    train_here(tmp_path, "--resume", "--epochs", 4, "--graphs", "on")


def test_what_graphs_means_on_a_device():
    gpu = torch.device("cuda", 0)
    for given, device, expected in (
        ({}, gpu, AUTO_GRAPHS),
        ({}, CPU, "off"),
        ({"graphs": "on"}, gpu, "on"),
        ({"graphs": "off"}, gpu, "off"),
    ):
        assert choose_graphs(Settings(**given), device, "here") == expected
    stored = Settings.from_json(Settings(graphs="on").values())
    assert choose_graphs(stored, CPU, "CPU") == "on"  # a run that began on a GPU
    assert choose_graphs(Settings(graphs="on", resume=True), CPU, "CPU") == "on"
    with pytest.raises(UserError, match="this run is on the CPU: no driver"):
        choose_graphs(Settings(graphs="on"), CPU, "CPU: no driver")


@pytest.mark.parametrize("marked", [True, False])
def test_adamw_is_marked_while_it_is_recorded_and_no_longer(tapes, monkeypatch, recwarn, marked):
    """torch refuses to record its update without the mark, and warns of the mark elsewhere."""

    def is_capturing():
        return any(tape.active for tape in tapes)

    stream = SimpleNamespace(is_capturing=is_capturing)
    for name, function in {
        "accelerator.current_accelerator": lambda check_available: torch.device("cuda"),
        "accelerator.current_stream": lambda: stream,
        "cuda.is_available": lambda: True,  # of torch 2.11
        "cuda.is_current_stream_capturing": is_capturing,
    }.items():
        monkeypatch.setattr(f"torch.{name}", function)
    if not marked:
        monkeypatch.setattr(recording, "mark_capturable", contextlib.nullcontext)
    found = Trained(True, optimizer="AdamW").go()
    assert ("AdamW but" in found.step.take_note()) != marked
    assert not [warning for warning in recwarn if "capturable" in str(warning.message)]


class FakeCuda:
    """Notes what is asked of torch.cuda, and ends a recording as CUDA does after a mistake."""

    def __init__(self, monkeypatch, ends):
        self.calls, self.ends = [], ends
        generator = SimpleNamespace(graphsafe_set_state=self.note("generator"))
        for name, value in {
            "cuda.CUDAGraph": lambda: SimpleNamespace(replay=self.note("replay")),
            "cuda.graph_pool_handle": lambda: (0, 7),
            "cuda.current_stream": lambda device: "side stream",
            "cuda.graph": self.open,
            "cuda.default_generators": [None, generator],
            "Generator": lambda device: f"fresh on {device}",
            "_C._cuda_endAllocateToPool": self.note("end"),
            "_C._cuda_releasePool": self.note("release"),
        }.items():
            monkeypatch.setattr(f"torch.{name}", value)

    def note(self, name):
        return lambda *values: self.calls.append((name, *values))

    @contextlib.contextmanager
    def open(self, graph, pool, stream, capture_error_mode):
        assert (pool, stream, capture_error_mode) == ((0, 7), "side stream", "thread_local")
        try:
            yield
        finally:
            if not self.ends:
                raise RuntimeError("operation failed due to a previous error during capture")


def fail():
    raise RuntimeError("operation not permitted when stream is capturing")


def test_a_failed_recording_leaves_cuda_as_it_was(monkeypatch):
    fake = FakeCuda(monkeypatch, ends=False)
    with pytest.raises(RuntimeError) as error:
        recording.CudaGraph(torch.device("cuda", 1)).record(fail)
    assert fake.calls == [
        ("generator", "fresh on cuda:1"),
        ("end", 1, (0, 7)),
        ("release", 1, (0, 7)),
    ]
    assert "not permitted when" in recording.explain_failure(error.value)


def test_a_recording_returns_the_tensors_of_the_replays(monkeypatch):
    fake = FakeCuda(monkeypatch, ends=True)
    graph = recording.CudaGraph(torch.device("cuda", 1))
    assert graph.record(lambda: "results") == "results"
    assert fake.calls == []
    graph.replay()
    assert fake.calls == [("replay",)]


def test_the_process_leaves_the_default_stream_once(monkeypatch):
    calls = []
    side = SimpleNamespace(wait_stream=lambda stream: calls.append(("wait", stream)))
    current = ["default"]
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: current[0])
    monkeypatch.setattr("torch.cuda.default_stream", lambda device: "default")
    monkeypatch.setattr("torch.cuda.Stream", lambda device: side)
    monkeypatch.setattr("torch.cuda.set_stream", lambda stream: current.__setitem__(0, stream))
    for device in ("cpu", "cuda:0", "cuda:0"):
        leave_default_stream(torch.device(device))
    assert calls == [("wait", "default")]
    assert current == [side]


class Again:
    """Replaying runs the step again: torch.compile does not work beneath a `Tape`."""

    def __init__(self, device):
        pass

    def record(self, function):
        self.function, self.results = function, function()
        return self.results

    def replay(self):
        for old, new in zip(self.results, self.function(), strict=True):
            old.copy_(new)


def test_a_compiled_loss_is_part_of_the_recording(monkeypatch):
    """The first step of a shape compiles; the recording is of what was compiled."""
    torch._dynamo.reset()
    options = {"backend": "aot_eager", "fullgraph": True, "dynamic": False}
    monkeypatch.setattr(step, "compile_function", lambda f, _: torch.compile(f, **options))
    monkeypatch.setitem(recording.GRAPHS, "cpu", Again)
    found = Trained(True, compiled=True).go()
    assert found.step.take_note() == ""
    assert found.step.take_compile_time().work == [step.COMPILED, step.RECORDED]
    assert_equal(found, Trained(False, compiled=True).go())
