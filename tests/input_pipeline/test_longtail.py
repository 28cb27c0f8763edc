"""The sizes of long-tailed classes."""

import pytest

from input_pipeline.longtail import compute_tail_sizes

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
