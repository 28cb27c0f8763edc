"""timm's networks under our classifier: timm's own results as truth."""

import json
import sys

import pytest
import torch

import eval_nc
from input_pipeline.load import load_dataset
from models import build_model
from rundir.rebuild import Rebuilder
from rundir.trained import open_run
from rundir.weights import load
from tests.helpers import read_refusal, read_table, train_here
from utils.errors import UserError
from utils.files import read_csv

timm = pytest.importorskip("timm")

CONVOLUTIONAL, TRANSFORMER = "test_resnet.r160_in1k", "test_vit.r160_in1k"
NETWORKS = [(CONVOLUTIONAL, (3, 24, 24)), (TRANSFORMER, (1, 32, 32))]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of weights as timm writes them, with its own 1,000 classes, by the network's name."""
    directory, files = tmp_path_factory.mktemp("weights"), {}
    for name, _ in NETWORKS:
        torch.manual_seed(3)
        network = timm.create_model(name)
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
        files[name] = directory / f"{name}.pth"
        torch.save(network.state_dict(), files[name])
    return files


def build_timms(name, shape, **options):
    """timm's own network for these images."""
    size = {"img_size": shape[1]} if name == TRANSFORMER else {}
    return timm.create_model(name, num_classes=0, in_chans=shape[0], **size, **options).eval()


@pytest.mark.parametrize(("name", "shape"), NETWORKS)
def test_features_are_timms_and_logits_the_classifiers(name, shape):
    model, truth = build_model(f"timm:{name}", 4, shape).eval(), build_timms(name, shape)
    truth.load_state_dict(model.backbone.state_dict())
    images = torch.randn(2, *shape)
    with torch.no_grad():
        logits, features = model(images)
        assert torch.equal(features, truth(images))
        assert torch.equal(logits, features @ model.fc.weight.T - model.fc.bias)
        with torch.autocast("cpu", torch.bfloat16):
            assert {one.dtype for one in model(images)} == {torch.float32}
    assert features.shape == (2, model.feature_dim)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("name", "shape"), NETWORKS)
def test_pretrained_weights_are_those_that_timm_loads(weights, name, shape):
    """Another number of channels, another size of the images, and the head left out."""
    file, kind = weights[name], (4 - shape[0], *shape[1:])
    truth = build_timms(name, kind, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    model = build_model(f"timm:{name}", 4, kind, pretrained=True, weights=str(file))
    found = model.backbone.state_dict()
    assert found.keys() == truth.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in truth.state_dict().items())
    stored = load(file)
    same = [key for key, value in found.items() if torch.equal(value, stored[key])]
    assert len(same) >= len(found) - 2  # all but the first layer and the positions


def test_weights_that_do_not_fit_are_refused(weights, tmp_path):
    partial, other = tmp_path / "partial.pth", tmp_path / "other.pth"
    state = load(weights[CONVOLUTIONAL])
    torch.save({key: value for key, value in state.items() if "layer4" not in key}, partial)
    torch.save({"state_dict": load(weights[TRANSFORMER])}, other)
    (tmp_path / "text.pth").write_text("no weights")
    for file, message in (
        (partial, r"lacks layer4\.0\.conv1\.weight"),
        (other, r"lacks conv1\.0\.weight.*it has .*cls_token"),
        (tmp_path / "none.pth", "is not a file"),
        (tmp_path / "text.pth", "timm cannot load it"),
    ):
        with pytest.raises(UserError, match=message) as error:
            build_model(f"timm:{CONVOLUTIONAL}", 4, (3, 24, 24), pretrained=True, weights=str(file))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("resnett18", 32, "no network 'resnett18': near are resnet18"),
        ("qqqqqq", 32, "list_models"),
        ("test_vit.nope", 32, "no weights 'nope' of test_vit: r160_in1k"),
        ("test_vit", 8, r"8×8 pixels and 3 channels .*own size is 160: give --img_size"),
    ],
)
def test_errors_are_one_line(name, side, message):
    with pytest.raises(UserError, match=message) as error:
        build_model(f"timm:{name}", 4, (3, side, side))
    assert "\n" not in str(error.value)


