"""eval_speed.py: every way runs, and the table holds together."""

import re

from benchmarks import eval_speed
from benchmarks.eval_ways import WAYS
from tests.helpers import SMALL, train_here


def test_rates_follow_from_seconds(tmp_path, capsys):
    run_dir = train_here(tmp_path, *SMALL, "--epochs", 1, "--test_sample_size", 5)
    capsys.readouterr()
    flags = ["--load_path", str(run_dir), "--rounds", "1", "--gpu_id", "-1"]
    assert eval_speed.main(flags) == 0
    out = capsys.readouterr().out
    assert "MLP on digits, 250 images" in out
    for name in WAYS:
        row = re.search(rf"^{name} +([\d.]+) +(\d+) ", out, re.MULTILINE)
        seconds, rate = map(float, row.groups())
        assert 250 / (seconds + 0.001) < rate < 250 / max(seconds - 0.001, 1e-9)


def test_a_directory_without_a_run_is_a_mistake(tmp_path, capsys):
    assert eval_speed.main(["--load_path", str(tmp_path), "--gpu_id", "-1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and str(tmp_path) in lines[0]
