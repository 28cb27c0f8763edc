"""Shares of a batch: complete, without overlap, even; and the batches that each process gets."""

import itertools

import pytest
import torch

from input_pipeline.augmentation import build_mixer
from input_pipeline.division import Division
from tests.input_pipeline.helpers import COUNT, make


@pytest.mark.parametrize("smallest", [1, 2])
@pytest.mark.parametrize(("parts", "ranks"), list(itertools.product([1, 2, 3], [1, 2, 3, 5])))
def test_shares_are_the_batch_and_as_equal_as_can_be(parts, ranks, smallest):
    for size in range(2, 33):
        divisions = [Division(32, parts, rank, ranks, smallest) for rank in range(ranks)]
        shares = [division.find_own(size) for division in divisions]
        in_order = [share for part in zip(*shares, strict=True) for share in part]
        visited = [i for share in in_order for i in range(share.start, share.stop)]
        assert visited == list(range(size))
        for part in zip(*shares, strict=True):
            counts = [share.stop - share.start for share in part]
            used = [count for count in counts if count]
            assert counts == sorted(counts, reverse=True)  # the first process is never without
            assert max(used) - min(used) <= 1
            assert min(used) >= min(smallest, sum(counts))
            assert len(used) == ranks or sum(counts) < ranks * smallest + smallest


def join(loaders, augment: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The whole batches of an epoch from those of all processes."""
    joined = []
    own = [list(loader.batches(2)) for loader in loaders]
    for step, batches in enumerate(zip(*own, strict=True)):
        size = loaders[0].find_size(step)
        whole = [torch.full((size, *x.shape[1:]), torch.nan) for x in batches[0]]
        for loader, batch in zip(loaders, batches, strict=True):
            shares = loader.division.find_own(size)
            at = torch.cat([torch.arange(size)[share] for share in shares])
            for all_of, given in zip(whole, batch, strict=True):
                all_of[at] = given.to(all_of.dtype)
        joined.append(tuple(whole))
    assert sum(loader.count_own() for loader in loaders) == loaders[0].num_samples, augment
    return joined


@pytest.mark.parametrize("augment", ["none", "DA1", "DA1+DA2", "RRC"])
@pytest.mark.parametrize(("ranks", "parts"), [(2, 1), (3, 1), (3, 2), (4, 1)])
def test_processes_together_get_the_batches_of_one(splits, augment, ranks, parts):
    files, tensors = splits
    options = {"shuffle": True, "augment": augment, "rotation": 15.0, "batch_size": 10}
    # Files are cropped alone; and partners of files would be in the same share.
    chosen = {"RRC": [files], "DA1+DA2": [tensors]}.get(augment, [tensors, files])
    alone = list(make(chosen[0], **options).batches(2))
    for split in chosen:
        loaders = [
            make(split, **options, rank=rank, ranks=ranks, parts=parts) for rank in range(ranks)
        ]
        for own, (images, targets) in zip(join(loaders, augment), alone, strict=True):
            assert torch.equal(own[0], images)
            assert torch.equal(own[1], targets.to(own[1].dtype))


def test_files_are_mixed_within_a_share_by_the_draws_of_the_batch(splits):
    files, _ = splits
    mixer = build_mixer("DA1+DA2", num_classes=4, seed=0)
    for rank in range(2):
        options = {"batch_size": 12, "rank": rank, "ranks": 2}
        mixed = make(files, augment="DA1+DA2", **options).batches(0)
        unmixed = make(files, augment="DA1", **options).batches(0)
        for step, (batch, (images, labels)) in enumerate(zip(mixed, unmixed, strict=True)):
            draws = mixer.draw(0, range(step, step + 1), images.shape[-2:])
            expected = mixer.apply(images[None], labels[None], draws)
            assert torch.equal(batch[0], expected[0][0]) and torch.equal(batch[1], expected[1][0])


def test_a_process_may_get_an_empty_last_batch(splits):
    for split in splits:
        loaders = [make(split, batch_size=11, rank=rank, ranks=2) for rank in range(2)]
        sizes = [[len(images) for images, _ in loader.batches(0)] for loader in loaders]
        assert sizes == [[6, 6, 1], [5, 5, 0]] and COUNT == 23
        rest = [[len(images) for images, _ in loader.batches(0, 2)] for loader in loaders]
        assert rest == [[1], [0]]
