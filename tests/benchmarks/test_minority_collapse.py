"""minority_collapse.py writes thresholds, curves and a picture."""

import math

import pytest

from benchmarks import minority_collapse
from utils.files import read_csv


def test_the_files_agree_with_the_theory(tmp_path, monkeypatch, capsys):
    changes = {
        "CLASSES": (4,),
        "DECAYS": (5e-3,),
        "DRAWN_CLASSES": (4,),
        "POINTS": 6,
        "MARKED": None,
    }
    for name, value in changes.items():
        monkeypatch.setattr(minority_collapse, name, value)
    assert minority_collapse.main(["--out", str(tmp_path / "new")]) == 0
    rows = read_csv(tmp_path / "new" / "thresholds.csv")
    assert [row["loss"] for row in rows] == ["CE", "BCE", "MSE"]
    # N λ_W λ_H = 128 · 25e-6 is the share of a small class, 1/(2 R + 2).
    merging = [float(row["equal_from"]) for row in rows]
    assert merging == pytest.approx([1 / 6.4e-3 - 1] * 3)
    curves = read_csv(tmp_path / "new" / "curves.csv")
    for row in curves:
        zero_from = next(float(r["zero_from"]) for r in rows if r["loss"] == row["loss"])
        vanished = float(row["ratio"]) > zero_from
        assert (float(row["norm"]) < 1e-3) is vanished
        assert math.isnan(float(row["cosine"] or "nan")) is vanished
    assert (tmp_path / "new" / "minority_collapse.png").stat().st_size > 10_000
    assert "zero_from" in capsys.readouterr().out
