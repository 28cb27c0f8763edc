"""The cost of a step and of a pass on this machine, before a run is begun.

reproduce.py starts `main` as a process of its own, which ends before the first run begins. Its
process takes the memory of a network, and holds a GPU's context, for that time only.
"""

from __future__ import annotations

import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from args import Settings
from input_pipeline.load import count_samples, find_image_side
from input_pipeline.loader import BatchLoader
from input_pipeline.splits import DataSet, TensorSplit
from metrics.extraction import build_split_batches, choose_test_batch
from rundir.building import build_batches, build_network, build_precision, crops_files
from training.setup import build_objective, build_optimizer
from training.step import build_step
from utils.cli import SMALLEST_BATCH
from utils.device import is_out_of_memory, pick_device, synchronise
from utils.errors import UserError
from utils.precision import Precision, set_determinism
from utils.signals import stop_with_parent

FIRST = 8  # images of the first batches, which show whether whole batches can be afforded
STEPS = 3  # measured calls after the first on whole batches; more where they are short
ENOUGH = 0.3  # seconds of measured calls after which no more are needed
MOST = 50
NETWORK_SECONDS, TOTAL_SECONDS = 8.0, 60.0  # for a network, and for all of them
TRAINING_SHARE = 0.6  # of a network's seconds, for its training steps
COUNTED = ("sample_size", "imbalance_factor", "test_sample_size")  # settings that select samples

Take = Callable[[int], None]  # works on a batch of so many images, and waits for the device
Clock = Callable[[], float]  # seconds


class Images(NamedTuple):
    """The data set of a run: its classes, training and test images, and their side in pixels."""

    classes: int
    train: int
    test: int
    side: int


def main() -> None:
    """Answer the request of reproduce.py: a JSON object on stdin, lines of JSON on stdout.

    The request holds `cases` (settings), `gpu_id`, `processes` (of a run), `begun` (the time at
    which this process was started) and `timed` (whether steps are measured). See `answer` for the
    lines.
    """
    stop_with_parent()
    request = json.load(sys.stdin)
    try:
        for line in answer(request):
            print(json.dumps(line), flush=True)
    except UserError as error:  # the device
        sys.exit(str(error))


def answer(request: dict[str, Any], clock: Clock = time.perf_counter) -> Iterator[dict[str, Any]]:
    """Yield the sizes of each case, then the device and the seconds of an image of each.

    Lines have a `case` (the number in the request) and

    - `images` [train, test], `weights` and `trained` (bytes of the state_dict, and of the
      parameters that are trained), or `unknown`: why they are not known, or `missing`: why the data
      or the network cannot be had;
    - `step`, `test` and `evaluation`: seconds an image, see `measure`, and `network`: what was
      measured; or `unmeasured`: why not.

    One line has `device`, `cuda` and `starting`: the seconds that it took this process to start.
    Raises UserError for a device that cannot be used.
    """
    cases = [Settings.from_json(values) for values in request["cases"]]
    known: dict[int, Images] = {}
    for number, settings in enumerate(cases):
        try:
            images = find_images(settings)
            if images is None:
                yield {"case": number, "unknown": f"the size of {settings.dataset} is not known"}
                continue
            weights, trained = count_bytes(settings, images)
        except UserError as error:
            yield {"case": number, "missing": str(error)}
            continue
        known[number] = images
        sizes = {"images": [images.train, images.test], "weights": weights, "trained": trained}
        yield {"case": number, **sizes}
    if not request["timed"]:
        return
    set_determinism(False)
    device, name = pick_device(request["gpu_id"], given=request["gpu_id"] is not None)
    starting = time.time() - request["begun"]
    yield {"device": name, "cuda": device.type == "cuda", "starting": starting}
    gpus = request["processes"] if device.type == "cuda" else 1
    yield from time_cases(cases, known, device, clock, gpus)


