"""The command line: defaults, refusals, and that nothing is passed over in silence."""

import importlib
import json
import subprocess
import sys
import textwrap

import pytest
from pydantic import ValidationError

from args import Settings, build_parser, complete, parse_settings
from rundir.resuming import read_settings
from tests.helpers import ROOT, read_refusal
from utils.cli import HELP_COLUMN, HELP_WIDTH
from utils.errors import UserError


def refused(capsys, *flags: str) -> str:
    return read_refusal(capsys, read_settings, *flags)


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


def test_workers_default_to_the_usable_cores_less_one(monkeypatch):
    for cores, workers in ((1, 1), (2, 1), (64, 63)):
        monkeypatch.setattr("utils.resources.count_usable_cores", lambda cores=cores: cores)
        assert read_settings(["--dataset", "folder"]).num_workers == workers
        assert read_settings(["--dataset", "folder", "--num_workers", "0"]).num_workers == 0
        assert read_settings([]).num_workers == 0


def test_milestones_default_to_half_and_three_quarters():
    settings = read_settings(["--schedule", "step", "--epochs", "40"])
    assert settings.step_milestones == [20, 30]


WITHOUT_EFFECT = [
    ["--model", "ViT", "--sync_bn"],
    ["--model", "ViT", "--no_sync_bn"],
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
    ["--img_size", "16", "--jpeg_draft", ""],
    ["--dataset", "folder", "--data_dir", "x", "--jpeg_draft", ""],
    ["--dataset", "folder", "--data_dir", "x", "--img_size", "16", "--resize_first", ""],
    ["--img_size", "16", "--cache_dir", "x"],
    ["--dataset", "folder", "--data_dir", "x", "--cache_dir", "x"],
    ["--skip_corrupt", ""],
    ["--force_listing", ""],
    ["--data_dir", "elsewhere"],
    ["--force", ""],
    ["--optimizer", "AdamW", "--momentum", "0.9"],
    ["--betas", "0.9", "0.99"],
    ["--wandb_artifacts", ""],
    ["--pretrained", ""],
    ["--model", "timm:x", "--weights", "w.pth"],
    ["--model", "timm:x", "--init_from", "r", "--pretrained", ""],
    ["--init_backbone", ""],
    ["--init_bias_added", ""],
    ["--init_from", "r", "--init_backbone", "--init_bias_added", ""],
    ["--init_from", "r", "--bias_mode", "none", "--init_bias_added", ""],
    ["--init_from", "r", "--bias_init_mean", "3"],
    ["--init_from", "r", "--bias_init_mode", "1"],
    ["--init_from", "r", "--bias_init_mean", "prior"],
    ["--bias_init_mean", "prior", "--bias_init_mode", "4"],
    ["--loss", "CE", "--bias_mode", "unified", "--bias_init_mean", "prior"],
]


def name_last(flags):
    return [word for word in flags if word.startswith("--")][-1]


@pytest.mark.parametrize("flags", WITHOUT_EFFECT, ids=" ".join)
def test_a_flag_without_effect_is_refused(capsys, flags):
    line = refused(capsys, *filter(None, flags))
    assert "has no effect here" in line
    assert name_last(flags) in line


