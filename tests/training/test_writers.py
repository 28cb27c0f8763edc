"""Where the numbers of epochs go: to wandb in its own process, offline, read back from its file."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

import train
import training.writers
from rundir.weights import load
from tests.helpers import SMALL, read_refusal, train_here
from utils.files import read_csv

wandb = pytest.importorskip("wandb")

FLAGS = [*SMALL, "--schedule", "constant", "--seed", 3]
BLOCK = 2**15  # bytes of a block of LevelDB's log, in which wandb keeps its records


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    wandb.teardown()
    yield
    wandb.teardown()


def read_records(path):
    """The records of one of wandb's files, as (kind, content)."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        end = at + 7 + int.from_bytes(content[at + 4 : at + 6], "little")
        parts += content[at + 7 : end]
        if content[at + 6] in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(parts)
            kind = record.WhichOneof("record_type")
            records.append((kind, getattr(record, kind)))
            parts = b""
        at = end
    return records


def list_values(items):
    return {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items}


def read_session(path):
    """Run id, name, project, config, and the rows by their step, of one of wandb's files."""
    records = read_records(path)
    (run,) = [content for kind, content in records if kind == "run"]
    rows = [content for kind, content in records if kind == "history"]
    return (
        (run.run_id, run.display_name, run.project),
        list_values(run.config.update),
        {row.step.num: list_values(row.item) for row in rows},
        {kind for kind, _ in records},
    )


def test_two_offline_sessions_are_one_run_with_all_settings_and_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_dir = train_here(tmp_path, *FLAGS, "--epochs", 2, "--wandb", "proj")
    train_here(tmp_path, "--resume", "--epochs", 3, "--wandb_artifacts")
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.count("\n    wandb sync /") == 2
    paths = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime)
    (first, config, rows, kinds), (second, _, later, kinds_later) = map(read_session, paths)
    stored = json.loads((run_dir / "config.json").read_text())
    assert first == second == (stored["id"], "r", "proj")
    expected = stored["settings"] | {"epochs": 2, "wandb_artifacts": False}
    assert {name: config[name] for name in expected} == expected
    assert (list(rows), list(later)) == ([1, 2], [3])
    for row in read_csv(run_dir / "metrics.csv"):
        logged = (rows | later)[int(row["epoch"])]
        assert all(logged[name] == float(value) for name, value in row.items() if name != "seconds")
    assert kinds & {"output", "output_raw"} == set()  # the console stays here
    assert "artifact" not in kinds and "artifact" in kinds_later
    (artifact,) = [content for kind, content in read_records(paths[1]) if kind == "artifact"]
    files = {entry.path for entry in artifact.manifest.contents}
    assert files == {"best_model.pth", "config.json", "metrics.csv"}

    whole = train_here(tmp_path / "without", *FLAGS, "--epochs", 3)
    for epoch in (1, 3):  # wandb draws no random number of ours
        ours, plain = (load(path / f"epoch_00{epoch}.pth") for path in (run_dir, whole))
        assert all(torch.equal(ours[key], plain[key]) for key in plain)


def test_a_service_that_fails_does_not_end_training(tmp_path, monkeypatch, capsys):
    class Failing:
        url = "https://wandb.test/run"

        def log(self, values, step):
            if step == 2:
                raise ConnectionResetError("Connection lost")

        def finish(self, exit_code):
            raise AssertionError("it has failed already")

    monkeypatch.setattr(training.writers, "_check_wandb", lambda: None)
    monkeypatch.setattr(wandb, "init", lambda **options: Failing())
    run_dir = train_here(tmp_path, *FLAGS, "--epochs", 4, "--wandb", "proj")
    said = capsys.readouterr().out
    assert said.count("wandb failed and gets no more numbers: Connection lost") == 1
    assert "wandb: https://wandb.test/run" in said
    assert len(read_csv(run_dir / "metrics.csv")) == 4


@pytest.mark.parametrize(
    ("ending", "status"), [(None, 0), ("stopped", 255), ("diverged", 3), ("failed", 2)]
)
def test_the_end_of_a_run_is_told(tmp_path, monkeypatch, ending, status):
    from training.log import RunLog
    from training.meter import NonFiniteLoss
    from utils.signals import Stopped

    errors = {
        "stopped": Stopped(),
        "diverged": NonFiniteLoss(1, 1, 0.1),
        "failed": OSError("disk"),
    }
    log, told = RunLog(SimpleNamespace(log=None), SimpleNamespace(epochs=1)), []
    log._writers = [SimpleNamespace(close=told.append)]
    try:
        with log:
            if ending:
                raise errors[ending]
    except (Stopped, NonFiniteLoss, OSError):
        pass
    assert told == [status]


def fail_to_log_in(**options):
    raise wandb.errors.AuthenticationError("the server does not answer")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda patch: None, "no API key for https://api"),
        (lambda patch: patch.setitem(sys.modules, "wandb", None), "pip install wandb"),
        (
            lambda patch: (
                patch.setenv("WANDB_API_KEY", "a" * 40),
                patch.setattr(wandb, "login", fail_to_log_in),
            ),
            "the server does not answer: run `wandb login`, or set WANDB_MODE=offline",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_a_directory_is_made(
    tmp_path, capsys, monkeypatch, change, words
):
    change(monkeypatch)
    flags = [*FLAGS, "--gpu_id", -1, "--save_dir", tmp_path / "runs", "--wandb", "proj"]
    assert words in read_refusal(capsys, train.main, *flags)
    assert not (tmp_path / "runs").exists()


def test_a_key_in_netrc_is_found(tmp_path, monkeypatch):
    from training.writers import _find_key

    settings = SimpleNamespace(api_key=None, base_url="https://api.wandb.ai")
    path = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(path))
    assert not _find_key(settings)
    path.write_text("machine api.wandb.ai\n  login user\n  password abc\n")
    path.chmod(0o600)
    assert _find_key(settings)
