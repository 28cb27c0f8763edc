"""Shared by the tests: running the commands as a user does, and reading what they write."""

import os
import subprocess
import sys
from pathlib import Path
from random import Random

from args import Settings
from input_pipeline import SPLITS
from metrics import MEASURES
from models import NETWORKS
from rundir.config import format_config
from rundir.names import METRICS_COLUMNS
from utils.files import read_csv, write_csv, write_json

# The networks of the registry that need no library of networks.
OWN_NETWORKS = [name for name, network in NETWORKS.items() if not network.prefix]
ROOT = Path(__file__).resolve().parent.parent


def start(script: str, *flags: object, **options) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    # No GPU: what the tests see does not depend on where they run.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **{**pipes, **options})


def run(script: str, *flags: object, **options) -> subprocess.CompletedProcess:
    """Run a command to its end."""
    process = start(script, *flags, **options)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def assert_mistake(result: subprocess.CompletedProcess, *words: str) -> None:
    """A user's mistake: status 2, one line on stderr that has all the words, no traceback."""
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"


def read_refusal(capsys, command, *flags: object) -> str:
    """Call a command with flags that it must refuse; returns its one line on stderr."""
    capsys.readouterr()
    try:
        status = command([str(flag) for flag in flags])
    except SystemExit as leaving:
        status = leaving.code
    assert status == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# A small network on a small sample: a second for an epoch.
SMALL = ["--model", "MLP", "--width", 64, "--depth", 2, "--sample_size", 20, "--batch_size", 32]


def train_here(save_dir: Path, *flags: object, name: str = "r", status: int = 0) -> Path:
    """Run train.py within this process; returns the run directory."""
    import train

    command = [*flags, "--save_dir", save_dir, "--run_name", name, "--gpu_id", -1]
    assert train.main([str(word) for word in command]) == status
    return save_dir / name


def train_run(save_dir: Path, name: str, *flags: object) -> Path:
    """Train a tiny MLP on digits within this process; returns the run directory."""
    tiny = ["--model", "MLP", "--width", 32, "--depth", 2, "--sample_size", 30, "--batch_size", 32]
    return train_here(save_dir, *tiny, *flags, name=name)


def read_table(run_dir: Path) -> dict[tuple[int, str], dict[str, str]]:
    """The rows of nc_metrics.csv by epoch and split."""
    rows = read_csv(run_dir / "nc_metrics.csv")
    return {(int(row["epoch"]), row["split"]): row for row in rows}


def write_run(
    directory: Path, epochs: int = 3, *, measures: bool = True, random: int = 0, **settings
) -> Path:
    """Write the config.json, metrics.csv and nc_metrics.csv of a run that nobody trained."""
    generator = Random(random)
    complete = {"model": "MLP", "epochs": epochs, "weight_decay_bias": 5e-4, **settings}
    directory.mkdir(parents=True)
    content = format_config(Settings(**complete), directory.name, "", {}, {}, {})
    write_json(directory / "config.json", content)

    def draw(columns, **keys):
        return {**{name: generator.uniform(1, 9) for name in columns}, **keys}

    rows = [draw(METRICS_COLUMNS, epoch=epoch) for epoch in range(1, epochs + 1)]
    write_csv(directory / "metrics.csv", METRICS_COLUMNS, rows)
    if measures:
        rows = [draw(MEASURES, epoch=row["epoch"], split=s) for row in rows for s in SPLITS]
        write_csv(directory / "nc_metrics.csv", ("epoch", "split", *MEASURES), rows)
    return directory
