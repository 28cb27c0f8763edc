"""The command line: defaults, refusals, and that nothing is passed over in silence."""

import subprocess
import sys

import pytest

from args import Settings, build_parser
from rundir.resuming import read_settings
from tests.helpers import ROOT, assert_mistake, run
from utils.errors import UserError


def refused(capsys, *flags: str) -> str:
    with pytest.raises(SystemExit) as leaving:
        read_settings(list(flags))
    assert leaving.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_defaults_train_resnet18_on_digits_with_bce():
    settings = read_settings([])
    assert (settings.model, settings.dataset, settings.loss) == ("ResNet18", "digits", "BCE")
    assert (settings.optimizer, settings.epochs, settings.lr) == ("SGD", 100, 0.01)
    assert (settings.schedule, settings.min_lr, settings.weight_decay) == ("cosine", 1e-5, 5e-4)


def test_names_are_case_insensitive_and_resolved():
    settings = read_settings(
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
def test_the_decay_of_the_bias_follows_the_mode(flags, expected):
    assert read_settings(flags).weight_decay_bias == expected


def test_milestones_default_to_half_and_three_quarters():
    settings = read_settings(["--schedule", "step", "--epochs", "40"])
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
    (["--lr", "nan"], "finite"),
    (["--lr", "x"], "not a number"),
    (["--smoothing", "1"], "below 1"),
    (["--smoothing", "-0.1"], "at least 0"),
    (["--imbalance_factor", "0.5"], "at least 1"),
    (["--bias_init_mean", "inf"], "finite"),
    (["--bias_init_mode", "8"], "at most 7"),
    (["--batch_size", "1"], "at least 2"),
    (["--epochs", "0"], "at least 1"),
    (["--gpu_id", "-2"], "at least -1"),
    (["--gpu_id", "a"], "whole number"),
    (["--model", "ResNet19"], "did you mean ResNet"),
    (["--dataset", "svhn"], "use one of mnist, cifar10"),
    (["--loss", "hinge"], "BCE"),
    (["--optimizer", "Adam"], "AdamW"),
    (["--augment", "DA2"], "DA1+DA2"),
    (["--run_name", "a/b"], "plain directory name"),
    (["--run_name", ""], "plain directory name"),
    (["--epochs", "3", "--epochs_warmup", "3"], "below --epochs"),
    (["--lr", "1e-6"], "--min_lr"),
    (["--schedule", "step", "--step_milestones", "5", "3"], "must rise"),
    (["--schedule", "step", "--step_milestones", "100"], "below --epochs"),
    (["--bias_init_mean", "1e39"], "at most 3e+38"),
    (["--seed", "99999999999999999999"], "at most 2147483647"),
    (["--run_name", "two\nlines"], "plain directory name"),
    (["--run_name", "x" * 300], "at most 200 bytes"),
    (["--weight", "0.1"], "--weight"),  # an abbreviation of several
    (["--optim", "SGD"], "did you mean --optimizer"),  # an abbreviation of one
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
    settings = read_settings(["--batch_size", "256", "--lr", "0.1"])
    assert settings.scaled_lr == 0.2


# Run as a script, and print whether torch was imported and the processor seconds that it took.
TIMED = (
    "import runpy, sys, time; sys.argv = sys.argv[1:]; sys.path[0] = '.'\n"
    "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    "finally: print('torch' in sys.modules, time.process_time(), file=sys.stderr)"
)
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py") if path.name not in ("args.py",))


@pytest.mark.parametrize("flag", ["--help", "--no_such_flag"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_mistakes_are_answered_at_once_and_without_torch(script, flag):
    seconds = []
    for _ in range(3):
        command = [sys.executable, "-c", TIMED, script, flag]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert answer.returncode == (0 if flag == "--help" else 2), answer.stderr
        imported, taken = answer.stderr.split()[-2:]
        assert imported == "False"
        seconds.append(float(taken))
        if seconds[-1] < 0.3:
            return
    pytest.fail(f"{script} {flag} took {min(seconds):.2f} s")


def test_help_begins_with_what_people_set_most():
    flags = [action.dest for action in build_parser()._actions if action.dest != "help"]
    assert flags[:7] == ["model", "dataset", "loss", "optimizer", "lr", "batch_size", "epochs"]


def test_every_flag_shows_its_default_in_two_lines():
    help_text = run("train.py", "--help").stdout
    entries = help_text.split("\n  --")[1:]
    assert len(entries) == len(Settings.names())
    for entry in entries:
        lines = entry.split("\n\n")[0].splitlines()
        assert "(default: " in " ".join(line.strip() for line in lines), entry
        # A flag whose name is too long for its column has a line of its own.
        assert len([line for line in lines if " " * 4 in line or len(lines) == 1]) <= 2, entry


def test_settings_are_those_that_a_file_gives_back():
    settings = read_settings(["--model", "ViT", "--epochs", "7", "--schedule", "step"])
    assert Settings.from_json(settings.values()).values() == settings.values()


def test_settings_of_before_a_setting_came_are_completed():
    stored = read_settings(["--precision", "fp32"]).values()
    earlier = {key: value for key, value in stored.items() if key != "imbalance_factor"}
    assert Settings.from_json(earlier).values() == stored
    del stored["lr"]
    with pytest.raises(UserError, match="no 'lr'"):
        Settings.from_json(stored)


def test_what_a_user_gave_stays_known():
    settings = read_settings(["--lr", "0.01", "--seed", "3"])  # 0.01 is the default
    assert settings.model_fields_set == {"lr", "seed"}
    assert settings.replace(precision="bf16").model_fields_set == {"lr", "seed"}
    assert settings.distinct() == {"seed": 3}


def test_every_reason_for_no_effect_is_tested():
    """One of the lines above for each setting that can be without effect."""
    refused = {flags[-2].lstrip("-") for flags in WITHOUT_EFFECT}
    entries = Settings.entries()
    conditional = {n for n, e in entries.items() if e.why_idle is not entries["epochs"].why_idle}
    assert conditional <= refused
