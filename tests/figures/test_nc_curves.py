"""The picture of the measures over the epochs: what is drawn, and where."""

import pytest
from PIL import Image

from figures.nc_curves import Curve, draw_nc_curves
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
    return Curve(name, loss, optimizer, rows)


def find_panels(figure):
    """The axes of a figure by the title, without the split."""
    return {axis.get_title().partition(" (t")[0]: axis for axis in figure.axes}


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
    curves = [make_curve("_a$b$"), make_curve("b", "CE", "AdamW"), make_curve("bare", None, None)]
    figure = draw_nc_curves(curves)
    (legend,) = figure.legends
    names = [label.replace("\\$", "$") for label in list_labels(legend)]
    assert names == ["_a$b$ (BCE, SGD)", "b (CE, AdamW)", "bare"]
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
        title = find_panels(figure)[panel.title].get_title()
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


def test_all_points_lie_within_the_frame():
    figure = draw_nc_curves([make_curve(nc2=0.6), make_curve(nc2=0.7)])
    for name in ("nc1", "nc2", "nc3", "accuracy"):
        axis = find_panels(figure)[PANELS[name].title]
        low, high = axis.get_ylim()
        for line in axis.lines:
            assert low <= line.get_ydata().min() <= line.get_ydata().max() < high, name
    assert {axis.get_xlabel() for axis in figure.axes} == {"", "epoch"}


def test_epochs_are_whole_numbers():
    axis = draw_nc_curves([make_curve(epochs=1)]).axes[-1]
    low, high = axis.get_xlim()
    assert [tick for tick in axis.get_xticks() if low <= tick <= high] == [1]


@pytest.mark.parametrize("runs", [1, 2])
def test_empty_cells_are_gaps_in_the_picture(tmp_path, runs):
    full = make_curve(epochs=30, splits=["train"]).rows
    empty = [{**row, **dict.fromkeys(MEASURES)} for row in full]
    for rows in (empty, [*full[:9], *empty[9:20], *full[20:]], [*full[:20], *empty[20:]]):
        curves = [Curve("r", "BCE", "SGD", rows)] * runs
        save_figure(draw_nc_curves(curves), tmp_path / "a.png")
        Image.open(tmp_path / "a.png").verify()