WRONG_VALUES = [
    (["--lr", "0"], "above 0"),
    (["--lr", "nan"], "finite"),
    (["--lr", "x"], "not a number"),
    (["--smoothing", "1"], "below 1"),
    (["--smoothing", "-0.1"], "at least 0"),
    (["--imbalance_factor", "0.5"], "at least 1"),
    (["--bias_init_mean", "inf"], "finite"),
    (["--bias_init_mean", "prio"], "'prio' is not a number (did you mean prior?)"),
    (["--bias_init_mean", "predicted"], "without --sep_decay"),
    (["--bias_init_mean", "predicted", "--sep_decay", "--weight_decay", "0"], "_decay is 0"),
    (["--bias_init_mean", "predicted", "--sep_decay", "--fixed_etf"], "use prior or a number"),
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
    (["--augment", "RRC"], "digits does not consist of image files; use DA1"),
    (["--augment", "RRC", "--dataset", "folder"], "needs --img_size"),
    (["--run_name", "a/b"], "plain directory name"),
    (["--run_name", ""], "plain directory name"),
    (["--wandb", "team/project"], "no name of a project"),
    (["--wandb", ""], "no name of a project"),
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
    (["--lr", "-1e-3"], "above 0"),
    (["--bias_init_mean", "-inf"], "finite"),
    (["--model", "ViT", "--patch_size", "0"], "at least 1"),
    (["--schedule", "step", "--step_milestones", "3", "x"], "'x' is not a whole number"),
    (["--compile=yes"], "--compile: takes no value"),
    (["--epochs", ""], "'' is not a whole number"),
    (["--lr", "7" * 500], "…"),
    (["--batch-size", "3"], "did you mean --batch_size"),
    (["--dataset", "cifar-10"], "did you mean cifar10"),
    (["--loss", "bec"], "did you mean BCE"),
    (["--model", "timm:a/b"], "timm:NAME"),
    (["--freeze_backbone", "--fixed_etf", "--bias_mode", "none"], "nothing to train"),
    (["--graphs", "yes"], "use one of auto, on, off"),
    (["--momentum", "1"], "below 1"),
    (["--optimizer", "AdamW", "--betas", "0.9"], "2 or more values"),
    (["--optimizer", "AdamW", "--betas", "0.9", "0.9", "0.9"], "2 or fewer values"),
    (["--optimizer", "AdamW", "--betas", "0.9", "1"], "below 1"),
    (["--clip_grad_norm", "0"], "above 0"),
    (["--ema", "0"], "above 0"),
    (["--ema", "1"], "below 1"),
    (["--accumulate", "0"], "at least 1"),
    (["--batch_size", "7", "--accumulate", "4"], "--batch_size of at least 8, not 7"),
    (["--keep_checkpoints", "0"], "'0' is not all, best or a whole number from 1 on"),
    (["--keep_checkpoints", "last"], "'last' is not all, best or a whole number from 1 on"),
    (["--keep_checkpoints", "-1"], "'-1' is not all"),
    (["--nc_every", "-1"], "at least 0"),
]


@pytest.mark.parametrize(("flags", "words"), WRONG_VALUES, ids=lambda v: " ".join(v))
def test_wrong_values_name_what_is_allowed(capsys, flags, words):
    assert words in refused(capsys, *flags)


def test_a_negative_number_is_a_value_however_it_is_written():
    for text in ("-5", "-.5", "-1e-3", "-1E3"):
        assert read_settings(["--bias_init_mean", text]).bias_init_mean == float(text)


def test_the_learning_rate_is_scaled_by_the_batch_size():
    settings = read_settings(["--batch_size", "256", "--lr", "0.1"])
    assert settings.scaled_lr == 0.2


# Run as a script, and print whether torch was imported and the processor seconds that it took.
TIMED = (
    "import runpy, sys, time; sys.argv = sys.argv[1:]; sys.path[0] = '.'\n"
    "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    "finally: print('torch' in sys.modules, time.process_time(), file=sys.stderr)"
)


@pytest.mark.parametrize("flags", [["--epochs", "0"], ["--width", "3"]])
def test_a_refused_value_is_answered_at_once_and_without_torch(flags):
    """As are --help and unknown flags of all scripts, see test_structure.py."""
    seconds = []
    for _ in range(3):
        command = [sys.executable, "-c", TIMED, "train.py", *flags]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert answer.returncode == 2, answer.stderr
        imported, taken = answer.stderr.split()[-2:]
        assert imported == "False"
        seconds.append(float(taken))
        if seconds[-1] < 0.3:
            return
    pytest.fail(f"{flags} took {min(seconds):.2f} s")


PARSERS = ["args", "eval_nc", "eval_scores", "eval_tsne", "verify_theory", "demo"]
PARSERS += [
    f"benchmarks.{name}" for name in ("train_speed", "eval_speed", "nc_speed", "imagenet_size")
]
PARSERS += [
    f"benchmarks.{name}" for name in ("precision_agreement", "score_memory", "decode_speed")
]
PARSERS += ["reproduction.flags"]


@pytest.mark.parametrize("module", PARSERS)
def test_every_help_text_fits_on_two_lines_and_shows_the_default(module):
    for action in importlib.import_module(module).build_parser()._actions:
        if action.dest == "help":
            continue
        assert action.required or "(default: " in action.help, action.dest
        lines = textwrap.wrap(action.help, HELP_WIDTH - HELP_COLUMN)
        assert len(lines) <= 2, (action.dest, lines)


