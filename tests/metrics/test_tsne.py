"""t-SNE embeddings: what they keep of the features."""

import numpy as np
import pytest
from sklearn.manifold import trustworthiness
from sklearn.neighbors import KNeighborsClassifier

from metrics.tsne import check_perplexity, embed, scale_to_unit_square
from utils.errors import UserError


def blobs(classes=3, each=40, dim=10, seed=0):
    """Well separated classes: features [N, d] and labels [N]."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    centres = 20 * generator.normal(size=(classes, dim))
    return centres[labels] + generator.normal(size=(len(labels), dim)), labels


def test_an_embedding_keeps_neighbours_and_is_the_same_again():
    features, labels = blobs()
    shares = []
    first = embed(features, perplexity=10, seed=0, on_progress=shares.append)
    assert first.shape == (120, 2)
    assert KNeighborsClassifier(5).fit(first, labels).score(first, labels) == 1
    assert trustworthiness(features, first) > 0.9
    assert np.array_equal(embed(features, perplexity=10, seed=0), first)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_an_embedding_begins_at_the_one_before():
    features, labels = blobs()
    first = embed(features, perplexity=10, seed=0)
    turned = np.stack([-first[:, 1], first[:, 0]], axis=1)  # no start that PCA would find
    second = embed(features + 0.01, perplexity=10, seed=0, start=turned)

    def centres(embedding):
        means = np.stack([embedding[labels == k].mean(0) for k in range(3)])
        return (means - means.mean(0)) / np.linalg.norm(means - means.mean(0))

    # Centred triangles of norm 1: their inner product is 1 in equal positions, and 0 where one is
    # turned by a right angle.
    assert (centres(second) * centres(turned)).sum() > 0.8
    assert (centres(second) * centres(first)).sum() < 0.6


def test_collapsed_features_are_embedded():
    """At neural collapse all samples of a class are one point."""
    features = np.repeat(np.eye(4), 20, axis=0)
    embedding = embed(features, perplexity=5, seed=0)
    assert np.isfinite(embedding).all()
    labels = np.repeat(np.arange(4), 20)
    assert KNeighborsClassifier(5).fit(embedding, labels).score(embedding, labels) == 1


def test_features_without_an_embedding():
    with pytest.raises(ValueError, match="finite"):
        embed(np.full((20, 3), np.nan), perplexity=3, seed=0)
    with pytest.raises(ValueError, match="the same"):
        embed(np.ones((20, 3)), perplexity=3, seed=0)


def test_the_unit_square():
    square = scale_to_unit_square(np.array([[-1.0, 7.0], [1.0, 7.0], [3.0, 7.0]]))
    assert square.tolist() == [[0, 0.5], [0.5, 0.5], [1, 0.5]]


def test_the_largest_perplexity():
    check_perplexity(33, 100)
    with pytest.raises(UserError, match="at most 33"):
        check_perplexity(33.1, 100)
