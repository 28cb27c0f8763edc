"""models/layers.py against torch's dropout and an explicit softmax; statistics of the draws."""

import copy

import pytest
import torch
from torch import nn

from models.layers import Conv2d, Dropout, attention, draw_keep_mask, replace_convolutions
from models.vit import ViT


@pytest.mark.parametrize("dropout", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mask_keeps_the_expectation(dropout, dtype):
    torch.manual_seed(0)
    count = 400_003  # no multiple of four
    mask = draw_keep_mask(torch.empty(count, dtype=dtype), dropout)
    assert mask.dtype == dtype and mask.shape == (count,)
    kept = mask[mask != 0]
    expected = torch.tensor(1 / (1 - dropout)).to(dtype)
    torch.testing.assert_close(kept, expected.expand_as(kept))
    deviation = (dropout * (1 - dropout) / count) ** 0.5
    assert abs(len(kept) / count - (1 - dropout)) < 4 * deviation


def test_each_number_decides_about_four_elements_independently():
    torch.manual_seed(0)
    lanes = (draw_keep_mask(torch.empty(400_000), 0.2) == 0).double().view(-1, 4)
    assert (lanes.mean(0) - 0.2).abs().max() < 0.006  # four standard deviations
    assert (torch.corrcoef(lanes.T) - torch.eye(4)).abs().max() < 0.015
    following = torch.corrcoef(torch.stack([lanes[:-1, 3], lanes[1:, 0]]))
    assert following[0, 1].abs() < 0.015


def test_dropout_scales_or_drops_and_so_does_its_gradient():
    x = torch.rand(64, 33).add(1).requires_grad_()
    layer = Dropout(0.25)
    y = layer(x)
    y.sum().backward()
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / 0.75)
    torch.testing.assert_close(x.grad, kept / 0.75)
    assert 0.6 < kept.float().mean() < 0.9
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_draws_follow_from_the_default_generator():
    x, layer = torch.ones(1000), Dropout(0.2)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append((layer(x), layer(x)))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[0][1])
    assert not torch.equal(results[0][0], results[2][0])


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
def test_attention_is_an_explicit_softmax(dtype, tolerance):
    torch.manual_seed(0)
    inputs = torch.randn(3, 2, 4, 7, 5).to(dtype).requires_grad_()
    exact = inputs.detach().double().requires_grad_()
    q, k, v = exact.unbind(0)
    scores = torch.einsum("bhie,bhje->bhij", q, k) / 5**0.5
    weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    expected = torch.einsum("bhij,bhje->bhie", weights, v)
    found = attention(*inputs.unbind(0))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0)
    (expected**2).sum().backward()
    (found**2).sum().backward()
    torch.testing.assert_close(inputs.grad.double(), exact.grad, atol=3 * tolerance, rtol=0)


def test_the_vit_has_no_other_dropout():
    """A torch.nn.Dropout would be correct but slow on the CPU."""
    layers = [m for m in ViT((3, 8, 8), 2, 16, 2).modules() if isinstance(m, nn.Dropout)]
    assert len(layers) == 1 + 2 * 3
    assert all(isinstance(layer, Dropout) for layer in layers)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [1, 2])
def test_a_convolution_is_torchs_with_its_gradients(side, stride):
    torch.manual_seed(0)
    plain = nn.Conv2d(5, 7, 3, stride=stride, padding=1, bias=False, dtype=torch.float64)
    ours = copy.deepcopy(nn.Sequential(plain))
    replace_convolutions(ours)
    assert type(ours[0]) is Conv2d
    x = torch.randn(4, 5, side, side, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    results = [layer(image) for layer, image in zip((plain, ours), inputs, strict=True)]
    torch.testing.assert_close(results[1], results[0])
    for result in results:
        result.square().sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(ours[0].weight.grad, plain.weight.grad)


def test_other_convolutions_stay_torchs():
    others = [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, bias=False)]
    others.append(nn.Conv2d(4, 4, 3, padding=1, bias=False, groups=2))
    model = nn.Sequential(*others)
    replace_convolutions(model)
    assert {type(layer) for layer in model} == {nn.Conv2d}
