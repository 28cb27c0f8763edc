"""In which precision and memory format a network computes."""

import pytest
import torch
from PIL import Image

from models import NETWORKS, build_model
from rundir.config import read_config
from rundir.weights import load
from tests.helpers import SMALL, train_here
from utils import precision
from utils.errors import UserError

CPU = torch.device("cpu")


def choose(asked, device, model, side):
    network = NETWORKS[model]
    return precision.choose_precision(
        asked,
        torch.device(device),
        side,
        convolutional=network.convolutional,
        bf16_side=network.bf16_side,
        channels_last_side=network.channels_last_side,
    )


@pytest.fixture
def bfloat16(monkeypatch):
    """Pretend that the CPU is fast in bfloat16 or not."""

    def pretend(known, speedup):
        precision.is_bf16_fast.cache_clear()
        monkeypatch.setattr(precision, "_has_bfloat16", lambda: known)
        monkeypatch.setattr(precision, "_time_matmul_speedup", lambda: speedup)

    yield pretend
    precision.is_bf16_fast.cache_clear()


@pytest.mark.parametrize(
    ("known", "speedup", "model", "side", "expected"),
    [
        (True, 2.0, "ResNet18", 32, "bf16"),
        (True, 0.7, "ResNet18", 32, "fp32"),
        (False, 2.0, "ResNet18", 32, "fp32"),
        (True, 2.0, "ResNet18", 16, "bf16"),
        (True, 2.0, "ResNet18", 8, "fp32"),
        (True, 2.0, "DenseNet121", 16, "fp32"),
        (True, 2.0, "Swin", 8, "bf16"),
        (True, 0.7, "ViT", 32, "fp32"),
        (True, 2.0, "MLP", 32, "fp32"),
    ],
)
def test_auto_on_the_cpu(bfloat16, known, speedup, model, side, expected):
    bfloat16(known, speedup)
    assert choose("auto", CPU, model, side).name == expected
    assert choose("fp32", CPU, model, side).name == "fp32"


@pytest.mark.parametrize(("side", "expected"), [(8, "fp32"), (16, "bf16")])
def test_auto_looks_at_the_images_of_a_folder(tmp_path, bfloat16, side, expected):
    bfloat16(True, 2.0)
    for number, name in enumerate(["train/a", "train/b", "test/a", "test/b"]):
        (tmp_path / "data" / name).mkdir(parents=True)
        for which in range(2):
            image = Image.new("RGB", (side, side), (40 * number, 20 * which, 0))
            image.save(tmp_path / "data" / name / f"{which}.png")
    flags = ["--dataset", "folder", "--data_dir", tmp_path / "data", "--num_workers", 0]
    run_dir = train_here(tmp_path, *flags, "--batch_size", 4, "--epochs", 1)
    assert read_config(run_dir).settings.precision == expected


@pytest.mark.parametrize("name", ["tf32", "fp16"])
def test_what_only_gpus_have_is_refused(tmp_path, capsys, name):
    with pytest.raises(UserError, match="NVIDIA"):
        choose(name, CPU, "MLP", 8)
    train_here(tmp_path, *SMALL, "--precision", name, status=2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"--precision {name}" in error
    assert not (tmp_path / "r").exists()


def test_the_resolved_precision_is_kept_and_resumed(tmp_path, capsys):
    run_dir = train_here(tmp_path, *SMALL, "--epochs", 1, "--schedule", "constant")
    assert read_config(run_dir).settings.precision == "fp32"
    again = ["--resume", "--epochs", 2]
    with pytest.raises(SystemExit):
        train_here(tmp_path, *again, "--precision", "bf16")
    assert "--precision fp32, not bf16" in capsys.readouterr().err
    train_here(tmp_path, *again, "--precision", "auto")


@pytest.mark.parametrize(
    ("device", "model", "kind", "side", "channels_last"),
    [
        ("cpu", "ResNet18", "fp32", 32, True),
        ("cpu", "ResNet18", "fp32", 16, False),
        ("cpu", "ResNet18", "bf16", 16, True),
        ("cpu", "DenseNet121", "fp32", 8, True),
        ("cpu", "ViT", "bf16", 32, False),
        ("cuda", "ResNet18", "fp32", 32, False),
        ("cuda", "ResNet18", "bf16", 8, True),
    ],
)
def test_memory_format(device, model, kind, side, channels_last):
    found = choose(kind, device, model, side).memory_format
    assert found == (torch.channels_last if channels_last else torch.contiguous_format)


def test_deterministic_is_set_and_unset(tmp_path):
    try:
        first = train_here(tmp_path / "1", *SMALL, "--epochs", 1, "--deterministic")
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
    finally:
        second = train_here(tmp_path / "2", *SMALL, "--epochs", 1)
    assert not torch.are_deterministic_algorithms_enabled()
    states = [load(run_dir / "epoch_001.pth") for run_dir in (first, second)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_fused_optimizer_in_channels_last_is_the_plain_one():
    """A fused kernel that took memory in order would mix the elements up."""
    states = []
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    for form, fused in ((torch.channels_last, True), (torch.contiguous_format, False)):
        torch.manual_seed(0)
        model = build_model("ResNet18", 4, (3, 8, 8)).double().to(memory_format=form).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=fused)
        for _ in range(2):
            optimizer.zero_grad()
            model(images.contiguous(memory_format=form))[1].square().sum().backward()
            optimizer.step()
        states.append(model.state_dict())
    # Features are float32 by contract, so the gradients agree to its rounding.
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], atol=1e-4, rtol=1e-3)
