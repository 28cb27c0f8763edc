"""Schedules against torch's schedulers, parameter groups and steps against formulas."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from models import build_model
from models.linear import Classifier
from objective.optimizers import (
    build_optimizer,
    make_recordable,
    mark_capturable,
    set_learning_rate,
)
from objective.schedules import compute_learning_rate as rate_of


class Net(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.fc = Classifier(4, 2, **options)


def torch_rates(make, epochs, base=0.1):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = make(optimizer)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_is_torchs():
    expected = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, 20, 1e-5), 20)
    ours = [rate_of(e, base=0.1, epochs=20, minimum=1e-5) for e in range(1, 21)]
    assert ours == pytest.approx(expected, rel=1e-9)


def test_step_is_torchs():
    expected = torch_rates(lambda o: lr_scheduler.MultiStepLR(o, [3, 7], 0.2), 10)
    ours = [
        rate_of(e, base=0.1, epochs=10, schedule="step", milestones=[3, 7], gamma=0.2)
        for e in range(1, 11)
    ]
    assert ours == pytest.approx(expected)


def test_warmup_rises_to_the_schedules_start():
    rates = [rate_of(e, base=0.8, epochs=10, warmup=3, minimum=0.0) for e in range(1, 11)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    expected = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, 7), 7, base=0.8)
    assert rates[3:] == pytest.approx(expected)


def test_constant_stays():
    assert rate_of(9, base=0.3, epochs=9, schedule="constant") == 0.3


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_only_the_classifiers_bias_has_its_own_decay(name):
    model = Net()
    optimizer = build_optimizer(name, model, 0.1, weight_decay=0.02, weight_decay_bias=0.5)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for key, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.5 if key == "fc.bias" else 0.02)


def test_a_fixed_etf_and_no_bias_leave_the_backbone_alone():
    model = Net(bias_mode="none", fixed_etf=True)
    groups = build_optimizer("SGD", model, 0.1, 0.0, 0.0).param_groups
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.body.parameters()}


def test_sgd_has_momentum_and_coupled_decay():
    model = Net()
    model.fc.bias.data.fill_(2.0)
    optimizer = build_optimizer("SGD", model, 0.1, weight_decay=0.0, weight_decay_bias=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model.fc.bias.sum().backward()
        optimizer.step()
    # v1 = 1 + 0.5·2 = 2, b = 1.8; v2 = 0.9·2 + 1 + 0.5·1.8 = 3.7, b = 1.8 − 0.37
    assert model.fc.bias.tolist() == pytest.approx([1.43, 1.43])


@pytest.mark.parametrize(
    ("name", "options", "build"),
    [
        ("SGD", {"momentum": 0.0}, torch.optim.SGD),
        ("SGD", {"momentum": 0.3}, torch.optim.SGD),
        ("AdamW", {"betas": [0.5, 0.7]}, torch.optim.AdamW),
        ("AdamW", {"betas": [0.0, 0.0]}, torch.optim.AdamW),
    ],
)
def test_their_options_are_torchs(name, options, build):
    torch.manual_seed(0)
    models = [Net(), Net()]
    models[1].load_state_dict(models[0].state_dict())
    ours = build_optimizer(name, models[0], 0.1, 0.01, 0.01, **options)
    expected = build(models[1].parameters(), lr=0.1, weight_decay=0.01, **options)
    for _ in range(3):
        images = torch.randn(8, 3)
        for model, optimizer in zip(models, (ours, expected), strict=True):
            optimizer.zero_grad()
            model.fc(model.body(images)).tanh().sum().backward()
            optimizer.step()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other)
    assert bool(ours.state) == (options != {"momentum": 0.0})  # no buffers without momentum


def test_adamw_has_decoupled_decay():
    model = Net()
    model.fc.bias.data.fill_(2.0)
    optimizer = build_optimizer("AdamW", model, 0.1, weight_decay=0.0, weight_decay_bias=0.5)
    model.fc.bias.sum().backward()
    optimizer.step()
    # the first Adam step is lr·sign(gradient): 2·(1 − 0.1·0.5) − 0.1
    assert model.fc.bias.tolist() == pytest.approx([1.8, 1.8], rel=1e-5)


def test_unknown_names():
    with pytest.raises(KeyError, match="Lion"):
        build_optimizer("Lion", Net(), 0.1, 0.0, 0.0)
    with pytest.raises(ValueError, match="sawtooth"):
        rate_of(1, base=0.1, epochs=2, schedule="sawtooth")


def test_sgd_begins_with_momentum_of_zeros():
    """As without it bit for bit; and a first step whose gradients overflow leaves no garbage."""
    torch.manual_seed(0)
    models = [build_model("MLP", 10, (3, 8, 8), width=16, depth=1) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours = build_optimizer("SGD", models[0], 0.1, 1e-3, 1e-3)
    groups = [{k: v for k, v in group.items() if k != "params"} for group in ours.param_groups]
    numbers = {id(p): i for i, p in enumerate(models[0].parameters())}
    others = list(models[1].parameters())
    for group, options in zip(ours.param_groups, groups, strict=True):
        options["params"] = [others[numbers[id(p)]] for p in group["params"]]
    plain = torch.optim.SGD(groups, lr=0.1, momentum=0.9, fused=True)
    for _ in range(3):
        images, labels = torch.randn(8, 3, 8, 8), torch.randint(10, (8,))
        for model, optimizer in zip(models, (ours, plain), strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images)[0], labels).backward()
            optimizer.step()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)

    parameter = torch.nn.Parameter(torch.ones(5))
    model = torch.nn.Module()
    model.fc = torch.nn.Linear(1, 1)
    model.weight = parameter
    ours = build_optimizer("SGD", model, 0.1, 0.0, 0.0)
    scaler = torch.amp.GradScaler("cpu")
    for factor in (torch.inf, 1.0):  # the first step is left out
        ours.zero_grad()
        scaler.scale((parameter * factor).sum()).backward()
        scaler.step(ours)
        scaler.update()
    assert torch.equal(ours.state[parameter]["momentum_buffer"], torch.ones(5))
    assert torch.equal(parameter.detach(), torch.full((5,), 0.9))


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_rate_in_a_tensor_is_that_rate(name):
    """All groups share the tensor, which keeps its address, and the steps are the same bits."""
    rates = (0.25, 0.125, 0.0625)
    results = []
    for recordable in (False, True):
        torch.manual_seed(0)
        model = Net()
        optimizer = build_optimizer(name, model, 0.5, 1e-3, 1e-2)
        tensors = []
        for rate in rates:
            if recordable:
                make_recordable(optimizer, torch.device("cpu"))
                tensors += [group["lr"] for group in optimizer.param_groups]
            set_learning_rate(optimizer, rate)
            optimizer.zero_grad()
            model.fc(model.body(torch.ones(2, 3))).square().sum().backward()
            optimizer.step()
        results.append([*model.parameters()])
        assert {float(group["lr"]) for group in optimizer.param_groups} == {rates[-1]}
        assert len({id(tensor) for tensor in tensors}) == recordable
        assert all(tensor.dtype == torch.float32 for tensor in tensors)
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_the_mark_of_a_recorded_update_is_taken_back():
    for name in ("SGD", "AdamW"):
        optimizer = build_optimizer(name, Net(), 0.1, 0.0, 0.0)
        before = [dict(group) for group in optimizer.param_groups]
        with pytest.raises(RuntimeError), mark_capturable(optimizer):
            marks = [group.get("capturable") for group in optimizer.param_groups]
            assert marks == [True if name == "AdamW" else None] * 2
            raise RuntimeError
        assert optimizer.param_groups == before
