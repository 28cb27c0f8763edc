"""Training in several processes: the same mathematics as in one, the same bits again."""

import pytest
import torch
from torch import nn

from args import complete, parse_settings
from input_pipeline.loader import BatchLoader
from input_pipeline.splits import TensorSplit
from models import build_model
from tests.processes import run_job
from training.setup import build_average, build_optimizer, build_run_step
from utils.precision import Precision
from utils.world import join, leave

COUNT, BATCH = 14, 6  # the last batch of two images leaves a third process none
MEAN, STD = (0.5,) * 3, (0.25,) * 3
SMALL = {"ViT": {"width": 16, "depth": 1}, "MLP": {"width": 16, "depth": 2}}
CASES = [
    ("MLP", "--sync_bn"),
    ("MLP", "--sync_bn --sep_decay --accumulate 2 --clip_grad_norm 0.5"),
    ("ViT", "--optimizer AdamW"),
    ("ViT", "--sep_decay --augment DA1+DA2 --weight_decay_bias 0.01 --ema 0.9"),
    ("ResNet18", "--sync_bn --augment DA1+DA2"),
    ("ResNet18", "--sync_bn --sep_decay --loss CE --smoothing 0.1"),
]


def build_split(side: int) -> TensorSplit:
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(0, 256, (COUNT, 3, side, side), generator=generator, dtype=torch.uint8)
    return TensorSplit(images, torch.arange(COUNT) % 4)


def train_in_float64(model_name: str, flags: str, rank: int, ranks: int) -> dict:
    """Take 12 steps (4 epochs); return the weights, the average's, and the summed losses."""
    words = ["--model", model_name, "--batch_size", str(BATCH), *flags.split()]
    settings = complete(parse_settings(words))
    precision = Precision("fp32", torch.device("cpu"))
    # At 8 pixels the last maps have one, and two samples of it are no more than a sign.
    side = 16 if model_name == "ResNet18" else 8
    torch.manual_seed(3)
    model = build_model(model_name, 4, (3, side, side), **SMALL.get(model_name, {})).double()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    if ranks > 1 and settings.sync_bn:
        from training.shared_norm import share_statistics

        model = share_statistics(model, precision.device)
    batches = BatchLoader(
        build_split(side), batch_size=BATCH, device="cpu", mean=MEAN, std=STD, num_classes=4,
        shuffle=True, augment=settings.augment, rank=rank, ranks=ranks, parts=settings.accumulate,
    )  # fmt: skip
    optimizer = build_optimizer(settings, model)
    average = build_average(settings, model, optimizer)
    scaler = precision.build_scaler()
    step = build_run_step(settings, model, optimizer, scaler, precision, average, batches.division)
    losses = []
    model.train()
    for epoch in range(4):
        for number, (images, targets) in enumerate(batches.batches(epoch)):
            size = batches.find_size(number)
            objective, loss, _ = step(images.double(), targets, size)
            losses += [objective, loss]
    averaged = {} if average is None else average.module.state_dict()
    return {
        "losses": torch.stack(losses),
        **{name: tensor.clone() for name, tensor in model.state_dict().items()},
        **{f"average.{name}": tensor.clone() for name, tensor in averaged.items()},
    }


def compare_all(cases: list[tuple[str, str]], alone: list[dict]) -> int:
    """Train every case in the processes of this job; each compares with the one process."""
    world = join(gpus=False)
    for (model, flags), expected in zip(cases, alone, strict=True):
        found = train_in_float64(model, flags, world.rank, world.size)
        found["losses"] = world.total(found["losses"])
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            difference = (found[name].double() - values.double()).abs().max().item()
            assert difference < 1e-9, f"{model} {flags}: {name} differs by {difference}"
    leave()
    return len(cases)


@pytest.fixture(scope="module")
def alone() -> list[dict]:
    return [train_in_float64(model, flags, 0, 1) for model, flags in CASES]


@pytest.mark.parametrize("size", [2, 3])
def test_processes_train_as_one_does(alone, size):
    """12 steps. ResNet18 takes long: its two cases run in one number of processes each."""
    left_out = CASES[-size + 1]
    chosen = [i for i, case in enumerate(CASES) if case != left_out]
    cases, expected = [CASES[i] for i in chosen], [alone[i] for i in chosen]
    for result, _, _ in run_job(size, compare_all, cases, expected):
        assert result == len(cases) == 5


def test_norm_over_processes_is_torchs(tmp_path):
    """In a job of one process: torch's own layer, gradients and running statistics."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        from training.shared_norm import share_statistics

        for kind, shape, options in (
            (nn.BatchNorm1d, (6, 5), {}),
            (nn.BatchNorm2d, (4, 5, 3, 2), {"momentum": None}),
            (nn.BatchNorm2d, (4, 5, 3, 2), {"affine": False, "track_running_stats": False}),
        ):
            torch.manual_seed(0)
            own, shared = (kind(5, dtype=torch.float64, **options) for _ in range(2))
            share_statistics(shared, torch.device("cpu"))
            for _ in range(2):
                x = torch.randn(shape, dtype=torch.float64) * 3 + 5
                first, second = (x.clone().requires_grad_() for _ in range(2))
                y, z = own(first), shared(second)
                torch.testing.assert_close(z, y)
                (y**3).sum().backward()
                (z**3).sum().backward()
                torch.testing.assert_close(second.grad, first.grad)
            torch.testing.assert_close(shared.state_dict(), own.state_dict())
            torch.testing.assert_close(shared.eval()(x), own.eval()(x))
    finally:
        torch.distributed.destroy_process_group()
