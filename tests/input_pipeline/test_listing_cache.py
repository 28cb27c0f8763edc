"""A listing that is kept is the one that a walk finds, or is not used."""

import os
import shutil

import pytest

from input_pipeline import listing, listing_cache, states
from input_pipeline.folder import list_folder
from input_pipeline.load import identify_dataset, load_dataset
from tests.input_pipeline.helpers import picture
from utils.errors import UserError


@pytest.fixture
def tree(folder, tmp_path, monkeypatch):
    """A folder with nested and linked directories, which counts as large and settled."""
    cat = folder / "train" / "cat"
    (cat / "more").mkdir()
    picture(1).save(cat / "more" / "x.png")
    os.symlink("more", cat / "again")
    for name in ("pool", "other"):
        (tmp_path / name).mkdir()
        picture(2).save(tmp_path / name / "y.png")
    os.symlink(tmp_path / "pool", cat / "linked")
    monkeypatch.setattr(listing_cache, "LOOKED_AT", 0)
    monkeypatch.setattr(states, "_SETTLED", -(10**12))
    return folder


@pytest.fixture
def scans(monkeypatch) -> list[str]:
    """The directories below the class folders that are read."""
    read = []
    plain = listing.scan

    def record(folder):
        read.append(str(folder))
        return plain(folder)

    monkeypatch.setattr(listing, "scan", record)
    return read


def read_all(root, train=True):
    found, labels, classes = list_folder(root, train)
    facts = (found.folder, dict(found.directories), found.notes, found.split, list(found.links))
    return list(found), labels.tolist(), classes, facts, found.key


def test_a_kept_listing_is_equal_and_reads_no_class(tree, scans):
    first = [read_all(tree, train) for train in (True, False)]
    assert first[0][4] is not None and len(scans) == 6
    assert first[0][0][3:5] == [
        str(tree / "train/cat" / name) for name in ("linked/y.png", "more/x.png")
    ]
    assert [read_all(tree, train) for train in (True, False)] == first and len(scans) == 6
    assert "again" in first[0][3][2][2]


def add_file(tree):
    picture(3).save(tree / "train" / "dog" / "9.png")


def add_to_linked(tree):
    picture(3).save(tree.parent / "pool" / "z.png")


def remove_file(tree):
    (tree / "train" / "cat" / "0.png").unlink()


def rename_file(tree):
    (tree / "train" / "cat" / "0.png").rename(tree / "train" / "cat" / "8.png")


def lead_elsewhere(tree):
    (tree.parent / "pool").rename(tree.parent / "old")
    (tree.parent / "other").rename(tree.parent / "pool")


def replace_class(tree):
    """A copy in the place of a class, with the directory's times."""
    dog = tree / "train" / "dog"
    shutil.copytree(dog, tree / "copy")
    dog.rename(tree / "gone")
    (tree / "copy").rename(dog)


def split_repeated(tree):
    """The link that repeated a directory leads to another one."""
    os.mkdir(tree.parent / "third")
    picture(4).save(tree.parent / "third" / "w.png")
    again = tree / "train" / "cat" / "again"
    again.unlink()
    os.symlink(tree.parent / "third", again)


def add_class(tree):
    for split in ("train", "test"):
        (tree / split / "ant").mkdir()
        picture(5).save(tree / split / "ant" / "0.png")


CHANGES = [
    add_file, add_to_linked, remove_file, rename_file, lead_elsewhere, replace_class,
    split_repeated, add_class,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_any_change_of_a_directory_is_seen(tree, cache_home, monkeypatch, change):
    read_all(tree)
    change(tree)
    found = read_all(tree)
    assert read_all(tree) == found
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home / "empty"))
    assert read_all(tree) == found


def test_a_kept_listing_hides_no_link_to_another_split(tree, tmp_path):
    os.symlink(tmp_path / "elsewhere", tree / "val")
    (tmp_path / "pool" / "inner").mkdir()
    read_all(tree)
    os.symlink(tmp_path / "pool" / "inner", tmp_path / "elsewhere")  # val/ is in a class now
    with pytest.raises(UserError, match="whose images belong to several classes"):
        read_all(tree)


def test_what_may_change_unseen_is_not_kept(tree, cache_home, monkeypatch):
    monkeypatch.setattr(states, "_SETTLED", 2 * 10**9)  # the directories are of this moment
    assert read_all(tree)[4] is None
    monkeypatch.setattr(states, "_SETTLED", -(10**12))
    os.symlink(tree / "train" / "dog" / "0.png", tree / "train" / "dog" / "link.png")
    assert read_all(tree)[4] is None
    monkeypatch.setattr(listing_cache, "LOOKED_AT", 4)
    assert read_all(tree, train=False)[4] is None  # small
    assert not list(cache_home.rglob("*.listing"))


@pytest.mark.parametrize("damage", ["flip", "cut", "text"])
def test_a_damaged_listing_is_ignored(tree, cache_home, scans, damage):
    first = read_all(tree)
    (kept,) = cache_home.rglob("*.listing")
    content = kept.read_bytes()
    changed = content.replace(b"linked/y.png\0", b"linked/z.png\0")
    assert changed != content
    kept.write_bytes({"flip": changed, "cut": content[:-1], "text": b"{}"}[damage])
    count = len(scans)
    assert read_all(tree) == first and len(scans) == 2 * count


def test_a_home_that_takes_nothing_is_no_obstacle(tree, cache_home, scans):
    (cache_home / "bce-vs-ce").write_text("a file")
    first = read_all(tree)
    assert read_all(tree) == first and first[4] is None and len(scans) == 8


def test_fingerprints_are_kept_and_force_listing_reads_anew(tree, monkeypatch):
    monkeypatch.setattr("input_pipeline.fingerprint.LOOKED_AT", 1)
    plain, stats = os.stat, []

    def count(path, **options):
        stats.append(str(path))
        return plain(path, **options)

    monkeypatch.setattr(os, "stat", count)
    whole = identify_dataset("folder", tree)["fingerprints"]
    stats.clear()
    assert identify_dataset("folder", tree)["fingerprints"] == whole
    looked_at = {path for path in stats if path.endswith(".png")}
    assert looked_at == {str(tree / split / "cat" / "0.png") for split in ("train", "test")}
    few = identify_dataset("folder", tree, sample_size=2)["fingerprints"]
    assert few["train"] != whole["train"] and few["test"] == whole["test"]
    # A file that is looked at is seen to change in place; another one when it is asked for.
    content = (tree / "train" / "dog" / "1.png").read_bytes()
    for name in ("cat/0.png", "dog/2.png"):
        with open(tree / "train" / name, "ab") as file:
            file.write(content)
        seen = identify_dataset("folder", tree)["fingerprints"]
        assert (seen["train"] != whole["train"]) == (name == "cat/0.png")
        seen = load_dataset("folder", tree, force_listing=True).facts()["fingerprints"]
        assert seen["train"] != whole["train"]
        whole = identify_dataset("folder", tree)["fingerprints"]
        assert whole == seen


def test_mean_and_deviation_of_streamed_images_are_kept(tree, monkeypatch):
    options = {"in_memory_bytes": 0, "img_size": 8}
    first = load_dataset("folder", tree, **options)
    monkeypatch.setattr("input_pipeline.load.decode_some", None)
    again = load_dataset("folder", tree, **options)
    assert (again.mean, again.std) == (first.mean, first.std)
    for changed in ({"img_size": 9}, {"jpeg_draft": True}, {"sample_size": 2}):
        with pytest.raises(TypeError):
            load_dataset("folder", tree, **options | changed)
