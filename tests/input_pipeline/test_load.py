"""The data sets on small files of the published formats, and on real data where it is."""

import gzip
import hashlib
import pickle
import struct
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100, MNIST
from torchvision.transforms import v2

from input_pipeline import decoding
from input_pipeline.load import DATASETS, load_dataset
from input_pipeline.longtail import compute_tail_sizes
from input_pipeline.pixels import measure_channels
from input_pipeline.splits import FileSplit, TensorSplit
from utils.errors import UserError

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def refusal(*args, **options) -> str:
    """The one line that load_dataset refuses with."""
    with pytest.raises(UserError) as caught:
        load_dataset(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def shared_archive(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.is_file():
        pytest.skip(f"real data {name} is not in ../shared/data")
    return path


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        print("noise")
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


# --- common ---------------------------------------------------------------------------------------


def test_unknown_name_and_numbers_out_of_range_are_told(tmp_path):
    message = refusal("imagenet", tmp_path)
    assert "'imagenet'" in message and all(name in message for name in DATASETS)
    assert "--img_size 0" in refusal("digits", tmp_path, img_size=0)
    assert "--sample_size -1" in refusal("digits", tmp_path, sample_size=-1)


def test_digits_are_the_whole_set_split_by_class(tmp_path):
    digits = load_dataset("digits", tmp_path)
    assert (digits.name, digits.num_classes, digits.image_shape) == ("digits", 10, (3, 8, 8))
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    total = np.bincount(load_digits().target)
    share = torch.bincount(digits.test.labels) / torch.from_numpy(total)
    assert (share - 0.2).abs().max() < 0.01

    every = torch.cat([digits.train.images, digits.test.images])
    assert every.dtype == torch.uint8
    assert torch.equal(every[:, 0], every[:, 2])
    scaled = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    rows = every[:, 0].reshape(-1, 64).numpy()
    assert sorted(map(bytes, rows)) == sorted(map(bytes, scaled.reshape(-1, 64)))

    again = load_dataset("digits", tmp_path)
    assert torch.equal(again.train.images, digits.train.images)
    assert torch.equal(again.test.labels, digits.test.labels)


def test_measured_stats_are_numpys_on_the_training_images_used(tmp_path):
    digits = load_dataset("digits", tmp_path, sample_size=5)
    values = digits.train.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(digits.mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(digits.std, values.std((0, 2, 3)), rtol=1e-12)


def test_stats_of_several_batches_and_of_a_constant_channel():
    images = torch.randint(0, 256, (2500, 3, 4, 5), dtype=torch.uint8)
    images[:, 1] = 51
    mean, std = measure_channels([images[:7], images[7:]])
    values = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std[::2], values.std((0, 2, 3))[::2], rtol=1e-12)
    assert mean[1] == pytest.approx(0.2) and std[1] == 1


def test_sample_size_takes_the_first_of_each_class(tmp_path):
    whole = load_dataset("digits", tmp_path)
    few = load_dataset("digits", tmp_path, sample_size=7, test_sample_size=2)
    for split, complete, count in ((few.train, whole.train, 7), (few.test, whole.test, 2)):
        firsts = [torch.where(complete.labels == k)[0][:count] for k in range(10)]
        kept = torch.cat(firsts).sort().values
        assert torch.equal(split.labels, complete.labels[kept])
        assert torch.equal(split.images, complete.images[kept])


def test_sample_size_beyond_the_smallest_class_is_told(tmp_path):
    counts = torch.bincount(load_dataset("digits", tmp_path).test.labels)
    fewest = int(counts.min())
    message = refusal("digits", tmp_path, test_sample_size=fewest + 1)
    assert f"--test_sample_size {fewest + 1}" in message
    assert f"{fewest} test images of class '{counts.argmin()}'" in message


# The published sizes of CIFAR100-LT and CIFAR10-LT.
TAILS = [(500, 100, 10, 19573), (500, 100, 50, 12608), (500, 100, 100, 10847)]
TAILS += [(5000, 10, 10, 20431), (5000, 10, 50, 13996), (5000, 10, 100, 12406)]


@pytest.mark.parametrize(("largest", "num_classes", "factor", "total"), TAILS)
def test_long_tails_have_the_published_sizes(largest, num_classes, factor, total):
    sizes = compute_tail_sizes(largest, num_classes, factor)
    last = num_classes - 1
    assert sizes == [int(largest * (1 / factor) ** (k / last)) for k in range(num_classes)]
    assert (sum(sizes), sizes[0], sizes[-1]) == (total, largest, largest // factor)


def test_long_tails_at_their_ends():
    assert compute_tail_sizes(7, 5, 1) == [7] * 5
    assert compute_tail_sizes(10, 3, 1000) == [10, 1, 1]
    # Powers of whole numbers are whole, whatever floating point makes of them.
    for base in range(2, 12):
        expected = [base**5, base**4, base**3, base**2, base, 1]
        assert compute_tail_sizes(base**5, 6, base**5) == expected


def test_a_long_tail_takes_the_first_of_each_class_up_to_its_size(tmp_path):
    whole = load_dataset("digits", tmp_path)
    tail = load_dataset("digits", tmp_path, imbalance_factor=1.2)
    own = torch.bincount(whole.train.labels).tolist()
    profile = [int(max(own) * 1.2 ** (-k / 9)) for k in range(10)]
    sizes = [min(pair) for pair in zip(own, profile, strict=True)]
    assert sizes[0] == own[0] < profile[0]  # a class that has fewer keeps them all
    firsts = [torch.where(whole.train.labels == k)[0][:size] for k, size in enumerate(sizes)]
    kept = torch.cat(firsts).sort().values
    assert torch.equal(tail.train.labels, whole.train.labels[kept])
    assert torch.equal(tail.train.images, whole.train.images[kept])
    assert torch.equal(tail.test.images, whole.test.images)
    assert tail.class_sizes == tail.facts()["class_sizes"] == sizes
    assert load_dataset("digits", tmp_path, imbalance_factor=1.2, splits=["test"]).mean == tail.mean


def test_a_long_tail_comes_after_sample_size(tmp_path):
    tail = load_dataset("digits", tmp_path, sample_size=100, imbalance_factor=50)
    assert tail.class_sizes == [int(100 * 50 ** (-k / 9)) for k in range(10)]
    assert tail.class_sizes[-1] == 2


def test_long_tails_without_effect_or_out_of_range_are_told(tmp_path):
    message = refusal("digits", tmp_path, sample_size=1, imbalance_factor=100)
    assert "--imbalance_factor 100 has no effect here" in message
    assert "--imbalance_factor 0.5" in refusal("digits", tmp_path, imbalance_factor=0.5)
    assert "--imbalance_factor nan" in refusal("digits", tmp_path, imbalance_factor=float("nan"))


def test_only_the_splits_asked_for_with_the_same_stats(tmp_path):
    both = load_dataset("digits", tmp_path)
    test_only = load_dataset("digits", tmp_path, splits=("test",))
    assert test_only.train is None and len(test_only.test) == 360
    assert (test_only.mean, test_only.std) == (both.mean, both.std)
    assert load_dataset("digits", tmp_path, splits=("train",)).test is None


def test_img_size_resizes_as_torchvision(tmp_path):
    native = load_dataset("digits", tmp_path, test_sample_size=3).test.images
    resized = load_dataset("digits", tmp_path, test_sample_size=3, img_size=12)
    assert resized.image_shape == (3, 12, 12)
    expected = v2.functional.resize(native.float(), [12, 12], antialias=True).round()
    torch.testing.assert_close(resized.test.images.float(), expected, atol=0, rtol=0)


# --- MNIST ----------------------------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def mnist(tmp_path) -> Path:
    """A data directory with an MNIST of 40 training and 20 test images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 20)):
        write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path


def test_mnist_is_resized_and_its_channel_repeated(mnist):
    data = load_dataset("mnist", mnist)
    assert (data.image_shape, data.classes) == ((3, 32, 32), [str(k) for k in range(10)])
    assert (data.mean, data.std) == ((0.1307,) * 3, (0.3081,) * 3)
    raw = MNIST(mnist, train=True)
    expected = v2.functional.resize(raw.data[:, None].float(), [32, 32], antialias=True)
    expected = expected.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
    assert torch.equal(data.train.images, expected)
    assert torch.equal(data.test.labels, torch.arange(20) % 10)


def test_mnist_in_its_native_size(mnist):
    data = load_dataset("mnist", mnist, img_size=28)
    assert torch.equal(data.test.images[:, 1], MNIST(mnist, train=False).data)


@pytest.mark.parametrize("keep", [0, 3, 10, 1000])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_truncated_idx_file_is_named(mnist, name, keep):
    path = mnist / "MNIST" / "raw" / name
    path.write_bytes(path.read_bytes()[: min(keep, path.stat().st_size - 1)])
    message = refusal("mnist", mnist)
    assert str(path) in message and "delete it" in message


def test_mnist_labels_out_of_range_and_differing_counts_are_told(mnist):
    path = mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    write_idx(path, np.arange(40))
    assert str(path) in refusal("mnist", mnist)
    write_idx(path, np.arange(39) % 10)
    message = refusal("mnist", mnist)
    assert "40 images" in message and f"{path.name} 39 labels" in message


def test_offline_mnist_names_file_and_folder(tmp_path, offline, capfd):
    message = refusal("mnist", tmp_path)
    for archive, _ in MNIST.resources:
        assert archive in message
    assert MNIST.mirrors[0] in message
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "no network" in message
    assert capfd.readouterr() == ("", "")


def test_offline_mnist_names_only_what_is_absent(mnist, offline):
    (mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    message = refusal("mnist", mnist)
    assert "t10k-labels-idx1-ubyte.gz" in message and "train" not in message


def test_mnist_archives_put_there_by_hand_are_unpacked(mnist, offline, monkeypatch):
    raw = mnist / "MNIST" / "raw"
    resources = []
    for path in sorted(raw.iterdir()):
        packed = gzip.compress(path.read_bytes())
        path.with_name(path.name + ".gz").write_bytes(packed)
        resources.append((path.name + ".gz", hashlib.md5(packed).hexdigest()))
        path.unlink()
    monkeypatch.setattr(MNIST, "resources", resources)
    assert len(load_dataset("mnist", mnist).train) == 40


# --- CIFAR ----------------------------------------------------------------------------------------


def write_cifar(cifar, folder: Path, monkeypatch, num_classes: int, labels_key: str) -> None:
    """Small batches in CIFAR's format; torchvision's MD5 sums are set to theirs."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(file: str, content: dict) -> list[str]:
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, hashlib.md5((folder / file).read_bytes()).hexdigest()]

    def write_batch(file: str) -> list[str]:
        pixels = rng.integers(0, 256, (2 * num_classes, 3072), dtype=np.uint8)
        labels = [i % num_classes for i in range(2 * num_classes)]
        return write(file, {"data": pixels, labels_key: labels})

    names = [f"class{k:02}" for k in range(num_classes)]
    meta_file, meta_md5 = write(cifar.meta["filename"], {cifar.meta["key"]: names})
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"filename": meta_file, "md5": meta_md5})
    for part in ("train_list", "test_list"):
        listed = [write_batch(file) for file, _ in getattr(cifar, part)]
        monkeypatch.setattr(cifar, part, listed)


