"""eval_tsne.py: features and embeddings against direct computation, its files, its mistakes."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.manifold import trustworthiness

import eval_tsne
from input_pipeline.load import load_dataset
from metrics import tsne
from metrics.tsne import embed
from models import build_model
from rundir.weights import load
from tests.helpers import assert_mistake, run, train_run
from utils.files import read_csv

FEW = ["--samples_per_class", 5, "--perplexity", 5]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A CE run of three epochs and a BCE run of two."""
    directory = tmp_path_factory.mktemp("runs")
    ce = train_run(directory, "ce", "--loss", "CE", "--epochs", 3)
    return ce, train_run(directory, "bce", "--loss", "BCE", "--epochs", 2)


@pytest.fixture
def fast(monkeypatch):
    """t-SNE of a few iterations, for what does not depend on its result."""
    monkeypatch.setattr(tsne, "EXAGGERATED_ITERATIONS", 5)
    monkeypatch.setattr(tsne, "ITERATIONS", 5)


def draw(capsys, *flags, status=0):
    """Run eval_tsne.py within this process; returns what it printed."""
    assert eval_tsne.main([str(word) for word in ("--gpu_id", -1, *flags)]) == status
    return capsys.readouterr()


def test_without_the_library(monkeypatch, runs, capsys):
    monkeypatch.setitem(__import__("sys").modules, "openTSNE", None)
    error = draw(capsys, runs[0], status=2).err
    assert "openTSNE cannot be imported" in error
    assert error.count("\n") == 1


def test_the_table_is_of_features_extracted_by_hand(runs, tmp_path, capsys):
    said = draw(capsys, *runs, "--checkpoints", "all", "--out", tmp_path, *FEW)
    assert "not drawn, as not all runs have them: epochs 3" in said.out
    assert said.err == ""
    rows = read_csv(tmp_path / "tsne.csv")
    assert len(rows) == 2 * 2 * 50
    data = load_dataset("digits", ".", sample_size=30)
    seen, kept = dict.fromkeys(range(10), 0), []
    for number, label in enumerate(data.train.labels.tolist()):
        seen[label] += 1
        kept += [number] if seen[label] <= 5 else []
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (data.mean, data.std))
    images = (data.train.images[kept] / 255 - mean) / std
    for directory in runs:
        model = build_model("MLP", 10, (3, 8, 8), width=32, depth=2).eval()
        previous = None
        for epoch in "12":
            model.load_state_dict(load(directory / f"epoch_00{epoch}.pth"))
            with torch.no_grad():
                features = model(images)[1].numpy()
            previous = embed(features, perplexity=5, seed=0, start=previous)
            low, high = previous.min(0), previous.max(0)
            own = [row for row in rows if (row["run"], row["epoch"]) == (directory.name, epoch)]
            assert [int(row["sample"]) for row in own] == kept
            assert [int(row["label"]) for row in own] == data.train.labels[kept].tolist()
            drawn = np.array([[float(row["x"]), float(row["y"])] for row in own])
            assert (drawn.min(0), drawn.max(0)) == (pytest.approx(0), pytest.approx(1))
            # The sum of a product may differ in its last digit with the batch's size, and t-SNE
            # makes more of it: the picture is that of these features all the same.
            assert np.abs(drawn - (previous - low) / (high - low)).mean() < 0.2
            assert trustworthiness(features, drawn, n_neighbors=5) > 0.8


def test_files(runs, tmp_path, capsys, fast):
    flags = [*runs, "--checkpoints", "1-2", "--fps", 4, *FEW]
    draw(capsys, *flags, "--out", tmp_path / "new" / "pictures")
    out = tmp_path / "new" / "pictures"
    expected = ["tsne.csv", "tsne.gif", "tsne_epoch_001.png", "tsne_epoch_002.png"]
    assert sorted(path.name for path in out.iterdir()) == expected
    first = (out / "tsne_epoch_002.png").read_bytes()
    with Image.open(out / "tsne.gif") as gif, Image.open(out / "tsne_epoch_001.png") as still:
        assert (gif.n_frames, gif.size) == (2, still.size)
        durations = []
        for frame in range(2):
            gif.seek(frame)
            durations.append(gif.info["duration"])
    assert durations[0] == 250
    assert durations[1] > 250
    draw(capsys, *flags, "--out", out)  # overwrites with the same
    assert (out / "tsne_epoch_002.png").read_bytes() == first


def test_vector_output_and_the_default_directory(runs, capsys, fast):
    for kind, head in (("svg", b"<?xml"), ("pdf", b"%PDF")):
        draw(
            capsys,
            runs[0],
            "--format",
            kind,
            "--classes",
            "3,7",
            "--samples_per_class",
            20,
            *FEW[2:],
        )
        assert (runs[0] / "tsne" / f"tsne_epoch_003.{kind}").read_bytes().startswith(head)
    rows = read_csv(runs[0] / "tsne" / "tsne.csv")
    assert [sum(row["label"] == k for row in rows) for k in ("3", "7")] == [20, 20]
    assert len(rows) == 40


