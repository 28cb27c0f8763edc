"""`metrics.measure` against features and logits taken by hand, and what it refuses."""

import contextlib
import re

import numpy as np
import pytest
import torch
from torch import nn

from metrics import MEASURES, collection, measure
from metrics.accuracy import compute_uniform_accuracy
from metrics.calibration import compute_calibration
from metrics.extraction import extract
from metrics.features import HostFeatures
from metrics.geometry import compute_geometry
from metrics.measures import Evaluation, compute_measures
from metrics.neural_collapse import compute_neural_collapse
from metrics.variability import compute_variability
from models import build_model
from tests.helpers import ROOT
from tests.metrics.cases import build_batches

CLASSES, DIM = 3, 6


class Network(nn.Module):
    """A network with a frozen normalisation and dropout; `result` shapes what it returns."""

    def __init__(self, result=lambda logits, features: logits, **options):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, DIM), nn.BatchNorm1d(DIM), nn.ReLU())
        self.drop = nn.Dropout()
        self.head = nn.Linear(DIM, CLASSES, **options)
        self.result = result
        self.body[2].running_mean.normal_()
        self.body[2].eval()

    def forward(self, images):
        features = self.drop(self.body(images))
        return self.result(self.head(features), features)


def make_batches(count=40, size=16):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 2, 2, generator=generator)
    return list(zip(images.split(size), (torch.arange(count) % CLASSES).split(size), strict=True))


def test_measures_are_those_of_features_taken_by_hand():
    model, batches = Network(), make_batches()
    values = measure(model, batches, classifier=model.head, bias_added=True)
    assert list(values) == list(MEASURES)
    labels = torch.cat([labels for _, labels in batches])
    with torch.no_grad():
        model.eval()
        features = torch.cat([model.body(images) for images, _ in batches])
        weight, bias = model.head.weight, model.head.bias
        logits = features @ weight.T + bias
    accuracy, threshold = compute_uniform_accuracy(logits, labels)
    calibration = compute_calibration(logits, labels)
    expected = {
        **compute_neural_collapse(features, labels, weight, -bias),
        **compute_geometry(features, labels, weight),
        **compute_variability(features, labels),
        "top1": 100 * (logits.argmax(1) == labels).double().mean().item(),
        "top5": 100.0,
        "uniform_accuracy": 100 * accuracy,
        "uniform_threshold": threshold,
        "ece": 100 * calibration["ece"],
        "nll": calibration["nll"],
        "bias_mean": -bias.double().mean().item(),
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-5), name
    empty = {name for name, value in values.items() if value is None}
    assert empty == {name for name, entry in MEASURES.items() if entry.optional}


def test_this_projects_networks_have_the_numbers_of_eval_nc():
    torch.manual_seed(0)
    model = build_model("MLP", 10, (3, 8, 8), width=24, depth=2)
    batches = build_batches(16)
    evaluation = Evaluation(
        extract(model, batches, contextlib.nullcontext()),
        model.fc.weight.detach(),
        model.fc.bias_vector().detach(),
        [4] * 10,
    )
    model.train()
    ours = measure(model, batches.batches(epoch=0), model.fc, bias_added=False)
    assert ours == compute_measures(evaluation)


@pytest.mark.parametrize(
    "change",
    [
        lambda batches: ([image.numpy(), label.numpy()] for image, label in batches),
        lambda batches: [(image.numpy(), label.tolist()) for image, label in batches],
        lambda batches: [(image, label.to(torch.uint8)) for image, label in batches],
        lambda batches: make_batches(size=7),
    ],
)
def test_any_loader_serves(change):
    model = Network()
    expected = measure(model, make_batches(), model.head)
    found = measure(model, change(make_batches()), model.head)
    for name, value in expected.items():
        assert found[name] == (value and pytest.approx(value, rel=1e-5)), name


