"""One call of reproduce.py: its runs, their directories, and the place of its result."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from args import Settings
from input_pipeline import SOURCES, name_data
from reproduction import EXPERIMENTS, SCALES, Experiment, Scale
from reproduction.flags import DATA_DIR
from reproduction.grid import GridRun
from rundir.checkpoints import pick_epochs
from rundir.config import read_config
from rundir.names import CONFIG, METRICS, name_checkpoint
from utils.files import read_csv

# The device of a run on the CPU, as its config.json names it.
CPU = re.compile(r"(?:\d+ processes, the first on )?CPU \((\d+) threads\)")


@dataclass(frozen=True)
class Work:
    """The input of the functions that find results and draw pictures.

    Attributes:
        name: the name of the experiment.
        scale_name: the name of the scale.
        runs: all runs of the grid; none if the experiment trains nothing.
        save_dir: the directory of the run directories.
        out: the directory of report and pictures.
        data_dir: the directory of the data sets, which names a folder.
        gpu_id: the device of the scripts that measure and draw; −1 is the CPU, None the device
            that they take by themselves.
        failed: why a run has no result, by its name.
    """

    name: str
    scale_name: str
    runs: Sequence[GridRun]
    save_dir: Path
    out: Path
    gpu_id: int | None = -1
    data_dir: str = DATA_DIR
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def experiment(self) -> Experiment:
        """The entry of the experiment."""
        return EXPERIMENTS[self.name]

    @property
    def scale(self) -> Scale:
        """The entry of the scale."""
        return SCALES[self.scale_name]

    @property
    def finished(self) -> list[GridRun]:
        """The runs that have a result."""
        return [run for run in self.runs if run.name not in self.failed]

    def locate(self, run: GridRun) -> Path:
        """Return the directory of a run."""
        return self.save_dir / run.name

    def label(self, run: GridRun) -> dict[str, Any]:
        """Return the labels of a run's setting. A folder's data set is named by its directory."""
        labels = dict(run.group)
        return {**labels, "dataset": name_data(labels["dataset"], self.data_dir)}

    def name_dataset(self, dataset: str) -> str:
        """Return the paper's name of a data set."""
        return self.experiment.titles.get(dataset, SOURCES[dataset].title)

    def describe_paper(self, run: GridRun) -> str:
        """Name what the paper's numbers for a run are of, as far as the run differs from it.

        With the paper's network on its data, or on a copy of them, the settings differ.
        """
        paper, settings = run.stands_for, run.settings
        model = paper["model"] if self.experiment.network_known else "unknown network"
        data = self.name_dataset(paper["dataset"])
        same_data = paper["dataset"] == settings.dataset and not self.experiment.sizes
        if model != settings.model or not (same_data or run.is_copy):
            return f"{model}, {data}"
        theirs = [f"{name} {format_setting(name, v)}" for name, (_, v) in run.differences.items()]
        return ", ".join([data, *theirs] if run.is_copy else theirs)

    def is_papers(self, run: GridRun) -> bool:
        """Return whether a run is the paper's: network, data set and length of training.

        Of a source that can hold any data set, the sizes that the run recorded decide. Raises
        UserError for a damaged file.
        """
        sizes = self.experiment.sizes.get(run.settings.dataset)
        if not run.is_papers or sizes is None:
            return run.is_papers
        if not (self.locate(run) / CONFIG).exists():
            return False
        facts = read_config(self.locate(run)).facts
        return tuple(map(facts.get, ("num_classes", "train_size", "test_size"))) == sizes

    def is_trained(self, run: GridRun) -> bool:
        """Return whether a run has trained all its epochs."""
        return self.count_epochs(run) == run.settings.epochs

    def count_epochs(self, run: GridRun) -> int:
        """Return how many epochs a run has trained. Raises UserError for a damaged file."""
        path = self.locate(run) / METRICS
        return len(read_csv(path)) if path.exists() else 0

    def list_needed_epochs(self, run: GridRun) -> list[int]:
        """Return the epochs whose epoch_NNN.pth will be measured.

        Raises UserError if a run of this length has none of those that the experiment names.
        """
        epochs, step = run.settings.epochs, run.settings.epoch_save_step
        chosen = self.experiment.choose_checkpoints(epochs)
        if chosen in (None, "best"):  # best_model.pth is a file of its own
            return []
        saved = [*range(step, epochs, step), epochs]
        directory = self.locate(run)
        found = {epoch: directory / name_checkpoint(epoch) for epoch in saved}
        return list(pick_epochs(directory, found, chosen))

    def find_threads(self, run: GridRun) -> int | None:
        """Return the number of CPU threads that a run, or each of its processes, began with.

        None: it has not begun, or did not begin on the CPU. Raises UserError for a damaged file.
        """
        if not (self.locate(run) / CONFIG).exists():
            return None
        device = read_config(self.locate(run)).environment.get("device", "")
        found = CPU.match(device) if isinstance(device, str) else None
        return int(found[1]) if found else None

    def describe_training(self, name: str) -> str:
        """Describe the accuracies after the last epoch, and the seconds, of the run of a name."""
        rows = read_csv(self.save_dir / name / METRICS)
        seconds = sum(float(row["seconds"]) for row in rows)
        top1, uniform = (float(rows[-1][column]) for column in ("test_top1", "test_uniform"))
        return f"test top-1 {top1:.2f} %, uniform {uniform:.2f} %, {seconds:.0f} s"


def format_setting(name: str, value: Any) -> str:
    """Return the value of a setting in words; None is the default in words."""
    if value is None:
        return Settings.entries()[name].default_text or "the default"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
