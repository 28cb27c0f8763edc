"""Write a data set of 100 classes: pairs of MNIST digits side by side, 00 to 99.

    python benchmarks/digit_pairs.py [--data_dir data] [--out data/digit-pairs]
    python train.py --dataset folder --data_dir data/digit-pairs

A pair is a grey PNG of 32×32 pixels. Each digit's 28×28 pixels are resized to 16 wide and 32 high
(bilinear, antialiased) and fill one half. Nothing is cut off. The strokes stay one to two pixels
wide, so the digits are narrow but legible.

Training pairs come from MNIST's training images, test pairs from its test images. Within a split a
digit image is at most once a left half and at most once a right half, and never both halves of one
pair. A file's name has the numbers of its two images in MNIST, left and right. The same seed gives
the same pixels.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.flags import add_sample_sizes
from utils.cli import Natural, Parser, PathText, check_value, run_command
from utils.console import Console, Progress
from utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

PROGRAM = "digit_pairs.py"
DIGITS = 10
HALF = (16, 32)  # width and height of a digit
VERSION = 1  # of the rules by which pairs are chosen and drawn


class Pair(NamedTuple):
    """A pair of digits; `left` and `right` are the numbers of its images in the split."""

    name: str  # of the class
    left: int
    right: int


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(PROGRAM, lambda stop: write_pairs(args), stopped="stopped; nothing is left")


def build_parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    kind = check_value(PathText)
    add("--data_dir", type=kind, default="./data", metavar="DIR", help="MNIST's (default: ./data)")
    add(
        "--out",
        type=kind,
        default="./data/digit-pairs",
        metavar="DIR",
        help="folder to write (default: ./data/digit-pairs)",
    )
    add_sample_sizes(parser, 500, 80)
    add("--seed", type=check_value(Natural), default=0, metavar="N", help="(default: 0)")
    return parser


def write_pairs(args: argparse.Namespace) -> int:
    """Write the folder, unless it is there from the same flags and images. Raises UserError."""
    from benchmarks.whole_folder import is_written, write_folder
    from input_pipeline.known import read_mnist

    out, data_dir = Path(args.out), Path(args.data_dir)
    counts = {"train": args.sample_size, "test": args.test_sample_size}
    mnist = {split: read_mnist(data_dir, split == "train")[:2] for split in counts}
    facts = {
        "program": PROGRAM,
        "version": VERSION,
        "images_per_class": counts,
        "seed": args.seed,
        "mnist": {split: hash_images(*found) for split, found in mnist.items()},
    }
    if is_written(out, facts):
        print(f"{out} is there already, written with the same flags")
        return 0
    pairs = {
        # Two splits of one seed are shuffled by different numbers.
        split: choose_pairs(labels, counts[split], 2 * args.seed + number, split)
        for number, (split, (_, labels)) in enumerate(mnist.items())
    }
    total = sum(map(len, pairs.values()))
    with Progress(Console(), "pairs", total) as progress:

        def fill(folder: Path) -> None:
            for split, chosen in pairs.items():
                for _ in draw_pairs(folder / split, mnist[split][0], chosen):
                    progress.advance(1)

        write_folder(out, facts, fill)
    each = " and ".join(f"{count} {split}" for split, count in counts.items())
    print(f"{out}: {DIGITS**2} classes, each with {each} images of {2 * HALF[0]}×{HALF[1]}")
    return 0


def hash_images(images: Tensor, labels: Tensor) -> str:
    """Return the SHA-256 of a split's pixels and labels."""
    return hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()


def choose_pairs(labels: Tensor, count: int, seed: int, split: str) -> list[Pair]:
    """Choose `count` pairs of images of each class from labels int64 [N].

    The images of each digit are shuffled and cut into ten blocks of `count`. Class ab has block b
    of digit a to the left, and block a + 5 (mod 10) of digit b to the right. In class aa these are
    blocks a and a + 5, so that no image stands beside itself.

    Raises UserError where a digit has too few images.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    images = [order[labels[order] == digit] for digit in range(DIGITS)]
    sizes = [len(found) for found in images]
    if min(sizes) < DIGITS * count:
        flag = "--sample_size" if split == "train" else "--test_sample_size"
        raise UserError(
            f"{flag} {count} needs {DIGITS * count} images of each digit, but MNIST's {split} "
            f"split has {min(sizes)} of digit {sizes.index(min(sizes))}: at most "
            f"{min(sizes) // DIGITS} are possible"
        )
    blocks = [found[: DIGITS * count].view(DIGITS, count).tolist() for found in images]
    return [
        Pair(f"{first}{second}", left, right)
        for first in range(DIGITS)
        for second in range(DIGITS)
        for left, right in zip(
            blocks[first][second], blocks[second][(first + DIGITS // 2) % DIGITS], strict=True
        )
    ]


def draw_pairs(folder: Path, images: Tensor, pairs: Sequence[Pair]) -> Iterator[Pair]:
    """Draw pairs of images uint8 [N, 1, 28, 28] as `folder/<class>/<left>-<right>.png`, in turn."""
    import numpy as np
    from PIL import Image

    def resize(number: int) -> Any:
        digit = Image.fromarray(images[number, 0].numpy())
        return np.asarray(digit.resize(HALF, Image.Resampling.BILINEAR))

    for name in sorted({pair.name for pair in pairs}):
        (folder / name).mkdir(parents=True)
    for pair in pairs:
        pixels = np.hstack([resize(pair.left), resize(pair.right)])
        path = folder / pair.name / f"{pair.left:05}-{pair.right:05}.png"
        Image.fromarray(pixels).save(path)
        yield pair


if __name__ == "__main__":
    sys.exit(main())