def time_cases(
    cases: Sequence[Settings],
    known: dict[int, Images],
    device: torch.device,
    clock: Clock,
    gpus: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yield the line of each case; those that cost the same are measured once.

    `gpus` is the number that a run has, see `measure_share`.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, images in known.items():
        groups.setdefault(list_shape(cases[number], images.side), []).append(number)
    end = clock() + TOTAL_SECONDS
    for done, numbers in enumerate(groups.values()):
        settings, images = cases[numbers[0]], known[numbers[0]]
        seconds = min(NETWORK_SECONDS, (end - clock()) / (len(groups) - done))
        try:
            figures = measure_share(settings, images, device, seconds, clock, gpus)
        except UserError as error:
            figures = {"unmeasured": str(error)}
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            figures = {"unmeasured": f"out of memory with --batch_size {settings.batch_size}"}
        yield from ({"case": number, **figures} for number in numbers)


def list_shape(settings: Settings, side: int) -> tuple[Any, ...]:
    """List what the seconds of an image depend on: network, images' side, batch, precision.

    The number of classes is not among it: the classifier is a small part of any network.
    """
    names = ["model", "batch_size", "precision", *Settings.names(builds="model")]
    return side, *settings.values(names).values()


def find_images(settings: Settings) -> Images | None:
    """Find what a data set consists of, without reading it; None if its entry does not know it.

    Raises UserError.
    """
    source = settings.dataset, settings.data_dir
    found = _count(*source, *(getattr(settings, name) for name in COUNTED))
    if found is None:
        return None
    return Images(*found, find_image_side(*source, settings.img_size))


@functools.cache
def _count(name: str, data_dir: str, *values: Any) -> tuple[int, int, int] | None:
    return count_samples(name, data_dir, **dict(zip(COUNTED, values, strict=True)))


def count_bytes(settings: Settings, images: Images) -> tuple[int, int]:
    """Count the bytes of a network's state_dict and of its parameters that are trained.

    No memory is taken for them. Raises UserError.
    """
    with torch.device("meta"):
        model = build_network(settings, make_data(settings, images, 0), initial=False)
    weights = sum(value.nbytes for value in model.state_dict().values())
    return weights, sum(value.nbytes for value in model.parameters() if value.requires_grad)


def make_data(settings: Settings, images: Images, count: int) -> DataSet:
    """Make a data set of `count` random images in either split, in place of the real one."""
    shape = (3, images.side, images.side)
    pixels = torch.randint(256, (count, *shape), dtype=torch.uint8, device="cpu")
    labels = torch.arange(count, device="cpu") % images.classes
    split = TensorSplit(pixels, labels)
    names = [str(number) for number in range(images.classes)]
    even = (0.5, 0.5, 0.5)
    return DataSet(settings.dataset, names, shape, even, even, split, split)


def measure_share(
    settings: Settings,
    images: Images,
    device: torch.device,
    seconds: float,
    clock: Clock,
    gpus: int,
) -> dict[str, Any]:
    """Measure the share that each GPU of a run has of a batch; return what `measure` does.

    Training and its test pass then take as long as that share, without the exchange of gradients.
    An evaluation has one GPU.
    """
    share = math.ceil(settings.batch_size / gpus)
    settings = settings.replace(batch_size=max(SMALLEST_BATCH, share))
    figures = measure(settings, images, device, seconds, clock)
    if gpus == 1:
        return figures
    network = f"{figures['network']} on each of {gpus} GPUs"
    paces = {name: figures[name] / gpus for name in ("step", "test")}
    return {**figures, **paces, "network": network}


def measure(
    settings: Settings, images: Images, device: torch.device, seconds: float, clock: Clock
) -> dict[str, Any]:
    """Measure the seconds that an image takes, in about `seconds` in all.

    Returns:
        step: of a training step. test: of the test pass of train.py. evaluation: of a pass in
        float32, as eval_nc.py makes it. network: what was measured, in words.
    """
    precision = build_precision(settings, settings.precision, device)
    data = make_data(settings, images, FIRST)
    model = precision.place(build_network(settings, data, initial=False))
    batch, plain = settings.batch_size, build_precision(settings, "fp32", device)
    passes = [precision] if plain == precision else [precision, plain]
    share = (1 - TRAINING_SHARE) * seconds / len(passes)
    step = measure_image(
        build_step_taker(settings, images, model, precision), batch, TRAINING_SHARE * seconds, clock
    )
    test_batch = choose_test_batch(device, images.side, batch)
    looks = [
        measure_image(build_pass_taker(settings, images, model, each), test_batch, share, clock)
        for each in passes
    ]
    network = f"{settings.model}, {images.side}×{images.side} pixels, batch {batch}"
    return {"step": step, "test": looks[0], "evaluation": looks[-1], "network": network}


def build_step_taker(
    settings: Settings, images: Images, model: nn.Module, precision: Precision
) -> Take:
    """Return a function that trains on a batch of random images, augmented as the run's.

    Crops of image files are left out: they belong to the decoding, which is not measured.
    """
    if crops_files(settings):
        settings = settings.replace(augment="none")
    optimizer = build_optimizer(settings, model)
    step = build_step(
        model, optimizer, precision.build_scaler(), build_objective(settings), precision
    )

    @functools.cache
    def build(size: int) -> BatchLoader:
        data = make_data(settings, images, size)
        return build_batches(settings.replace(batch_size=size), data, precision)[0]

    def take(size: int) -> None:
        model.train()
        for batch, targets in build(size).batches(epoch=1):
            step(batch, targets)
        synchronise(precision.device)

    return take


def build_pass_taker(
    settings: Settings, images: Images, model: nn.Module, precision: Precision
) -> Take:
    """Return a function that passes a batch of random images, without a gradient."""
    precision.place(model)

    @functools.cache
    def build(size: int) -> BatchLoader:
        return build_split_batches(
            make_data(settings, images, size),
            "test",
            batch_size=size,
            device=precision.device,
            memory_format=precision.memory_format,
        )

    @torch.no_grad()
    def take(size: int) -> None:
        model.eval()
        with precision.autocast():
            for batch, _ in build(size).batches(epoch=0):
                model(batch)
        synchronise(precision.device)

    return take


def measure_image(
    take: Take, batch: int, seconds: float, clock: Clock = time.perf_counter
) -> float:
    """Return the seconds that `take` needs for an image in batches of `batch`.

    The batches grow from `FIRST` images on, and stay smaller where whole ones would take longer
    than `seconds`. The fastest call counts: other programs only make one slower.

    Args:
        take: works on so many images. Its first call on a number of them may set something up.
        batch: images of a batch.
        seconds: for all calls together, about.
        clock: returns the time in seconds.
    """
    size = min(batch, FIRST)
    spent = _time(take, size, clock)
    if spent > seconds:
        return spent / size
    while True:
        last = _time(take, size, clock)
        spent += last
        larger = min(batch, 2 * size)
        if larger == size or spent + (STEPS + 1) * last * larger / size > seconds:
            break
        size = larger
    times = [last]
    while spent < seconds and (len(times) <= STEPS or sum(times) < ENOUGH) and len(times) < MOST:
        times.append(_time(take, size, clock))
        spent += times[-1]
    return min(times) / size


def _time(take: Take, size: int, clock: Clock) -> float:
    begun = clock()
    take(size)
    return clock() - begun
