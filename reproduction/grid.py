"""The training runs of an experiment."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from args import Settings, complete
from input_pipeline import SOURCES
from reproduction import EXPERIMENTS, SCALES, Experiment, Scale, Values
from rundir.names import NAMED_FIRST, spell_for_files
from utils.registry import load_function

# These settings follow NAMED_FIRST in the name of a run, in this order: runs of earlier versions
# are found by their names. Other settings follow in the order of their entries in args.py.
NAMED_NEXT = (
    "augment",
    "sep_decay",
    "bias_init_mean",
    "weight_decay_bias",
    "imbalance_factor",
    "epoch_save_step",
)


PAPERS = next(name for name, scale in SCALES.items() if scale.is_papers)


@dataclass(frozen=True)
class GridRun:
    """One training run of a grid.

    Attributes:
        name: the name of its run directory.
        given: the settings that its command gives, in order.
        settings: the complete settings.
        group: the labels of its setting. Runs that differ in the seed alone share them.
        stands_for: the data set and the network of the paper's numbers for it.
        is_papers: whether it trains that network on that data set with the paper's settings.
        is_copy: whether its data are a copy of that data set in files.
        differences: (ours, the paper's) of the settings that are not the paper's, by name.
    """

    name: str
    given: Mapping[str, Any]
    settings: Settings
    group: tuple[tuple[str, Any], ...]
    stands_for: Mapping[str, str]
    is_papers: bool = False
    is_copy: bool = False
    differences: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def flags(self) -> list[str]:
        """Return the flags of train.py that give its settings."""
        return format_flags(self.given)

    def look_up_published(self, experiment: Experiment) -> dict[str, float]:
        """Return the paper's numbers for this run, by measure."""
        if experiment.published is None:
            return {}
        in_the_paper = self.settings.replace(**self.stands_for)
        found = load_function(experiment.published)(in_the_paper)
        return {measure: number for measure, number in found.items() if number is not None}


def format_flags(given: Mapping[str, Any]) -> list[str]:
    """Return settings as the words of a command line."""
    words = []
    for name, value in given.items():
        if value is False:
            # Every switch is off by default, but for those with an opposite.
            words += [f"--no_{name}"] if Settings.entries()[name].left_open else []
            continue
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}"] if value is True else [f"--{name}", *map(str, values)]
    return words


def build_grid(
    name: str,
    scale: str,
    *,
    seeds: int = 1,
    datasets: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    copy_of: str | None = None,
) -> list[GridRun]:
    """Return the training runs of an experiment; none for one that trains nothing.

    Args:
        name: a key of `EXPERIMENTS`.
        scale: a key of `SCALES`.
        seeds: each setting gets the seeds 0 … seeds − 1.
        datasets, models: names in place of the experiment's at this scale.
        overrides: settings in place of the scale's, by their name; `lr_NAME` is the learning rate
            of the optimizer NAME.
        copy_of: the paper's data set of which a folder holds a copy; None: not known.

    Raises:
        UserError: settings that do not go together.
    """
    experiment, size = EXPERIMENTS[name], SCALES[scale]
    if not experiment.trains:
        return []
    axes = _choose_axes(experiment, scale)
    combinations = itertools.product(
        datasets or size.datasets or experiment.datasets,
        models or size.models or experiment.models,
        experiment.losses,
        *axes.values(),
    )
    names = ("dataset", "model", "loss", *axes)
    labels = [dict(zip(names, values, strict=True)) for values in combinations]
    return [
        _build_run(experiment, scale, each, seed, overrides or {}, copy_of)
        for each, seed in itertools.product(labels, range(seeds))
        if _has_values(experiment, each)
    ]


def _has_values(experiment: Experiment, labels: Mapping[str, Any]) -> bool:
    """Return whether the loss of a setting has the other values of it."""
    allowed = experiment.of_losses.get(labels["loss"], {})
    return all(labels[name] in values for name, values in allowed.items())


def _build_run(
    experiment: Experiment,
    scale_name: str,
    labels: Mapping[str, Any],
    seed: int,
    overrides: Mapping[str, Any],
    copy_of: str | None,
) -> GridRun:
    dataset, model = labels["dataset"], labels["model"]
    given = _choose_settings(experiment, scale_name, labels, seed, overrides)
    given_here = _drop_rates(overrides)
    spelled = _list_spelled(experiment, scale_name) - set(given_here)
    # A switch is named by its short form already.
    own_words = [f"{name}{value}" for name, value in given_here.items() if value is not True]
    settings = complete(Settings.from_flags(given))
    if f"lr_{settings.optimizer}" in overrides:
        own_words.append(f"lr{given['lr']:g}")
    is_copy = copy_of is not None and SOURCES[dataset].named_by_directory
    stands_for = {
        "dataset": dataset if dataset in experiment.datasets else experiment.datasets[0],
        "model": model if model in experiment.models else experiment.models[0],
    }
    if copy_of is not None and is_copy:
        stands_for["dataset"] = copy_of
    differences = _find_differences(experiment, labels, settings, stands_for)
    first_words = [spell_for_files(str(getattr(settings, name))) for name in NAMED_FIRST]
    return GridRun(
        name="_".join([*first_words, *_list_name_words(given, spelled), *own_words, f"s{seed}"]),
        given=given,
        settings=settings,
        group=tuple((name, given.get(name, getattr(settings, name))) for name in labels),
        stands_for=stands_for,
        is_copy=is_copy,
        differences=differences,
        is_papers=SCALES[scale_name].is_papers
        and experiment.network_known
        and not differences
        and stands_for == {"dataset": dataset, "model": model},
    )


