"""Measures of samples that several processes share are those of one process."""

import contextlib
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from metrics.accuracy import compare_bias_signs, compute_uniform_accuracy, split_margins
from metrics.calibration import score_probabilities
from metrics.class_means import prepare_features
from metrics.classes import measure_classes
from metrics.extraction import Extracted, extract
from metrics.measures import Evaluation, compute_measures
from metrics.variability import compute_variability
from models import build_model
from tests.metrics.cases import CPU, build_batches, collapsed_case, random_case, with_entry
from tests.processes import run_job
from training.testing import evaluate
from utils.errors import UserError
from utils.precision import Precision
from utils.world import ALONE, join, leave

CASES = {
    "ten classes": random_case(10, 64, [150] * 10, offset=100.0),
    "in float32": [part.float() if part.is_floating_point() else part
                   for part in random_case(10, 32, [40] * 10, far=5.0)],
    "fewer samples than d + K": random_case(10, 60, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    "more classes than d": random_case(30, 8, [20] * 30),
    "equal": (torch.ones(40, 6).double(), torch.arange(40) % 4, *random_case(4, 6, [1] * 4)[2:]),
    "collapsed": collapsed_case(5, 9, scale=2.0, shift=3.0),
}  # fmt: skip
MISTAKES = {
    "a class is empty": ({"labels": lambda t: t.clamp(max=1)}, "no samples of class 2"),
    "one process has NaN": ({"features": with_entry(torch.nan)}, "features not finite: row "),
    "one process overflows": ({"features": with_entry(1e200)}, "features are too large"),
    "one process has a wrong label": ({"labels": lambda t: t + (t.cumsum(0) == t.sum())}, "labels"),
    "there are no samples": ({"features": lambda t: t[:0], "labels": lambda t: t[:0]}, "empty"),
}


def cut(tensor, world, order):
    """This process's part of the rows in this order: a half, and none for a third process."""
    parts = [*tensor[order].tensor_split(min(world.size, 2)), tensor[:0]]
    return parts[world.rank]


def make_evaluation(case, world, order):
    features, labels, weight, bias = case
    logits = features @ weight.T - bias
    samples = features, labels, *split_margins(logits, labels), *score_probabilities(logits, labels)
    hits = (logits.argmax(1) == labels).double()
    correct = labels.bincount(hits, minlength=len(weight)).long()
    features, labels, positives, negatives, *rest = (cut(part, world, order) for part in samples)
    extracted = Extracted(
        features, labels, positives, negatives, hits.mean().item(), 1.0, correct, *rest
    )
    sizes = range(len(weight))
    return Evaluation(extracted, weight, bias, sizes, long_tailed=True, world=world)


def list_results(world):
    """The measures of all cases; in every second one no process has samples of all classes."""
    results = {}
    for number, (name, case) in enumerate(CASES.items()):
        order = case[1].argsort(stable=True) if number % 2 else torch.arange(len(case[1]))
        evaluation = make_evaluation(case, world, order)
        values = compute_measures(evaluation)
        classes = measure_classes(evaluation)
        logits, labels = cut(case[0] @ case[2].T, world, order), cut(case[1], world, order)
        features = cut(case[0], world, order)
        results[name] = [
            *(v for row in (values, *classes) for v in row.values() if v is not None),
            *compute_uniform_accuracy(logits, labels, world),
            *compute_variability(features, labels, world=world).values(),
            *compare_bias_signs(features, labels, *case[2:], world),
        ]
    return results


def list_refusals(world):
    """What a mistake says on this process; the last samples, where it is, are those of one."""
    refusals = {}
    for name, (changes, _) in MISTAKES.items():
        features, labels, *_ = random_case(3, 4, [5, 6, 7])
        changed = {"features": features, "labels": labels}
        changed |= {key: change(changed[key]) for key, change in changes.items()}
        order = torch.arange(len(changed["labels"]))
        own = [cut(part, world, order) for part in changed.values()]
        with pytest.raises(ValueError) as caught:
            prepare_features(*own, 3, None, world)
        refusals[name] = str(caught.value)
    return refusals


class Log:
    """Takes the place of a run's log."""

    @contextlib.contextmanager
    def watch_test(self):
        yield SimpleNamespace(advance=lambda images: None)


def pass_images(world):
    """Figures of a pass of 33 images, 16 at once, so that the last batch is too small for all."""
    torch.manual_seed(world.rank)
    model = build_model("MLP", 10, (3, 8, 8), width=16, depth=2)
    world.copy_weights(model)  # those of the first process
    batches = build_batches(16, count=33, rank=world.rank, ranks=world.size)
    reports = []
    extracted = extract(model, batches, nullcontext(), report=reports.append, world=world)
    assert len(reports) == len(batches) and reports[-1] == len(extracted.labels)
    weight, bias = model.fc.weight.detach(), model.fc.bias_vector().detach()
    values = compute_measures(Evaluation(extracted, weight, bias, range(10), True, world=world))
    stop = SimpleNamespace(poll=lambda: False)
    tested = evaluate(model, batches, "CE", Precision("fp32", CPU), Log(), stop, world)
    return [*(value for value in values.values() if value is not None), *tested.values()]


def fail_to_read(world):
    """What a pass says on this process if the second one cannot read its second batch."""
    model = build_model("MLP", 10, (3, 8, 8), width=16, depth=2)
    batches = build_batches(16, count=33, rank=world.rank, ranks=world.size)
    whole = batches.batches

    def give_one(epoch):
        yield next(whole(epoch))
        raise UserError(f"damaged.png of process {world.rank}")

    if world.rank == 1:
        batches.batches = give_one
    reports = []
    with pytest.raises(UserError) as caught:
        extract(model, batches, nullcontext(), report=reports.append, world=world)
    return str(caught.value), len(reports)


def share_work():
    world = join(gpus=False)
    found = list_results(world), pass_images(world), list_refusals(world), fail_to_read(world)
    leave()
    return found


@pytest.fixture(scope="module", params=[2, 3])
def found(request):
    """What each process of a job found."""
    return [result for result, *_ in run_job(request.param, share_work)]


def test_results_are_those_of_one_process(found):
    alone, passed = list_results(ALONE), pass_images(ALONE)
    for results, own, *_ in found:
        assert results.keys() == alone.keys()
        for key, values in alone.items():
            assert results[key] == pytest.approx(values, rel=1e-9, abs=1e-12, nan_ok=True), key
        assert own == pytest.approx(passed, rel=1e-5)


def test_mistakes_are_those_of_all_processes(found):
    for *_, refusals, (fault, reports) in found:
        assert refusals == found[0][2]
        for name, (_, words) in MISTAKES.items():
            assert words in refusals[name], name
        assert fault == "damaged.png of process 1" and reports == 3
