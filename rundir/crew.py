"""The processes of a job that evaluate checkpoints together: the first gives the others orders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from input_pipeline.loader import BatchLoader
from metrics.classes import Values, measure_classes
from metrics.extraction import extract
from metrics.measures import Evaluation, compute_measures
from rundir.foreign import explain_sign
from rundir.rebuild import Rebuilder
from rundir.trained import TrainedRun


@dataclass(frozen=True)
class MeasuredSplit:
    """The measures of a checkpoint on a split.

    Attributes:
        values: by column of nc_metrics.csv.
        classes: those of each class by column of nc_classes.csv; none if all have one size.
    """

    values: Values
    classes: list[Values]


class Crew:
    """Computes the measures of networks: each process passes its share of the images.

    The first process decides what is computed. Where it calls `build`, `fill` or `measure`, the
    others, which are in `follow`, do the same. What is read of the run directory and downloaded is
    read and downloaded by the first. An error of any process is raised in the first.

    Args:
        rebuilder: builds the runs' networks and loads their data, for all processes.
    """

    def __init__(self, rebuilder: Rebuilder) -> None:
        self._rebuilder, self._world = rebuilder, rebuilder.world
        self._run: TrainedRun | None = None
        self._model: Any = None

    def build(self, run: TrainedRun) -> None:
        """Load a run's data and build its network, unless they are there.

        Raises UserError, also if the memory is too small for the features.
        """
        if self._run is not run:
            self._order("build", run)
            self._build(run)

    def fill(self, path: Path, content: Any) -> None:
        """Load the weights that were read from a checkpoint. Raises UserError."""
        self._order("fill")
        self._fill(path, content)

    def measure(
        self, split: str, check_sign: bool, report: Callable[[float], object]
    ) -> tuple[MeasuredSplit | ValueError, str | None]:
        """Compute the measures of a split with the weights that were loaded.

        Args:
            split: "train" or "test".
            check_sign: whether to see if the other sign of the bias fits better.
            report: gets the share of the images that this process has passed, after each batch.

        Returns:
            The measures, or why they are not defined, and a warning about the sign, if any.

        Raises:
            UserError: an image cannot be read.
        """
        self._order("measure", split, check_sign)
        return self._measure(split, check_sign, report)

    def follow(self) -> None:
        """Do what the first process does, until it calls `dismiss`."""
        tasks: dict[str, Callable[..., object]] = {
            "build": self._build,
            "fill": self._fill,
            "measure": self._measure,
        }
        while (order := self._world.broadcast(None)) is not None:
            task, values = order
            try:
                tasks[task](*values)
            except ValueError:  # all processes have it, and the first one decides what follows
                continue

    def dismiss(self) -> None:
        """Let the other processes return from `follow`."""
        if self._world.size > 1:
            self._world.broadcast(None)

    def _order(self, task: str, *values: Any) -> None:
        if self._world.size > 1:
            self._world.broadcast((task, values))

    # Every ValueError below is agreed on by all processes: none may be left waiting for another.

    def _build(self, run: TrainedRun) -> None:
        self._run = None
        self._model = self._world.take_turns(lambda: self._rebuilder.model(run))
        self._world.check(lambda: self._rebuilder.check_room(run))
        self._run = run

    def _fill(self, path: Path = Path(), content: Any = None) -> None:
        def fill() -> None:
            assert self._run is not None
            self._rebuilder.fill_model(self._run, path, content)

        self._world.call_first(fill)
        self._world.copy_weights(self._model)

    def _measure(
        self,
        split: str,
        check_sign: bool,
        report: Callable[[float], object] = lambda share: None,
    ) -> tuple[MeasuredSplit | ValueError, str | None]:
        rebuilder, run, model = self._rebuilder, self._run, self._model
        assert run is not None
        batches = self._world.check(lambda: rebuilder.batches(run, split))
        evaluation = evaluate_split(rebuilder, run, model, batches, report)
        warning = None
        if check_sign and run.bare is not None:
            extracted = evaluation.extracted
            warning = explain_sign(run.bare, split, extracted, model.fc, self._world)
        try:
            return measure_evaluation(evaluation), warning
        except ValueError as error:
            return error, warning


def measure_evaluation(evaluation: Evaluation) -> MeasuredSplit:
    """Compute all measures. Raises ValueError as `compute_measures`, on all processes."""
    return MeasuredSplit(compute_measures(evaluation), measure_classes(evaluation))


def evaluate_split(
    rebuilder: Rebuilder,
    run: TrainedRun,
    model: torch.nn.Module,
    batches: BatchLoader,
    report: Callable[[float], object] = lambda share: None,
) -> Evaluation:
    """Pass the images of a split through a network of a run, and collect what measures need.

    `report` gets the share of the images after each batch, as the host counts them. With several
    processes each passes its own, and counts these.
    """
    classifier: Any = model.fc
    count = max(1, batches.count_own())
    return Evaluation(
        extract(
            model,
            batches,
            rebuilder.precision(run).autocast(),
            report=lambda images: report(images / count),
            world=rebuilder.world,
        ),
        classifier.weight.detach(),
        classifier.bias_vector().detach(),
        rebuilder.class_sizes(run),
        long_tailed=run.settings.imbalance_factor != 1,
        prediction=rebuilder.prediction(run),
        world=rebuilder.world,
    )
