"""scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def read_digits(data_dir: Path, train: bool) -> tuple[Tensor, Tensor, list[str]]:
    """Read scikit-learn's 8×8 digits, grey values 0…16, in a fixed stratified 80/20 split.

    Args:
        data_dir: not used, scikit-learn brings the images.
        train: the 80 %, otherwise the 20 %.

    Returns:
        images uint8 [N, 1, 8, 8], labels int64 [N], class names.
    """
    # Only this set needs scikit-learn, and it takes a second to import.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    numbers = np.arange(len(digits.target))
    parts = train_test_split(numbers, test_size=0.2, stratify=digits.target, random_state=0)
    chosen = np.sort(parts[0 if train else 1])
    images = np.round(digits.images[chosen] * 255 / 16).astype(np.uint8)
    labels = torch.from_numpy(digits.target[chosen]).long()
    return torch.from_numpy(images)[:, None], labels, [str(c) for c in digits.target_names]