def test_without_a_network_the_hub_is_named(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
    with pytest.raises(UserError, match=r"huggingface\.co/timm/test_vit\.r160_in1k.*--weights"):
        build_model("timm:test_vit", 4, (3, 32, 32), pretrained=True)


def test_without_timm_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        build_model("timm:test_vit", 4, (3, 32, 32))


@pytest.mark.parametrize(("name", "side"), [(CONVOLUTIONAL, None), (TRANSFORMER, 16)])
def test_a_run_is_trained_resumed_and_evaluated(tmp_path, weights, name, side):
    flags = ["--model", f"timm:{name}", "--pretrained", "--weights", weights[name], "--loss", "CE"]
    flags += ["--sample_size", 5, "--test_sample_size", 5, "--batch_size", 32]
    flags += ["--optimizer", "AdamW", "--lr", 0.003, "--schedule", "constant"]
    flags += ["--img_size", side] if side else []
    whole = train_here(tmp_path, *flags, "--epochs", 2, name="whole")
    parts = train_here(tmp_path, *flags, "--epochs", 1, name="parts")
    (tmp_path / "gone").mkdir()
    moved = weights[name].rename(tmp_path / "gone" / "w.pth")  # a resume does not need it
    train_here(tmp_path, "--resume", "--epochs", 2, name="parts")
    moved.rename(weights[name])
    states = [load(run / "epoch_002.pth") for run in (whole, parts)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])

    assert eval_nc.main(["--load_path", str(whole), "--gpu_id", "-1", "--split", "test"]) == 0
    row = read_csv(whole / "metrics.csv")[-1]
    assert float(read_table(whole)[2, "test"]["top1"]) == pytest.approx(float(row["test_top1"]))
    facts = json.loads((whole / "config.json").read_text())["network"]
    assert facts["timm"]["version"] == timm.__version__
    assert facts["timm"]["hf_hub_id"] == f"timm/{name}"
    assert facts["timm"]["mean"] == list(timm.create_model(name).pretrained_cfg["mean"])
    assert facts["weights"]["file"] == weights[name].name
    log = (whole / "train_log.txt").read_text()
    assert "normalised by the data set's mean and std" in log


def test_another_version_of_timm_is_named_where_weights_do_not_fit(tmp_path):
    run = train_here(tmp_path, "--model", "timm:test_resnet", "--sample_size", 2, "--epochs", 1)
    config = json.loads((run / "config.json").read_text())
    config["network"]["timm"]["version"] = "1.0.0"
    (run / "config.json").write_text(json.dumps(config))
    rebuilder, opened = Rebuilder(torch.device("cpu"), ("test",)), open_run(run)
    rebuilder.load_model(opened, run / "epoch_001.pth")
    renamed = {f"{key}x": value for key, value in load(run / "epoch_001.pth").items()}
    with pytest.raises(UserError, match=r"trained with timm 1\.0\.0, here is"):
        rebuilder.fill_model(opened, run / "epoch_001.pth", renamed)


def test_default_names_of_runs_are_safe_for_files(tmp_path, monkeypatch, capsys):
    import train

    flags = ["--model", f"timm:{CONVOLUTIONAL}", "--sample_size", 2, "--epochs", 1]
    assert train.main(list(map(str, [*flags, "--gpu_id", -1, "--save_dir", tmp_path]))) == 0
    (directory,) = tmp_path.iterdir()
    assert directory.name.startswith("timm-test_resnet.r160_in1k_digits_BCE_SGD")
    line = read_refusal(capsys, train.main, "--model", "timm:none", "--save_dir", tmp_path / "new")
    assert "no network 'none'" in line
    assert not (tmp_path / "new").exists()


def test_weights_as_timm_writes_them_are_evaluated(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=10)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    flags = ["--load_path", tmp_path / "w.pth", "--model", "timm:test_resnet", "--gpu_id", -1]
    flags += ["--dataset", "digits", "--test_sample_size", 20, "--split", "test", "--bias_added"]
    assert eval_nc.main(list(map(str, flags))) == 0
    data = load_dataset("digits", ".", test_sample_size=20)
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in (data.mean, data.std))
    with torch.no_grad():
        found = network.eval()((data.test.images / 255 - mean) / std).argmax(dim=1)
    right = 100 * (found == data.test.labels).double().mean().item()
    row = read_table(tmp_path / "w_eval")[0, "test"]
    assert float(row["top1"]) == pytest.approx(right)
