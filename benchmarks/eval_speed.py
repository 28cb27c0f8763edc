"""Time per checkpoint of eval_nc.py against that of the bare forward passes, in one run.

    python benchmarks/eval_speed.py --load_path model_weights/<run> [--repeats 5] [--gpu_id 0]

Bare: the model over the run's training and test images, ready as float tensors, outputs dropped.
Evaluated: loading the checkpoint, batches from uint8, extraction and all measures of both splits.
The two alternate; medians are reported.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import contextlib

import torch

from utils.console import table
from utils.device import pick_device
from utils.evaluation import (
    extract,
    load_weights,
    measure,
    rebuild_data,
    rebuild_model,
    split_batches,
)
from utils.nc_table import checkpoints
from utils.rundir import read_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--load_path", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--gpu_id", type=int, default=0)
    args = parser.parse_args()

    device, name = pick_device(args.gpu_id)
    directory = Path(args.load_path)
    settings = read_config(directory)["settings"]
    data = rebuild_data(settings, splits=("train", "test"))
    model = rebuild_model(settings, data).to(device).eval()
    options = {"batch_size": args.batch_size, "device": device}
    loaders = [split_batches(data, split, **options) for split in ("train", "test")]
    ready = [images for loader in loaders for images, _ in loader.batches(epoch=0)]
    path = list(checkpoints(directory).values())[-1]

    def bare() -> None:
        with torch.no_grad():
            for images in ready:
                model(images)

    def evaluated() -> None:
        load_weights(model, path, device)
        for loader in loaders:
            extracted = extract(model, loader, contextlib.nullcontext())
            measure(extracted, model.fc.weight.detach(), model.fc.bias_vector().detach())

    seconds = {"bare forward passes": [], "evaluated": []}
    for repeat in range(args.repeats + 1):
        for title, work in zip(seconds, (bare, evaluated), strict=True):
            begun = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:  # the first round warms up
                seconds[title].append(time.perf_counter() - begun)
    medians = {title: statistics.median(values) for title, values in seconds.items()}
    base = medians["bare forward passes"]
    rows = [[title, f"{m:.3f}", f"{m / base:.2f}"] for title, m in medians.items()]
    count = len(data.train) + len(data.test)
    print(f"{settings['model']} on {settings['dataset']}, {count} images, {name}")
    print(table(["per checkpoint", "seconds", "ratio"], rows))


if __name__ == "__main__":
    main()
