"""The calls that measure and draw a finished grid, and the pictures that result.

Nothing here runs a script: reproduce.py makes the calls that these functions return.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metrics import MEASURES
from reproduction import choose_epochs
from reproduction.grid import GridRun
from reproduction.results import Result, collect_results
from reproduction.work import Work
from rundir.names import spell_for_files
from utils.cli import list_device_flags
from utils.files import write_whole


@dataclass(frozen=True)
class Call:
    """A call of a script.

    Attributes:
        script: the name of the script without .py.
        flags: the command line.
        accepted: the exit statuses that are no failure.
    """

    script: str
    flags: list[str]
    accepted: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Drawing:
    """The plan of the pictures of a report.

    Attributes:
        pictures: the report shows those of these that exist after the calls.
        calls: the calls to make, in this order.
        outdated: pictures of an earlier call that would stay beside the new ones.
    """

    pictures: Sequence[Path]
    calls: Sequence[Call] = ()
    outdated: Sequence[Path] = ()


def list_evaluations(work: Work) -> list[Call]:
    """Return the calls that measure the checkpoints of the finished runs."""
    chosen = work.experiment.choose_checkpoints(_count_epochs(work)) if work.finished else None
    if chosen is None:
        return []
    flags = ["--load_path", *_list_directories(work, work.finished), "--checkpoints", chosen]
    if work.experiment.overlays_curves and len(work.finished) > 1:
        flags += ["--out", str(work.out)]
    return [Call("eval_nc", [*flags, *list_device_flags(work.gpu_id)])]


def draw_curves(work: Work) -> Drawing:
    """Draw the scores of all runs at the end; eval_nc.py has drawn the curves of the measures.

    Those of a single run lie in its directory: the report gets a copy.
    """
    picture = work.out / "scores.png"
    call = _call_scores(work, work.finished, picture)
    shared, single = work.out / "nc_curves_overlay.png", work.out / "nc_curves.png"
    curves, other = shared, single
    if len(work.finished) == 1:
        curves, other = single, shared
        content = (work.locate(work.finished[0]) / single.name).read_bytes()
        write_whole(single, lambda file: file.write(content))
    return Drawing([curves, picture], [call], [path for path in (other,) if path.exists()])


def draw_scores(work: Work) -> Drawing:
    """Draw a score figure over the swept setting for each network and data set."""
    groups: dict[tuple[str, str], list[GridRun]] = {}
    for run in work.finished:
        groups.setdefault((run.settings.model, run.settings.dataset), []).append(run)
    pictures = {key: work.out / f"scores_{spell_for_files(key[0])}_{key[1]}.png" for key in groups}
    calls = [_call_scores(work, runs, pictures[key]) for key, runs in groups.items()]
    return Drawing(list(pictures.values()), calls)


def draw_tsne(work: Work) -> Drawing:
    """Draw the features of the runs with the first seed over the epochs, side by side."""
    first = list_first_seed(work)
    epochs = _count_epochs(work)
    begin, end = choose_epochs(work.experiment.epochs or (1, epochs), epochs)
    flags = [*_list_directories(work, first), "--checkpoints", f"{begin}-{end}"]
    call = Call("eval_tsne", [*flags, "--out", str(work.out), *list_device_flags(work.gpu_id)])
    pictures = [work.out / f"tsne_epoch_{end:03d}.png", work.out / "tsne.gif"]
    return Drawing(pictures, [call], sorted(work.out.glob("tsne_epoch_*.png")))


def list_first_seed(work: Work) -> list[GridRun]:
    """Return the finished runs with the smallest of their seeds."""
    seed = min(run.settings.seed for run in work.finished)
    return [run for run in work.finished if run.settings.seed == seed]


def draw_accuracies(work: Work) -> Drawing:
    """Draw the accuracies beside the paper's, without a call."""
    from figures.accuracy import Accuracy, draw_accuracy_figure
    from figures.style import save_figure

    results = collect_results(work)
    panels = [name for name in work.experiment.measures if _is_panel(name, results)]
    accuracies = [
        Accuracy(
            panel=f"{MEASURES[name].name} {MEASURES[name].unit}",
            setting=_describe_setting(result, results),
            loss=result.labels["loss"],
            mean=result.mean(name),
            deviation=result.deviation(name),
            published=result.get_paper(name),
        )
        for name in panels
        for result in results
    ]
    picture = work.out / "accuracy.png"
    save_figure(draw_accuracy_figure(accuracies, _describe_paper(results)), picture)
    return Drawing([picture])


def _count_epochs(work: Work) -> int:
    return work.finished[0].settings.epochs


def _list_directories(work: Work, runs: Sequence[GridRun]) -> list[str]:
    return [str(work.locate(run)) for run in runs]


def _call_scores(work: Work, runs: Sequence[GridRun], picture: Path) -> Call:
    swept = ["--by", work.experiment.swept] if work.experiment.swept else []
    flags = [
        *_list_directories(work, runs),
        *swept,
        "--out",
        str(picture),
        *list_device_flags(work.gpu_id),
    ]
    return Call("eval_scores", flags)


def _is_panel(name: str, results: Sequence[Result]) -> bool:
    accuracy = name in MEASURES and MEASURES[name].panel == "accuracy"
    return accuracy and any(name in result.values for result in results)


def _describe_setting(result: Result, results: Sequence[Result]) -> str:
    """Name a row by the labels that differ between rows; mark and colour show the loss."""
    differing = [
        name
        for name, value in result.labels.items()
        if name != "loss" and any(other.labels[name] != value for other in results)
    ]
    names = differing or [name for name in result.labels if name != "loss"]
    return " ".join(
        f"{name} {value:g}" if isinstance(value, int | float) else str(value)
        for name, value in ((name, result.labels[name]) for name in names)
    )


def _describe_paper(results: Sequence[Result]) -> str:
    """Name what the paper's numbers are of, for a legend."""
    described = {result.context_of for result in results if result.context}
    if not described:
        return "same setting"
    return described.pop() if len(described) == 1 else "its own networks and data"
