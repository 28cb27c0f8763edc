"""Which run directory a command means, and what may change on a resume."""

import os
import re
import threading

import pytest
import torch

from rundir import directory
from rundir.config import read_config
from rundir.directory import Run, choose_run, format_run_name
from rundir.resuming import check_resumable, list_changes, read_settings
from rundir.weights import load
from utils.errors import UserError
from utils.files import read_json, write_json


def settings_for(tmp_path, *flags):
    return read_settings(["--save_dir", str(tmp_path), *flags])


def make_run(settings, epochs_done=0):
    run = choose_run(settings)
    run.open()
    run.write_config(settings, {"num_classes": 10}, "CPU")
    rows = "".join(f"{epoch}\n" for epoch in range(1, epochs_done + 1))
    (run / "metrics.csv").write_text("epoch\n" + rows)
    run.close()
    return run


def test_the_default_name_shows_what_differs(tmp_path):
    flags = ["--lr", "0.1", "--sep_decay", "--img_size", "16", "--loss", "BCE", "--seed", "0"]
    settings = settings_for(tmp_path, *flags)
    name = format_run_name(settings)
    assert re.fullmatch(r"ResNet18_digits_BCE_SGD_lr0\.1_img_size16_sep_decay_[\d-]+", name)


def test_unnamed_runs_of_the_same_second_do_not_meet(tmp_path, monkeypatch):
    """All have decided on a name before the first directory is made."""
    monkeypatch.setattr(directory, "format_run_name", lambda settings: "same")
    runs = [choose_run(settings_for(tmp_path)) for _ in range(3)]
    for run in runs:
        with run:
            assert run.log is not None
    assert [run.name for run in runs] == ["same", "same-2", "same-3"]


def test_an_existing_run_is_refused_or_replaced(tmp_path):
    settings = settings_for(tmp_path, "--run_name", "a")
    make_run(settings)
    (tmp_path / "a" / "epoch_001.pth").touch()
    with pytest.raises(UserError, match="exists already"):
        choose_run(settings)
    forced = settings_for(tmp_path, "--run_name", "a", "--force")
    make_run(forced)
    assert not (tmp_path / "a" / "epoch_001.pth").exists()