@pytest.fixture
def cifar10(tmp_path, monkeypatch) -> Path:
    write_cifar(CIFAR10, tmp_path / CIFAR10.base_folder, monkeypatch, 10, "labels")
    return tmp_path


def test_cifar10_is_torchvisions(cifar10):
    data = load_dataset("cifar10", cifar10)
    reference = CIFAR10(cifar10, train=True)
    assert (len(data.train), len(data.test)) == (100, 20)
    assert torch.equal(data.train.images.permute(0, 2, 3, 1), torch.from_numpy(reference.data))
    assert data.train.labels.tolist() == reference.targets
    assert data.classes == reference.classes
    assert data.mean == (0.4914, 0.4822, 0.4465) and data.std == (0.2023, 0.1994, 0.2010)


def test_cifar100_has_fine_labels(tmp_path, monkeypatch):
    write_cifar(CIFAR100, tmp_path / CIFAR100.base_folder, monkeypatch, 100, "fine_labels")
    data = load_dataset("cifar100", tmp_path)
    assert (data.num_classes, data.image_shape) == (100, (3, 32, 32))
    assert torch.equal(data.test.labels, torch.arange(200) % 100)
    assert data.classes[99] == "class99"
    assert data.mean == (0.4914, 0.4822, 0.4465)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_cifar_file_of_another_md5_is_named(cifar10, offline, name):
    path = cifar10 / CIFAR10.base_folder / name
    path.write_bytes(path.read_bytes()[:-1])
    message = refusal("cifar10", cifar10)
    assert str(path) in message and "MD5" in message


