"""decode_speed.py prints a row for each way; stored images are the fastest."""

from benchmarks import decode_speed


def test_each_way_has_a_row(capsys, monkeypatch):
    monkeypatch.setattr(decode_speed, "FILES", 4)
    assert decode_speed.main(["--img_size", "16", "--augment", "RRC", "none", "--rounds", "3"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[0] for row in rows] == ["RRC,"] * 4 + ["none,"] * 4
    assert [row[2] for row in rows[:4]] == list(decode_speed.WAYS)
    for first in (0, 4):
        rates = [float(row[3]) for row in rows[first : first + 4]]
        assert rates[3] > max(rates[:3])
