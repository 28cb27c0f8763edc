"""The examples of CONTRIBUTING.md, applied to a copy of the repository, work as they stand."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import ROOT, read_table, run
from utils.files import read_csv

# <!-- append to FILE -->, <!-- create FILE -->, <!-- add to REGISTRY in FILE -->, and the code.
EXAMPLE = re.compile(
    r"<!-- (append to|create|add to (?P<registry>\w+) in) (?P<file>[\w/]+\.py) -->\n"
    r"```python\n(?P<code>.*?)```",
    re.DOTALL,
)


@dataclass
class Example:
    """A piece of code and where it goes: to the end of a file, or into a registry in it."""

    file: str
    registry: str | None
    code: str

    def apply(self, root: Path) -> None:
        path = root / self.file
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if self.registry is None:
            gap = "\n\n" if text else ""
            path.write_text(f"{text}{gap}{self.code}", encoding="utf-8")
            return
        opening = re.search(rf"^{self.registry}\b.*= {{$", text, re.MULTILINE)
        assert opening is not None, f"{self.file} has no registry {self.registry}"
        at = opening.end() + 1
        path.write_text(f"{text[:at]}{self.code}{text[at:]}", encoding="utf-8")


def read_examples() -> list[Example]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return [Example(m["file"], m["registry"], m["code"]) for m in EXAMPLE.finditer(text)]


@pytest.fixture(scope="module")
def changed_copy(tmp_path_factory) -> Path:
    """The tracked files with all examples applied."""
    root = tmp_path_factory.mktemp("copy") / "repository"
    listing = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file() and name.split("/")[0] not in ("results", "docs"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    for example in read_examples():
        example.apply(root)
    return root


def test_every_kind_of_addition_has_an_example():
    additions = [example for example in read_examples() if example.registry]
    assert {example.registry for example in additions} == {
        "LOSSES",
        "OPTIMIZERS",
        "NETWORKS",
        "SOURCES",
        "AUGMENTATIONS",
        "MEASURES",
        "EXPERIMENTS",
    }
    # Each addition is one entry and at most one other piece of code.
    assert len(read_examples()) <= 2 * len(additions)


@pytest.fixture(scope="module")
def trained(changed_copy) -> Path:
    """A run of the network, data source, augmentation, loss and optimizer of the examples."""
    names = {
        example.registry: re.search(r'"([^"]+)"', example.code)[1]
        for example in read_examples()
        if example.registry
    }
    flags = ["--model", names["NETWORKS"], "--dataset", names["SOURCES"], "--loss", names["LOSSES"]]
    flags += ["--augment", names["AUGMENTATIONS"], "--optimizer", names["OPTIMIZERS"]]
    flags += ["--width", 8, "--batch_size", 20, "--epochs", 3, "--lr", 0.1, "--gpu_id", -1]
    result = run(changed_copy / "train.py", *flags, "--run_name", "r", cwd=changed_copy)
    assert result.returncode == 0, result.stderr
    return changed_copy / "model_weights" / "r"


@pytest.mark.slow
def test_the_added_parts_train(trained):
    rows = read_csv(trained / "metrics.csv")
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])


@pytest.mark.slow
def test_the_added_measure_has_a_column_and_completes_an_old_table(trained, changed_copy):
    flags = ["--load_path", trained, "--gpu_id", -1]
    # The repository as it is knows neither the network nor the data: the table is cut instead.
    assert run(changed_copy / "eval_nc.py", *flags, cwd=changed_copy).returncode == 0
    first = read_table(trained)
    assert all(float(row["feature_norm"]) > 0 for row in first.values())
    lines = (trained / "nc_metrics.csv").read_text().splitlines()
    place = lines[0].split(",").index("feature_norm")
    cut = (",".join(c for i, c in enumerate(line.split(",")) if i != place) for line in lines)
    (trained / "nc_metrics.csv").write_text("\n".join(cut) + "\n")
    result = run(changed_copy / "eval_nc.py", *flags, "--checkpoints", "last", cwd=changed_copy)
    assert result.returncode == 0, result.stderr
    second = read_table(trained)
    assert second[3, "test"] == first[3, "test"]
    assert second[1, "train"] == {**first[1, "train"], "feature_norm": ""}


@pytest.mark.slow
def test_the_added_experiment_runs(changed_copy):
    flags = [
        "smoothing",
        "--epochs",
        1,
        "--jobs",
        2,
        "--gpu_id",
        -1,
        "--out",
        changed_copy / "results" / "s",
    ]
    result = run(changed_copy / "reproduce.py", *flags, cwd=changed_copy)
    assert result.returncode == 0, result.stderr
    report = (changed_copy / "results" / "s" / "report.md").read_text(encoding="utf-8")
    assert "Label smoothing" in report


def test_the_changed_copy_shows_its_names_in_the_help(changed_copy):
    shown = run(changed_copy / "train.py", "--help", cwd=changed_copy).stdout
    for name in ("TinyNet", "patterns", "Brier", "Adam", "erase"):
        assert name in shown
