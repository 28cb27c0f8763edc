"""What JPEG costs a network in accuracy, on images that are JPEGs already.

    python benchmarks/jpeg_cost.py --data_dir JPEGS --out DIR [--seeds 3] [-- train flags]

For a folder of JPEGs whose originals are not at hand, such as CIFAR-10 (JPEG), the loss by their
first compression can't be measured. Two measurements come near it:

- The images are compressed a second time with the same settings (quality 75, 4:2:0), on a grid of
  blocks that is shifted by an odd number of pixels, so that new coefficients are rounded. Shifting
  back restores the place. Networks are trained and tested on the images before and after.
- The images are halved by averages of 2×2 pixels, which removes most of the first compression's
  error. Then they are compressed once, and a second time as above. Networks are trained and tested
  on the halved images, on these after one compression and after two: here both losses are known.

Networks that were trained for a few hundred steps do not miss fine detail. Begin with the weights
of a longer run (`-- --init_from RUN`, with its network); results/jpeg-cost/report.md does so.

All images are stored as PNGs. Each network is trained as the flags after -- say, with the seeds
0, 1, …; an interrupted command continues. It prints the PSNR of each compression, mean ± sample
standard deviation of the accuracies of the last epoch in percent, and the differences. DIR gets
those of each run as results.csv.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.flags import add_sample_sizes, add_seeds, add_task, refuse_own
from utils.cli import (
    MISTAKE,
    Parser,
    PathText,
    add_device_flag,
    check_value,
    list_device_flags,
    make_directory,
    run_command,
)
from utils.console import format_table

if TYPE_CHECKING:
    import numpy as np

    from input_pipeline.splits import DataSet

PROGRAM = "jpeg_cost.py"
QUALITY, BLOCK = 75, 16  # a block of 4:2:0 has 16×16 pixels
SHIFT = 3  # odd: the pairs of pixels that share a colour change, too
TASK = "--model DenseNet121 --loss BCE --optimizer SGD --lr 0.05 --epochs 6 --augment DA1"
# This command sets these flags; the task must not.
OWN = ("--dataset", "--data_dir", "--seed", "--gpu_id", "--save_dir", "--run_name", "--resume")
COMPARED = {"test_top1": "top-1 %", "test_uniform": "uniform %"}
# The treatments of the images, in the order in which each follows from the one before.
FULL, HALVED = ("as they are", "compressed again"), ("halved", "halved, once", "halved, twice")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_flags(argv)
    return run_command(
        PROGRAM,
        lambda stop: measure_cost(args),
        stopped="stopped; the same command continues",
    )


def build_parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    kind = check_value(PathText)
    add("--data_dir", type=kind, required=True, metavar="DIR", help="a folder data set of JPEGs")
    add("--out", type=kind, required=True, metavar="DIR", help="for images and runs; is created")
    add_sample_sizes(parser, 500, 300)
    add_seeds(parser)
    add_device_flag(parser)
    add_task(parser, TASK)
    return parser


def parse_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags. Exits with status 2 and one line on a mistake."""
    parser = build_parser()
    args: argparse.Namespace = parser.parse_args(argv)
    refuse_own(parser, args, OWN)
    return args


def measure_cost(args: argparse.Namespace) -> int:
    """Write the images, train all networks, and print the tables. Raises UserError."""
    from input_pipeline.load import load_dataset
    from rundir.names import METRICS
    from utils.files import read_csv, write_csv

    out = make_directory("--out", Path(args.out))
    data = load_dataset(
        "folder",
        Path(args.data_dir),
        sample_size=args.sample_size,
        test_sample_size=args.test_sample_size,
        in_memory_bytes=sys.maxsize,
    )
    print(format_table(["PSNR", "dB"], write_images(out, data)), flush=True)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (*FULL, *HALVED)}
    for seed, name in itertools.product(range(args.seeds), found):
        run = out / "runs" / f"{name_folder(name)}_{seed}"
        try:
            train(out / name_folder(name), run, seed, args)
        except subprocess.CalledProcessError as error:  # its own line is above
            return MISTAKE if error.returncode == MISTAKE else 1
        row = read_csv(run / METRICS)[-1]
        found[name].append({column: float(row[column]) for column in COMPARED})
        top1 = found[name][-1]["test_top1"]
        print(f"{name}, seed {seed}: top-1 {top1:.2f} %", file=sys.stderr, flush=True)
    rows = [{"images": n, "seed": k, **r} for n, each in found.items() for k, r in enumerate(each)]
    write_csv(out / "results.csv", ("images", "seed", *COMPARED), rows)
    print(" ".join(args.task))
    print(format_table(["images", *COMPARED.values()], list_means(found)))
    print(format_table(["difference", *COMPARED.values()], list_differences(found)))
    return 0


def name_folder(name: str) -> str:
    """Return the name of the folder of images with a treatment."""
    return name.replace(",", "").replace(" ", "-")


