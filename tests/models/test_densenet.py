"""DenseNet's blocks compute what torchvision's compute, bit for bit."""

import contextlib

import pytest
import torch
import torch.nn.functional as F

from models.densenet import DenseNet, Shape

SMALL = Shape((3, 4, 2, 3), growth=4, stem=8)


def draw_network(side, layout):
    torch.manual_seed(0)
    network = DenseNet(SMALL, (3, side, side)).to(memory_format=layout)
    network.fc = torch.nn.Linear(network.feature_dim, 5)
    return network, torch.randn(6, 3, side, side).to(memory_format=layout)


def run_as_torchvision(network, images):
    maps = F.relu(network.features(images))
    return network.fc(F.adaptive_avg_pool2d(maps.float(), 1).flatten(1))


def collect_bits(forward, network, images, context):
    """Outputs in training and evaluation, gradients and statistics."""
    network.zero_grad()
    with context:
        logits = forward(images)
    (logits.square().sum() / 10).backward()
    gradients = {name: value.grad for name, value in network.named_parameters()}
    network.eval()
    with torch.no_grad():
        tested = forward(images)
    return {"logits": logits, "tested": tested, **gradients, **dict(network.named_buffers())}


@pytest.mark.parametrize("side", [8, 32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("context", [contextlib.nullcontext(), torch.autocast("cpu")])
def test_outputs_gradients_and_statistics_are_those_of_torchvision(side, layout, context):
    network, images = draw_network(side, layout)
    ours = collect_bits(lambda x: network(x)[0], network, images, context)
    network, images = draw_network(side, layout)
    theirs = collect_bits(lambda x: run_as_torchvision(network, x), network, images, context)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
