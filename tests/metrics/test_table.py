"""nc_metrics.csv of a run: rows are read one by one, and nothing is lost in silence."""

import json
import threading

import pytest

from metrics import CLASS_MEASURES, Measure
from metrics import stored_rows as nc_table
from metrics.table import MetricsTable, RowWriter
from utils.errors import UserError

MEASURES = {
    "a": Measure("", "a"),
    "b": Measure("", "b"),
    "extra": Measure("", "extra", optional=True),
}
ROWS = {
    (1, "train"): {"a": 0.1, "b": 1 / 3, "extra": None},
    (1, "test"): {"a": 1e-300, "b": float("inf"), "extra": 4.0},
    (2, "train"): {"a": -2.5, "b": 0.0, "extra": None},
}


@pytest.fixture
def path(tmp_path):
    """A table of three rows, each with a fingerprint."""
    table = MetricsTable(tmp_path, MEASURES)
    for key, values in ROWS.items():
        table.put(key, "print", values)
    return tmp_path / "nc_metrics.csv"


def read(path):
    return MetricsTable(path.parent, MEASURES)


def held(table):
    return {key for key in table.rows if table.holds(key, "print")}


def values(table):
    return {key: {name: row[name] for name in MEASURES} for key, row in table.rows.items()}


def bad(path):
    return sorted(file.name for file in path.parent.glob("nc_metrics.csv.*"))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_whole_table_is_read_back_and_not_written(path, monkeypatch):
    monkeypatch.setattr(nc_table, "write_csv", None)
    monkeypatch.setattr(nc_table, "write_json", None)
    table = read(path)
    assert values(table) == ROWS
    assert held(table) == set(ROWS)
    assert table.notes == []


CLASS_ROWS = [{**dict.fromkeys(CLASS_MEASURES), "top1": float(k), "bias": k / 3} for k in (0, 1)]
CLASS_ROWS = [{n: 1.5 if v is None else v for n, v in row.items()} for row in CLASS_ROWS]


@pytest.fixture
def class_path(path):
    """The rows of two classes that belong to two of the three rows."""
    table = read(path)
    for key in list(ROWS)[:2]:
        table.put(key, "print", ROWS[key], CLASS_ROWS)
    return path.with_name("nc_classes.csv")


def read_classes(table, key):
    return [{name: row[name] for name in CLASS_MEASURES} for row in table.list_classes(key)]


def test_rows_of_the_classes_stand_beside_their_row(path, class_path, monkeypatch):
    monkeypatch.setattr(nc_table, "write_csv", None)
    monkeypatch.setattr(nc_table, "write_json", None)
    table = read(path)
    first, second, third = ROWS
    assert read_classes(table, first) == read_classes(table, second) == CLASS_ROWS
    assert read_classes(table, third) == [] and table.notes == []
    assert table.lacks_later(third, True) and not table.lacks_later(first, True)
    monkeypatch.undo()
    read(path).put(first, None, ROWS[first], CLASS_ROWS[::-1])  # weights that no file holds
    assert read_classes(read(path), first) == CLASS_ROWS[::-1]
    read(path).put(second, "other", ROWS[second])  # as an earlier version, which knows no classes
    assert read_classes(read(path), second) == []
    assert class_path.read_text().count("\n") == 5


@pytest.mark.parametrize("damage", ["cell", "line", "file", "table", "prints"])
def test_a_row_whose_classes_are_damaged_is_computed_again(path, class_path, damage):
    text = class_path.read_text()
    lines = text.splitlines(keepends=True)
    if damage == "cell":
        class_path.write_text(text.replace("\n1,train,1,1.5", "\n1,train,1,1.5x", 1))
    elif damage == "line":
        class_path.write_text("".join(line for line in lines if not line.startswith("1,train,1")))
    elif damage == "table":
        class_path.write_bytes(b"\xff\xfe")
    else:
        (class_path.with_suffix(".json") if damage == "prints" else class_path).unlink()
    lost = {(1, "train"), *([] if damage in ("cell", "line") else [(1, "test")])}
    for _ in range(2):
        assert held(read(path)) == set(ROWS) - lost
    assert bad(path) == [] and len(list(path.parent.glob("*.bad"))) == (damage in ("cell", "table"))
    for key in lost:
        read(path).put(key, "print", ROWS[key], CLASS_ROWS)
    assert held(read(path)) == set(ROWS)
    assert class_path.read_text() == text


def test_cells_of_a_prediction_are_replaced_and_the_others_stay_to_the_bit(path, class_path):
    table, keys = read(path), list(ROWS)
    before = values(table)
    assert table.differs({"extra": 7.0}, keys)
    other = [{"predicted_bias": 2.0}, {"predicted_bias": None}]
    assert table.replace_cells({"extra": 7.0}, other, keys) == 3
    assert table.replace_cells({"extra": 7.0}, other, keys) == 0
    table = read(path)
    assert values(table) == {key: {**row, "extra": 7.0} for key, row in before.items()}
    assert held(table) == set(ROWS)
    for key in keys[:2]:
        rows = zip(CLASS_ROWS, other, strict=True)
        assert read_classes(table, key) == [{**row, **cells} for row, cells in rows]


