"""The training step: its types and layout, compilation, and that it never waits for the device."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from input_pipeline.augmentation import BatchMixer
from input_pipeline.division import Division
from input_pipeline.load import load_dataset
from input_pipeline.loader import BatchLoader
from input_pipeline.splits import TensorSplit
from models import build_model
from objective import LOSSES
from objective.objective import Decays, Objective
from objective.optimizers import build_optimizer, set_learning_rate
from tests.helpers import SMALL, train_here
from training import step
from training.averaging import Average
from training.meter import Meter
from utils.precision import AUTOCAST, Precision

CPU = torch.device("cpu")
DECAYS = Decays(0.03, 0.02, 0.05)


def build_step(model, optimizer, loss="BCE", kind="fp32", device=CPU, **options):
    precision = Precision(kind, device)
    scaler, objective = precision.build_scaler(), Objective(loss, 0.1, DECAYS)
    return step.build_step(model, optimizer, scaler, objective, precision, **options)


def choose_extras(given, model, optimizer):
    """All that changes how an update is made, or nothing."""
    if not given:
        return {}
    average = Average(model, 0.9, optimizer)
    return {"division": Division(16, 2), "clip_grad_norm": 0.5, "average": average}


def small_step(compiled=False, kind="fp32", device=CPU, name="MLP", loss="BCE"):
    torch.manual_seed(0)
    options = {"width": 16, "depth": 2} if name == "MLP" else {}
    model = build_model(name, 4, (3, 8, 8), **options).to(device).train()
    optimizer = build_optimizer("SGD", model, 0.05, weight_decay=0.0, weight_decay_bias=0.0)
    return model, build_step(model, optimizer, loss, kind, device, compiled=compiled)


def batch(device=CPU):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 8, 8, generator=generator)
    return images.to(device), torch.arange(8, device=device) % 4


@pytest.mark.parametrize("name", ["ResNet18", "MLP", "ViT"])
def test_features_logits_and_objective_are_float32(name):
    model, one = small_step(kind="bf16", name=name)
    with Precision("bf16", CPU).autocast():
        logits, features = model(batch()[0])
    assert logits.dtype == features.dtype == torch.float32
    assert {value.dtype for value in one(*batch())} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_network_and_its_batches_have_one_memory_format(tmp_path, monkeypatch):
    """ResNet18 on 32×32 and on 8×8 images, as train.py hands them to the step."""
    seen = []

    build = train.build_run_step

    def build_recorder(settings, model, *rest):
        one, weight, form = (
            build(settings, model, *rest),
            model.layer1[0].conv1.weight,
            torch.channels_last,
        )

        def record(images, *rest):
            seen.append([x.is_contiguous(memory_format=form) for x in (images, weight)])
            return one(images, *rest)

        record.take_compile_time, record.take_note = one.take_compile_time, one.take_note
        return record

    monkeypatch.setattr(train, "build_run_step", build_recorder)
    flags = ["--sample_size", 1, "--test_sample_size", 1, "--epochs", 1, "--precision", "fp32"]
    for side in (32, 8):
        train_here(tmp_path / str(side), *flags, "--img_size", side)
    assert seen == [[True, True], [False, False]]


def test_batches_are_laid_out_as_asked():
    data = load_dataset("digits", ".", sample_size=4)
    form = torch.channels_last
    for augment in ("none", "DA1", "DA1+DA2"):
        options = {"batch_size": 8, "device": CPU, "mean": data.mean, "std": data.std}
        options |= {"num_classes": 10, "augment": augment}
        laid_out = BatchLoader(data.train, memory_format=form, **options)
        plain = BatchLoader(data.train, **options)
        for (ours, _), (theirs, _) in zip(laid_out.batches(1), plain.batches(1), strict=True):
            assert ours.is_contiguous(memory_format=form)
            assert torch.equal(ours, theirs)


READS = ("_local_scalar_dense", "nonzero", "is_nonzero")


class Readings(TorchDispatchMode):
    """Records what makes the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.overloadpacket.__name__ in READS:
            self.found.append(str(function))
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize(("augment", "extras"), [("none", False), ("DA1", False), ("DA1", True)])
def test_nothing_in_a_step_is_read_back(kind, augment, extras):
    data = load_dataset("digits", ".", sample_size=4)
    batches = BatchLoader(
        data.train, batch_size=8, device=CPU, mean=data.mean, std=data.std, num_classes=10,
        shuffle=True, augment=augment,
    )  # fmt: skip
    model = build_model("MLP", 10, (3, 8, 8), width=16, depth=2)
    # SGD: fused AdamW reads its step counters, which are in the host's memory on the CPU alone.
    optimizer = build_optimizer("SGD", model, 0.05, weight_decay=0.0, weight_decay_bias=0.0)
    one = build_step(model, optimizer, "CE", kind, **choose_extras(extras, model, optimizer))
    meter = Meter(len(batches), CPU)
    with Readings() as readings:
        for images, targets in batches.batches(1):
            meter.add(*one(images, targets), targets)
    assert meter.seen == 40
    assert readings.found == []
    with readings:
        torch.ones(1).item()
    assert readings.found  # the recorder does see one


