"""The eval scripts on weights of other programs: the authors' run directories, and any others."""

import os
import shutil
import subprocess

import pytest
import torch
from torch import nn

import eval_nc
import eval_scores
import eval_tsne
from input_pipeline.load import load_dataset
from models import build_model
from models.foreign import translate_state
from rundir.bare import read_arguments
from rundir.weights import load
from tests.helpers import read_table, train_run
from tests.models.authors import AUTHORS, fill_entries
from utils.errors import UserError

# As the authors' train.py writes it.
ARGUMENTS = (
    "Namespace(model='{model}', bias=True, ETF_fc=False, SOTA=True, width=1024, depth=6, "
    "img_size=32, patch_size=4, head_dim=512, seed=6, dataset='digits', data_dir='./data', "
    "epochs=100, batch_size=128, loss='CrossEntropy', sample_size=None, epoch_save_step=5, "
    "lr=0.01, decay_type='cosine', epochs_warmup=0, gamma=0.2, optimizer='AdamW', "
    "weight_decay=0.0005, weight_decay_bias=0.0, sep_decay=True, feature_decay_rate=0.0005, "
    "bias_init_mode=0, bias_init_mean=0.0, smoothing=0.0, MIX=False, gpu_id='0')\n"
)
MLP = ["--model", "MLP", "--width", 32, "--depth", 2, "--dataset", "digits", "--sample_size", 30]


def evaluate(capsys, *flags, status=0):
    capsys.readouterr()
    assert eval_nc.main([str(word) for word in ("--gpu_id", -1, "--load_path", *flags)]) == status
    return capsys.readouterr()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_run(tmp_path_factory.mktemp("runs"), "run", "--epochs", 3, "--lr", 0.3)


@pytest.fixture
def expected(trained, capsys):
    """The rows of the run, by its own config.json."""
    evaluate(capsys, trained)
    return read_table(trained)


@pytest.mark.parametrize("model", ["MLP", "ViT", "Swin", "DenseNet121"])
def test_a_run_directory_of_the_authors_is_read_as_it_is(tmp_path, capsys, model):
    entries = AUTHORS[model].get("entries")
    state = fill_entries(entries) if entries else build_model(model, 10).state_dict()
    state = cast(state, torch.float32)
    (tmp_path / "args.txt").write_text(ARGUMENTS.format(model=model.lower()))
    (tmp_path / "log.txt").write_text("epoch 1")
    torch.save(state, tmp_path / "best_model.pth")
    flags = ["--split", "test", "--test_sample_size", 2]
    said = evaluate(capsys, tmp_path, *flags)
    assert "1 evaluated" in said.out and not said.err
    row = read_table(tmp_path)[0, "test"]

    network = build_model(model, 10)
    network.load_state_dict(translate_state(model, state))
    network.eval()
    data = load_dataset("digits", ".", img_size=32, test_sample_size=2)
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in (data.mean, data.std))
    with torch.no_grad():
        logits, _ = network((data.test.images / 255 - mean) / std)
    correct = (logits.argmax(dim=1) == data.test.labels).double().mean().item()
    assert float(row["top1"]) == pytest.approx(100 * correct)
    # The classifier of the authors' MLP adds its bias: ours subtracts the negative.
    sign = -1 if model == "MLP" else 1
    assert float(row["bias_mean"]) == pytest.approx(sign * state["fc.bias"].mean().item(), abs=1e-6)


def test_args_txt_gives_what_a_run_was_trained_with(tmp_path):
    (tmp_path / "args.txt").write_text(ARGUMENTS.format(model="ViT"))
    read = read_arguments(tmp_path / "args.txt")
    expected = {"model": "ViT", "width": 512, "depth": 6, "patch_size": 4, "loss": "CE"}
    expected |= {"optimizer": "AdamW", "augment": "DA1", "seed": 6, "sep_decay": True}
    assert {name: read[name] for name in expected} == expected
    assert "sample_size" not in read
    (tmp_path / "args.txt").write_text(ARGUMENTS.format(model="resnet18"))
    assert "width" not in read_arguments(tmp_path / "args.txt")
    (tmp_path / "args.txt").write_text("Namespace(model='ViT', log=<file 'x'>, lr=0.5, b=[1, 2])")
    assert read_arguments(tmp_path / "args.txt")["lr"] == 0.5
    for text in ("Namespace(", "__import__('os').system('x')", "3", "Namespace(model=print())"):
        (tmp_path / "args.txt").write_text(text)
        with pytest.raises(UserError, match=r"args\.txt"):
            read_arguments(tmp_path / "args.txt")