def test_cifar_without_its_class_names_is_told(cifar10, offline):
    path = cifar10 / CIFAR10.base_folder / "batches.meta"
    path.unlink()
    assert f"{path} is missing" in refusal("cifar10", cifar10)


def test_offline_cifar_names_file_source_and_folder(tmp_path, offline, capfd):
    message = refusal("cifar100", tmp_path)
    assert CIFAR100.filename in message and CIFAR100.url in message
    assert f"into {tmp_path}" in message and "no network" in message
    assert capfd.readouterr() == ("", "")


def test_offline_cifar_tells_of_an_incomplete_archive(tmp_path, offline):
    (tmp_path / CIFAR10.filename).write_bytes(b"half")
    assert f"the incomplete {CIFAR10.filename}" in refusal("cifar10", tmp_path)


def test_a_cifar_archive_put_there_by_hand_is_unpacked(cifar10, offline, monkeypatch):
    folder, archive = cifar10 / CIFAR10.base_folder, cifar10 / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    for path in folder.iterdir():
        path.unlink()
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert len(load_dataset("cifar10", cifar10).test) == 20


# --- folders --------------------------------------------------------------------------------------


def picture(seed: int, width: int = 12, height: int = 10) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes of 3 training and 2 test PNGs of 12×10 pixels."""
    root = tmp_path / "set"
    for split, count in (("train", 3), ("test", 2)):
        for k, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                seed = 100 * k + 10 * count + i
                picture(seed).save(root / split / name / f"{i}.png")
    return root


def pixels_of(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


def test_folder_decodes_in_sorted_order_and_keeps_the_size(folder):
    data = load_dataset("folder", folder)
    assert (data.classes, data.image_shape) == (["cat", "dog"], (3, 10, 12))
    assert isinstance(data.train, TensorSplit)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    paths = [folder / "train" / c / f"{i}.png" for c in ("cat", "dog") for i in range(3)]
    assert torch.equal(data.train.images, torch.stack([pixels_of(path) for path in paths]))
    assert torch.equal(data.test.images[3], pixels_of(folder / "test" / "dog" / "1.png"))
    values = data.train.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(data.mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, values.std((0, 2, 3)), rtol=1e-12)


def test_workers_decode_the_same(folder, monkeypatch):
    monkeypatch.setattr(decoding, "_DECODE_CHUNK", 2)
    alone, helped = (load_dataset("folder", folder, num_workers=n) for n in (0, 2))
    assert torch.equal(alone.train.images, helped.train.images)
    assert alone.mean == helped.mean


def test_a_large_folder_streams_the_same_images(folder, monkeypatch):
    memory = load_dataset("folder", folder)
    monkeypatch.setattr("input_pipeline.folder.IN_MEMORY_BYTES", 10 * 3 * 10 * 12 - 1)
    streamed = load_dataset("folder", folder)
    assert isinstance(streamed.train, FileSplit) and isinstance(streamed.test, FileSplit)
    assert torch.equal(streamed.train.fetch(torch.arange(6)), memory.train.images)
    assert torch.equal(streamed.test.fetch([3, 0]), memory.test.images[[3, 0]])
    assert streamed.mean == memory.mean and streamed.image_shape == memory.image_shape


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_folder_with_a_long_tail(folder, monkeypatch, in_memory):
    if not in_memory:
        monkeypatch.setattr("input_pipeline.folder.IN_MEMORY_BYTES", 0)
    break_file(folder / "train" / "dog" / "1.jpg", "text")  # it is not reached
    data = load_dataset("folder", folder, imbalance_factor=3)
    assert isinstance(data.train, TensorSplit if in_memory else FileSplit)
    assert data.class_sizes == [3, 1]
    files = [folder / "train" / "cat" / f"{i}.png" for i in range(3)]
    files.append(folder / "train" / "dog" / "0.png")
    images = data.train.fetch(torch.arange(4))
    assert torch.equal(images, torch.stack([pixels_of(path) for path in files]))
    assert len(data.test) == 4


def test_streamed_stats_are_of_evenly_spaced_images(folder, monkeypatch):
    images = load_dataset("folder", folder).train.images
    monkeypatch.setattr("input_pipeline.folder.IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("input_pipeline.folder._STATS_IMAGES", 3)
    streamed = load_dataset("folder", folder)
    assert (streamed.mean, streamed.std) == measure_channels([images[[0, 2, 4]]])


def test_val_stands_in_for_test_but_test_comes_first(folder):
    (folder / "test").rename(folder / "val")
    assert len(load_dataset("folder", folder).test) == 4
    for name in ("cat", "dog"):
        (folder / "test" / name).mkdir(parents=True)
        picture(0).save(folder / "test" / name / "0.png")
    assert len(load_dataset("folder", folder).test) == 2


def test_nested_files_count_hidden_and_other_files_do_not(folder):
    cat = folder / "train" / "cat"
    (cat / "more" / "still").mkdir(parents=True)
    picture(7).save(cat / "more" / "still" / "x.BMP")
    (cat / ".hidden.png").write_bytes(b"")
    (cat / ".cache").mkdir()
    (cat / ".cache" / "x.png").write_bytes(b"")
    (cat / "notes.txt").write_text("")
    (folder / "train" / ".git").mkdir()
    data = load_dataset("folder", folder)
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert torch.equal(data.train.images[3], pixels_of(cat / "more" / "still" / "x.BMP"))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(folder, mode):
    path = folder / "test" / "cat" / ("0.tif" if mode == "CMYK" else "0.png")
    picture(5).convert(mode).save(path)
    expected = torch.from_numpy(np.array(picture(5).convert(mode).convert("RGB")))
    images = load_dataset("folder", folder).test.images
    assert torch.equal(images[0 if mode != "CMYK" else 1], expected.permute(2, 0, 1))


def test_16_bit_grey_keeps_its_range(folder):
    values = np.linspace(0, 65535, 120).round().astype(np.uint16).reshape(10, 12)
    Image.fromarray(values).save(folder / "test" / "cat" / "0.png")
    image = load_dataset("folder", folder).test.images[0]
    assert image[0, 0, 0] == 0 and image[0, -1, -1] == 255
    assert np.abs(image[1].numpy() - values / 257).max() <= 0.5


def test_img_size_fits_the_shorter_side_and_crops_the_centre(folder):
    exact = picture(1, 8, 8)
    exact.save(folder / "test" / "cat" / "0.png")
    tall = picture(2, 9, 20)
    tall.save(folder / "test" / "cat" / "1.png")
    data = load_dataset("folder", folder, img_size=8)
    assert data.image_shape == (3, 8, 8)
    as_tensor = [torch.from_numpy(np.array(x)).permute(2, 0, 1) for x in (exact, tall)]
    assert torch.equal(data.test.images[0], as_tensor[0])
    crop = v2.Compose([v2.Resize(8, antialias=True), v2.CenterCrop(8)])
    # Pillow and torchvision's tensors round their fixed-point weights differently.
    torch.testing.assert_close(data.test.images[1].int(), crop(as_tensor[1]).int(), atol=1, rtol=0)


@pytest.mark.parametrize("in_memory", [True, False])
def test_mixed_sizes_are_told_with_both_files(folder, monkeypatch, in_memory):
    if not in_memory:
        monkeypatch.setattr("input_pipeline.folder.IN_MEMORY_BYTES", 0)
    odd = folder / "train" / "dog" / "1.png"
    picture(3, 7, 9).save(odd)
    message = refusal("folder", folder)
    for part in (str(folder / "train" / "cat" / "0.png"), "12×10", str(odd), "7×9", "--img_size"):
        assert part in message


def break_file(path: Path, how: str) -> None:
    picture(4).save(path, "JPEG")
    whole = path.read_bytes()
    contents = {"text": b"no image", "empty": b"", "truncated": whole[: len(whole) // 2]}
    path.write_bytes(contents[how])


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("how", ["text", "empty", "truncated"])
def test_a_file_that_is_no_whole_image_is_named(folder, how, num_workers):
    path = folder / "train" / "dog" / "1.jpg"
    break_file(path, how)
    message = refusal("folder", folder, num_workers=num_workers)
    assert f"{path} can't be decoded" in message and "Traceback" not in message


def test_sample_size_comes_before_decoding(folder):
    break_file(folder / "train" / "dog" / "2.jpg", "text")
    data = load_dataset("folder", folder, sample_size=2, test_sample_size=1)
    assert (len(data.train), len(data.test)) == (4, 2)
    message = refusal("folder", folder, sample_size=4)
    assert "--sample_size 4" in message and "3 train images of class 'cat'" in message


def test_one_split_alone_has_the_same_stats(folder):
    both, test_only = (
        load_dataset("folder", folder, splits=s) for s in (("train", "test"), ["test"])
    )
    assert test_only.train is None and test_only.mean == both.mean


def test_missing_folders_are_told(folder):
    assert str(folder / "gone" / "train") in refusal("folder", folder / "gone")
    (folder / "test").rename(folder / "exam")
    message = refusal("folder", folder)
    assert str(folder) in message and "test/" in message and "val/" in message


def test_too_few_and_empty_classes_are_told(folder):
    for path in (folder / "train" / "dog").iterdir():
        path.unlink()
    assert str(folder / "train" / "dog") in refusal("folder", folder)
    (folder / "train" / "dog").rmdir()
    assert "holds 1 class" in refusal("folder", folder)


def test_differing_classes_are_named_at_most_five(folder):
    (folder / "test" / "dog").rename(folder / "test" / "fox")
    message = refusal("folder", folder)
    assert "'dog', 'fox'" in message and "'cat'" not in message
    for k in range(7):
        (folder / "train" / f"new{k}").mkdir()
    message = refusal("folder", folder)
    assert "'new2' and 4 more" in message and "'new3'" not in message


# --- real data ------------------------------------------------------------------------------------


def test_real_mnist(tmp_path):
    with tarfile.open(shared_archive("mnist.tar.xz")) as tar:
        tar.extractall(tmp_path, filter="data")
    data = load_dataset("mnist", tmp_path)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert torch.bincount(data.test.labels).tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    native = load_dataset("mnist", tmp_path, img_size=28, splits=("train",))
    mean, std = measure_channels([native.train.images])
    # The published constants are those of the native images.
    np.testing.assert_allclose((mean, std), (data.mean, data.std), atol=5e-5)


def test_real_cifar10_jpeg(tmp_path):
    with tarfile.open(shared_archive("cifar10-jpeg.tar.xz")) as tar:
        for member in tar:
            # A hundred files of each class are enough.
            if member.isfile() and member.name.endswith(".jpg") and "/00" in member.name:
                tar.extract(member, tmp_path, filter="data")
    root = tmp_path / "cifar10-jpeg"
    data = load_dataset("folder", root, sample_size=30, test_sample_size=10)
    assert data.num_classes == 10 and data.image_shape == (3, 32, 32)
    assert (len(data.train), len(data.test)) == (300, 100)
    first = root / "train" / data.classes[0] / "0000.jpg"
    assert torch.equal(data.train.images[0], pixels_of(first))
    # Near the constants of the original set.
    np.testing.assert_allclose(data.mean, (0.4914, 0.4822, 0.4465), atol=0.05)