@pytest.mark.parametrize(
    "result",
    [lambda z, h: (z, h), lambda z, h: (h, z), lambda z, h: {"out": z}, lambda z, h: z.softmax(1)],
)
def test_any_result_of_the_network_serves(result):
    model, plain = Network(result), Network()
    expected = measure(plain, make_batches(), plain.head)
    assert measure(model, make_batches(), model.head) == expected


@pytest.mark.parametrize("bias_added", [True, False])
def test_a_classifier_without_bias(bias_added):
    model = Network(bias=False)
    values = measure(model, make_batches(), model.head, bias_added=bias_added)
    assert values["bias_mean"] == values["bias_std"] == 0


def test_modes_gradients_hooks_and_weights_are_as_before():
    model = Network().train()
    model.body[2].eval()  # the rest trains
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, make_batches(), model.head)
    with pytest.raises(ValueError, match="no batches"):
        measure(model, [], model.head)
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2
    assert torch.is_grad_enabled()
    assert not model.head._forward_hooks
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_features_that_do_not_fit_the_device_lie_on_the_host(monkeypatch):
    model = Network()
    expected = measure(model, make_batches(), model.head)
    seen = []
    whole = collection.compute_measures
    monkeypatch.setattr(collection, "compute_measures", lambda e: seen.append(e) or whole(e))
    monkeypatch.setattr(collection, "HOST", torch.device("cpu", 0))  # another than the network's
    for rows, kind in ((40, torch.Tensor), (39, HostFeatures), (10, HostFeatures)):
        monkeypatch.setattr(collection, "find_budget", lambda _, rows=rows: 4 * DIM * rows)
        assert measure(model, make_batches(), model.head) == expected
        assert isinstance(seen[-1].extracted.features, kind)


def test_autocast_holds_for_the_network_alone():
    model = Network()
    with torch.autocast("cpu", torch.bfloat16):
        values = measure(model, make_batches(), model.head)
    exact = measure(model, make_batches(), model.head)
    assert values["nc1"] != exact["nc1"]
    assert values["nc1"] == pytest.approx(exact["nc1"], rel=0.05)
    assert values["nc2"] == exact["nc2"]  # of the weight, which is float32


def change_batch(change):
    return [change(*make_batches()[0])]


class Twice(Network):
    def forward(self, images):
        return super().forward(images) + super().forward(images)


class Cosine(nn.Linear):
    def forward(self, features):
        return nn.functional.normalize(super().forward(features))


def with_classifier(classifier):
    model = Network()
    model.head = classifier
    return model


@pytest.mark.parametrize(
    ("model", "batches", "words"),
    [
        (Network(), change_batch(lambda x, y: x), "batch 0 of the loader must be .images, labels."),
        (Network(), change_batch(lambda x, y: (x, y, y)), "not 3 parts"),
        (Network(), change_batch(lambda x, y: (x, y[1:])), r"images \[16, 3, 2, 2\] and labels"),
        (Network(), change_batch(lambda x, y: (x[:0], y[:0])), r"must be \[B\], B > 0"),
        (Network(), change_batch(lambda x, y: (x, y.float())), "labels must be integers from 0"),
        (Network(), change_batch(lambda x, y: (x, y + 1)), "labels must be integers from 0 to 2"),
        (Network(), change_batch(lambda x, y: (x, y.clamp(max=1))), "no samples of class 2 "),
        (Network(), change_batch(lambda x, y: (x * torch.nan, y)), "not finite"),
        (Network(), iter([]), "no batches"),
        (Twice(), make_batches(), "called the classifier 2 times"),
        (with_classifier(Cosine(DIM, CLASSES)), make_batches(), "not W h . b or W h . b"),
        (with_classifier(nn.Identity()), make_batches(), "not Identity with a weight None"),
        (with_classifier(nn.Linear(DIM, 1)), make_batches(), r"weight \[1, 6\]"),
        (with_classifier(nn.Conv2d(DIM, 3, 1)), make_batches(), r"weight \[3, 6, 1, 1\]"),
        (lambda images: images, make_batches(), "model must be a torch.nn.Module, not function"),
    ],
)
def test_what_is_refused_is_named_in_one_line(model, batches, words):
    classifier = getattr(model, "head", nn.Linear(DIM, CLASSES))
    with pytest.raises(ValueError, match=words) as refusal:
        measure(model, batches, classifier)
    assert "\n" not in str(refusal.value)


