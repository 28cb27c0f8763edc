"""models/linear.py: initial values by hand, the sign of the bias, the fixed ETF, the precision."""

import math

import pytest
import torch

from models.linear import Classifier, draw_initial_bias, draw_simplex_etf
from utils.errors import UserError

HIGH_10, HIGH_100 = 6.866933284461882, 9.169518377455928  # ln 960, ln 9600

# Modes 1 to 7, worked out by hand: {class: value}.
BY_HAND = {
    (1, 10): {0: 0, 1: 1, 9: 9},
    (1, 100): {0: 0, 50: 50, 99: 99},
    (2, 10): {0: 0, 1: 6.4, 5: 32, 9: 57.6},
    (2, 100): {0: 0, 1: 0.64, 50: 32, 99: 63.36},
    (3, 10): {0: 57.6, 4: 32, 8: 6.4, 9: 0},
    (3, 100): {0: 63.36, 49: 32, 98: 0.64, 99: 0},
    (4, 10): {0: 0, 1: 4.574710978503383, 9: 6.762729506931879},  # ln 1, ln 97, ln 865
    (4, 100): {0: 0, 1: 4.574710978503383, 99: 9.159573251822735},  # ln 9505
    (5, 10): {0: 6.762729506931879, 8: 4.574710978503383, 9: 0},
    (5, 100): {0: 9.159573251822735, 98: 4.574710978503383, 99: 0},
    (6, 10): dict(enumerate([HIGH_10] * 2 + [0] * 3 + [HIGH_10] * 2 + [0] * 3)),
    (6, 100): dict(enumerate([HIGH_100] * 25 + [0] * 25 + [HIGH_100] * 25 + [0] * 25)),
    (7, 10): dict(enumerate([0] * 2 + [HIGH_10] * 3 + [0] * 2 + [HIGH_10] * 3)),
    (7, 100): dict(enumerate([0] * 25 + [HIGH_100] * 25 + [0] * 25 + [HIGH_100] * 25)),
}


@pytest.mark.parametrize(("mode", "num_classes"), BY_HAND)
def test_initial_bias_by_hand(mode, num_classes):
    bias = draw_initial_bias(num_classes, 512, mode, 0.0)
    assert bias.shape == (num_classes,) and bias.dtype == torch.float32
    for k, value in BY_HAND[mode, num_classes].items():
        assert bias[k].item() == pytest.approx(value, rel=1e-6)


def test_modes_3_and_5_reverse_2_and_4():
    for forward, backward in ((2, 3), (4, 5)):
        reverse = draw_initial_bias(7, 8, backward, 0.0)
        assert torch.equal(draw_initial_bias(7, 8, forward, 0.0), reverse.flip(0))


@pytest.mark.parametrize("num_classes", [10, 100])
def test_mode_0_is_uniform_in_one_over_root_d(num_classes):
    torch.manual_seed(0)
    draws = torch.stack([draw_initial_bias(num_classes, 400, 0, 0.0) for _ in range(200)])
    assert draws.abs().max() <= 1 / 20
    assert draws.abs().max() > 0.99 / 20
    assert draws.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.05)
    assert draws.mean().abs() < 0.005


@pytest.mark.parametrize(
    ("num_classes", "high"),
    [(2, []), (3, [1]), (4, [0, 2]), (5, [0, 2]), (6, [0, 3]), (7, [0, 3, 4])],
)
def test_quarters_of_few_classes(num_classes, high):
    quarters_6 = draw_initial_bias(num_classes, 8, 6, 0.0) > 0
    quarters_7 = draw_initial_bias(num_classes, 8, 7, 0.0) > 0
    assert quarters_6.nonzero().flatten().tolist() == high
    assert torch.equal(quarters_7, ~quarters_6)


@pytest.mark.parametrize("mode", range(8))
def test_mean_is_added_to_every_entry(mode):
    torch.manual_seed(3)
    plain = draw_initial_bias(10, 16, mode, 0.0)
    torch.manual_seed(3)
    torch.testing.assert_close(draw_initial_bias(10, 16, mode, 2.5), plain + 2.5)


def test_a_bias_can_begin_at_values():
    diverse, unified = Classifier(16, 3), Classifier(16, 3, "unified")
    for classifier in (diverse, unified):
        classifier.begin_bias(1.5)
        assert classifier.bias_vector().tolist() == [1.5] * 3
    diverse.begin_bias([1.0, 2.0, -3.0])
    assert diverse.bias.tolist() == [1, 2, -3] and diverse.bias.requires_grad


def test_unified_bias_starts_at_the_mean_of_the_class_values():
    by_mode = {1: 4.5, 2: 28.8, 3: 28.8, 6: 0.4 * HIGH_10, 7: 0.6 * HIGH_10}
    for mode, mean in by_mode.items():
        bias = Classifier(16, 10, "unified", mode, 1.0).bias
        assert bias.shape == (1,)
        assert bias.item() == pytest.approx(mean + 1, rel=1e-6)


