"""Links, loops and things that are no files in a folder of images."""

import os
import socket

import pytest

from input_pipeline.listing import Walk, decode_name
from input_pipeline.load import load_dataset
from tests.input_pipeline.helpers import picture, refusal


def test_each_real_directory_counts_once(folder, tmp_path):
    cat = folder / "train" / "cat"
    (cat / "more").mkdir()
    picture(1).save(cat / "more" / "x.png")
    os.symlink(cat, cat / "a_loop")
    os.symlink("more", cat / "again")
    (tmp_path / "elsewhere").mkdir()
    picture(2).save(tmp_path / "elsewhere" / "y.png")
    os.symlink(tmp_path / "elsewhere", cat / "first")
    os.symlink(tmp_path / "elsewhere", cat / "second")
    data = load_dataset("folder", folder)
    assert data.class_sizes == [5, 3]
    assert "cat/a_loop, cat/again, cat/second" in data.notes[2]
    paths = [os.path.relpath(path, cat) for path in Walk({}).list_class(cat)]
    assert paths == ["0.png", "1.png", "2.png", "first/y.png", "more/x.png"]


@pytest.mark.parametrize(
    "target", ["..", "../..", "../../..", "../dog", "../../test", "../../test/cat", "../../val"]
)
def test_a_link_to_images_of_another_class_or_split_is_refused(folder, target):
    (folder / "val").mkdir()
    link = folder / "train" / "cat" / "link"
    os.symlink(target, link)
    message = refusal("folder", folder)
    assert str(link) in message and "remove" in message


def test_splits_and_classes_that_are_one_directory_are_refused(folder):
    (folder / "test").rename(folder / "old")
    os.symlink("train", folder / "test")
    assert "are the same directory" in refusal("folder", folder)
    (folder / "test").unlink()
    (folder / "old").rename(folder / "test")
    for split in ("train", "test"):
        os.symlink("cat", folder / split / "fox")
    assert "train/fox and" in refusal("folder", folder)


def test_links_to_directories_and_files_elsewhere_are_followed(folder):
    for split in ("train", "test"):
        (folder / "pool" / split).mkdir(parents=True)
        (folder / split / "cat").rename(folder / "pool" / split / "cats")
        os.symlink(f"../pool/{split}/cats", folder / split / "cat")
    dog = folder / "train" / "dog"
    (dog / "0.png").rename(folder / "0.png")
    os.symlink("../../0.png", dog / "0.png")
    assert load_dataset("folder", folder).class_sizes == [3, 3]


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
def test_a_link_to_a_file_of_the_other_split_is_refused(folder, split, other):
    link = folder / split / "cat" / "linked.png"
    os.symlink(f"../../{other}/cat/1.png", link)
    message = refusal("folder", folder)
    assert str(link) in message and str(folder / other / "cat" / "1.png") in message


def test_a_link_to_a_file_of_another_class_is_refused(folder):
    link = folder / "train" / "cat" / "linked.png"
    os.symlink("../dog/1.png", link)
    message = refusal("folder", folder)
    assert str(link) in message and str(folder / "train" / "dog" / "1.png") in message
    link.unlink()
    os.symlink("1.png", link)  # within a class it is only a second name
    assert load_dataset("folder", folder).class_sizes == [4, 3]


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(path.parent)  # the address of a socket is short
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


def link_device(path):
    os.symlink("/dev/zero", path)


@pytest.mark.parametrize("make", [make_pipe, make_socket, link_device])
def test_what_is_no_file_is_refused_without_opening_it(folder, make):
    path = folder / "test" / "dog" / "9.png"
    make(path)
    message = refusal("folder", folder)
    assert f"{path} is a pipe, a socket or a device" in message
    path.rename(path.with_suffix(".txt"))  # it is not among the images
    assert len(load_dataset("folder", folder).test) == 4


@pytest.mark.parametrize("link", ["train/cat/9.png", "train/cat/more", "train/fox", "test/fox"])
@pytest.mark.parametrize("target", ["gone", "{link}"])
def test_a_link_that_leads_nowhere_is_refused(folder, link, target):
    os.symlink(target.format(link=folder / link), folder / link)
    assert f"{folder / link} is a link to what is not there" in refusal("folder", folder)


def test_names_become_text_and_never_the_same():
    parts = (b"\xe9", b"\\", b"xe9", "é".encode())
    names = {a + b + c + d for a in parts for b in parts for c in parts for d in parts}
    texts = {decode_name(os.fsdecode(name)) for name in names}
    assert len(texts) == len(names)
    assert "".join(texts).isprintable()
    assert decode_name(r"a\b\x41") == r"a\b\x41"
