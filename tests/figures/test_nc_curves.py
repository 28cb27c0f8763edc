"""The picture of the measures over the epochs: what is drawn, and where."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from figures.curves import Curve
from figures.nc_curves import draw_nc_curves
from figures.style import save_figure
from metrics import MEASURES, PANELS, Measure


def make_curve(
    name="run", loss="BCE", optimizer="SGD", epochs=3, splits=("train", "test"), **cells
):
    """A curve whose measures all have the number of the epoch; optional ones are empty."""
    rows = [
        {
            "epoch": epoch,
            "split": split,
            **{key: None if each.may_be_empty else float(epoch) for key, each in MEASURES.items()},
            **cells,
        }
        for epoch in range(1, epochs + 1)
        for split in splits
    ]
    return Curve(name, loss, optimizer, [rows])


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def read_title(axis):
    return axis.get_title().replace("\n", " ")


def find_panels(figure):
    """The axes of a figure by the title, without the split."""
    return {read_title(axis).partition(" (t")[0]: axis for axis in figure.axes}


def list_labels(legend):
    return [text.get_text().strip() for text in legend.get_texts()]


def test_every_measure_is_drawn_in_its_panel():
    curves = [make_curve("a"), make_curve("b", "CE", "AdamW")]
    alone, overlaid = (find_panels(draw_nc_curves(chosen)) for chosen in (curves[:1], curves))
    for name, panel in PANELS.items():
        drawn = [measure for measure in MEASURES.values() if measure.panel == name]
        assert len(alone[panel.title].lines) == len(drawn)
        if panel.alone:
            assert panel.title not in overlaid
        else:
            assert len(overlaid[panel.title].lines) == 2 * len(drawn)


def test_the_legend_names_runs_with_colour_line_and_mark_of_their_own():
    curves = [
        make_curve("_a$b$ (BCE, SGD)"),
        make_curve("b", "CE", "AdamW"),
        make_curve("bare", None, None),
    ]
    figure = draw_nc_curves(curves)
    (legend,) = figure.legends
    names = [label.replace("\\$", "$") for label in list_labels(legend)]
    assert names == ["_a$b$ (BCE, SGD)", "b", "bare"]
    lines = find_panels(figure)[PANELS["nc1"].title].lines
    for look in ("get_color", "get_linestyle", "get_marker"):
        assert len({getattr(line, look)() for line in lines}) == 3


@pytest.mark.parametrize("splits", [["train"], ["test"], ["train", "test"]])
def test_titles_name_the_split_that_is_drawn(splits):
    figure = draw_nc_curves([make_curve(splits=splits)])
    names = {"train": "(training set)", "test": "(test set)"}
    for name, panel in PANELS.items():
        own = next(each.split for each in MEASURES.values() if each.panel == name)
        drawn = own if own in splits else splits[0]
        title = read_title(find_panels(figure)[panel.title])
        assert title == f"{panel.title} {names[drawn]}"


@pytest.mark.parametrize("runs", [1, 2])
def test_a_new_panel_and_a_third_measure_in_one(runs, monkeypatch):
    monkeypatch.setitem(MEASURES, "mine", Measure("", "mine", panel="my panel"))
    monkeypatch.setitem(MEASURES, "more", Measure("", "more", panel="nc2"))
    monkeypatch.setitem(MEASURES, "none", Measure("", "none", panel="empty", optional=True))
    panels = find_panels(draw_nc_curves([make_curve(f"run {i}") for i in range(runs)]))
    assert len(panels["my panel"].lines) == runs
    assert "empty" not in panels
    shared = panels[PANELS["nc2"].title]
    looks = {(line.get_alpha(), line.get_markerfacecolor()) for line in shared.lines}
    assert len(looks) == 3
    assert list_labels(shared.get_legend())[-1] == "more"


def test_scores_are_drawn_beside_their_exact_prediction():
    without = draw_nc_curves([make_curve()])
    exact = draw_nc_curves([make_curve(predicted_bias=5.0, predicted_positive=9.0)])
    title = PANELS["scores"].title
    assert len(find_panels(exact)[title].lines) == len(find_panels(without)[title].lines) + 2
    assert "exact prediction" in list_labels(exact.legends[0])
    assert "exact prediction" not in list_labels(without.legends[0])


def test_collapse_is_drawn_beside_its_exact_prediction_unless_that_is_0():
    curves = [make_curve(predicted_nc2=0.3, predicted_nc3=1e-9), make_curve(predicted_nc2_h=0.2)]
    figure = draw_nc_curves(curves)
    panels = find_panels(figure)
    levels = [line for line in panels[PANELS["nc2"].title].lines if len(line.get_xdata()) == 2]
    assert [line.get_ydata()[0] for line in levels] == [0.3, 0.2]
    assert len(panels[PANELS["nc3"].title].lines) == 2
    assert list_labels(figure.legends[0]) == ["run", "run", "exact prediction"]


def test_all_points_lie_within_the_frame():
    figure = draw_nc_curves([make_curve(nc2=0.6), make_curve(nc2=0.7)])
    for name in ("nc1", "nc2", "nc3", "accuracy"):
        axis = find_panels(figure)[PANELS[name].title]
        low, high = axis.get_ylim()
        for line in axis.lines:
            assert low <= line.get_ydata().min() <= line.get_ydata().max() < high, name
    assert {axis.get_xlabel() for axis in figure.axes} == {"", "epoch"}


@pytest.mark.parametrize(
    "cells",
    [
        {"nc1": 0.1, "nc2": 0.0, "nc3": 0.0, "top1": 100.0, "uniform_accuracy": 0.0},
        {"nc1": 1.0, "nc2": 1.0, "nc3": 1e-9, "top1": 0.0, "uniform_accuracy": 0.0},
        {"nc1": 100.0, "nc2": 1.0, "nc3": 1.0, "top1": 100.0, "uniform_accuracy": 100.0},
    ],
)
def test_no_mark_is_cut_by_the_frame(cells):
    for epochs in (1, 3):
        figure = draw_nc_curves([make_curve(epochs=epochs, **cells)] * 2)
        figure.draw_without_rendering()
        for name in ("nc1", "nc2", "nc3", "accuracy"):
            axis = find_panels(figure)[PANELS[name].title]
            frame = axis.get_window_extent()
            for line in axis.lines:
                marks = axis.transData.transform(line.get_xydata())
                half = line.get_markersize() / 72 * figure.dpi / 2
                assert (marks >= frame.min + half).all(), name
                assert (marks <= frame.max - half).all(), name


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 12, 100])
def test_epochs_are_whole_numbers(epochs):
    for axis in draw_nc_curves([make_curve(epochs=epochs)]).axes:
        low, high = axis.get_xlim()
        ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
        assert ticks == [round(tick) for tick in ticks]
        assert len(ticks) == len(set(ticks)) >= min(epochs, 3)
        if epochs == 1:
            assert ticks == [1]


def make_seeds(values, epochs):
    """One curve of several runs: `values` [runs, epochs] are their NC1."""
    runs = []
    for own in values:
        (rows,) = make_curve(epochs=epochs, splits=["train"]).runs
        runs.append([{**row, "nc1": nc1} for row, nc1 in zip(rows, own, strict=True)])
    return Curve("BCE, SGD, 3 seeds", "BCE", "SGD", runs)


def test_seeds_are_one_line_of_means_with_a_band_of_one_deviation():
    values = np.random.default_rng(0).uniform(1, 2, (3, 4))
    curve = make_seeds(values.tolist(), 4)
    points = curve.list_points("nc1", "train")
    assert points.epochs == [1, 2, 3, 4]
    assert points.means == pytest.approx(values.mean(0).tolist())
    assert points.deviations == pytest.approx(values.std(0, ddof=1).tolist())

    figure = draw_nc_curves([curve, make_curve("one", "CE", epochs=4)])
    axis = find_panels(figure)[PANELS["nc1"].title]
    assert [len(line.get_xdata()) for line in axis.lines] == [4, 4]
    (band,) = axis.collections  # a single run has none
    drawn = band.get_paths()[0].vertices
    for epoch in range(1, 5):
        edges = drawn[drawn[:, 0] == epoch, 1]
        mean, deviation = values[:, epoch - 1].mean(), values[:, epoch - 1].std(ddof=1)
        assert edges.min() == pytest.approx(mean - deviation)
        assert edges.max() == pytest.approx(mean + deviation)
    assert list_labels(figure.legends[0]) == [
        "BCE, SGD, 3 seeds",
        "one",
        "± standard deviation",
    ]


def test_a_point_needs_all_seeds():
    """No point is the mean of fewer runs than the legend counts."""
    curve = make_seeds([[1.0, 2.0, 3.0], [1.0, None, 5.0], [1.0, 2.0, 4.0]], 3)
    curve.runs[2] = curve.runs[2][1:]
    points = curve.list_points("nc1", "train")
    assert points.epochs == [2, 3]
    assert math.isnan(points.means[0]) and points.means[1] == 4
    assert math.isnan(points.deviations[0]) and points.deviations[1] == 1
    save = draw_nc_curves([curve])
    assert not any(title == PANELS["scores"].title for title in find_panels(save))


def test_a_band_below_zero_leaves_the_log_scale_to_the_lines():
    figure = draw_nc_curves([make_seeds([[0.1, 0.1], [9.9, 0.2]], 2)])
    axis = find_panels(figure)[PANELS["nc1"].title]
    low, high = axis.get_ylim()
    assert 0.05 < low <= 0.1
    assert 11.9 < high < 200


LONG = "ResNet18_digits_BCE_SGD_" + "_".join(f"setting{i}_0.01" for i in range(20))


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("length", [8, 60, 180])
def test_no_text_is_cut_at_the_edges(count, length):
    curves = [make_curve(f"{LONG[:length]} (BCE, SGD)") for _ in range(count)]
    figure = draw_nc_curves(curves)
    figure.draw_without_rendering()
    whole = figure.get_tightbbox()
    assert whole.x0 >= 0 and whole.x1 <= figure.get_figwidth()
    assert whole.y0 >= 0 and whole.y1 <= figure.get_figheight()
    height = figure.axes[0].get_window_extent().height / figure.dpi
    assert height > 1.1  # inches; the legend takes no room from the panels
    shown = figure.get_suptitle() or list_labels(figure.legends[0])[0]
    assert shown.replace("\n", "").replace(" ", "") == f"{LONG[:length]}(BCE,SGD)"


def test_scores_and_bias_differ_without_colour():
    figure = draw_nc_curves([make_curve(predicted_bias=5.0, predicted_positive=9.0)])
    lines = find_panels(figure)[PANELS["scores"].title].lines
    curves = [line for line in lines if line.get_linestyle() != "--"]
    predictions = [line for line in lines if line.get_linestyle() == "--"]
    assert len({line.get_linestyle() for line in curves}) == 3
    assert len({line.get_marker() for line in curves}) == 3
    assert len({line.get_marker() for line in predictions}) == 2


@pytest.mark.parametrize("runs", [1, 2])
def test_empty_cells_are_gaps_in_the_picture(tmp_path, runs):
    (full,) = make_curve(epochs=30, splits=["train"]).runs
    empty = [{**row, **dict.fromkeys(MEASURES)} for row in full]
    for rows in (empty, [*full[:9], *empty[9:20], *full[20:]], [*full[:20], *empty[20:]]):
        curves = [Curve("r", "BCE", "SGD", [rows])] * runs
        several = [Curve("r", "BCE", "SGD", [rows, full])]
        for number, drawn in enumerate((curves, several)):
            save_figure(draw_nc_curves(drawn), tmp_path / f"{number}.png")
            Image.open(tmp_path / f"{number}.png").verify()