class Waits(TorchDispatchMode):
    """Records reads and copies between a GPU and the host, over tensors that are only described.

    Draws on the CPU may be read; as these tensors have no values, some number is made up.
    """

    def __init__(self):
        super().__init__()
        self.found = []  # from the GPU
        self.sent = []  # to it, which a CUDA graph could not repeat
        self.updated = set()  # devices of what an optimizer reads and writes
        self.multiplied = set()  # types of what is multiplied or convolved

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name, options = function.overloadpacket.__name__, options or {}
        source = arguments[0] if arguments else None
        if name in ("convolution", "mm", "addmm"):
            self.multiplied.add(source.dtype)
        if isinstance(source, torch.Tensor) and source.device.type == "cuda":
            target = options.get("device")
            if name in READS or (name == "_to_copy" and target and target.type == "cpu"):
                self.found.append(name)
        self._find_sent(name, arguments, options)
        if name.startswith("_fused_"):  # torch does not describe all of these updates
            tensors = tree_leaves((arguments, options))
            self.updated |= {x.device.type for x in tensors if isinstance(x, torch.Tensor)}
            return None
        if name == "_local_scalar_dense":
            return 0.3 if source.is_floating_point() else 0
        return function(*arguments, **options)

    def _find_sent(self, name, arguments, options):
        if name == "_to_copy":
            source, target = arguments[0].device, options.get("device")
        elif name == "copy_":
            source, target = arguments[1].device, arguments[0].device
        else:
            return
        if target is not None and (source.type, target.type) == ("cpu", "cuda"):
            self.sent.append(name)


class DescribedMixer(BatchMixer):
    """Draws on the host read values, which described tensors lack."""

    def draw(self, epoch, steps, image_size):
        return torch.empty(len(steps), 2, *image_size), torch.empty(len(steps), 2)


@pytest.fixture
def described_gpu(monkeypatch):
    """A GPU that can be described: torch does not describe pinned memory."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    return torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "augment", "kind", "optimizer", "extras"),
    [
        *itertools.product(
            ["ResNet18", "ViT", "MLP"], ["DA1", "DA1+DA2"], ["bf16"], ["AdamW"], [False]
        ),
        *(
            pytest.param(name, augment, "bf16", "SGD", False, marks=pytest.mark.slow)
            for name, augment in itertools.product(["DenseNet121", "Swin"], ["DA1", "DA1+DA2"])
        ),
        *itertools.product(["MLP"], ["DA1"], ["fp16"], ["SGD", "AdamW"], [False, True]),
    ],
)
@pytest.mark.parametrize("graphs", [False, True])
def test_a_step_on_a_gpu_stays_there(
    monkeypatch, described_gpu, name, augment, kind, optimizer, extras, graphs
):
    """Batches, step and meter on a GPU that is only described: torch refuses to mix devices.

    With `graphs` the steps are those before the recording, which has the same operations. Each of
    the epoch's three batches has another loss. Autograd needs a real one, so the gradients are put
    in place.
    """
    gpu = described_gpu
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(step, "leave_default_stream", lambda device: None)
    mixer = DescribedMixer(10, seed=0) if augment == "DA1+DA2" else None
    with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits:
        with gpu:
            model = build_model(name, 10, (3, 32, 32)).train()
            twin = build_model(name, 10, (3, 32, 32)) if extras else None
        # deepcopy reads the addresses of tensors, which these lack.
        monkeypatch.setattr("torch.optim.swa_utils.deepcopy", lambda _: twin)
        optimizer = build_optimizer(optimizer, model, 0.05, weight_decay=0.1, weight_decay_bias=0.0)
        split = TensorSplit(torch.zeros(40, 3, 32, 32, dtype=torch.uint8), torch.arange(40) % 10)
        batches = BatchLoader(
            split, batch_size=16, device=gpu, mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=10,
            shuffle=True, augment="DA1", rotation=15.0,
        )  # fmt: skip
        batches.mixer = mixer
        options = {"graphs": graphs, **choose_extras(extras, model, optimizer)}
        steps = [
            build_step(model, optimizer, loss, kind, gpu, **options)
            for loss in ("CE", "BCE", "MSE")
        ]
        assert Precision(kind, gpu).build_scaler().is_enabled() == (kind == "fp16")
        meter = Meter(len(batches), gpu)
        monkeypatch.setattr(torch.Tensor, "backward", lambda _: with_gradients(model))
        waits.found.clear()  # what drawing the weights read
        for one, (images, targets) in zip(steps, batches.batches(1), strict=True):
            set_learning_rate(optimizer, 0.01)
            waits.sent.clear()  # the batch's random draws
            results = one(images, targets)
            assert waits.sent == []
            meter.add(*results, targets)
            for value in (images, targets, *results):
                assert value.device == gpu
            assert {value.dtype for value in results} == {torch.float32}
        assert waits.found == []
        assert AUTOCAST[kind] in waits.multiplied
        assert waits.updated == {"cuda"}
        results[1].item()
        assert waits.found == ["_local_scalar_dense"]  # the recorder does see one
        torch.ones(1).to(gpu)
        assert waits.sent == ["_to_copy"]
        rates = [group["lr"] for group in optimizer.param_groups]
        assert all(rate.device == gpu for rate in rates) if graphs else rates == [0.01] * 2


def with_gradients(model):
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)


class Operations(TorchDispatchMode):
    """Counts what is asked of a device: an operation that only views a tensor is none."""

    def __init__(self, device):
        super().__init__()
        self.device, self.count = device, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        results = function(*arguments, **(options or {}))
        views = any(argument.alias_info for argument in function._schema.returns)
        on_device = any(getattr(x, "device", None) == self.device for x in tree_leaves(results))
        self.count += on_device and (function._schema.is_mutable or not views)
        return results


@pytest.mark.parametrize(
    ("augment", "rotation", "most"),
    [
        ("none", 0, 0.08),
        ("DA1", 0, 0.25),
        ("DA1", 15, 0.5),
        ("DA1+DA2", 0, 0.4),
        ("DA1+DA2", 15, 0.7),
    ],
)
def test_batches_ask_less_than_once_a_step(described_gpu, augment, rotation, most):
    """An epoch of CIFAR. A GPU ends a small batch's augmentation sooner than it is asked for."""
    mixer = DescribedMixer(10, seed=0) if augment == "DA1+DA2" else None
    with FakeTensorMode():
        images = torch.empty(50_000, 3, 32, 32, dtype=torch.uint8)
        split = TensorSplit(images, torch.empty(50_000, dtype=torch.int64))
        batches = BatchLoader(
            split, batch_size=128, device=described_gpu, mean=(0.5,) * 3, std=(0.5,) * 3,
            num_classes=10, shuffle=True, augment=augment.removesuffix("+DA2"), rotation=rotation,
        )  # fmt: skip
        batches.mixer = mixer
        with Operations(described_gpu) as operations:
            assert sum(1 for _ in batches.batches(1)) == len(batches) == 391
    assert 0 < operations.count / len(batches) < most


