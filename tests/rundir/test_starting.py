"""The weights with which a run begins, and a frozen backbone."""

import hashlib
import json
import re
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import train
from args import complete, parse_settings
from models import build_model
from rundir.building import build_batches, build_data
from rundir.directory import Run
from rundir.starting import Source, fill_network, start_network
from rundir.weights import load
from tests.helpers import read_refusal, train_here
from utils.errors import UserError
from utils.precision import Precision

CPU = torch.device("cpu")
TINY = ["--model", "MLP", "--width", 32, "--depth", 2, "--sample_size", 20, "--batch_size", 32]
TINY += ["--test_sample_size", 5, "--schedule", "constant"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return train_here(tmp_path_factory.mktemp("source"), *TINY, "--epochs", 2, "--lr", 0.1)


def begin(tmp_path, *flags):
    """The start of a new run, and the data of it."""
    settings = complete(parse_settings([str(flag) for flag in (*TINY, *flags)]))
    data = build_data(settings)
    torch.manual_seed(settings.seed)
    return start_network(settings, Run(tmp_path / "new", False, settings), data)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("file", ["", "epoch_001.pth", "best_model.pth", "last.pth"])
def test_a_run_begins_with_the_weights_of_a_checkpoint(tmp_path, source, file):
    start = begin(tmp_path, "--init_from", source / file)
    path = source / (file or "epoch_002.pth")
    content = load(path)
    assert_same(start.model.state_dict(), content["model"] if file == "last.pth" else content)
    facts = start.facts["init_from"]
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (facts["file"], facts["run_name"]) == (path.name, source.name)
    assert facts["run"] == json.loads((source / "config.json").read_text())["id"]
    if file != "best_model.pth":
        assert facts["epoch"] == (1 if "1" in file else 2)


def test_a_run_without_files_of_epochs_gives_its_last_state(tmp_path, source):
    copied = shutil.copytree(source, tmp_path / "r")
    for path in copied.glob("epoch_*.pth"):
        path.unlink()
    state = begin(tmp_path, "--init_from", copied).model.state_dict()
    assert_same(state, load(source / "epoch_002.pth"))


def test_the_backbone_alone_leaves_the_classifier_as_it_is_drawn(tmp_path, source):
    flags = ["--bias_mode", "unified", "--bias_init_mean", 7]  # not as in the source
    drawn = begin(tmp_path, *flags).model.state_dict()
    found = begin(tmp_path, *flags, "--init_from", source, "--init_backbone").model.state_dict()
    stored = load(source / "epoch_002.pth")
    for key, value in found.items():
        assert torch.equal(value, (drawn if key.startswith("fc.") else stored)[key]), key
    other = build_model("MLP", 7, (3, 8, 8), width=32, depth=2)
    fill_network(other, Source(source, stored, {}, True), backbone_only=True)
    assert other.fc.weight.shape == (7, 32)


def test_a_fixed_frame_comes_from_the_checkpoint(tmp_path):
    etf = train_here(tmp_path, *TINY, "--fixed_etf", "--epochs", 1)
    start = begin(tmp_path, "--fixed_etf", "--seed", 3, "--init_from", etf)
    assert torch.equal(start.model.fc.weight, load(etf / "epoch_001.pth")["fc.weight"])
    assert not start.model.fc.weight.requires_grad


@pytest.mark.parametrize("added", [True, False])
def test_weights_of_another_program(tmp_path, source, added):
    """A wrapped state_dict with a prefix and a linear layer named head, which adds its bias."""
    state = load(source / "epoch_002.pth")
    theirs = {f"module.{key.replace('fc.', 'head.')}": value for key, value in state.items()}
    file = tmp_path / "theirs.pt"
    torch.save({"state_dict": {**theirs, "module.head.bias": -state["fc.bias"]}}, file)
    flags = ["--init_from", file, *(["--init_bias_added"] if added else [])]
    start = begin(tmp_path, *flags)
    sign = 1 if added else -1
    assert_same(start.model.state_dict(), {**state, "fc.bias": sign * state["fc.bias"]})
    assert start.facts["init_from"].keys() == {"file", "sha256"}


def test_a_backbone_of_another_program_may_have_any_head(tmp_path, source):
    state = load(source / "epoch_002.pth")
    body = {key: value for key, value in state.items() if not key.startswith("fc.")}
    heads = {"projection.0.weight": torch.ones(3, 32), "projection.2.weight": torch.ones(5, 3)}
    torch.save(body | heads, tmp_path / "theirs.pt")
    start = begin(tmp_path, "--init_from", tmp_path / "theirs.pt", "--init_backbone")
    assert all(torch.equal(start.model.state_dict()[key], value) for key, value in body.items())
    assert "no place for projection.0.weight, projection.2.weight" in start.notes[0]


def test_timms_own_names_are_read(tmp_path):
    timm = pytest.importorskip("timm")
    network = timm.create_model("test_resnet", num_classes=10)
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    flags = ["--model", "timm:test_resnet", "--sample_size", 2, "--init_from"]
    settings = complete(parse_settings([*map(str, flags), str(tmp_path / "timm.pth")]))
    run = Run(tmp_path / "new", False, settings)
    model = start_network(settings, run, build_data(settings)).model.eval()
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        own = network.eval().forward_head(network.forward_features(images), pre_logits=True)
        assert torch.equal(model(images)[1], own)
    assert torch.equal(model.fc.weight, network.fc.weight)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--width", 16], r"epoch_002\.pth does not fit.* is \[32, 192\], the network wants \[16"),
        (["--model", "ViT", "--width", 32], "epoch_002.pth is of MLP, this run is of ViT"),
        (["--bias_mode", "none"], "it has fc.bias; --init_backbone takes the rest"),
        (["--init_bias_added"], "--init_bias_added has no effect here"),
    ],
)
def test_a_misfit_is_named_before_a_directory_is_made(tmp_path, capsys, source, flags, message):
    flags = [*TINY, "--gpu_id", -1, "--save_dir", tmp_path / "new", "--init_from", source, *flags]
    line = read_refusal(capsys, train.main, *flags)
    assert re.search(message, line), line
    assert not (tmp_path / "new").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path, source):
    (tmp_path / "empty").mkdir()
    empty = shutil.copytree(source, tmp_path / "begun", ignore=shutil.ignore_patterns("*.pth"))
    other = shutil.copytree(source, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "id": "another"}))
    for path, message in (
        (tmp_path / "none", "does not exist"),
        (tmp_path / "empty", "not a run directory: name a file"),
        (empty, "holds no weights yet"),
        (source / "metrics.csv", "metrics.csv"),
        (other, "checkpoint of another run"),
    ):
        with pytest.raises(UserError, match=message):
            begin(tmp_path, "--init_from", path)


