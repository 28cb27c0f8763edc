"""The grids of the experiments: their runs and names, and the paper's numbers for them."""

from functools import partial

import pytest

from args import Settings, parse_settings
from input_pipeline import SOURCES
from objective import LOSSES, OPTIMIZERS
from objective.schedules import compute_learning_rate
from reproduction import EXPERIMENTS, SCALES, Experiment, choose_epochs
from reproduction.grid import build_grid
from reproduction.readings import find_reading
from reproduction.selection import select_runs
from tests.helpers import OWN_NETWORKS
from utils.errors import UserError
from utils.registry import load_function


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_run_of_every_grid_is_a_command_of_train(name, scale):
    runs = build_grid(name, scale, seeds=2)
    assert len({run.name for run in runs}) == len(runs)
    for run in runs[:: max(1, len(runs) // 20)]:
        settings = parse_settings([*run.flags(), "--run_name", run.name])
        assert settings.run_name == run.name
        for setting, value in run.given.items():
            assert getattr(settings, setting) == getattr(run.settings, setting) == value


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_entries_name_what_there_is(name):
    experiment = EXPERIMENTS[name]
    assert set(experiment.datasets) <= set(SOURCES)
    assert set(experiment.models) <= set(OWN_NETWORKS)
    assert set(experiment.losses) <= set(LOSSES)
    assert set(experiment.axes.get("optimizer", ())) <= set(OPTIMIZERS)
    for measure in experiment.measures:
        assert find_reading(measure).measure.heading in find_reading(measure).title
    assert set(experiment.smaller) <= set(SCALES)
    assert set(experiment.recipes) <= set(SCALES)
    chosen = (*experiment.smaller.values(), *experiment.recipes.values())
    for settings in (experiment.axes, experiment.fixed, *chosen):
        assert set(settings) <= set(Settings.model_fields)
    for reference in (experiment.draw, experiment.find_results, experiment.published):
        assert reference is None or callable(load_function(reference))


def test_the_papers_grids():
    table, experiment = build_grid("table-cifar", "full"), EXPERIMENTS["table-cifar"]
    assert len(table) == 3 * 2 * 2 * 2 * 2
    assert len({tuple(run.look_up_published(experiment).items()) for run in table}) > 40
    for run in table:
        numbers = run.look_up_published(experiment)
        assert 50 < numbers["top1"] < 97
        assert numbers["uniform_accuracy"] <= numbers["top1"]
        assert (run.settings.epochs, run.settings.lr) == (100, 0.01)
    assert len(build_grid("bias-mean", "full")) == 3 * 2 * 2 * 2 * 9
    assert len(build_grid("bias-decay", "full")) == 3 * 2 * 2 * 2 * 6
    assert len(build_grid("imagenet", "full")) == 6
    # t-SNE is drawn of runs that the curves have trained.
    curves = {run.name for run in build_grid("nc-curves", "full")}
    assert {run.name for run in build_grid("tsne", "full")} < curves
    # As are those that begin with a bias of 0.
    assert curves <= {run.name for run in build_grid("bias-start", "full")}


def test_imagenet_is_trained_as_torchvisions_references_do():
    for run in build_grid("imagenet", "full"):
        s = run.settings
        assert (s.augment, s.img_size, s.batch_size, s.weight_decay) == ("RRC", 224, 256, 1e-4)
        rate = partial(
            compute_learning_rate,
            base=s.scaled_lr,
            epochs=s.epochs,
            schedule=s.schedule,
            warmup=s.epochs_warmup,
            milestones=s.step_milestones,
            gamma=s.step_gamma,
        )
        rates = [rate(epoch) for epoch in range(1, s.epochs + 1)]
        assert rates[5:] == pytest.approx([0.1] * 25 + [0.01] * 30 + [0.001] * 30)
        assert rates[:5] == pytest.approx([0.1 * epoch / 6 for epoch in range(1, 6)])
        assert run.is_papers
    for epochs, warmup, milestones in ((45, 2, [15, 30]), (3, 0, [1, 2]), (1, 0, [1])):
        short = build_grid("imagenet", "full", overrides={"epochs": epochs})[0]
        found = (short.settings.epochs_warmup, short.settings.step_milestones)
        assert found == (warmup, milestones)
        assert not short.is_papers
    longer = build_grid("imagenet", "full", overrides={"epochs": 90, "lr_SGD": 0.2})[0]
    assert longer.is_papers and longer.settings.scaled_lr == 0.4
    for scale, options in (("cpu", {}), ("full", {"datasets": ["cifar10"]})):
        other = build_grid("imagenet", scale, **options)[0].settings
        assert (other.augment, other.schedule, other.batch_size) == ("DA1", "cosine", 128)


def test_names_of_runs_stay():
    """Runs of earlier versions are found by these names."""

    def name_first(experiment, scale, **options):
        return build_grid(experiment, scale, **options)[0].name

    assert name_first("table-cifar", "full") == "ResNet18_cifar10_CE_SGD_DA1_every100_s0"
    assert name_first("nc-curves", "cpu") == "ResNet18_mnist_CE_SGD_sep_every1_s0"
    given = {"epochs": 3, "sample_size": 7, "lr_SGD": 0.3}
    assert name_first("bias-decay", "smoke", overrides=given) == (
        "MLP_digits_CE_SGD_sep_mean10_decay0.5_every3_epochs3_sample_size7_lr0.3_s0"
    )
    assert name_first("bias-mean", "cpu", datasets=["digits"], overrides={"lr_AdamW": 0.1}) == (
        "ResNet18_digits_CE_SGD_sep_mean0_decay0_every40_s0"
    )
    last = build_grid("long-tail", "full", seeds=3)[-1]
    assert last.name == "ResNet18_cifar100_BCE_SGD_DA1_lt100_every100_s2"


def test_ce_has_one_start_of_the_bias():
    runs = build_grid("bias-start", "full")
    found = [(run.settings.loss, run.settings.bias_init_mean) for run in runs]
    one = [("CE", 0), ("BCE", 0), ("BCE", "prior"), ("BCE", "predicted")]
    assert sorted(found, key=str) == sorted(one * 2, key=str)  # two optimizers
    assert runs[-1].name == "ResNet18_cifar10_BCE_AdamW_sep_meanpredicted_every1_s0"
    (chosen,) = select_runs(runs, [("bias_init_mean", "Prior"), ("optimizer", "sgd")])
    assert chosen.settings.bias_init_mean == "prior"


def test_published_numbers_belong_to_the_papers_settings():
    def look_up(name, **options):
        runs = build_grid(name, "full", **options)
        return {run.name: run.look_up_published(EXPERIMENTS[name]) for run in runs}

    assert look_up("long-tail")["ResNet18_cifar100_CE_SGD_DA1_lt50_every100_s0"] == {"top1": 57.59}
    scores = look_up("bias-mean", datasets=["cifar100"], models=["Swin"])
    assert scores["Swin_cifar100_BCE_AdamW_sep_mean4_decay0_every100_s0"] == {
        "positive_mean": 10.2,
        "negative_mean": -0.1,
        "bias_mean": 7.4,
    }
    assert scores["Swin_cifar100_BCE_SGD_sep_mean4_decay0_every100_s0"] == {}
    imagenet = look_up("imagenet")["ResNet50_folder_BCE_SGD_RRC_every90_s0"]
    assert imagenet == {"top1": 77.12, "uniform_accuracy": 66.92}
    # Another network stands for the experiment's first.
    others = build_grid("imagenet", "smoke")
    assert others[1].look_up_published(EXPERIMENTS["imagenet"]) == imagenet


def test_differences_from_the_papers_runs():
    def find(name, scale, **options):
        return build_grid(name, scale, **options)[0].differences

    assert find("table-cifar", "full") == find("table-cifar", "full", datasets=["folder"]) == {}
    given = {"epochs": 100, "sample_size": 3, "lr_SGD": 0.5, "lr_AdamW": 0.4}
    found = find("nc-curves", "full", overrides=given)
    assert found == {"sample_size": (3, None), "lr": (0.5, 0.01)}
    # The sizes of another network are not compared, but that of the batch is.
    smoke = find("nc-curves", "smoke")
    assert set(smoke) == {"lr", "batch_size", "epochs", "sample_size", "test_sample_size"}
    assert set(find("long-tail", "smoke")) == {*smoke}
    assert find("imagenet", "full", overrides={"lr_SGD": 0.3}) == {}  # a recipe is not the paper's


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match="min_lr"):
        build_grid("nc-curves", "full", overrides={"lr_SGD": 1e-9})


def test_epochs_of_a_short_run():
    assert choose_epochs((6, 13), 100) == (6, 13)
    assert choose_epochs((6, 13), 13) == (6, 13)
    assert choose_epochs((6, 13), 3) == (2, 3)
    assert EXPERIMENTS["tsne"].choose_checkpoints(100) == "6-13"
    assert EXPERIMENTS["nc-curves"].choose_checkpoints(100) == "all"
    assert EXPERIMENTS["table-cifar"].choose_checkpoints(100) is None


def test_an_entry_is_all_that_an_experiment_needs(monkeypatch):
    entry = Experiment(
        title="Label smoothing",
        what="Smoothed labels under a fixed classifier and a trained one.",
        axes={"smoothing": (0.0, 0.1), "fixed_etf": (False, True), "lr": (0.5, 0.25)},
        fixed={"schedule": "step", "step_milestones": [2, 3]},
    )
    monkeypatch.setitem(EXPERIMENTS, "smoothing", entry)
    runs = build_grid("smoothing", "smoke", overrides={"epochs": 4})
    assert len({run.name for run in runs}) == len(runs) == 2 * 2 * 2 * 2
    for run in runs:
        assert "schedulestep" in run.name
        settings = parse_settings(run.flags())
        labels = dict(run.group)
        for name in ("smoothing", "fixed_etf", "lr"):
            assert getattr(settings, name) == getattr(run.settings, name) == labels[name]
        assert settings.step_milestones == [2, 3]
        assert run.settings.optimizer == "SGD"
        assert run.look_up_published(entry) == {}


def test_labels_show_what_was_given():
    runs = build_grid("long-tail", "smoke", overrides={"sample_size": 7})
    assert dict(runs[0].group)["sample_size"] == runs[0].settings.sample_size == 7