def test_the_meter_asks_little_of_the_device():
    meter = Meter(64, CPU)
    loss, logits, targets = torch.ones(()), torch.zeros(16, 10), torch.arange(16) % 10
    with Operations(CPU) as operations:
        for _ in range(64):
            meter.add(loss, loss, logits, targets)
    assert 0 < operations.count / 64 < 0.8


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        *itertools.product(["ResNet18", "ViT"], ["BCE"]),
        pytest.param("DenseNet121", "BCE", marks=pytest.mark.slow),
        pytest.param("Swin", "BCE", marks=pytest.mark.slow),
        *itertools.product(["MLP"], LOSSES),
    ],
)
def test_the_step_compiles_without_a_graph_break(monkeypatch, name, loss):
    torch._dynamo.reset()
    options = {"backend": "eager", "fullgraph": True, "dynamic": False}
    monkeypatch.setattr(step, "compile_function", lambda f, *_: torch.compile(f, **options))
    _, one = small_step(compiled=True, kind="bf16", name=name, loss=loss)
    found = one(*batch())
    assert all(value.dtype == torch.float32 for value in found)


def test_a_missing_compiler_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    train_here(tmp_path, *SMALL, "--compile", status=2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no-such-compiler" in error
    assert not (tmp_path / "r").exists()


def test_compiled_steps_are_the_eager_ones(monkeypatch):
    """All of torch.compile but the generation of C++, which takes half a minute."""
    options = {"backend": "aot_eager", "fullgraph": True, "dynamic": False}
    monkeypatch.setattr(step, "compile_function", lambda f, *_: torch.compile(f, **options))
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        model, one = small_step(compiled)
        values = [one(*batch())[0].item() for _ in range(3)]
        results.append((values, model.state_dict()))
        assert (one.take_compile_time().seconds > 0) == compiled
        assert one.take_compile_time().seconds == 0
    (eager, ours), (fused, theirs) = results
    assert eager == pytest.approx(fused, rel=1e-4)
    assert ours.keys() == theirs.keys()


def test_the_rate_leaves_compiling_out():
    compile_time = step.CompileTime(10.0, 100, [step.COMPILED])
    assert compile_time.rate_without(300, 12.0) == 100
    assert compile_time.rate_without(100, 10.0) == 10
    assert compile_time.describe(300) == "compiled in 10.0 s, not counted in images/s"
    assert "no other step is in the epoch" in compile_time.describe(100)
    compile_time.work.append(step.RECORDED)
    assert compile_time.describe(300).startswith("compiled and recorded in 10.0 s")
