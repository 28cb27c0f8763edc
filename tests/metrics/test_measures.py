"""The registry of measures, and their computation."""

import math

import pytest
import torch

from figures.style import SCORE_LOOKS
from metrics import MEASURES, Measure, scores
from metrics.accuracy import split_margins
from metrics.calibration import score_probabilities
from metrics.extraction import Extracted
from metrics.measures import Evaluation, compute_measures
from metrics.neural_collapse import compute_neural_collapse
from metrics.scores import compute_score_statistics
from rundir.names import METRICS_COLUMNS
from theory.balanced import find_balanced_minimum


def make_evaluation(**changes):
    """Twelve samples of three classes with random features and logits."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(4)
    logits = torch.randn(12, 3, generator=generator)
    margins = split_margins(logits, labels)
    nll, confidences, hits = score_probabilities(logits, labels)
    correct = labels.bincount(weights=(margins[0] > margins[1]).double()).long()
    extracted = Extracted(
        features=torch.randn(12, 5, generator=generator),
        labels=labels,
        positives=margins[0],
        negatives=margins[1],
        top1=correct.sum().item() / 12,
        top5=1.0,
        class_correct=correct,
        nll=nll,
        confidences=confidences,
        hits=hits,
    )
    weight, bias = torch.randn(3, 5, generator=generator), torch.randn(3, generator=generator)
    options = {"class_sizes": [150, 50, 10], **changes}
    return Evaluation(extracted, weight, bias, **options)


def test_all_columns_are_computed_in_their_order():
    values = compute_measures(make_evaluation())
    assert list(values) == list(MEASURES)
    for name, value in values.items():
        assert type(value) is float or (value is None and MEASURES[name].optional), name
    assert all(math.isfinite(value) for value in values.values() if value is not None)
    assert values["top1"] >= values["uniform_accuracy"] > 0


@pytest.mark.parametrize("scale", [1.0, 0.0])  # at 0 all class means are equal, and there is no NC4
def test_the_scores_are_computed_once(monkeypatch, scale):
    evaluation = make_evaluation()
    features, labels = evaluation.extracted.features.mul_(scale), evaluation.extracted.labels
    weight, bias = evaluation.weight, evaluation.bias
    expected = compute_neural_collapse(features, labels, weight, bias)
    statistics = compute_score_statistics(features, labels, weight)
    monkeypatch.setattr(scores, "check_score_inputs", None)  # that function is not called again
    values = compute_measures(evaluation)
    for name, value in (expected | statistics).items():
        assert values[name] == value or math.isnan(value), name


def test_optional_measures_are_empty_where_they_are_not_defined():
    prediction = find_balanced_minimum("BCE", 3, 4, 5e-4, 5e-4, 5e-4)
    evaluation = make_evaluation(long_tailed=True, prediction=prediction)
    values, bare = compute_measures(evaluation), compute_measures(make_evaluation())
    assert values["predicted_bias"] == prediction.bias
    correct = evaluation.extracted.class_correct.tolist()
    groups = [values[f"top1_{group}"] for group in ("many", "medium", "few")]
    assert groups == pytest.approx([100 * count / 4 for count in correct])
    for name, measure in MEASURES.items():
        assert bare[name] is None if measure.optional else bare[name] == values[name]


calls = []


def measure_pair(evaluation):
    calls.append(evaluation)
    return {"first": 1.0, "second": 2.0}


def measure_norm(evaluation):
    return evaluation.weight.norm().item()


def test_a_function_gives_one_number_or_several_and_is_called_once(monkeypatch):
    calls.clear()
    for name, function in (("first", "pair"), ("norm", "norm"), ("second", "pair")):
        monkeypatch.setitem(MEASURES, name, Measure(f"{__name__}:measure_{function}", name))
    evaluation = make_evaluation()
    values = compute_measures(evaluation)
    assert calls == [evaluation]
    assert (values["first"], values["second"]) == (1.0, 2.0)
    assert values["norm"] == evaluation.weight.norm().item()


def test_entries_refer_to_what_there_is():
    for name, measure in MEASURES.items():
        assert measure.split in ("train", "test"), name
        assert measure.predicted is None or measure.predicted in MEASURES, name
        assert measure.history is None or measure.history in METRICS_COLUMNS, name
        assert measure.quantity is None or measure.quantity in SCORE_LOOKS, name


def test_values_as_tables_show_them():
    share = Measure("", "share", unit="%", digits=2)
    small = Measure("", "small", digits=3, significant=True)
    assert share.heading == "share %"
    assert (small.heading, small.name) == ("small", "small")
    assert [share.format(value) for value in (12.345, None, math.inf)] == ["12.35", "-", "inf"]
    assert share.format(1.0, sign="+") == "+1.00"
    assert [small.format(value) for value in (1.23456e-7, 0.5)] == ["1.23e-07", "0.5"]
