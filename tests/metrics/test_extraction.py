"""Extraction: where features lie, what is cast and read, and measures of features on the host."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from metrics import checks, features
from metrics.accuracy import compare_bias_signs
from metrics.class_means import ClassMeans
from metrics.distributions import compute_score_distributions
from metrics.extraction import extract
from metrics.features import HostFeatures, allocate_features, check_room, find_budget
from metrics.measures import (
    Evaluation,
    measure_feature_properties,
    measure_neural_collapse,
    measure_score_statistics,
)
from metrics.neural_collapse import compute_neural_collapse
from metrics.properties import compute_feature_properties
from metrics.scores import compute_decision_scores, compute_score_statistics
from models import build_model
from tests.metrics.cases import (
    assert_close,
    build_batches,
    random_case,
    reference,
    reference_properties,
)
from utils.errors import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
CLASSES, DIM = 5, 12


@pytest.fixture
def case(monkeypatch):
    """Features [300, 12] far from 0, in chunks of at most 20 rows."""
    monkeypatch.setattr(checks, "CPU_CHUNK", 20 * DIM)
    return random_case(CLASSES, DIM, [20, 40, 60, 80, 100], offset=3.0)


class Operations(TorchDispatchMode):
    """Records the largest tensor that is made, casts of given tensors, and reads by the host."""

    def __init__(self, *watched):
        super().__init__()
        self.largest, self.casts, self.reads = 0, 0, 0
        self._watched = {tensor.data_ptr() for tensor in watched}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.reads += 1
            if isinstance(arguments[0], FakeTensor):  # only described: it has no value
                return 0
        if name == "_to_copy" and self._watched and arguments[0].data_ptr() in self._watched:
            self.casts += 1
        result = function(*arguments, **(options or {}))
        views = any(returned.alias_info for returned in function._schema.returns)
        if isinstance(result, torch.Tensor) and not views:
            self.largest = max(self.largest, result.numel())
        return result


def test_measures_of_features_on_the_host_are_those_of_the_formulas(case):
    values, labels, weight, bias = case
    host = HostFeatures(values, CPU)
    with Operations() as operations:
        ours = compute_neural_collapse(host, labels, weight, bias)
        properties = compute_feature_properties(host, labels)
        statistics = compute_score_statistics(host, labels, weight)
    assert operations.largest <= max(20 * DIM, len(labels))  # they never cross as a whole
    assert_close(ours, reference(*case))
    assert_close(properties, reference_properties(values, labels, CLASSES))
    assert ours == compute_neural_collapse(*case)
    assert properties == compute_feature_properties(values, labels)
    host = HostFeatures(values.split(70), CPU)  # a chunk lies in one piece or in two
    assert (host.shape, host.dtype, len(host)) == (values.shape, values.dtype, 300)
    assert torch.equal(host[3:300:50], values[3:300:50])
    assert host[5:5].shape == (0, DIM)
    assert ours == compute_neural_collapse(host, labels, weight, bias)
    scores = values @ weight.T
    own = torch.nn.functional.one_hot(labels, CLASSES).bool()
    for name, part in (("positive", scores[own]), ("negative", scores[~own])):
        expected = part.mean(), part.std(correction=0), part.min(), part.max()
        found = [statistics[f"{name}_{key}"] for key in ("mean", "std", "min", "max")]
        assert found == pytest.approx([value.item() for value in expected], rel=1e-12)
    for one, other in zip(
        compute_decision_scores(host, labels, weight),
        compute_decision_scores(values, labels, weight),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert compare_bias_signs(host, labels, weight, bias) == compare_bias_signs(*case)
    for one, other in zip(
        compute_score_distributions(host, labels, weight),
        compute_score_distributions(values, labels, weight),
        strict=True,
    ):
        assert (one.mean, one.std, one.min, one.max) == (
            other.mean,
            other.std,
            other.min,
            other.max,
        )
        assert torch.equal(one.histogram, other.histogram)


def test_faults_of_features_on_the_host_are_named(case):
    values, labels, weight, _ = case
    values[250, 3] = torch.nan
    for compute in (compute_neural_collapse, compute_score_statistics):
        with pytest.raises(ValueError, match="features not finite: row 250 "):
            compute(HostFeatures(values, CPU), labels, weight)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("MLP", 10, (3, 8, 8), width=24, depth=2)


def test_features_above_the_budget_lie_on_the_host(model, monkeypatch):
    monkeypatch.setattr(features, "PIECE", 7 * 24 * 4)  # 7 rows; a batch has 16
    batches, plain = build_batches(16), contextlib.nullcontext()
    whole = extract(model, batches, plain)
    assert isinstance(whole.features, torch.Tensor)
    fitting = extract(model, batches, plain, budget=40 * 24 * 4)
    assert isinstance(fitting.features, torch.Tensor)
    host = extract(model, batches, plain, budget=40 * 24 * 4 - 1)
    assert isinstance(host.features, HostFeatures)
    assert torch.equal(host.features.cpu(), whole.features)
    weight, bias = model.fc.weight.detach(), model.fc.bias_vector().detach()
    for measure in (measure_neural_collapse, measure_feature_properties, measure_score_statistics):
        found, expected = (measure(Evaluation(e, weight, bias, [4] * 10)) for e in (host, whole))
        assert found == expected


def test_pinned_memory_is_not_rounded_up_by_much():
    """ImageNet's features, of which torch rounds each piece up to a power of two."""
    for dim in (2048, 2208):
        with FakeTensorMode():
            host = allocate_features(1_281_167, dim, CPU, budget=0)
        pieces = [4 * piece.numel() for piece in host._pieces]
        assert host.shape == (1_281_167, dim)
        assert sum(1 << (size - 1).bit_length() for size in pieces) < 1.03 * sum(pieces)
    assert allocate_features(0, 8, CPU, budget=-1).shape == (0, 8)


