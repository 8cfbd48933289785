"""Embeddings of clusters, and the numbers beside them against slow counts."""

import numpy as np
import pytest
from sklearn.metrics import pairwise_distances

from tcar.explain.embedding import embed, knn_accuracy, knn_most, silhouette, trustworthiness
from tcar.explain.errors import ExplanationError


def clusters() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(60, 6)) + np.repeat([[0.0], [30.0]], 30, axis=0)


@pytest.mark.parametrize("method", ["umap", "tsne"])
def test_clusters_stay_apart_and_points_follow_their_seed(method):
    features = clusters()
    first, again = (embed(features, method, seed=1, neighbours=8) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    centres = first[:30].mean(axis=0), first[30:].mean(axis=0)
    spread = max(
        np.linalg.norm(part - c, axis=1).max()
        for part, c in zip((first[:30], first[30:]), centres, strict=True)
    )
    assert np.linalg.norm(centres[0] - centres[1]) > spread
    if method == "umap":  # t-SNE begins with principal components, which no seed moves
        assert not np.array_equal(first, embed(features, method, seed=2, neighbours=8))
    with pytest.raises(ExplanationError, match=f"{method} needs.*more than neighbours=15"):
        embed(features[:15], method)


def test_features_of_one_number_have_a_t_sne():
    points = embed(clusters()[:, :1], "tsne", neighbours=8)
    assert points.shape == (60, 2) and np.isfinite(points).all()


def test_another_method_names_those_there_are():
    with pytest.raises(ExplanationError, match="umap, tsne; did you mean 'tsne'"):
        embed(clusters(), "t-sne")


@pytest.mark.parametrize("k", [1, 3, 9])
def test_the_share_of_neighbours_is_that_of_a_slow_count(k):
    random = np.random.default_rng(k)
    features, labels = random.normal(size=(20, 4)), random.choice(list("abc"), 20)
    shares = []
    for clip in range(20):
        others = [o for o in range(20) if o != clip]
        angle = [features[clip] @ features[o] / np.linalg.norm(features[clip]) / np.linalg.norm(features[o])
                 for o in others]  # fmt: skip
        nearest = [others[place] for place in np.argsort(angle)[::-1][:k]]
        shares.append(np.mean([labels[o] == labels[clip] for o in nearest]))
    assert knn_accuracy(features, labels, k) == pytest.approx(np.mean(shares))


def test_a_clip_is_not_its_own_neighbour_where_two_are_the_same():
    features = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert knn_accuracy(features, ["a", "b", "a", "b"], 1) == 0
    assert knn_accuracy(features, ["a", "a", "b", "b"], 1) == 1


@pytest.mark.parametrize("k", [1, 2, 5, 14])
def test_features_that_tell_every_class_reach_the_most_and_no_others_do(k):
    labels = np.repeat(["a", "b", "c"], [2, 4, 9])
    perfect = np.eye(3)[np.repeat([0, 1, 2], [2, 4, 9])] + np.random.default_rng(0).normal(0, 1e-3, (15, 3))
    assert knn_accuracy(perfect, labels, k) == pytest.approx(knn_most(labels, k))
    assert knn_most(labels, k) == pytest.approx((2 * min(k, 1) + 4 * min(k, 3) + 9 * min(k, 8)) / (15 * k))
    assert knn_accuracy(np.random.default_rng(1).normal(size=(15, 3)), labels, k) <= knn_most(labels, k)


def test_the_silhouette_is_that_of_a_slow_count():
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(12, 3)), np.repeat([0, 1, 2], [2, 4, 6])
    far = pairwise_distances(features, metric="cosine")
    found = []
    for clip, own in enumerate(labels):
        mates = (labels == own) & (np.arange(12) != clip)
        near, next_one = far[clip, mates].mean(), min(far[clip, labels == o].mean() for o in {0, 1, 2} - {own})
        found.append((next_one - near) / max(near, next_one))
    assert silhouette(features, labels) == pytest.approx(np.mean(found))


def test_points_are_trusted_as_far_as_their_neighbours_are_true():
    random = np.random.default_rng(0)
    points = random.normal(size=(30, 2))
    features = np.concatenate([points @ np.array([[0.6, -0.8], [0.8, 0.6]]), np.zeros((30, 2))], axis=1)
    assert trustworthiness(features, points, 5) == 1
    shuffled = points[random.permutation(30)]
    wrong = trustworthiness(features, shuffled, 5)
    # the formula: what intrudes among the nearest, by how far out it is
    truly, seen = (pairwise_distances(x) + np.diag([np.inf] * 30) for x in (features, shuffled))
    rank = truly.argsort(1).argsort(1) + 1
    penalty = sum(max(rank[i, j] - 5, 0) for i in range(30) for j in seen[i].argsort()[:5])
    assert wrong == pytest.approx(1 - penalty * 2 / (30 * 5 * (2 * 30 - 3 * 5 - 1))) and wrong < 0.8


@pytest.mark.parametrize(("call", "message"), [
    (lambda: knn_accuracy(np.ones((3, 2)), [0, 0, 1], 3), "3 neighbours: expected 1 to 2"),
    (lambda: knn_accuracy(np.ones((3, 2)), [0, 0, 1], 0), "0 neighbours"),
    (lambda: knn_accuracy(np.ones((3, 2)), [0, 1], 1), "2 labels are not those of 3 clips"),
    (lambda: knn_most([0], 1), "fewer than the 1 clips"),
    (lambda: silhouette(np.ones((3, 2)), [0, 0, 0]), "at least 2 classes.*got 1 of 3"),
    (lambda: silhouette(np.ones((3, 2)), [0, 1, 2]), "got 3 of 3"),
    (lambda: trustworthiness(np.ones((4, 3)), np.ones((4, 2)), 2), "more than 4 clips"),
    (lambda: trustworthiness(np.ones((4, 3)), np.ones((5, 2)), 1), "5 points are not those of 4")])
def test_too_few_clips_are_refused(call, message, unchecked):
    with pytest.raises(ExplanationError, match=message):
        call()