def test_help_begins_with_what_people_set_most():
    flags = [action.dest for action in build_parser()._actions if action.dest != "help"]
    assert flags[:7] == ["model", "dataset", "loss", "optimizer", "lr", "batch_size", "epochs"]


def test_every_setting_has_a_flag():
    flags = [action.dest for action in build_parser()._actions]
    assert list(dict.fromkeys(flags)) == ["help", *Settings.names()]
    assert len(flags) - len(set(flags)) == 1  # --no_sync_bn


GIVEN = [
    [],
    ["--model", "ViT", "--patch_size", "2", "--width", "48", "--depth", "3"],
    ["--schedule", "step", "--epochs", "7", "--step_milestones", "2", "5", "--lr", "1"],
    ["--dataset", "folder", "--data_dir", "x", "--num_workers", "0", "--img_size", "64"],
    ["--dataset", "folder", "--data_dir", "x", "--jpeg_draft", "--img_size", "64"],
    ["--dataset", "folder", "--data_dir", "x", "--skip_corrupt", "--force_listing"],
    ["--sep_decay", "--bias_init_mean", "Predicted", "--bias_init_mode", "0"],
    ["--sep_decay", "--bias_init_mean", "-3", "--imbalance_factor", "50", "--precision", "bf16"],
]


@pytest.mark.parametrize("flags", GIVEN, ids=" ".join)
def test_settings_are_those_that_config_json_gives_back(flags):
    settings = read_settings(flags)
    stored = json.loads(json.dumps(settings.values()))
    assert Settings.from_json(stored).values() == settings.values()


# What runs computed from before there was a flag for it.
BEFORE = {"precision": "fp32", "compile": False, "graphs": "off", "deterministic": False}
BEFORE |= {"imbalance_factor": 1.0, "jpeg_draft": False, "keep_checkpoints": "all", "nc_every": 0}
BEFORE |= {"momentum": 0.9, "betas": [0.9, 0.999], "clip_grad_norm": None, "accumulate": 1}
BEFORE |= {"ema": None, "skip_corrupt": False}


def test_settings_of_before_a_setting_came_are_completed():
    stored = read_settings([]).values()
    for name, value in BEFORE.items():
        earlier = {key: value for key, value in stored.items() if key != name}
        assert Settings.from_json(earlier).values() == {**stored, name: value}
        assert Settings.add_before(earlier) == {**stored, name: value}
    earlier = {key: value for key, value in stored.items() if key not in BEFORE}
    assert Settings.from_json(earlier).values() == {**stored, **BEFORE}


@pytest.mark.parametrize("name", ["model", "lr", "epochs", "weight_decay"])
def test_a_setting_that_every_run_had_must_be_there(name):
    stored = read_settings([]).values()
    del stored[name]
    with pytest.raises(UserError, match=f"no '{name}'"):
        Settings.from_json(stored)


def test_what_a_user_gave_stays_known():
    given = ["--lr", "0.01", "--seed", "3", "--sep_decay"]  # 0.01 is the default
    settings = parse_settings(given)
    assert settings.model_fields_set == {"lr", "seed", "sep_decay"}
    completed = complete(settings)
    assert completed.weight_decay_bias == 0  # filled in
    assert completed.model_fields_set == settings.model_fields_set
    assert completed.replace(precision="bf16").model_fields_set == settings.model_fields_set
    assert completed.get_distinct() == {"seed": 3, "sep_decay": True}
    over = settings.merge_over(read_settings(["--epochs", "7", "--seed", "1"]))
    assert (over.epochs, over.seed) == (7, 3)
    assert over.model_fields_set == settings.model_fields_set


def test_settings_cannot_be_changed_or_misspelt():
    with pytest.raises(ValidationError):
        read_settings([]).epochs = 3
    with pytest.raises(UserError, match="epoch"):
        Settings.from_flags({"epoch": 3})


def test_every_reason_for_no_effect_is_tested():
    """One of the lines above for each setting that can be without effect."""
    refused = {name_last(flags).lstrip("-") for flags in WITHOUT_EFFECT}
    entries = Settings.entries()
    conditional = {n for n, e in entries.items() if e.why_idle is not entries["epochs"].why_idle}
    assert conditional <= refused


def test_stored_settings_are_not_a_users():
    stored = Settings.from_json(read_settings(["--model", "MLP", "--width", "8"]).values())
    assert stored.model_fields_set == set()
    assert complete(stored).values() == stored.values()
