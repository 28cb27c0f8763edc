"""Which samples of a split are taken: the first of each class, and long tails."""

import torch

from input_pipeline.load import load_dataset
from input_pipeline.selection import select_first
from tests.input_pipeline.helpers import refusal


def test_the_first_of_each_class():
    labels = torch.tensor([2, 0, 2, 1, 0, 2, 0])
    assert select_first(labels, 2).tolist() == [0, 1, 2, 3, 4]


def test_sample_size_takes_the_first_of_each_class(tmp_path):
    whole = load_dataset("digits", tmp_path)
    few = load_dataset("digits", tmp_path, sample_size=7, test_sample_size=2)
    for split, complete, count in ((few.train, whole.train, 7), (few.test, whole.test, 2)):
        firsts = [torch.where(complete.labels == k)[0][:count] for k in range(10)]
        kept = torch.cat(firsts).sort().values
        assert torch.equal(split.labels, complete.labels[kept])
        assert torch.equal(split.images, complete.images[kept])


def test_sample_size_beyond_the_smallest_class_is_reported(tmp_path):
    counts = torch.bincount(load_dataset("digits", tmp_path).test.labels)
    fewest = int(counts.min())
    message = refusal("digits", tmp_path, test_sample_size=fewest + 1)
    assert f"--test_sample_size {fewest + 1}" in message
    assert f"{fewest} test images of class '{counts.argmin()}'" in message


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


def test_long_tails_without_effect_or_out_of_range_are_reported(tmp_path):
    message = refusal("digits", tmp_path, sample_size=1, imbalance_factor=100)
    assert "--imbalance_factor 100 has no effect here" in message
    assert "--imbalance_factor 0.5" in refusal("digits", tmp_path, imbalance_factor=0.5)
    assert "--imbalance_factor nan" in refusal("digits", tmp_path, imbalance_factor=float("nan"))