def test_a_classifier_that_the_network_does_not_call_is_refused():
    with pytest.raises(ValueError, match="called the classifier 0 times"):
        measure(Network(), make_batches(), nn.Linear(DIM, CLASSES))


@pytest.mark.parametrize("added", [True, False])
def test_the_other_sign_of_the_bias_is_refused(added):
    model = Network()
    with torch.no_grad():
        model.head.bias.fill_(0.01)
    if not added:
        model.head.register_forward_hook(lambda head, inputs, z: z - 2 * head.bias)
    measure(model, make_batches(), model.head, bias_added=added)
    with pytest.raises(ValueError, match="fit the other sign of its bias"):
        measure(model, make_batches(), model.head, bias_added=not added)


def test_the_example_of_the_documentation_runs(capsys):
    text = (ROOT / "docs" / "measures.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(example.strip().splitlines()) <= 10
    names = {}
    exec(example, names)
    assert set(names["values"]) == set(MEASURES)
    assert float(capsys.readouterr().out.split()[0]) == names["values"]["nc1"]


def test_rhubarbwu_neural_collapse_gives_the_same_where_the_definitions_are_the_same():
    """The measures of that package on its own statistics, of a classifier without bias."""
    pytest.importorskip("neural_collapse")
    from neural_collapse import accumulate, kernels
    from neural_collapse import measure as theirs

    model, batches = Network(bias=False), make_batches(400, 80)
    ours = measure(model, batches, model.head)
    model.eval()
    weight = model.head.weight.detach().double()
    with torch.no_grad():
        pairs = [(model.body(images).double(), labels) for images, labels in batches]
    options = {"n_classes": CLASSES, "d_vectors": DIM, "dtype": torch.float64}
    counter = accumulate.MeanAccumulator(**options)
    for pair in pairs:
        counter.accumulate(*pair)
    means, centre = counter.compute()
    covariance = accumulate.CovarAccumulator(**options, M=means)
    spread = accumulate.VarNormAccumulator(**options, M=means)
    decisions = accumulate.DecAccumulator(**options, M=means, W=weight)
    decisions.create_index(means)
    for pair in pairs:
        covariance.accumulate(*pair, means)
        spread.accumulate(*pair, means)
        decisions.accumulate(*pair, weight, None if decisions.index else means)
    lengths = theirs.mean_norms(means, centre)
    expected = {
        "nc1": theirs.covariance_ratio(covariance.compute(), means, centre),
        "cdnv": theirs.variability_cdnv(spread.compute()[0], means),
        "nc2": theirs.simplex_etf_error(weight),
        "nc2_h": theirs.simplex_etf_error(means, centre),
        "nc3": theirs.self_duality_error(weight, means, centre),
        "nc4": 1 - theirs.clf_ncc_agreement(decisions),
        "equinorm_means": (lengths.std(correction=0) / lengths.mean()).item(),
    }
    for name, value in expected.items():
        # Their matrix of CDNV is float32, and ε is added to their counts.
        assert ours[name] == pytest.approx(value, rel=1e-5), name
    # Cosines from the distances of means of unit length: ‖a − b‖² = 2 − 2 cos.
    distances = kernels.kernel_grid(means, centre)[*np.triu_indices(CLASSES, 1)].double()
    cosines = 1 - distances.square() / 2
    deviation = cosines.std(correction=0).item()
    assert ours["equiangularity_means"] == pytest.approx(deviation, rel=1e-4)
