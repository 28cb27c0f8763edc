"""jpeg_cost.py: its images by hand, its tables, and a whole run on small images."""

import math
import os
from pathlib import Path
from subprocess import CalledProcessError
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from args import parse_settings
from benchmarks import jpeg_cost
from benchmarks.jpeg_cost import compress, compute_psnr, halve, list_differences, list_means
from tests.helpers import read_refusal


def draw_photo(seed: int) -> np.ndarray:
    """Smooth pixels uint8 [32, 32, 3] with some grain."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((32, 32), Image.Resampling.BICUBIC), float)
    return (smooth + generator.normal(0, 8, (32, 32, 3))).clip(0, 255).astype(np.uint8)


def measure_error(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.square(first.astype(float) - second).mean())


def test_the_first_compression_is_that_of_a_jpeg_file(tmp_path):
    pixels = draw_photo(0)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=75, subsampling=2)
    assert np.array_equal(compress(pixels), np.asarray(Image.open(tmp_path / "a.jpg")))


def test_only_a_shifted_grid_makes_the_second_compression_lose_again():
    """On the same grid the coefficients are multiples of the steps already, but for rounding."""
    first = compress(draw_photo(1))
    same, shifted = (measure_error(first, compress(first, shift)) for shift in (0, 3))
    assert 2 * same < shifted < measure_error(draw_photo(1), first)


@pytest.mark.parametrize("shift", range(16))
def test_a_shift_moves_nothing(shift):
    pixels = np.full((32, 32, 3), 40, np.uint8)
    pixels[8:, 16:] = 200
    assert np.abs(compress(pixels, shift).astype(int) - pixels).mean() < 8
    assert compress(pixels[:20, :24], shift).shape == (20, 24, 3)


def test_halving_takes_the_mean_of_four_pixels():
    pixels = draw_photo(2)
    means = pixels.reshape(16, 2, 16, 2, 3).astype(float).mean((1, 3))
    assert np.abs(halve(pixels) - means).max() <= 0.5


def test_the_psnr_is_that_of_the_mean_error():
    assert compute_psnr([4.0, 6.0]) == pytest.approx(20 * math.log10(255 / math.sqrt(5)))


def test_differences_are_those_of_equal_seeds():
    names = (*jpeg_cost.FULL, *jpeg_cost.HALVED)
    found = {
        name: [{"test_top1": 50.0 + seed - k, "test_uniform": 10.0 * seed} for seed in (0, 4)]
        for k, name in enumerate(names)
    }
    assert list_means(found)[0] == ["as they are", "52.00 ± 2.83", "20.00 ± 28.28"]
    rows = list_differences(found)
    assert [row[0] for row in rows] == [
        "compressed again − as they are",
        "halved, once − halved",
        "halved, twice − halved, once",
    ]
    assert all(row[1:] == ["-1.00 ± 0.00", "+0.00 ± 0.00"] for row in rows)


@pytest.fixture
def data_dir(tmp_path):
    """Two training and two test images of each of two classes."""
    for number in range(8):
        folder = tmp_path / "set" / ("train", "test")[number % 2] / "ab"[number // 4]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_photo(number)).save(folder / f"{number}.png")
    return tmp_path / "set"


def test_each_run_gets_the_images_of_its_treatment(data_dir, tmp_path, monkeypatch, capsys):
    runs = []

    def run_train(command, **options):
        """Check the flags as train.py does, and write what it would measure."""
        settings = parse_settings(command[2:])
        folder = Path(settings.data_dir)
        runs.append((folder.name, settings.seed))
        image = Image.open(folder / "train" / "b" / "00002.png")
        assert image.size == ((16, 16) if "halved" in folder.name else (32, 32))
        row = f"test_top1,test_uniform\n{50 + settings.seed},{image.size[0]}\n"
        run_dir = Path(settings.save_dir) / settings.run_name
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "metrics.csv").write_text(row)

    started = SimpleNamespace(run=run_train, CalledProcessError=CalledProcessError, DEVNULL=None)
    monkeypatch.setattr(jpeg_cost, "subprocess", started)
    monkeypatch.setattr(os, "sync", lambda: None, raising=False)
    out = tmp_path / "out"
    flags = ["--data_dir", data_dir, "--out", out, "--seeds", 2, "--gpu_id", -1]
    flags = [str(flag) for flag in (*flags, "--sample_size", 2, "--test_sample_size", 2)]
    assert jpeg_cost.main(flags) == 0
    table = capsys.readouterr().out
    assert "halved, twice     50.50 ± 0.71  16.00 ± 0.00" in table
    assert (out / "results.csv").read_text().splitlines()[1:3] == [
        "as they are,0,50.0,32.0",
        "as they are,1,51.0,32.0",
    ]
    names = [jpeg_cost.name_folder(name) for name in (*jpeg_cost.FULL, *jpeg_cost.HALVED)]
    assert runs == [(name, seed) for seed in (0, 1) for name in names]
    image = Image.open(out / "halved-twice" / "train" / "b" / "00002.png")
    assert np.array_equal(np.asarray(image), compress(compress(halve(draw_photo(4))), 3))
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert len(written) == 5 * 8
    assert jpeg_cost.main(flags) == 0  # as after a stop: the images stay
    assert capsys.readouterr().out == table
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == written


def test_mistakes(tmp_path, capsys):
    flags = ["--data_dir", tmp_path, "--out", tmp_path / "out"]
    line = read_refusal(capsys, jpeg_cost.main, *flags, "--", "--seed", 3)
    assert "--seed" in line
    assert f"{tmp_path / 'train'} is missing" in read_refusal(capsys, jpeg_cost.main, *flags)