def test_a_resume_does_not_need_the_source(tmp_path, capsys, source):
    copied = shutil.copytree(source, tmp_path / "s")
    flags = [*TINY, "--init_from", copied, "--init_backbone", "--freeze_backbone"]
    whole = train_here(tmp_path, *flags, "--epochs", 3, name="whole")
    parts = train_here(tmp_path, *flags, "--epochs", 2, name="parts")
    unsaved = shutil.copytree(parts, tmp_path / "unsaved")
    for path in (*unsaved.glob("*.pth"), unsaved / "metrics.csv"):
        path.unlink()
    train_here(tmp_path, "--resume", name="unsaved")  # killed before the first state
    assert_same(load(unsaved / "epoch_002.pth"), load(parts / "epoch_002.pth"))
    shutil.rmtree(copied)
    train_here(tmp_path, "--resume", "--epochs", 3, name="parts")
    assert_same(load(parts / "epoch_003.pth"), load(whole / "epoch_003.pth"))


def test_a_source_that_has_changed_since_the_beginning_is_refused(tmp_path, capsys, source):
    file = tmp_path / "w.pth"
    torch.save(load(source / "epoch_001.pth"), file)
    run = train_here(tmp_path, *TINY, "--init_from", file, "--epochs", 1)
    for path in (*run.glob("*.pth"), run / "metrics.csv"):
        path.unlink()
    torch.save(load(source / "epoch_002.pth"), file)
    flags = ["--resume", "--run_name", run.name, "--save_dir", tmp_path, "--gpu_id", -1]
    assert "w.pth has changed since" in read_refusal(capsys, train.main, *flags)


def test_a_source_has_one_name_from_every_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = parse_settings(["--init_from", "a/../b.pth"]).init_from
    assert found == str(tmp_path / "b.pth")


def train_linear_layer(source, flags, lr, decays):
    """Train a linear layer on extracted features by the formulas, on the same batches."""
    settings = complete(parse_settings([str(flag) for flag in (*TINY, *flags)]))
    data = build_data(settings)
    batches, _ = build_batches(settings, data, Precision("fp32", CPU))
    model = build_model("MLP", 10, data.image_shape, width=32, depth=2)
    model.load_state_dict(load(source / "epoch_002.pth"))
    model.eval()
    layer = nn.Linear(32, 10)
    with torch.no_grad():
        layer.weight.copy_(model.fc.weight)
        layer.bias.copy_(-model.fc.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr, momentum=0.9)
    weight_decay, feature_decay = decays
    for epoch in (1, 2):
        for images, targets in batches.batches(epoch):
            with torch.no_grad():
                features = model(images)[1]
            one_hot = F.one_hot(targets, 10).float()
            losses = F.binary_cross_entropy_with_logits(layer(features), one_hot, reduction="none")
            loss = losses.sum(dim=1).mean()
            loss = loss + weight_decay / 2 * layer.weight.square().sum()
            loss = loss + feature_decay / 2 * features.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return layer, loss


def test_a_frozen_backbone_trains_a_linear_layer_on_its_features(tmp_path, source):
    lr, decays = 0.05, (0.01, 0.001)
    flags = ["--epochs", 2, "--lr", lr * 4, "--loss", "BCE", "--sep_decay"]  # batches of 32
    flags += ["--weight_decay", decays[0], "--feature_decay_rate", decays[1]]
    flags += ["--init_from", source, "--freeze_backbone"]
    run = train_here(tmp_path, *TINY, *flags)
    layer, _ = train_linear_layer(source, flags, lr, decays)
    found, before = load(run / "epoch_002.pth"), load(source / "epoch_002.pth")
    torch.testing.assert_close(found["fc.weight"], layer.weight.detach())
    torch.testing.assert_close(found["fc.bias"], -layer.bias.detach())
    assert any("running_mean" in key for key in found)
    changed = {key for key, value in found.items() if not torch.equal(value, before[key])}
    assert changed == {"fc.weight", "fc.bias"}


def test_only_the_classifier_is_in_the_optimizer(tmp_path, source):
    flags = [*TINY, "--init_from", source, "--freeze_backbone", "--optimizer", "AdamW"]
    run = train_here(tmp_path, *flags, "--epochs", 1)
    groups = load(run / "last.pth")["optimizer"]["param_groups"]
    assert sum(len(group["params"]) for group in groups) == 2
    assert (
        "the backbone is frozen; 330 parameters are trained" in (run / "train_log.txt").read_text()
    )
    bias = train_here(tmp_path, *TINY, "--freeze_backbone", "--fixed_etf", "--epochs", 1, name="b")
    assert sum(map(len, load(bias / "last.pth")["optimizer"]["state"].values())) == 1