def as_spreadsheet(text):
    return text.replace(",", ";").replace(".", ",").replace("\n", "\r\n").encode("utf-8-sig")


def with_columns_turned(text):
    return "".join(",".join(line.split(",")[::-1]) + "\n" for line in text.split()).encode()


def padded(text):
    """Other spreadsheets quote words, pad lines and write whole numbers as decimals."""
    text = text.replace("\n", ",,\n").replace("train", '"train"').replace("\n1,", "\n1.0,")
    return (text + ",,,,,\n\n").encode()


@pytest.mark.parametrize("save", [as_spreadsheet, with_columns_turned, padded])
def test_other_ways_to_write_the_same_are_read_and_put_in_order(path, save):
    before = path.read_bytes()
    path.write_bytes(save(before.decode()))
    table = read(path)
    assert values(table) == ROWS
    assert held(table) == set(ROWS)
    assert table.notes == bad(path) == []
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "key", "emptied"),
    [
        ("0.1,", "0.1x,", (1, "train"), ["a"]),
        ("inf,4.0", "inf,4;0", (1, "test"), ["extra"]),
        ("-2.5,0.0,", "?,!,", (2, "train"), ["a", "b"]),
        # A line with another number of cells than columns: no cell's column is certain.
        ("0.1,", '"0.1,', (1, "train"), ["a", "b", "extra"]),
        ("0.1,", "0,1,", (1, "train"), ["a", "b", "extra"]),
        ("1e-300,", "", (1, "test"), ["a", "b", "extra"]),
        ("-2.5,0.0,", "-2.5,0", (2, "train"), ["a", "b", "extra"]),
    ],
)
def test_a_damaged_cell_is_emptied_and_its_row_alone_computed_again(path, old, new, key, emptied):
    edit(path, old, new)
    damaged = path.read_bytes()
    table = read(path)
    assert values(table) == {**ROWS, key: {**ROWS[key], **dict.fromkeys(emptied)}}
    assert held(table) == set(ROWS) - {key}
    assert len(table.notes) == 1 and "\n" not in table.notes[0]
    assert (path.parent / "nc_metrics.csv.bad").read_bytes() == damaged

    again = read(path)  # the same after an interruption, without another note or copy
    assert values(again) == values(table)
    assert held(again) == held(table)
    assert again.notes == [] and len(bad(path)) == 1
    again.put(key, "print", ROWS[key])
    assert values(read(path)) == ROWS
    assert held(read(path)) == set(ROWS)


def test_a_kill_while_a_damaged_table_is_put_in_order(path, monkeypatch):
    """An emptied cell that may be empty must not pass for a computed one."""
    edit(path, "4.0", "4.0x")

    def kill(*_):
        raise KeyboardInterrupt

    for written in ("write_json", "write_csv"):
        with monkeypatch.context() as patch:
            patch.setattr(nc_table, written, kill)
            with pytest.raises(KeyboardInterrupt):
                read(path)
    assert held(read(path)) == set(ROWS) - {(1, "test")}
    assert held(read(path)) == set(ROWS) - {(1, "test")}


def test_rows_of_before_a_required_column_are_kept_and_computed_again(path):
    lines = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("".join(",".join([*cells[:3], cells[4]]) + "\n" for cells in lines))
    table = read(path)
    assert values(table) == {key: {**row, "b": None} for key, row in ROWS.items()}
    assert held(table) == set()
    assert table.notes == bad(path) == []
    table.put((1, "train"), "print", ROWS[1, "train"])
    assert held(read(path)) == {(1, "train")}
    assert set(read(path).rows) == set(ROWS)


def test_rows_of_before_an_optional_column_hold(path):
    path.write_text("".join(f"{x.rsplit(',', 1)[0]}\n" for x in path.read_text().splitlines()))
    assert held(read(path)) == held(read(path)) == set(ROWS)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("x,train,1,2,", "line 5 is a row of epoch 'x', 'train'"),
        ("1.5,train,1,2,", "epoch '1.5'"),
        ("3,valid,1,2,", "'valid'"),
        ("y" * 200_000, f"epoch '{'y' * 20}…'"),
    ],
)
def test_a_row_without_a_key_is_named_and_the_others_kept(path, line, named):
    path.write_text(path.read_text() + line + "\n")
    table = read(path)
    assert values(table) == ROWS
    assert held(table) == set(ROWS)
    assert named in table.notes[0]
    assert line in (path.parent / "nc_metrics.csv.bad").read_text()