def write(path, state):
    if path.suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(state, path)
    else:
        torch.save(state, path)


def add_prefix(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def cast(state, dtype):
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}


WRITINGS = {
    "plain": ("net-{}.pt", lambda state: state),
    "wrapped": ("checkpoint_{}.pth.tar", lambda state: {"state_dict": state, "epoch": 3}),
    "compiled": ("{}.ckpt", lambda state: {"model": add_prefix("_orig_mod.", state)}),
    "parallel": ("w{}.pth", lambda state: add_prefix("module.model.", state)),
    "lightning": (
        "l{}.ckpt",
        lambda state: {
            "net": {"state_dict": {**add_prefix("model.", state), "loss.weight": torch.ones(3)}}
        },
    ),
    "safetensors": ("epoch{}.safetensors", lambda state: state),
}


@pytest.mark.parametrize("writing", WRITINGS)
def test_any_name_ending_and_wrapping(tmp_path, trained, expected, capsys, writing):
    name, wrap = WRITINGS[writing]
    for epoch in (1, 2, 3):
        state = dict(load(trained / f"epoch_00{epoch}.pth"))
        write(tmp_path / name.format(epoch), wrap(state))
    evaluate(capsys, tmp_path, *MLP)
    assert read_table(tmp_path) == expected


def test_a_single_file_and_files_by_name(tmp_path, trained, expected, capsys):
    shutil.copy(trained / "epoch_002.pth", tmp_path / "final.pth")
    shutil.copy(trained / "epoch_003.pth", tmp_path / "other.pth")
    evaluate(capsys, tmp_path / "final.pth", *MLP)
    rows = read_table(tmp_path / "final_eval")
    assert rows[0, "test"]["nc1"] == expected[2, "test"]["nc1"]
    assert "--checkpoints final.pth" in evaluate(capsys, tmp_path, *MLP, status=2).err
    evaluate(capsys, tmp_path, *MLP, "--checkpoints", "other.pth,final.pth")
    assert read_table(tmp_path)[2, "test"]["nc1"] == expected[2, "test"]["nc1"]
    # A file of a run directory of ours is that epoch of the run.
    evaluate(capsys, trained / "epoch_002.pth")


def test_half_precision_and_a_classifier_of_another_name(tmp_path, trained, expected, capsys):
    state = {key.replace("fc.", "head."): v for key, v in load(trained / "epoch_003.pth").items()}
    torch.save(cast(state, torch.float16), tmp_path / "3.pt")
    evaluate(capsys, tmp_path / "3.pt", *MLP, "--classifier", "head")
    first = read_table(tmp_path / "3_eval")
    assert float(first[3, "test"]["top1"]) == pytest.approx(
        float(expected[3, "test"]["top1"]), abs=1
    )
    evaluate(capsys, tmp_path / "3.pt", *MLP, "--force")  # it is the only matrix of ten rows
    assert read_table(tmp_path / "3_eval") == first
    said = evaluate(capsys, tmp_path / "3.pt", *MLP, "--classifier", "tail", status=2)
    assert "no tail.weight; its matrices are layers.0.0.weight" in said.err


def test_mean_std_and_stem_are_what_the_flags_say(tmp_path, capsys):
    torch.manual_seed(0)
    model = build_model("ResNet18", 10, (3, 224, 224))
    torch.save(model.state_dict(), tmp_path / "1.pth")
    flags = ["--model", "ResNet18", "--dataset", "digits", "--split", "test", "--img_size", 32]
    flags += ["--test_sample_size", 2]
    said = evaluate(capsys, tmp_path, *flags, status=2)
    assert "conv1.weight is [64, 3, 7, 7], the network wants [64, 3, 3, 3]" in said.err
    evaluate(capsys, tmp_path, *flags, "--stem", "imagenet", "--mean", 0.5, "--std", 0.1, 0.2, 0.3)
    data = load_dataset("digits", ".", img_size=32, test_sample_size=2)
    std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    with torch.no_grad():
        _, features = model.eval()((data.test.images / 255 - 0.5) / std)
    centred = (
        features
        - torch.stack([features[data.test.labels == label].mean(dim=0) for label in range(10)])[
            data.test.labels
        ]
    )
    assert centred.pow(2).sum() > 0
    means = torch.stack([features[data.test.labels == label].mean(dim=0) for label in range(10)])
    scores = means @ model.fc.weight.T
    assert float(read_table(tmp_path)[1, "test"]["positive_mean"]) == pytest.approx(
        scores.diagonal().mean().item(), rel=1e-4
    )
    assert "--mean: give one number or three" in refuse_flags(capsys, tmp_path, "--mean", 1, 1)
    assert "must be at most 1" in refuse_flags(capsys, tmp_path, "--mean", 127)


