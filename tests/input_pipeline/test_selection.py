"""Which samples of a split are taken."""

import torch

from input_pipeline.selection import select_first


def test_the_first_of_each_class():
    labels = torch.tensor([2, 0, 2, 1, 0, 2, 0])
    assert select_first(labels, 2).tolist() == [0, 1, 2, 3, 4]