def test_force_does_not_remove_what_is_no_run(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not a run directory"):
        choose_run(settings_for(tmp_path, "--run_name", "a", "--force"))
    assert (tmp_path / "a" / "thesis.tex").exists()


def test_what_a_killed_start_left_is_no_obstacle(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train_log.txt").touch()
    (tmp_path / "a" / ".config.json.tmp").touch()
    (tmp_path / "a" / ".config.json.0123456789abcdef.tmp").touch()
    (tmp_path / "a" / ".train.lock").touch()
    assert not choose_run(settings_for(tmp_path, "--run_name", "a")).resumed


def test_a_run_in_training_is_not_resumed_or_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "PATIENCE", 0.2)
    settings = settings_for(tmp_path, "--run_name", "a")
    make_run(settings)
    resumed = settings_for(tmp_path, "--run_name", "a", "--resume")
    with Run(tmp_path / "a", True, resumed):
        for others, resumes in ((resumed, True), (settings, False)):
            with pytest.raises(UserError, match="being trained by another process"):
                Run(tmp_path / "a", resumes, others).open()
    with Run(tmp_path / "a", True, resumed):
        pass
    assert (tmp_path / "a" / "config.json").exists()


def test_a_resume_waits_for_a_trainer_that_saves(tmp_path, capsys):
    make_run(settings_for(tmp_path, "--run_name", "a"))
    resumed = settings_for(tmp_path, "--run_name", "a", "--resume")
    holder = Run(tmp_path / "a", True, resumed)
    holder.open()
    threading.Timer(0.3, holder.close).start()
    with Run(tmp_path / "a", True, resumed):
        assert "waiting for another process" in capsys.readouterr().err


def test_what_was_decided_before_the_lock_is_decided_again_under_it(tmp_path):
    """Two starts of one name: the one whose data loads for longer must not remove the other."""
    settings = settings_for(tmp_path, "--run_name", "a")
    slow = choose_run(settings)
    (make_run(settings) / "epoch_001.pth").touch()
    with pytest.raises(UserError, match="exists already"):
        slow.open()
    assert (tmp_path / "a" / "epoch_001.pth").exists()
    either = settings_for(tmp_path, "--run_name", "b", "--resume", "--force")
    slow = choose_run(either)
    make_run(either)
    with pytest.raises(UserError, match="the same command resumes its run"):
        slow.open()
    resumed = choose_run(settings_for(tmp_path, "--run_name", "b", "--resume"))
    make_run(settings_for(tmp_path, "--run_name", "b", "--force", "--seed", "1"))
    with pytest.raises(UserError, match="was replaced by another run"):
        resumed.open()


def test_resume_without_a_name_finds_the_newest_unfinished_run_of_the_configuration(tmp_path):
    epochs = ["--epochs", "3"]
    for name, flags, done in [
        ("old", [], 1),
        ("newest", [], 2),
        ("finished", [], 3),
        ("other", ["--seed", "1"], 1),
    ]:
        run = make_run(settings_for(tmp_path, "--run_name", name, *epochs, *flags), done)
        moment = 10**18 - (name == "old")
        os.utime(run / "config.json", ns=(moment, moment))
    found = choose_run(settings_for(tmp_path, "--resume", *epochs))
    assert (found.name, found.resumed) == ("newest", True)
    with pytest.raises(UserError, match="no unfinished run of this configuration"):
        choose_run(settings_for(tmp_path, "--resume", "--epochs", "4"))


def test_resume_with_force_starts_where_nothing_is(tmp_path):
    with pytest.raises(UserError, match="no run to resume"):
        choose_run(settings_for(tmp_path, "--resume", "--run_name", "a"))
    settings = settings_for(tmp_path, "--resume", "--force", "--run_name", "a")
    assert not choose_run(settings).resumed
    make_run(settings)
    assert choose_run(settings).resumed


def test_a_resumed_run_takes_its_own_settings(tmp_path):
    make_run(settings_for(tmp_path, "--run_name", "a", "--model", "ViT", "--patch_size", "4"))
    settings = settings_for(tmp_path, "--resume", "--run_name", "a")
    assert (settings.model, settings.patch_size) == ("ViT", 4)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lr", "0.1"], "--lr 0.01, not 0.1"),
        (["--loss", "CE"], "--loss BCE, not CE"),
        (["--epoch_save_step", "2"], "--epoch_save_step"),
        (["--epochs", "101"], "cosine"),
        (["--epochs", "99"], "cosine"),
    ],
)
def test_a_changed_setting_is_refused(tmp_path, flags, words):
    settings = settings_for(tmp_path, "--run_name", "a")
    run = make_run(settings)
    given = settings_for(tmp_path, *flags).values([flags[0].lstrip("-")])
    with pytest.raises(UserError, match=words):
        check_resumable(run.directory, read_config(run.directory).settings, given)


def test_more_epochs_are_accepted_by_schedules_that_allow_them(tmp_path):
    stored = settings_for(tmp_path, "--schedule", "constant", "--epochs", "5")
    check_resumable(tmp_path, stored, {"epochs": 9})
    with pytest.raises(UserError, match="extended, not shortened to 4"):
        check_resumable(tmp_path, stored, {"epochs": 4})


def test_where_a_run_is_computed_is_no_change(tmp_path):
    stored = settings_for(tmp_path)
    asked = {**stored.values(), "gpu_id": 3, "save_dir": "elsewhere", "num_workers": 7}
    assert list_changes(stored, asked) == []
    assert list_changes(stored, {**asked, "seed": 5}) == ["seed"]


def test_a_config_of_before_a_setting_came_is_completed(tmp_path):
    settings = settings_for(tmp_path, "--run_name", "a")
    run = make_run(settings)
    content = read_json(run / "config.json")
    whole = read_config(run.directory).settings
    del content["settings"]["imbalance_factor"]
    write_json(run / "config.json", content)
    assert read_config(run.directory).settings.values() == whole.values()
    assert choose_run(settings_for(tmp_path, "--resume")).name == "a"
    resumed = settings_for(tmp_path, "--resume", "--run_name", "a")
    assert resumed.imbalance_factor == 1
    with pytest.raises(UserError, match="no unfinished run of this configuration"):
        choose_run(settings_for(tmp_path, "--resume", "--imbalance_factor", "2"))


def test_the_imbalance_factor_shapes_what_is_learned(tmp_path):
    settings = settings_for(tmp_path, "--run_name", "a", "--imbalance_factor", "50")
    run = make_run(settings)
    assert "imbalance_factor50" in format_run_name(settings)
    assert settings.get_shaping()["imbalance_factor"] == 50
    assert settings_for(tmp_path, "--resume", "--run_name", "a").imbalance_factor == 50
    with pytest.raises(UserError, match=r"--imbalance_factor 50\.0, not 100\.0"):
        check_resumable(run.directory, settings, {"imbalance_factor": 100.0})