def refuse_flags(capsys, *flags):
    with pytest.raises(SystemExit):
        eval_nc.main([str(word) for word in ("--load_path", *flags)])
    return capsys.readouterr().err


def test_the_wrong_sign_of_a_bias_is_reported(tmp_path, capsys):
    """A classifier whose bias decides: read with the other sign it is far worse."""
    torch.manual_seed(0)
    model = build_model("MLP", 10, (3, 8, 8), width=32, depth=1)
    data = load_dataset("digits", ".")
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in (data.mean, data.std))
    linear = nn.Linear(32, 10)
    optimizer = torch.optim.Adam([*model.layers.parameters(), *linear.parameters()], 0.01)
    images = ((data.train.images / 255 - mean) / std).flatten(1)
    with torch.no_grad():
        linear.bias.copy_(torch.linspace(-6, 6, 10))
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(linear(model.layers(images)), data.train.labels).backward()
        optimizer.step()
    state = {f"layers.{key}": value for key, value in model.layers.state_dict().items()}
    state |= {"fc.weight": linear.weight.detach(), "fc.bias": linear.bias.detach()}
    torch.save(state, tmp_path / "weights.pth")
    flags = ["--model", "MLP", "--width", 32, "--depth", 1, "--dataset", "digits"]
    said = evaluate(capsys, tmp_path / "weights.pth", *flags)
    assert said.err.count("\n") == 1 and "give --bias_added" in said.err
    assert not evaluate(capsys, tmp_path / "weights.pth", *flags, "--bias_added").err
    torch.save(state | {"fc.bias": -state["fc.bias"]}, tmp_path / "weights.pth")
    said = evaluate(capsys, tmp_path / "weights.pth", *flags, "--bias_added")
    assert "leave --bias_added out" in said.err


def test_what_does_not_fit_is_explained(tmp_path, trained, capsys):
    path = tmp_path / "a1.pth"
    state = load(trained / "epoch_003.pth")
    torch.save({"head": subprocess.run, **state}, path)
    assert "could run code" in evaluate(capsys, path, *MLP, status=2).err
    torch.save([1, 2], path)
    assert "holds a list, not a state_dict" in evaluate(capsys, path, *MLP, status=2).err
    torch.save({"epoch": 3}, path)
    assert "its keys are epoch" in evaluate(capsys, path, *MLP, status=2).err
    torch.save({key.replace("layers", "hidden"): v for key, v in state.items()}, path)
    said = evaluate(capsys, path, *MLP, status=2).err
    assert "it has hidden.0.0.weight" in said and "the network wants layers.0.0.weight" in said
    pytest.importorskip("safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    said = evaluate(capsys, tmp_path / "pipe.safetensors", *MLP, status=2).err
    assert "not a regular file" in said
    (tmp_path / "b1.safetensors").write_bytes(b"nonsense")
    assert "b1.safetensors" in evaluate(capsys, tmp_path / "b1.safetensors", *MLP, status=2).err


def test_the_figures_take_what_eval_nc_takes(tmp_path, trained, capsys):
    shutil.copy(trained / "epoch_003.pth", tmp_path / "weights3.pt")
    source, picture = tmp_path / "weights3.pt", tmp_path / "scores.png"
    command = [source, *MLP, "--gpu_id", -1, "--out", picture]
    assert eval_scores.main([str(word) for word in command]) == 0
    pytest.importorskip("openTSNE")
    command = [source, *MLP, "--gpu_id", -1, "--samples_per_class", 10, "--perplexity", 5]
    assert eval_tsne.main([str(word) for word in command]) == 0
    assert (tmp_path / "weights3_eval" / "tsne" / "tsne_epoch_003.png").exists()
    said = capsys.readouterr()
    assert picture.exists() and not said.err
