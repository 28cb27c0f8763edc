"""Features, labels and classifiers for the tests, and what their measures are by the formulas."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.spatial.distance import cdist

from input_pipeline.loader import BatchLoader
from input_pipeline.splits import TensorSplit

CPU = torch.device("cpu")


def sizes_up_to(largest, num_classes):
    return [round(largest ** (k / (num_classes - 1))) for k in range(num_classes)]


def random_case(num_classes, dim, sizes, *, offset=0.0, far=0.0, seed=0):
    """Normal features about normal class means; `far` moves the first class alone."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(num_classes), sizes))
    means = rng.normal(size=(num_classes, dim)) + offset
    means[0] += far
    features = means[labels] + rng.normal(size=(len(labels), dim))
    weight, bias = rng.normal(size=(num_classes, dim)), rng.normal(size=num_classes)
    # Else the common offset decides every prediction.
    bias += weight @ np.full(dim, offset)
    return tuple(torch.from_numpy(a) for a in (features, labels, weight, bias))


def simplex(num_classes, dim, seed=0):
    """A simplex ETF [K, dim] in a random rotation."""
    rng = np.random.default_rng(seed)
    corners = np.eye(num_classes) - 1 / num_classes
    _, _, basis = scipy.linalg.svd(corners)
    rotation = scipy.linalg.qr(rng.normal(size=(dim, dim)))[0][:, : num_classes - 1]
    return corners @ basis[: num_classes - 1].T @ rotation.T


def collapsed_case(num_classes, dim, *, scale=1.0, shift=0.0, seed=0):
    """Features at the corners of an ETF moved by `shift`, class k with k + 1 samples."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(num_classes), np.arange(num_classes) + 1))
    corners = simplex(num_classes, dim, seed)
    centre = shift * rng.normal(size=dim)
    features, weight = scale * corners[labels] + centre, 3 * corners
    return tuple(torch.from_numpy(a) for a in (features, labels, weight, weight @ centre))


def reference(features, labels, weight, bias):
    """NC1 to NC4 by their formulas (docs/measures.md), with numpy and scipy."""
    features, labels, weight, bias = (t.numpy() for t in (features, labels, weight, bias))
    num_classes, dim = weight.shape
    means = np.stack([features[labels == k].mean(0) for k in range(num_classes)])
    centre = means.mean(0)
    within = np.zeros((dim, dim))
    for k in range(num_classes):
        deviations = features[labels == k] - means[k]
        within += deviations.T @ deviations / len(features)
    centred = (means - centre).T
    rank = min(num_classes - 1, dim)
    values, vectors = scipy.linalg.eigh(centred @ centred.T / num_classes)
    inverse = vectors[:, -rank:] / values[-rank:] @ vectors[:, -rank:].T

    target = (np.eye(num_classes) - 1 / num_classes) / math.sqrt(num_classes - 1)

    def distance(gram):
        return scipy.linalg.norm(gram / scipy.linalg.norm(gram) - target)

    nearest = cdist(features, means).argmin(1)
    return {
        "nc1": np.trace(within @ inverse) / num_classes,
        "nc2": distance(weight @ weight.T),
        "nc2_h": distance(centred.T @ centred),
        "nc3": distance(weight @ centred),
        "nc4": (nearest != (features @ weight.T - bias).argmax(1)).mean(),
    }


def reference_properties(features, labels, num_classes):
    """From the cosines of all pairs, one pair of classes after the other."""
    features, labels = features.double().numpy(), labels.numpy()
    groups = [features[labels == k] for k in range(num_classes)]
    centre = np.mean([group.mean(0) for group in groups], axis=0)
    groups = [group - centre for group in groups]
    cosines = [[1 - cdist(a, b, "cosine").mean() for b in groups] for a in groups]
    own = np.trace(cosines)
    others = np.sum(cosines) - own
    return {
        "compactness": own / num_classes,
        "distinctiveness": 1 - others / (num_classes * (num_classes - 1)),
    }


def build_batches(batch_size, device=CPU, count=40, **options):
    """A loader of 8×8 images of ten classes."""
    images = torch.arange(count * 192).mul(7).remainder(256).to(torch.uint8).view(count, 3, 8, 8)
    split = TensorSplit(images, torch.arange(count) % 10)
    return BatchLoader(
        split, batch_size=batch_size, device=device, mean=(0.5,) * 3, std=(0.5,) * 3,
        num_classes=10, **options,
    )  # fmt: skip


def assert_close(ours, expected, relative=1e-8):
    assert ours == pytest.approx(expected, rel=relative, abs=1e-11)


def change_arguments(**changes):
    """Arguments with mistakes put in."""
    features, labels, weight, bias = random_case(3, 4, [5, 6, 7])
    arguments = {"features": features, "labels": labels, "weight": weight, "bias": bias}
    return arguments | {key: change(arguments[key]) for key, change in changes.items()}


def with_entry(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


SHAPES = [
    (2, 1), (2, 2), (2, 5), (3, 1), (3, 2), (3, 3), (3, 7), (10, 4), (10, 9), (10, 10), (10, 11),
    (10, 64), (100, 30), (100, 100), (100, 150),
]  # fmt: skip

# Mistakes in features and labels, and words that name them.
FEATURE_MISTAKES = [
    ({"features": with_entry(torch.nan)}, "features not finite: row 17 "),
    ({"features": with_entry(-torch.inf)}, "features not finite: row 17 "),
    ({"features": with_entry(1e200)}, "features are too large"),
    ({"features": lambda t: t[0]}, "features must be"),
    ({"features": lambda t: t[:, :0]}, "features must be"),
    ({"features": lambda t: t[1:]}, "features must be"),
    ({"features": lambda t: t.long()}, "features must be floating point"),
    ({"features": lambda t: t[:0], "labels": lambda t: t[:0]}, "empty"),
    ({"labels": lambda t: t[:, None]}, "labels"),
    ({"labels": lambda t: t.double()}, "labels must be integers from 0 to 2"),
    ({"labels": lambda t: t > 0}, "labels must be integers from 0 to 2"),
    ({"labels": lambda t: t - 1}, "labels must be integers from 0 to 2"),
    ({"labels": lambda t: t + 1}, "labels must be integers from 0 to 2"),
    ({"labels": lambda t: t.clamp(max=1)}, "labels: no samples of class 2 "),
]