@pytest.mark.parametrize("content", ["", "[]", '{"settings": {}}', '{"settings": 3, "data": {}}'])
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        read_config(tmp_path)


DAMAGED = [
    ("lr", None, "lr: None is not a number"),
    ("imbalance_factor", 0.5, "at least 1"),
    ("model", "Foo", "unknown model 'Foo'"),
    ("epochs", "x", "'x' is not a whole number"),
    ("epochs", True, "True is not a whole number"),
    ("keep_checkpoints", 0, "0 is not all, best or a whole number"),
    ("keep_checkpoints", "some", "'some' is not all, best or a whole number"),
    ("seed", [1, 2], "is not a whole number"),
    ("step_milestones", ["a"], "'a' is not a whole number"),
]


@pytest.mark.parametrize(("key", "value", "words"), DAMAGED)
def test_an_edited_config_is_checked_like_flags(tmp_path, capsys, key, value, words):
    run = make_run(settings_for(tmp_path, "--run_name", "a", "--bias_init_mean", "-2"))
    assert settings_for(tmp_path, "--resume", "--run_name", "a").bias_init_mean == -2
    content = read_json(run / "config.json")
    content["settings"][key] = value
    write_json(run / "config.json", content)
    with pytest.raises(SystemExit) as leaving:
        settings_for(tmp_path, "--resume", "--run_name", "a")
    error = capsys.readouterr().err
    assert leaving.value.code == 2
    assert "config.json is damaged" in error
    assert words in error


def test_settings_of_a_later_version_are_passed_over(tmp_path):
    run = make_run(settings_for(tmp_path, "--run_name", "a"))
    content = read_json(run / "config.json")
    content["settings"]["of_a_later_version"] = 1
    write_json(run / "config.json", content)
    assert read_config(run.directory).settings.model == "ResNet18"


def test_a_save_dir_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    for save_dir in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(UserError, match="is not a directory"):
            choose_run(settings_for(save_dir))


PRUNED = [
    ("all", 3, [1, 2, 3, 4]),
    ("2", 3, [3, 4]),
    ("1", 3, [4]),
    ("9", 3, [1, 2, 3, 4]),
    ("best", 3, []),
    ("1", 2, [2, 4]),  # best_model.pth holds epoch 3 and not yet epoch 2
    ("best", 2, [2]),
]


@pytest.mark.parametrize(("keep", "best", "kept"), PRUNED)
def test_older_checkpoints_go_and_the_best_weights_stay(tmp_path, keep, best, kept):
    settings = settings_for(tmp_path, "--run_name", "a", "--keep_checkpoints", keep)
    run = make_run(settings)
    for epoch in range(1, 5):
        run.write_weights({"epoch": torch.tensor(epoch)}, epoch)
        (run / f"ema_{epoch:03d}.pth").touch()
    run.replace_best(3)
    others = ("last.pth", "epoch_009.pth.aside", "epoch_x.pth", "ema_003.pth.bak")
    for name in others:
        (run / name).touch()
    assert run.prune_checkpoints(best) == [epoch for epoch in range(1, 5) if epoch not in kept]
    for epoch in range(1, 5):
        for stem in ("epoch", "ema"):
            assert (run / f"{stem}_{epoch:03d}.pth").exists() == (epoch in kept)
    assert load(run / "best_model.pth")["epoch"] == 3
    assert all((run / name).exists() for name in others)


def test_what_a_resume_changes_for_good_stands_in_config_json(tmp_path):
    make_run(settings_for(tmp_path, "--run_name", "a", "--schedule", "constant"))
    flags = ["--resume", "--run_name", "a", "--epochs", "200", "--keep_checkpoints", "3"]
    choose_run(settings_for(tmp_path, *flags, "--save_interval", "7")).extend_config()
    settings = read_config(tmp_path / "a").settings
    assert (settings.epochs, settings.keep_checkpoints, settings.nc_every) == (200, 3, 0)
    assert settings.save_interval == 30  # of the command alone
    resumed = settings_for(tmp_path, "--resume", "--run_name", "a", "--keep_checkpoints", "ALL")
    assert resumed.keep_checkpoints == "all" and resumed.epochs == 200