def train(folder: Path, run: Path, seed: int, args: argparse.Namespace) -> None:
    """Train one network, or go on with it. Raises CalledProcessError if train.py fails."""
    flags = ["--dataset", "folder", "--data_dir", str(folder), "--seed", str(seed)]
    flags += ["--save_dir", str(run.parent), "--run_name", run.name, "--resume", "--force"]
    command = [sys.executable, str(ROOT / "train.py"), *args.task, *flags]
    command += list_device_flags(args.gpu_id)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


# --- Images ---


def write_images(out: Path, data: DataSet) -> list[list[str]]:
    """Write the folders of all treatments that are not there; return the rows of the PSNR table."""
    from benchmarks.whole_folder import is_written, write_folder

    errors: dict[str, list[float]] = {}
    treated: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in (*FULL, *HALVED)}
    digest = hashlib.sha256()
    for split in ("train", "test"):
        for images in iterate_treatments(data, split, errors):
            for name, pixels in images.items():
                treated[name].setdefault(split, []).append(pixels)
            digest.update(images[FULL[0]].tobytes())
    facts = {"program": PROGRAM, "quality": QUALITY, "shift": SHIFT, "source": digest.hexdigest()}
    for name, splits in treated.items():
        folder, own = out / name_folder(name), {**facts, "treatment": name}
        if not is_written(folder, own):
            write_folder(folder, own, partial(save_images, data, splits))
    return [[name, f"{compute_psnr(each):.1f}"] for name, each in errors.items()]


def iterate_treatments(
    data: DataSet, split: str, errors: dict[str, list[float]]
) -> Iterator[dict[str, np.ndarray]]:
    """Treat the images of a split in turn, and collect the mean square errors, by their names.

    Yields the pixels uint8 [H, W, 3] of one image by treatment.
    """
    import numpy as np

    source = getattr(data, split)
    for tensor in source.images:
        first = tensor.permute(1, 2, 0).numpy()
        again, half = compress(first, SHIFT), halve(first)
        once = compress(half)
        twice = compress(once, SHIFT)
        pairs = {
            "as they are, compressed again": (first, again),
            "the same, both halved": (half, halve(again)),
            "halved, compressed once": (half, once),
            "halved and compressed, compressed again": (once, twice),
        }
        for name, (before, after) in pairs.items():
            square = np.square(before.astype(np.float64) - after)
            errors.setdefault(name, []).append(float(square.mean()))
        yield dict(zip((*FULL, *HALVED), (first, again, half, once, twice), strict=True))


def compress(pixels: np.ndarray, shift: int = 0) -> np.ndarray:
    """Return pixels uint8 [H, W, 3] as JPEG leaves them.

    Its blocks of 16×16 pixels begin `shift` pixels above and left of the image, whose border is
    repeated there and behind.
    """
    import numpy as np
    from PIL import Image

    height, width = pixels.shape[:2]
    behind = (BLOCK - shift) % BLOCK
    padded = np.pad(pixels, ((shift, behind), (shift, behind), (0, 0)), mode="edge")
    file = io.BytesIO()
    Image.fromarray(padded).save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
    decoded = np.asarray(Image.open(file).convert("RGB"))
    return decoded[shift : shift + height, shift : shift + width]


def halve(pixels: np.ndarray) -> np.ndarray:
    """Return the averages of 2×2 pixels uint8 [H, W, 3], rounded."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).reduce(2))


def compute_psnr(errors: Sequence[float]) -> float:
    """Return the peak signal-to-noise ratio in dB of mean square errors in levels of 255."""
    return 10 * math.log10(255**2 / statistics.fmean(errors))


def save_images(data: DataSet, splits: dict[str, list[np.ndarray]], folder: Path) -> None:
    """Save the images of both splits as `<split>/<class>/<number>.png`."""
    from PIL import Image

    for split, images in splits.items():
        labels = getattr(data, split).labels.tolist()
        for name in data.classes:
            (folder / split / name).mkdir(parents=True)
        for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / split / data.classes[label] / f"{number:05}.png"
            Image.fromarray(pixels).save(path)


# --- Tables ---


def list_means(found: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """List a row for each treatment: mean ± sample standard deviation over the seeds."""
    return [
        [name, *(format_spread([run[column] for run in runs]) for column in COMPARED)]
        for name, runs in found.items()
    ]


def list_differences(found: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """List what each compression changes: mean ± deviation of the differences of equal seeds."""
    rows = []
    for before, after in itertools.pairwise((*FULL, None, *HALVED)):
        if before is None or after is None:
            continue
        pairs = list(zip(found[before], found[after], strict=True))
        cells = [format_spread([b[c] - a[c] for a, b in pairs], "+") for c in COMPARED]
        rows.append([f"{after} − {before}", *cells])
    return rows


def format_spread(values: Sequence[float], sign: str = "") -> str:
    """Format mean ± sample standard deviation."""
    return f"{statistics.fmean(values):{sign}.2f} ± {statistics.stdev(values):.2f}"


if __name__ == "__main__":
    sys.exit(main())