def test_many_faults_are_one_line(path):
    path.write_text(path.read_text() + "x,train,1,2,\n" * 50)
    (note,) = read(path).notes
    assert "and 47 more" in note


def test_of_two_rows_with_one_key_neither_is_trusted(path):
    path.write_text(path.read_text() + "2,train,7,7,\n")
    table = read(path)
    assert values(table) == ROWS
    assert held(table) == set(ROWS) - {(2, "train")}
    assert "second row of epoch '2', 'train'" in table.notes[0]


def test_a_column_of_somebody_else_is_named(path):
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line},word\n" for line in lines))
    table = read(path)
    assert values(table) == ROWS
    assert "column 'word' is unknown" in table.notes[0]
    assert "word" in (path.parent / "nc_metrics.csv.bad").read_text()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"a,b\n1,2\n", b"epoch|split\n"])
def test_a_file_that_is_no_table_is_moved_aside(path, content):
    for name in ("bad", "bad2"):
        path.write_bytes(content)
        table = read(path)
        assert table.rows == {}
        assert f"moved to nc_metrics.csv.{name}" in table.notes[0]
        assert not path.exists()
        assert path.with_name(f"nc_metrics.csv.{name}").read_bytes() == content
    assert read(path).notes == []


@pytest.mark.parametrize("content", ["{", "[1]", '{"1 train": 3}', None])
def test_rows_stay_without_their_fingerprints(path, content):
    prints = path.with_suffix(".json")
    prints.unlink() if content is None else prints.write_text(content)
    table = read(path)
    assert values(table) == ROWS
    assert held(table) == set()
    for key in ROWS:
        table.mark_changed(key, "print")  # nothing is known to have changed
    table.put((1, "test"), "print", ROWS[1, "test"])
    assert json.loads(prints.read_text()) == {"1 test": "print"}
    assert values(read(path)) == ROWS
    assert read(path).notes == []


def test_a_changed_row_stays_until_it_is_replaced(path):
    table = read(path)
    table.mark_changed((1, "train"), "print")
    table.mark_changed((1, "test"), "another")
    table.mark_changed((9, "test"), "print")
    assert set(table.current) == {(1, "train"), (2, "train")}
    assert set(read(path).rows) == set(ROWS)
    table.put((1, "test"), "another", ROWS[2, "train"])
    assert set(table.current) == set(ROWS)
    assert values(read(path)) == {**ROWS, (1, "test"): ROWS[2, "train"]}


def test_a_byte_that_is_not_utf_8_damages_its_cell_alone(path):
    lines = path.read_bytes().splitlines()
    cells = lines[1].split(b",")
    cells[2] = b"0.2\xff3"
    path.write_bytes(b"\n".join([lines[0], b",".join(cells), *lines[2:]]) + b"\n")
    table = read(path)
    assert set(table.rows) == set(ROWS)
    damaged = [key for key, row in values(table).items() if row != ROWS[key]]
    assert damaged == [sorted(ROWS, key=lambda key: (key[0], key[1] != "train"))[0]]
    assert len(table.notes) == 1
    assert path.with_name("nc_metrics.csv.bad").exists()


def test_a_number_in_pythons_notation_is_damage(path):
    path.write_text(path.read_text().replace("\n1,train,", "\n1,train,1_", 1))
    assert len(read(path).notes) == 1


def test_a_row_is_written_while_the_next_is_computed(path, monkeypatch):
    """At most one is on its way, and the table that is read meanwhile holds the other rows."""
    table, written, go_on = read(path), threading.Event(), threading.Event()
    write = nc_table.write_csv

    def write_late(*words):
        written.set()
        assert go_on.wait(10)
        write(*words)

    monkeypatch.setattr(nc_table, "write_csv", write_late)
    with RowWriter(table) as writer:
        writer.put((3, "train"), "print", ROWS[1, "train"])
        assert written.wait(10)
        assert held(table) >= set(ROWS)
        go_on.set()
        writer.put((3, "test"), "print", ROWS[1, "test"])
    assert held(read(path)) == {*ROWS, (3, "train"), (3, "test")}


def test_a_row_on_its_way_is_written_although_the_work_is_stopped(path):
    with pytest.raises(KeyboardInterrupt), RowWriter(read(path)) as writer:
        writer.put((3, "train"), "print", ROWS[1, "train"])
        raise KeyboardInterrupt
    assert (3, "train") in held(read(path))


@pytest.mark.parametrize("more", [0, 1])
def test_a_row_that_cannot_be_written_ends_the_work(path, monkeypatch, more):
    def refuse(*_):
        raise UserError("full")

    monkeypatch.setattr(nc_table, "write_csv", refuse)
    with pytest.raises(UserError, match="full"), RowWriter(read(path)) as writer:
        for split in ("train", "test")[: 1 + more]:
            writer.put((3, split), "print", ROWS[1, "train"])
