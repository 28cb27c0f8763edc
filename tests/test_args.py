"""The command line: defaults, refusals, and that nothing is passed over in silence."""

import subprocess
import sys
import time

import pytest

import args as arguments
from args import DATASETS, LOSSES, parse_train_args
from tests.helpers import ROOT, assert_mistake, run


def refused(capsys, *flags: str) -> str:
    with pytest.raises(SystemExit) as leaving:
        parse_train_args(list(flags))
    assert leaving.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_defaults_train_resnet18_on_digits_with_bce():
    settings = parse_train_args([])
    assert (settings.model, settings.dataset, settings.loss) == ("ResNet18", "digits", "BCE")
    assert (settings.optimizer, settings.epochs, settings.lr) == ("SGD", 100, 0.01)
    assert (settings.schedule, settings.min_lr, settings.weight_decay) == ("cosine", 1e-5, 5e-4)


def test_names_are_case_insensitive_and_resolved():
    settings = parse_train_args(
        ["--model", "resnet50", "--loss", "ce", "--optimizer", "adamw", "--augment", "da1+da2"]
    )
    assert (settings.model, settings.loss) == ("ResNet50", "CE")
    assert (settings.optimizer, settings.augment) == ("AdamW", "DA1+DA2")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], 5e-4),
        (["--weight_decay", "0.1"], 0.1),
        (["--sep_decay"], 0.0),
        (["--sep_decay", "--weight_decay_bias", "0.5"], 0.5),
        (["--weight_decay_bias", "0"], 0.0),
    ],
)
def test_bias_decay_follows_the_mode(flags, expected):
    assert parse_train_args(flags).weight_decay_bias == expected


def test_milestones_default_to_half_and_three_quarters():
    settings = parse_train_args(["--schedule", "step", "--epochs", "40"])
    assert settings.step_milestones == [20, 30]


WITHOUT_EFFECT = [
    ["--patch_size", "2"],
    ["--width", "64"],
    ["--depth", "3"],
    ["--model", "Swin", "--depth", "3"],
    ["--model", "MLP", "--patch_size", "2"],
    ["--feature_decay_rate", "0.1"],
    ["--bias_mode", "none", "--bias_init_mean", "3"],
    ["--bias_mode", "none", "--bias_init_mode", "0"],
    ["--bias_mode", "none", "--weight_decay_bias", "0"],
    ["--sep_decay", "--fixed_etf", "--weight_decay", "0.1"],
    ["--schedule", "step", "--min_lr", "0"],
    ["--step_gamma", "0.5"],
    ["--schedule", "constant", "--step_milestones", "3"],
    ["--num_workers", "2"],
    ["--data_dir", "elsewhere"],
    ["--force", ""],
]


@pytest.mark.parametrize("flags", WITHOUT_EFFECT, ids=" ".join)
def test_a_flag_without_effect_is_refused(capsys, flags):
    line = refused(capsys, *filter(None, flags))
    assert "has no effect here" in line
    assert flags[-2] in line


WRONG_VALUES = [
    (["--lr", "0"], "above 0"),
    (["--lr", "nan"], "within"),
    (["--lr", "x"], "within"),
    (["--smoothing", "1"], "below 1"),
    (["--smoothing", "-0.1"], "at least 0"),
    (["--imbalance_factor", "0.5"], "at least 1"),
    (["--bias_init_mean", "inf"], "within"),
    (["--bias_init_mode", "8"], "at most 7"),
    (["--batch_size", "1"], "from 2 on"),
    (["--epochs", "0"], "from 1 on"),
    (["--gpu_id", "-2"], "from -1 on"),
    (["--gpu_id", "a"], "from -1 on"),
    (["--model", "ResNet19"], "ResNet18"),
    (["--dataset", "svhn"], "cifar100"),
    (["--loss", "hinge"], "BCE"),
    (["--optimizer", "Adam"], "AdamW"),
    (["--augment", "DA2"], "DA1+DA2"),
    (["--run_name", "a/b"], "plain directory name"),
    (["--run_name", ""], "plain directory name"),
    (["--epochs", "3", "--epochs_warmup", "3"], "below --epochs"),
    (["--lr", "1e-6"], "--min_lr"),
    (["--schedule", "step", "--step_milestones", "5", "3"], "must rise"),
    (["--schedule", "step", "--step_milestones", "100"], "below --epochs"),
    (["--bias_init_mean", "1e39"], "within"),
    (["--seed", "99999999999999999999"], "from 0 on"),
    (["--run_name", "two\nlines"], "plain directory name"),
    (["--run_name", "x" * 300], "at most 200 bytes"),
    (["--weight", "0.1"], "--weight"),  # an abbreviation of several
    (["--optim", "SGD"], "--optim"),  # an abbreviation of one
    (["--nonsense", "1"], "--nonsense"),
    (["--resume", "--run_name", "absent", "--save_dir", "/nonexistent"], "no run to resume"),
]


@pytest.mark.parametrize(("flags", "words"), WRONG_VALUES, ids=lambda v: " ".join(v))
def test_wrong_values_name_what_is_allowed(capsys, flags, words):
    if "--resume" in flags:  # decided with the run directories at hand
        assert_mistake(run("train.py", *flags), words)
        return
    assert words in refused(capsys, *flags)


def test_the_learning_rate_is_scaled_by_the_batch_size():
    settings = parse_train_args(["--batch_size", "256", "--lr", "0.1"])
    assert arguments.scaled_learning_rate(vars(settings)) == 0.2


def test_help_and_mistakes_need_no_torch():
    code = "import sys, args; args.train_parser(); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout.strip() == "False"
    begun = time.monotonic()
    help_text = run("train.py", "--help")
    assert time.monotonic() - begun < 1
    assert help_text.returncode == 0
    for group in ("run:", "data:", "classifier", "model:", "optimisation:"):
        assert group in help_text.stdout
    assert_mistake(run("train.py", "--optim", "SGD"), "--optim")


def test_every_flag_tells_its_default():
    for action in arguments.train_parser()._actions:
        assert action.dest == "help" or "(default: " in action.help, action.dest


def test_names_agree_with_the_modules_that_implement_them():
    from input_pipeline import augmentation as augment
    from input_pipeline import load as datasets
    from models.linear import BIAS_MODES
    from objective import losses

    assert datasets.DATASETS == DATASETS
    assert tuple(losses.LOSSES) == LOSSES
    assert augment.AUGMENTS == arguments.AUGMENTS
    assert BIAS_MODES == arguments.BIAS_MODES
