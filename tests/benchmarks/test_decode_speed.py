"""decode_speed.py prints a row for each size, and the draft is the faster way where it is used."""

from benchmarks import decode_speed


def test_each_size_has_a_row(capsys, monkeypatch):
    monkeypatch.setattr(decode_speed, "FILES", 4)
    assert decode_speed.main(["--img_size", "224", "16", "--rounds", "3"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["224", "16"]
    assert float(rows[1][3]) > 1
