"""The average of the weights against torch's AveragedModel, and that nothing waits for it."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models import build_model
from models.linear import Classifier
from objective.objective import Objective
from objective.optimizers import build_optimizer
from training import step
from training.averaging import Average
from utils.precision import Precision

CPU = torch.device("cpu")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
        self.fc = Classifier(5, 4)

    def forward(self, images):
        features = self.body(images)
        return self.fc(features), features


def list_values(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_it_is_torchs_average_bit_for_bit(optimizer):
    """Which begins as the initial weights. Counters of batches are copied, not averaged."""
    torch.manual_seed(0)
    model = Net()
    optimizer = build_optimizer(optimizer, model, 0.1, 1e-3, 1e-3)
    expected = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    expected.update_parameters(model)
    average = Average(model, 0.8, optimizer)
    precision = Precision("fp32", CPU)
    take = step.build_step(
        model, optimizer, precision.build_scaler(), Objective("CE"), precision, average=average
    )
    for _ in range(5):
        take(torch.randn(8, 6), torch.arange(8) % 4)
        expected.update_parameters(model)
    reference = list_values(expected.module)
    for name, value in list_values(average.module).items():
        if value.is_floating_point():
            assert torch.equal(value, reference[name]), name
            assert not torch.equal(value, list_values(model)[name]), name
        else:
            assert value == 5
    assert average.module.state_dict().keys() == model.state_dict().keys()


def test_an_update_that_is_left_out_does_not_move_it():
    torch.manual_seed(0)
    weight = torch.full((3,), 2.0)
    model = Net()
    optimizer = build_optimizer("SGD", model, 0.5, 0.0, 0.0, momentum=0.0)
    average = Average(model, 0.75, optimizer)
    begun = average.module.fc.bias.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (torch.inf, 1.0):
        before = model.fc.bias.detach().clone()
        optimizer.zero_grad()
        with torch.no_grad():  # as a forward pass does also where its gradients overflow
            model.body[1].running_mean += 1
        scaler.scale((model.fc.bias[:3] * weight * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = factor == 1
        assert torch.equal(model.fc.bias.detach(), before) != moved
        means = average.module.body[1].running_mean
        assert torch.equal(average.module.fc.bias.detach(), begun) != moved
        torch.testing.assert_close(means, torch.full((5,), 0.5 if moved else 0.0))
    # a quarter of the way to 2 · 0.5 less
    torch.testing.assert_close(average.module.fc.bias.detach()[:3], begun[:3] - 0.25)


def test_memory_format_and_modes_are_the_networks():
    model = build_model("ResNet18", 3, (3, 32, 32)).to(memory_format=torch.channels_last)
    average = Average(model, 0.9, build_optimizer("SGD", model, 0.1, 0.0, 0.0))
    for one, other in zip(average.module.parameters(), model.parameters(), strict=True):
        assert one.stride() == other.stride() and one.data_ptr() != other.data_ptr()
