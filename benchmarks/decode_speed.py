"""Images per second of one core that decodes JPEGs, beside torchvision's reference pipeline.

    python benchmarks/decode_speed.py [--augment RRC] [--img_size 224]

torchvision: ImageFolder, RandomResizedCrop and flip (without --augment: Resize and CenterCrop),
PILToTensor, ToDtype and Normalize in a DataLoader, as in its references. The others are train.py's
batches as they go to the device, where they are normalised: from the files, with --jpeg_draft, and
from --cache_dir. All run in this process with one thread and take turns. The files and the stored
images stay in the system's cache.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ratios import format_ratio
from benchmarks.train_speed import Side, add_number
from utils.cli import Count, Parser, check_value, run_command

FILES, BATCH = 128, 32
QUALITY = 92  # 110 kB for 500×375 pixels, as the mean of ImageNet
WAYS = ("torchvision", "files", "--jpeg_draft", "--cache_dir")
AUGMENTS = ("none", "RRC")


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("decode_speed.py", lambda stop: compare_ways(args), stopped="stopped")


def build_parser() -> Parser:
    parser = Parser(prog="decode_speed.py", description=__doc__)
    parser.add_argument(
        "--img_size",
        type=check_value(Side),
        nargs="+",
        default=[224],
        metavar="N",
        help="sides in pixels (default: 224)",
    )
    parser.add_argument(
        "--augment",
        choices=AUGMENTS,
        nargs="+",
        default=list(AUGMENTS),
        help="what is done with the images (default: none RRC)",
    )
    add_number(parser, "--rounds", Count, 9, "turns of each way (default: 9)")
    return parser


def compare_ways(args: argparse.Namespace) -> int:
    """Time the ways in turns for each size and augmentation, and print the table."""
    import torch

    from benchmarks.images import write_photos
    from utils.console import format_table

    torch.set_num_threads(1)
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as root:
        write_photos(Path(root), FILES, 2, QUALITY)
        paths = sorted(map(str, Path(root, "train").rglob("*.jpg")))
        size = statistics.mean(Path(path).stat().st_size for path in paths)
        print(f"{len(paths)} JPEGs of 500×375 pixels, {size / 1000:.0f} kB each")
        for augment in args.augment:
            for side in args.img_size:
                ways = build_ways(Path(root), paths, side, augment == "RRC")
                rounds = [[time_way(way) for way in ways] for _ in range(args.rounds + 1)][1:]
                rows += list_rows(augment, side, len(paths), list(zip(*rounds, strict=True)))
    print(format_table(["augment, img_size, from", "images/s", "ms", "× torchvision"], rows))
    return 0


def list_rows(
    augment: str, side: int, count: int, times: Sequence[Sequence[float]]
) -> Iterator[list[str]]:
    """List a row for each way, from the seconds of its rounds for `count` images."""
    for way, seconds in zip(WAYS, times, strict=True):
        middle = statistics.median(seconds) / count
        ratio = format_ratio(times[0], seconds)
        yield [f"{augment}, {side}, {way}", f"{1 / middle:.0f}", f"{1000 * middle:.3f}", ratio]


def build_ways(
    root: Path, paths: list[str], side: int, cropped: bool
) -> list[Callable[[], Iterator[Any]]]:
    """Build the functions that start an epoch of each of `WAYS`."""
    import torch

    from input_pipeline import find_resized_side
    from input_pipeline.cropping import ResizedCrop
    from input_pipeline.decoding import build_decoding_loader, iterate_decoded
    from input_pipeline.resized import keep_resized
    from input_pipeline.splits import FileSplit

    labels = torch.zeros(len(paths), dtype=torch.int64)
    split = FileSplit(
        paths,
        labels,
        (side, side),
        resized_side=find_resized_side(side) if cropped else None,
        crop=ResizedCrop(0) if cropped else None,
    )
    kept = keep_resized({"train": split}, root, cache_dir=root / "stored", num_workers=0, fill=True)
    draft = replace(split, jpeg_draft=True)

    def start(split: FileSplit) -> Iterator[Any]:
        numbers = range(len(paths))
        batches = [(list(numbers[first : first + BATCH]), 0) for first in numbers[::BATCH]]
        return iterate_decoded(build_decoding_loader(split, batches, num_workers=0))

    stored = replace(kept["train"], resize_first=True)
    splits = (split, draft, stored)
    return [build_reference(root / "train", side, cropped), *(lambda s=s: start(s) for s in splits)]


def build_reference(folder: Path, side: int, cropped: bool) -> Callable[[], Iterator[Any]]:
    """Build torchvision's reference pipeline for the images of a folder."""
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    from benchmarks.images import MEAN, STD

    if cropped:
        geometry = [v2.RandomResizedCrop(side), v2.RandomHorizontalFlip()]
    else:
        geometry = [v2.Resize(side), v2.CenterCrop(side)]
    rest = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    images = ImageFolder(folder, v2.Compose([*geometry, *rest]))
    return lambda: iter(torch.utils.data.DataLoader(images, BATCH))


def time_way(start: Callable[[], Iterator[Any]]) -> float:
    """Return the seconds of an epoch."""
    begun = time.perf_counter()
    for _ in start():
        pass
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