def _choose_settings(
    experiment: Experiment,
    scale_name: str,
    labels: Mapping[str, Any],
    seed: int,
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the settings that a run is given, in the order of its command."""
    scale, dataset = SCALES[scale_name], labels["dataset"]
    chosen = {**labels, **experiment.fixed}
    optimizer = chosen.get("optimizer", Settings.model_fields["optimizer"].default)
    given_here = _drop_rates(overrides)
    recipe = experiment.recipes.get(scale_name, {}) if dataset in experiment.datasets else {}
    sizes = _choose_sizes(experiment, scale, dataset, labels["model"])
    planned = {**sizes, **chosen, **recipe}
    settings = {
        **{name: labels[name] for name in ("model", "dataset", "loss")},
        **planned,
        **given_here,
        **_fit_schedule(recipe, given_here.get("epochs")),
        "lr": overrides.get(f"lr_{optimizer}") or planned.get("lr") or scale.rates.get(optimizer),
        "seed": seed,
    }
    settings["epoch_save_step"] = experiment.save_every or settings["epochs"]
    kept = experiment.choose_kept(settings["epochs"])
    settings["keep_checkpoints"] = None if kept == "all" else kept  # the default is not given
    return {name: value for name, value in settings.items() if value is not None}


def _drop_rates(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in overrides.items() if not name.startswith("lr_")}


def _find_differences(
    experiment: Experiment,
    labels: Mapping[str, Any],
    settings: Settings,
    stands_for: Mapping[str, str],
) -> dict[str, tuple[Any, Any]]:
    """Return (ours, the paper's) of the settings in which a run differs from the paper's run.

    Data set and network, and the sizes of another network, are not among them. A recipe is not the
    paper's: its learning rate may be another one.
    """
    spanned = ("dataset", "model", "loss", *experiment.axes)
    of_paper = {k: value for k, value in {**labels, **stands_for}.items() if k in spanned}
    papers = complete(Settings.from_flags(_choose_settings(experiment, PAPERS, of_paper, 0, {})))
    left_out = {"dataset", "model", "seed", "epoch_save_step"}
    if settings.model != papers.model:
        left_out |= set(Settings.names(builds="model"))
    if "lr" in experiment.recipes.get(PAPERS, {}):
        left_out.add("lr")
    theirs = papers.get_shaping()
    pairs = {name: (ours, theirs[name]) for name, ours in settings.get_shaping().items()}
    return {k: pair for k, pair in pairs.items() if k not in left_out and pair[0] != pair[1]}


def _choose_sizes(experiment: Experiment, scale: Scale, dataset: str, model: str) -> dict[str, Any]:
    """Return the settings for epochs, images, their side, and the size of the network."""
    sizes = dict(scale.of_datasets.get(dataset, scale.settings))
    if scale.is_papers and SOURCES[dataset].streams:
        sizes["img_size"] = experiment.image_side
    return {**sizes, **scale.of_models.get(model, {})}


def _fit_schedule(recipe: Mapping[str, Any], epochs: int | None) -> dict[str, Any]:
    """Return the warm-up and the milestones of a recipe for another number of epochs."""
    if epochs is None or "epochs" not in recipe:
        return {}
    share, fitted = epochs / recipe["epochs"], dict[str, Any]()
    if "epochs_warmup" in recipe:
        fitted["epochs_warmup"] = math.floor(share * recipe["epochs_warmup"])
    if "step_milestones" in recipe:
        milestones = {round(share * each) for each in recipe["step_milestones"]}
        fitted["step_milestones"] = sorted(milestones - {0, epochs}) or None
    return fitted


def _choose_axes(experiment: Experiment, scale_name: str) -> dict[str, Values]:
    return {**experiment.axes, **experiment.smaller.get(scale_name, {})}


def _list_spelled(experiment: Experiment, scale_name: str) -> set[str]:
    """Return the settings that a name spells out if their entry has no short form."""
    axes = _choose_axes(experiment, scale_name)
    varied = {name for name, values in axes.items() if len(values) > 1}
    return (varied | set(experiment.fixed)) - set(NAMED_FIRST)


def _list_name_words(given: Mapping[str, Any], spelled: Collection[str]) -> Iterator[str]:
    """Yield the words that distinguish runs of one scale, also of different experiments."""
    entries = Settings.entries()
    for name in dict.fromkeys((*NAMED_NEXT, *entries)):
        value, short = given.get(name), entries[name].short
        if value is None or value is False:
            continue
        if short is not None:
            # A word may stand in place of a number.
            yield (short.replace(":g", "") if isinstance(value, str) else short).format(value)
        elif name in spelled:
            yield name if value is True else f"{name}{_format_value(value)}"


def _format_value(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)
