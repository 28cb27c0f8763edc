"""train.py: the run directory it leaves, every model, every loss, and how it ends."""

import json
import math

import pytest
import torch

import train
from input_pipeline.load import load_dataset
from metrics.accuracy import compute_uniform_accuracy
from models import build_model
from objective import LOSSES, OPTIMIZERS
from objective.decay import compute_decay
from objective.losses import binary_cross_entropy
from rundir.names import METRICS_COLUMNS
from rundir.weights import load
from tests.helpers import OWN_NETWORKS, SMALL, read_refusal, run, train_here
from train import NOT_FINITE
from utils.files import read_csv


def test_the_run_directory_is_as_promised(tmp_path):
    run_dir = train_here(tmp_path, *SMALL, "--epochs", 3, "--loss", "CE", "--seed", 5)
    names = {path.name for path in run_dir.iterdir()}
    weights = {"epoch_001.pth", "epoch_002.pth", "epoch_003.pth", "best_model.pth", "last.pth"}
    assert names == weights | {"config.json", "metrics.csv", "train_log.txt", ".train.lock"}

    rows = read_csv(run_dir / "metrics.csv")
    assert list(rows[0]) == list(METRICS_COLUMNS)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[0]["lr"]) == pytest.approx(0.01 * 32 / 128)

    config = json.loads((run_dir / "config.json").read_text())
    assert config["settings"]["model"] == "MLP"
    assert config["settings"]["weight_decay_bias"] == 5e-4  # resolved
    assert config["data"]["num_classes"] == 10
    assert config["data"]["train_size"] == 200
    assert config["environment"]["packages"]["torch"] == torch.__version__.split("+")[0]
    assert "\n  3/3  " in (run_dir / "train_log.txt").read_text()

    model = build_model("MLP", 10, (3, 8, 8), width=64, depth=2)
    model.load_state_dict(torch.load(run_dir / "epoch_003.pth", weights_only=True), strict=True)


def test_the_average_of_the_weights_is_kept_and_tested(tmp_path):
    """With one update in an epoch the files of the epochs show how the average moves."""
    flags = ["--batch_size", 200, "--lr", 0.05, "--epochs", 3, "--ema", 0.75]
    run_dir = train_here(tmp_path, *SMALL, *flags)
    rows = read_csv(run_dir / "metrics.csv")
    columns = ["test_loss", "test_top1", "test_top5", "test_uniform"]
    assert list(rows[0]) == [*METRICS_COLUMNS, *(f"ema_{name}" for name in columns)]
    weights, averages = (
        [load(run_dir / f"{name}_00{epoch}.pth") for epoch in (1, 2, 3)]
        for name in ("epoch", "ema")
    )
    for epoch in (1, 2):
        before, trained = averages[epoch - 1], weights[epoch]
        for name, average in averages[epoch].items():
            if average.is_floating_point():
                expected = 0.75 * before[name] + 0.25 * trained[name]
                torch.testing.assert_close(average, expected)
            assert torch.equal(average, trained[name]) != average.is_floating_point()
    names = {path.name for path in run_dir.glob("*.pth")}
    assert names == {"best_model.pth", "last.pth"} | {
        f"{name}_00{epoch}.pth" for name in ("epoch", "ema") for epoch in (1, 2, 3)
    }
    assert "ema top-1" in (run_dir / "train_log.txt").read_text()


def test_metrics_are_those_of_the_saved_weights(tmp_path):
    """The test columns, recomputed from epoch_002.pth with a loop over samples."""
    run_dir = train_here(tmp_path, *SMALL, "--epochs", 2)
    row = read_csv(run_dir / "metrics.csv")[-1]
    data = load_dataset("digits", ".", sample_size=20)
    model = build_model("MLP", 10, (3, 8, 8), width=64, depth=2)
    model.load_state_dict(load(run_dir / "epoch_002.pth"))
    model.eval()
    losses, hits, logits = [], [], []
    with torch.no_grad():
        for image, label in zip(data.test.images, data.test.labels, strict=True):
            pixels = image[None].double() / 255
            mean, std = torch.tensor([[data.mean], [data.std]]).double().reshape(2, 1, 3, 1, 1)
            z = model(((pixels - mean) / std).float())[0][0].double()
            logits.append(z)
            y = label.item()
            signed = [(-v if k == y else v) for k, v in enumerate(z.tolist())]
            losses.append(sum(math.log1p(math.exp(v)) for v in signed))
            hits.append(z.argmax().item() == y)
    assert float(row["test_loss"]) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert float(row["test_top1"]) == pytest.approx(100 * sum(hits) / len(hits))
    uniform = compute_uniform_accuracy(torch.stack(logits), data.test.labels)[0]
    assert float(row["test_uniform"]) == pytest.approx(100 * uniform, abs=0.3)