def test_runs_of_other_networks_and_images_take_turns(runs, tmp_path, capsys, fast):
    """Each panel shows its own run's features, whatever was built for the one before."""
    wide = train_run(tmp_path, "wide", "--width", 40, "--img_size", 12, "--epochs", 2)
    flags = ["--checkpoints", "1-2", *FEW]
    draw(capsys, runs[1], wide, *flags, "--out", tmp_path / "both")
    draw(capsys, wide, *flags, "--out", tmp_path / "one")
    both, one = (read_csv(tmp_path / name / "tsne.csv") for name in ("both", "one"))
    assert [row for row in both if row["run"] == "wide"] == one


def test_last_is_the_last_that_all_have(runs, tmp_path, capsys, fast):
    said = draw(capsys, *runs, "--split", "test", "--out", tmp_path, *FEW)
    assert "epochs 3" in said.out
    assert (tmp_path / "tsne_epoch_002.png").exists()


def test_damaged_checkpoints_are_named_and_the_other_epochs_drawn(runs, tmp_path, capsys, fast):
    shutil.copytree(runs[0], tmp_path / "run")
    content = (tmp_path / "run" / "epoch_001.pth").read_bytes()
    (tmp_path / "run" / "epoch_001.pth").write_bytes(content[: len(content) // 2])
    state = load(tmp_path / "run" / "epoch_002.pth")
    next(value for key, value in state.items() if "weight" in key).fill_(torch.nan)
    torch.save(state, tmp_path / "run" / "epoch_002.pth")
    said = draw(capsys, tmp_path / "run", "--checkpoints", "all", *FEW, status=2)
    lines = said.err.strip().splitlines()
    assert len(lines) == 2
    assert "epoch_001.pth is damaged" in lines[0]
    assert "epoch_002.pth: features are not finite" in lines[1]
    pictures = sorted(path.name for path in (tmp_path / "run" / "tsne").glob("*.png"))
    assert pictures == ["tsne_epoch_003.png"]


def test_a_stop_leaves_whole_files(runs, tmp_path, capsys, fast, monkeypatch):
    calls = []

    def embed_once(*inputs, **options):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return embed(*inputs, **options)

    monkeypatch.setattr(eval_tsne, "embed", embed_once)
    with pytest.raises(KeyboardInterrupt):
        draw(capsys, runs[0], "--checkpoints", "all", "--out", tmp_path, *FEW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tsne.csv", "tsne_epoch_001.png"]
    Image.open(tmp_path / "tsne_epoch_001.png").verify()
    assert len(read_csv(tmp_path / "tsne.csv")) == 50


def test_mistakes(runs, tmp_path, capsys):
    ce, bce = runs
    changed = {
        "other_classes": {"classes": list("abc")},
        "other_set": {},
        "moved": {"train_size": 7},
    }
    for name, facts in changed.items():
        shutil.copytree(bce, tmp_path / name)
        config = json.loads((bce / "config.json").read_text())
        config["data"] |= facts
        config["settings"]["dataset"] = "mnist" if name == "other_set" else "digits"
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    shutil.copytree(bce, tmp_path / "bare")
    (tmp_path / "bare" / "config.json").unlink()
    fewer = train_run(tmp_path, "fewer", "--epochs", 2, "--sample_size", 3)
    (tmp_path / "file").touch()
    mistakes = [
        ([tmp_path / "absent"], "absent does not exist"),
        ([ce, tmp_path / "bare"], "config.json"),
        ([ce, tmp_path / "other_classes"], "10 classes"),
        ([ce, tmp_path / "other_set"], "trained on digits"),
        ([ce, tmp_path / "moved"], "the data set has changed"),
        ([ce, fewer], "do not have the same samples"),
        ([ce, ce], "named twice"),
        ([ce, bce, "--checkpoints", "first"], "--checkpoints"),
        ([ce, bce, "--checkpoints", "3"], "no checkpoint of epoch 3"),
        ([ce, "--perplexity", 40, "--samples_per_class", 5], "at most 16.3"),
        ([ce, "--classes", "3,dog"], "'dog' is no class"),
        ([ce, "--out", tmp_path / "file"], "--out: cannot create"),
        ([ce, "--data_dir", tmp_path], "--data_dir has no effect"),
    ]
    for flags, words in mistakes:
        error = draw(capsys, *flags, status=2).err
        assert words in error
        assert error.count("\n") == 1


def test_runs_without_an_epoch_in_common(runs, tmp_path, capsys):
    shutil.copytree(runs[1], tmp_path / "late")
    for epoch in (1, 2):
        path = tmp_path / "late" / f"epoch_00{epoch}.pth"
        path.rename(path.with_name(f"epoch_00{epoch + 7}.pth"))
    error = draw(capsys, runs[0], tmp_path / "late", "--checkpoints", "all", status=2).err
    assert "no epoch in common (ce 1-3, late 8-9)" in error


def test_the_command_itself():
    assert_mistake(run("eval_tsne.py"), "RUN")
