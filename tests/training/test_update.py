"""Gradients of a batch in parts, their clipping, and what a step holds in memory."""

import itertools
import weakref

import pytest
import torch
import torch._dynamo.testing
from torch import nn

from input_pipeline.division import Division
from models import build_model
from models.linear import Classifier
from objective import LOSSES
from objective.objective import Decays, Objective
from objective.optimizers import build_optimizer
from training import step
from training.update import Update
from utils.precision import Precision

CPU = torch.device("cpu")
DECAYS = Decays(0.03, 0.02, 0.05)


class Net(nn.Module):
    """A network without batch normalisation, whose samples do not see one another."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.fc = Classifier(5, 4)

    def forward(self, images):
        features = self.body(images).tanh()
        return self.fc(features), features


def draw_batch(size, mixed):
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(size, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (size,), generator=generator)
    if not mixed:
        return images, labels
    share = torch.rand(size, 1, generator=generator, dtype=torch.float64)
    onehot = torch.eye(4, dtype=torch.float64)[labels]
    return images, share * onehot + (1 - share) * onehot.roll(1, 0)


def take_gradient(size, parts, loss, decays, mixed, **options):
    """Take a step; returns its results and the gradient that it used.

    All is in float64 but the classifier and the decay terms, which are always in float32.
    """
    torch.manual_seed(0)
    model = Net().double()
    optimizer = build_optimizer("SGD", model, 1.0, 0.0, 0.0, momentum=0.0)
    before = nn.utils.parameters_to_vector(model.parameters())
    precision = Precision("fp32", CPU)
    take = step.build_step(
        model, optimizer, precision.build_scaler(), Objective(loss, 0.1, decays), precision,
        division=parts, **options,
    )  # fmt: skip
    results = take(*draw_batch(size, mixed))
    return results, (before - nn.utils.parameters_to_vector(model.parameters())).detach()


@pytest.mark.parametrize("decays", [None, DECAYS], ids=["", "sep_decay"])
@pytest.mark.parametrize(("loss", "mixed"), [*itertools.product(LOSSES, [False, True])])
def test_the_gradient_in_parts_is_that_of_the_batch(loss, mixed, decays):
    """Of whole batches in even and uneven parts, and of a smaller last one."""
    for size, parts in ((12, Division(12, 3)), (11, Division(11, 4)), (7, Division(12, 4))):
        expected, gradient = take_gradient(size, Division(1), loss, decays, mixed)
        found, summed = take_gradient(size, parts, loss, decays, mixed)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(summed, gradient, rtol=1e-6, atol=1e-7)
        assert gradient.abs().max() > 0.01


@pytest.mark.parametrize(
    ("size", "number", "batch_size", "expected"),
    [
        (128, 1, 1, [128]),  # the default: not in parts
        (128, 4, 128, [32] * 4),
        (9, 4, 9, [3, 2, 2, 2]),
        (8, 4, 8, [2] * 4),
        (80, 4, 128, [27, 27, 26]),  # a last batch: no part larger than 32
        (2, 4, 8, [2]),
        (3, 4, 8, [3]),  # a part of one image is none
        (5, 4, 9, [3, 2]),
        (40, 4, 128, [20, 20]),
    ],
)
def test_parts_are_even_and_never_of_one_image(size, number, batch_size, expected):
    images, targets = torch.arange(size), torch.arange(size) * 2
    found = list(Division(batch_size, number).split(images, targets, size))
    assert [len(part) for part, _, _ in found] == expected
    assert torch.equal(torch.cat([part for part, _, _ in found]), images)
    assert torch.equal(torch.cat([part for _, part, _ in found]), targets)
    assert [share for _, _, share in found] == [len(part) / size for part, _, _ in found]


def test_what_a_part_holds_is_freed_before_the_next():
    """Its features are saved for its gradient alone."""
    model, alive, most = Net(), weakref.WeakSet(), []

    class Watched(Objective):
        def __call__(self, classifier, logits, features, targets, share=1.0):
            alive.add(features)
            most.append(len(alive))
            return super().__call__(classifier, logits, features, targets, share)

    optimizer = build_optimizer("SGD", model, 0.1, 0.0, 0.0)
    precision = Precision("fp32", CPU)
    objective, scaler = Watched("CE"), precision.build_scaler()
    take = step.build_step(model, optimizer, scaler, objective, precision, division=Division(16, 4))
    take(torch.randn(16, 6), torch.arange(16) % 4)
    assert most == [1, 1, 1, 1]


@pytest.mark.parametrize("parts", [Division(1), Division(12, 3)], ids=["whole", "parts"])
def test_a_long_gradient_is_scaled_to_the_norm_and_a_short_one_is_left(parts):
    """The norm is over all parameters, and the terms of --sep_decay belong to the gradient."""
    _, gradient = take_gradient(12, Division(1), "CE", DECAYS, mixed=False)
    norm = gradient.norm()
    _, clipped = take_gradient(12, parts, "CE", DECAYS, mixed=False, clip_grad_norm=norm.item() / 3)
    torch.testing.assert_close(clipped, gradient / 3, rtol=1e-5, atol=1e-8)
    _, left = take_gradient(12, parts, "CE", DECAYS, mixed=False, clip_grad_norm=norm.item() * 2)
    torch.testing.assert_close(left, gradient, rtol=1e-6, atol=1e-7)


def test_a_scaled_gradient_is_clipped_by_its_own_norm_and_an_overflow_is_left_out():
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    update = Update(optimizer, scaler, clip_grad_norm=1.0)
    scaler.scale((weight * torch.tensor([3.0, 4.0])).sum()).backward()
    update()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]))
    before = weight.detach().clone()
    optimizer.zero_grad()
    scaler.scale((weight * torch.tensor([torch.inf, 1.0])).sum()).backward()
    update()
    assert torch.equal(weight.detach(), before)
    assert scaler.get_scale() == 512


def test_the_parts_of_a_batch_compile_once_for_each_shape(monkeypatch):
    """With two shapes of parts, and two of batches: nothing is compiled in a second epoch."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    options = {"backend": counter, "fullgraph": True, "dynamic": False}
    monkeypatch.setattr(step, "compile_function", lambda f, *_: torch.compile(f, **options))
    model = build_model("MLP", 4, (3, 8, 8), width=16, depth=1)
    optimizer = build_optimizer("SGD", model, 0.1, 0.0, 0.0)
    precision = Precision("fp32", CPU)
    take = step.build_step(
        model, optimizer, precision.build_scaler(), Objective("CE", 0.0, DECAYS), precision,
        compiled=True, division=Division(11, 3),
    )  # fmt: skip
    for size, expected in ((11, 2), (11, 2), (7, 4), (11, 4), (7, 4)):
        images = torch.randn(size, 3, 8, 8)
        assert len(take(images, torch.arange(size) % 4)[2]) == size
        assert counter.frame_count == expected