def test_a_long_tail_is_shown_and_resumed(tmp_path, capsys):
    flags = [*SMALL, "--schedule", "constant", "--epochs", 1, "--imbalance_factor", 10]
    run_dir = train_here(tmp_path, *flags)
    sizes = [math.floor(20 * 10 ** (-k / 9)) for k in range(10)]
    printed = capsys.readouterr().out
    assert f"{sum(sizes)} training and 360 test images\n" in printed
    assert "\nthe largest class has 20 training images, the smallest 2\n" in printed
    config = json.loads((run_dir / "config.json").read_text())
    assert config["settings"]["imbalance_factor"] == 10
    assert config["data"]["class_sizes"] == sizes
    train_here(tmp_path, "--resume", "--epochs", 2)
    whole = train_here(tmp_path / "whole", *flags, "--epochs", 2)
    ours, expected = (load(path / "epoch_002.pth") for path in (run_dir, whole))
    assert all(torch.equal(ours[key], expected[key]) for key in expected)


def test_the_best_model_is_that_of_the_best_epoch(tmp_path):
    run_dir = train_here(tmp_path, *SMALL, "--epochs", 4, "--lr", 0.05)
    rows = read_csv(run_dir / "metrics.csv")
    best = max(rows, key=lambda row: float(row["test_top1"]))["epoch"]  # the first of equals
    expected = load(run_dir / f"epoch_{int(best):03d}.pth")
    found = load(run_dir / "best_model.pth")
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_epoch_save_step_keeps_the_last_epoch(tmp_path):
    run_dir = train_here(tmp_path, *SMALL, "--epochs", 5, "--epoch_save_step", 2)
    epochs = sorted(path.name for path in run_dir.glob("epoch_*.pth"))
    assert epochs == ["epoch_002.pth", "epoch_004.pth", "epoch_005.pth"]


SLOW = ("ResNet34", "ResNet50", "DenseNet161", "Swin")
LEARNING = [name for name in OWN_NETWORKS if name != "ResNet101"]  # it has ResNet50's blocks


@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=pytest.mark.slow if m in SLOW else ()) for m in LEARNING]
)
def test_models_learn(tmp_path, model):
    few = 4 if model == "DenseNet161" else 8
    flags = ["--sample_size", few, "--test_sample_size", 2, "--batch_size", 2 * few]
    flags += ["--model", model, "--epochs", 2, "--epoch_save_step", 2]
    lr = 0.005 if model.startswith("DenseNet") else 0.0008  # far from where one stalls or diverges
    flags += ["--optimizer", "AdamW", "--lr", lr, "--schedule", "constant"]
    rows = read_csv(train_here(tmp_path, *flags) / "metrics.csv")
    losses = [float(row["train_loss"]) for row in rows]
    assert losses[-1] < 0.98 * losses[0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_falls_with_every_optimizer(tmp_path, loss, optimizer):
    lr = 0.02 if optimizer == "SGD" else 0.002
    flags = ["--loss", loss, "--optimizer", optimizer, "--lr", lr, "--epochs", 3]
    rows = read_csv(train_here(tmp_path, *SMALL, *flags) / "metrics.csv")
    losses = [float(row["train_loss"]) for row in rows]
    assert losses[-1] < 0.9 * losses[0]


def test_the_fixed_etf_stays_fixed_while_the_bias_learns(tmp_path):
    run_dir = train_here(tmp_path, *SMALL, "--epochs", 2, "--fixed_etf")
    before, after = (load(run_dir / f"epoch_00{n}.pth") for n in (1, 2))
    gram = after["fc.weight"].double() @ after["fc.weight"].double().T
    expected = torch.full((10, 10), -1 / 9).double().fill_diagonal_(1)
    torch.testing.assert_close(gram, expected, atol=1e-6, rtol=0)
    assert torch.equal(before["fc.weight"], after["fc.weight"])
    assert not torch.equal(before["fc.bias"], after["fc.bias"])


def test_bias_settings_reach_the_classifier(tmp_path):
    flags = ["--bias_init_mode", 1, "--bias_init_mean", 5, "--lr", 1e-30, "--min_lr", 0]
    state = load(train_here(tmp_path, *SMALL, "--epochs", 1, *flags) / "epoch_001.pth")
    assert state["fc.bias"].tolist() == pytest.approx([5 + k for k in range(10)])


def test_sep_decay_is_one_step_of_problem_1(tmp_path):
    """One full-batch SGD step equals the gradient of (1) taken by autograd on the initial model."""
    decays = ["--weight_decay", 0.03, "--feature_decay_rate", 0.02, "--weight_decay_bias", 0.05]
    flags = [*SMALL, "--epochs", 1, "--schedule", "constant", "--sep_decay", *decays]
    flags += ["--batch_size", 200, "--bias_init_mean", 2]
    after = load(train_here(tmp_path, *flags) / "epoch_001.pth")

    torch.manual_seed(0)
    model = build_model("MLP", 10, (3, 8, 8), width=64, depth=2, bias_init_mean=2.0)
    data = load_dataset("digits", ".", sample_size=20)
    pixels = data.train.images.float() / 255
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (data.mean, data.std))
    logits, features = model((pixels - mean) / std)
    penalty = compute_decay(features, model.fc.weight, model.fc.bias_vector(), 0.03, 0.02, 0.05)
    (binary_cross_entropy(logits, data.train.labels) + penalty).backward()
    rate = 0.01 * 200 / 128
    for name, parameter in model.named_parameters():
        expected = parameter.detach() - rate * parameter.grad
        torch.testing.assert_close(after[name], expected, atol=1e-5, rtol=1e-4)


