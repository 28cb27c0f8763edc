"""The image files below class folders: each real directory once, and nothing that is no file."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError

SPLIT_FOLDERS = ("train", "test", "val")
EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
)
# Thumbnails, copies and deleted files that a system keeps beside a user's own.
SYSTEM_FOLDERS = frozenset(
    (
        "@eaDir",
        "@Recycle",
        "@__thumb",
        "#recycle",
        "#snapshot",
        "$RECYCLE.BIN",
        "System Volume Information",
        "__MACOSX",
        "lost+found",
    )
)

Identity = tuple[int | str, ...]


@dataclass(frozen=True, eq=False)
class Listing(Sequence[str]):
    """The paths of a split's image files, and what is known of the folders they are in.

    Attributes:
        paths: N image files, a list or `Paths`.
        folder: of the split.
        directories: every directory that holds them, by its identity.
        links: those of the paths that are symbolic links.
        notes: lines for a run's log.
        split: the name of the test split that was taken, "test" or "val"; None for training.
        key: stands for the paths and the states of all directories; None if these may change
            unnoticed, or are few.
    """

    paths: Sequence[str]
    folder: Path
    directories: Mapping[Identity, str] = field(default_factory=dict)
    links: Sequence[str] = ()
    notes: tuple[str, ...] = ()
    split: str | None = None
    key: bytes | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return self.paths[index]


def is_left_out(name: str) -> bool:
    """Whether the program passes by a file or folder of this name: hidden, or a system's own."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def decode_name(name: str) -> str:
    r"""Return the name of a file or folder as text that any file can hold.

    Bytes that are not UTF-8 become \xNN. No two names become the same text: where a name has such
    bytes, or the text of them, its own backslashes are doubled.
    """
    raw = os.fsencode(name)
    shown = raw.decode("utf-8", "backslashreplace")
    if re.search(r"\\x[89a-f][0-9a-f]", shown):
        shown = raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return shown


def scan(folder: str | Path) -> list[os.DirEntry[str]]:
    """Read the entries of a folder that are not left out, by name. Raises UserError."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not is_left_out(entry.name)]
    except OSError as error:
        raise UserError(f"{folder} can't be read: {error.strerror}") from error
    return sorted(visible, key=lambda entry: entry.name)


def is_directory(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a directory or a link to one.

    Raises UserError for a link that leads nowhere: a folder of images may be missing there.
    """
    if entry.is_symlink() and not os.path.exists(entry.path):
        raise UserError(
            f"{entry.path} is a link to what is not there or can't be read: mend or remove it"
        )
    return entry.is_dir()


def identify(path: str | Path, found: os.stat_result | None = None) -> Identity:
    """Return what a directory or file is, whatever links lead to it. Raises OSError.

    `found` is what the system says of it, if that is known already.
    """
    found = found or os.stat(path)
    # Some network file systems number nothing.
    return (found.st_dev, found.st_ino) if found.st_ino else (os.path.realpath(path),)