def test_unified_mode_0_is_one_draw_not_a_mean_of_draws():
    torch.manual_seed(0)
    draws = torch.stack([Classifier(4, 100, "unified").bias.detach() for _ in range(300)])
    assert draws.std().item() == pytest.approx(0.5 / math.sqrt(3), rel=0.1)


def test_weight_is_uniform_in_one_over_root_d():
    torch.manual_seed(0)
    weight = Classifier(400, 100).weight
    assert 0.99 / 20 < weight.abs().max() <= 1 / 20
    assert weight.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02)


def test_bias_is_subtracted():
    classifier = Classifier(2, 3)
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        classifier.bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
    logits = classifier(torch.tensor([[2.0, 3.0]]))
    assert logits.tolist() == [[1.5, 4.0, 3.0]]


def test_three_kinds_of_bias():
    diverse, unified, none = (Classifier(5, 4, mode) for mode in ("diverse", "unified", "none"))
    assert list(diverse.state_dict()) == list(unified.state_dict()) == ["weight", "bias"]
    assert list(none.state_dict()) == ["weight"]
    assert none.bias is None
    features = torch.randn(6, 5)
    for classifier in (diverse, unified, none):
        bias = classifier.bias_vector()
        assert bias.shape == (4,)
        expected = features @ classifier.weight.T - bias
        torch.testing.assert_close(classifier(features), expected)
    assert torch.equal(diverse.bias_vector(), diverse.bias)
    assert torch.equal(unified.bias_vector(), unified.bias.repeat(4))
    assert torch.equal(none.bias_vector(), torch.zeros(4))


@pytest.mark.parametrize(("num_classes", "dim"), [(2, 1), (10, 9), (10, 10), (10, 64), (100, 99)])
def test_simplex_etf_gram_matrix(num_classes, dim):
    weight = draw_simplex_etf(num_classes, dim)
    assert weight.shape == (num_classes, dim) and weight.dtype == torch.float32
    expected = torch.full((num_classes, num_classes), -1 / (num_classes - 1))
    expected.fill_diagonal_(1)
    torch.testing.assert_close(weight @ weight.T, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(weight.sum(0), torch.zeros(dim), atol=1e-5, rtol=0)


def test_orientation_of_the_etf_follows_the_global_seed():
    torch.manual_seed(5)
    first, other = draw_simplex_etf(4, 8), draw_simplex_etf(4, 8)
    torch.manual_seed(5)
    assert torch.equal(draw_simplex_etf(4, 8), first)
    assert not torch.allclose(first, other, atol=0.1)


def test_orientation_of_the_etf_has_no_preferred_direction():
    torch.manual_seed(0)
    first_rows = torch.stack([draw_simplex_etf(3, 4)[0] for _ in range(400)])
    assert first_rows.mean(0).abs().max() < 0.1  # four standard errors of a mean of 400


def test_fixed_etf_gets_no_gradient():
    classifier = Classifier(8, 4, fixed_etf=True)
    assert list(classifier.state_dict()) == list(Classifier(8, 4).state_dict())
    features = torch.randn(3, 8, requires_grad=True)
    classifier(features).square().sum().backward()
    assert classifier.weight.grad is None
    assert classifier.bias.grad is not None
    assert features.grad.abs().sum() > 0


def test_classifier_runs_in_float32_under_autocast():
    torch.manual_seed(0)
    classifier, features = Classifier(64, 10), torch.randn(4, 64)
    exact = classifier(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = classifier(features)
        of_half = classifier(features.bfloat16())
    assert logits.dtype == of_half.dtype == torch.float32
    assert torch.equal(logits, exact)
    assert torch.equal(of_half, classifier(features.bfloat16().float()))


def test_classifier_compiles_without_graph_break():
    for bias_mode in ("diverse", "unified", "none"):
        classifier, features = Classifier(8, 4, bias_mode), torch.randn(3, 8)
        compiled = torch.compile(classifier, fullgraph=True, backend="eager")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(compiled(features), classifier(features))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classifier(8, 1), "number of classes is 1"),
        (lambda: Classifier(8, 3, "shared"), "bias_mode is 'shared'"),
        (lambda: Classifier(8, 3, bias_init_mode=8), "bias_init_mode is 8"),
        (lambda: Classifier(8, 3, "unified", -1), "bias_init_mode is -1"),
        (lambda: Classifier(8, 3, bias_init_mean=math.nan), "bias_init_mean is nan"),
        (lambda: Classifier(8, 10, fixed_etf=True), "at least 9 features.*has 8"),
        (lambda: draw_simplex_etf(1, 8), "number of classes is 1"),
    ],
)
def test_user_errors(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