def test_features_that_fit_nowhere_are_refused(monkeypatch):
    monkeypatch.setattr(features, "read_available_memory", lambda: 7_900_000_000)
    assert allocate_features(10, 2, CPU).shape == (10, 2)
    with pytest.raises(UserError) as refused:
        allocate_features(1_281_167, 2048, CPU)
    assert "1,281,167 × 2,048 numbers, take 10.5 GB of memory, and 7.9 GB are free" in str(
        refused.value
    )
    check_room(1_281_167, 2048, GPU, budget=11e9)
    with pytest.raises(UserError, match=r"10\.5 GB"):
        check_room(1_281_167, 2048, GPU, budget=10e9)
    # Pinned memory that torch keeps from the checkpoint before is there for the next.
    monkeypatch.setattr(features, "measure_spare_host_memory", lambda: 3_000_000_000)
    check_room(1_281_167, 2048, GPU, budget=10e9)
    monkeypatch.setattr(features, "measure_spare_host_memory", lambda: 0)
    monkeypatch.setattr(features, "read_local_size", lambda: 4)  # of which each has a quarter
    with pytest.raises(UserError, match="1,281,168 × 2,048 numbers"):
        check_room(320_292, 2048, CPU)
    monkeypatch.setattr(features, "read_available_memory", lambda: 0)  # not known
    check_room(320_292, 2048, CPU)


def test_the_budget_is_a_third_of_what_is_free(monkeypatch):
    monkeypatch.setattr(features, "measure_free_memory", lambda _: 900)
    assert find_budget(GPU) == 300
    monkeypatch.setattr(features, "find_budget", lambda _: 4 * 6 * 2 - 1)
    assert isinstance(allocate_features(6, 2, CPU), HostFeatures)
    assert isinstance(allocate_features(5, 2, CPU), torch.Tensor)


@pytest.mark.parametrize("batch_size", [4, 40])
def test_weights_are_cast_once_for_all_batches(model, batch_size):
    linear = [layer for layer in model.layers.modules() if isinstance(layer, torch.nn.Linear)]
    weights = [parameter for layer in linear for parameter in layer.parameters()]
    with Operations(*weights) as operations:
        extract(model, build_batches(batch_size), torch.autocast("cpu", torch.bfloat16))
    assert operations.casts == len(weights) == 4


def test_a_pass_on_a_gpu_reads_nothing_before_its_end(monkeypatch):
    """On a GPU that is only described: torch refuses to mix devices, and knows no pinned memory."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    with FakeTensorMode(allow_non_fake_inputs=True), Operations() as operations:
        with GPU:
            network = build_model("MLP", 10, (3, 8, 8), width=24, depth=2)
        batches = build_batches(16, GPU)
        operations.reads = 0
        found = extract(network, batches, contextlib.nullcontext(), budget=1e9)
    assert operations.reads == 2  # top-1 and top-5
    for tensor in (found.features, found.labels, found.positives, found.negatives, found.nll):
        assert tensor.device == GPU


@pytest.mark.parametrize(("num_classes", "place"), [(10, "cpu"), (600, "cuda")])
def test_the_small_svd_of_a_gpu_is_computed_on_the_cpu(monkeypatch, num_classes, place):
    seen, svd = [], torch.linalg.svd
    monkeypatch.setattr(
        torch.linalg, "svd", lambda m, **options: seen.append(m.device.type) or svd(m, **options)
    )
    with FakeTensorMode(), Operations():
        centred = torch.empty(num_classes, 16, dtype=torch.float64, device=GPU)
        vector = torch.empty(16, dtype=torch.float64, device=GPU)
        means = ClassMeans(vector, centred, centred, vector, 0.0, 0.0)
        found = means.span
    assert seen == [place]
    assert all(tensor.device == GPU for tensor in found)