class Walk:
    """A walk over the class folders of one split, which visits each real directory once.

    Args:
        enclosing: directories that no class may hold, by their identity: the folders of the splits
            and those around them. A link to one would put images of other classes, or of the test
            set, into a class.

    Attributes:
        directories: the path of each directory visited, by its identity.
        links: the image files that are links.
        repeated: links to directories that their own class has already.
        states: what the system said of each directory before it was read, those of `repeated`
            among them, by the path.
    """

    def __init__(self, enclosing: Mapping[Identity, str]) -> None:
        self._enclosing = enclosing
        self._classes: dict[Identity, str] = {}
        self.directories: dict[Identity, str] = {}
        self.links: list[str] = []
        self.repeated: list[str] = []
        self.states: dict[str, os.stat_result] = {}

    def list_class(self, folder: Path) -> list[str]:
        """List the image files at any depth below a class folder, sorted.

        Raises:
            UserError: a link leads nowhere or into another class or split, a file is none, there
                is no image, or a folder can't be read.
        """
        found: list[str] = []
        # Links come last and in order, so that what they repeat has its own name.
        waiting, linked = [str(folder)], list[str]()
        while waiting or linked:
            directory = waiting.pop() if waiting else linked.pop(linked.index(min(linked)))
            if not self._enter(directory, str(folder)):
                continue
            for entry in scan(directory):
                if is_directory(entry):
                    (linked if entry.is_symlink() else waiting).append(entry.path)
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                    self._check_file(entry)
                    found.append(entry.path)
        if not found:
            extensions = ", ".join(sorted(EXTENSIONS))
            raise UserError(f"{folder} holds no images ({extensions}): add some or remove it")
        return sorted(found)

    def refuse_shared_files(self, paths: Sequence[str], classes: Sequence[int]) -> None:
        """Refuse a link to an image file of another class. Raises UserError.

        Args:
            paths: all image files.
            classes: the number of the class of each.
        """
        links = set(self.links)
        samples = [*zip(paths, classes, strict=True)] if links else []
        with _name_unreadable():
            owners = {identify(path): (path, k) for path, k in samples if path in links}
            for path, k in samples:
                link, owner = owners.get(identify(path), (path, k))
                if owner != k:
                    raise UserError(_describe_shared(link, path, "file"))

    def _enter(self, directory: str, class_folder: str) -> bool:
        """Note a directory as one of a class; return whether it is new. Raises UserError."""
        with _name_unreadable():
            self.states[directory] = os.stat(directory)
            identity = identify(directory, self.states[directory])
        if identity in self._enclosing:
            raise UserError(
                f"{directory} leads to {self._enclosing[identity]}, whose images belong to several "
                "classes or to another split: remove that link"
            )
        owner = self._classes.setdefault(identity, class_folder)
        if owner != class_folder:
            raise UserError(_describe_shared(directory, self.directories[identity]))
        if identity in self.directories:
            self.repeated.append(directory)
            return False
        self.directories[identity] = directory
        return True

    def _check_file(self, entry: os.DirEntry[str]) -> None:
        """Raise UserError unless an entry is a file or a link to one. Nothing is opened."""
        if entry.is_symlink():
            self.links.append(entry.path)
        if not entry.is_file():
            raise UserError(
                f"{entry.path} is a pipe, a socket or a device, not an image file: remove it"
            )


def refuse_shared(train: Listing, test: Listing) -> None:
    """Refuse a training and a test set that have a directory, or a file by a link, in common.

    Two copies of an image are no concern of this function. Raises UserError.
    """
    for identity in train.directories.keys() & test.directories.keys():
        raise UserError(_describe_shared(train.directories[identity], test.directories[identity]))
    for linking, other in ((train, test), (test, train)):
        _refuse_linked(linking.links, other.paths)


def _refuse_linked(links: Iterable[str], others: Iterable[str]) -> None:
    """Refuse links to files that are among `others`."""
    with _name_unreadable():
        targets = {identify(link): link for link in links}
        for path in others if targets else ():
            link = targets.get(identify(path))
            if link is not None:
                raise UserError(_describe_shared(link, path, "file"))


@contextlib.contextmanager
def _name_unreadable() -> Iterator[None]:
    """Turn an OSError into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename} can't be read: {error.strerror}") from error


def _describe_shared(one: str, other: str, kind: str = "directory") -> str:
    return (
        f"{one} and {other} are the same {kind}: an image may be in one class of one split only, "
        "remove the link"
    )


def count_nested(folder: Path, paths: Iterable[str]) -> Counter[str]:
    """Count the images in subfolders of class folders, by the subfolder's path in its class."""
    start = len(str(folder)) + 1
    counts: Counter[str] = Counter()
    for path in paths:
        inside = os.path.dirname(path[start:]).partition(os.sep)[2]
        if inside:
            counts[inside] += 1
    return counts