def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path):
    flags = [*SMALL, "--epochs", 1, "--augment", "DA1+DA2"]
    states = [
        load(train_here(tmp_path / str(i), *flags, "--seed", seed) / "epoch_001.pth")
        for i, seed in enumerate((1, 1, 2))
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["fc.weight"], states[2]["fc.weight"])


def test_a_diverged_run_stops_with_status_3_and_keeps_its_checkpoints(tmp_path, capsys):
    flags = [*SMALL, "--schedule", "constant"]
    run_dir = train_here(tmp_path, *flags, "--epochs", 1)
    state = load(run_dir / "last.pth")
    state["optimizer"]["state"][0]["momentum_buffer"].fill_(torch.inf)
    torch.save(state, run_dir / "last.pth")
    before = (run_dir / "last.pth").read_bytes()
    train_here(tmp_path, "--resume", "--epochs", 2, status=NOT_FINITE)
    printed = capsys.readouterr().out
    assert "the loss is not finite at epoch 2, step 2, learning rate 0.0025" in printed
    assert (run_dir / "last.pth").read_bytes() == before
    assert len(read_csv(run_dir / "metrics.csv")) == 1


def test_a_first_step_that_diverges(tmp_path, capsys):
    flags = ["--lr", 1e38, "--min_lr", 0]
    run_dir = train_here(tmp_path, *SMALL, *flags, status=NOT_FINITE)
    captured = capsys.readouterr()
    assert "the loss is not finite at epoch 1, step 2" in captured.out
    assert captured.err == ""
    assert not list(run_dir.glob("*.pth"))


def test_tensorboard_events_hold_the_metrics(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = train_here(tmp_path, *SMALL, "--epochs", 2, "--tensorboard")
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    written = [event.value for event in events.Scalars("test_top1")]
    rows = read_csv(run_dir / "metrics.csv")
    assert written == pytest.approx([float(row["test_top1"]) for row in rows])


@pytest.mark.slow
def test_without_cuda_the_cpu_is_named_in_one_line(tmp_path):
    """In a process of its own: nothing else is printed to stderr."""
    result = run("train.py", *SMALL, "--epochs", 1, "--save_dir", tmp_path, "--gpu_id", 0)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("no CUDA device found") == 1
    assert result.stderr == ""


def test_mistakes_end_in_one_line_and_leave_no_directory(tmp_path, capsys):
    absent = tmp_path / "nowhere"
    flags = ["--save_dir", tmp_path / "runs", "--dataset", "folder", "--data_dir", absent]
    assert str(absent / "train") in read_refusal(capsys, train.main, *flags)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sample_size", 5000], "--sample_size 5000"),
        (["--img_size", 16_384], "out of memory"),  # 1.5 TB
        (["--model", "ViT", "--patch_size", 3], "patch_size"),
        (["--model", "MLP", "--width", 8, "--fixed_etf"], "at least 9 features"),
    ],
)
def test_mistakes_found_with_the_data_at_hand(tmp_path, capsys, flags, words):
    train_here(tmp_path, *flags, status=2)
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("train.py: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_a_save_dir_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    train_here(tmp_path / "file", *SMALL, status=2)
    assert "is not a directory" in capsys.readouterr().err


def test_an_existing_run_is_refused_then_replaced(tmp_path):
    flags = [*SMALL, "--epochs", 1]
    run_dir = train_here(tmp_path, *flags)
    before = (run_dir / "last.pth").stat().st_mtime_ns
    train_here(tmp_path, *flags, status=2)
    assert (run_dir / "last.pth").stat().st_mtime_ns == before
    train_here(tmp_path, *flags, "--force")
    assert (run_dir / "last.pth").stat().st_mtime_ns > before


@pytest.mark.parametrize(("rate", "warned"), [("0.01", True), ("0.001", False)])
def test_a_rate_at_which_a_network_stayed_at_chance_is_warned_of(tmp_path, capsys, rate, warned):
    flags = ["--model", "ViT", "--width", 16, "--depth", 1, "--sample_size", 2, "--lr", rate]
    train_here(tmp_path, "--epochs", 1, "--optimizer", "AdamW", *flags)
    said = capsys.readouterr().out
    assert ("--lr 0.0003 trained it" in said) is warned
    if warned:
        train_here(tmp_path, "--resume")
        assert "--lr 0.0003" not in capsys.readouterr().out
