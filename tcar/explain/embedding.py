"""Clips as points of a plane, by what the model makes of them, and how far to trust such a picture."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from tcar.explain.errors import ExplanationError
from tcar.ground.errors import unknown

METHODS = ("umap", "tsne")
UMAP_CLIPS = 4  # the fewest that UMAP lays out: its spectral start needs more points than it takes eigenvectors
_MEMORY = 64  # MiB of distances at once, not those between all clips


def embed(
    features: Float[np.ndarray, "n d"], method: str = "umap", seed: int = 0, *, neighbours: int = 15,
    min_distance: float = 0.1,
) -> Float[np.ndarray, "n 2"]:  # fmt: skip
    """Return 2-D points of features; the same seed gives the same points.

    "umap" is UMAP (McInnes et al. 2018), "tsne" t-SNE (van der Maaten and Hinton 2008) from a start by principal
    components. `neighbours` says how many others a clip is held against: UMAP's neighbours, t-SNE's perplexity.
    `min_distance` is UMAP's alone. Both measure Euclidean distances.

    Raises ExplanationError for another method, for fewer than `UMAP_CLIPS` clips, and for no more than `neighbours`.
    """
    if method not in METHODS:
        raise ExplanationError(f"method {method!r}: {unknown(method, METHODS)}")
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or len(features) <= max(neighbours, UMAP_CLIPS - 1):
        raise ExplanationError(
            f"{method} needs [n, d] features of at least {UMAP_CLIPS} clips, and more than neighbours={neighbours}, "
            f"got {list(features.shape)}"
        )
    if method == "tsne":
        from sklearn.manifold import TSNE

        start = "pca" if features.shape[1] > 1 else "random"
        return TSNE(perplexity=neighbours, init=start, random_state=seed, n_jobs=1).fit_transform(features)
    try:
        import umap  # numba compiles at import, which nothing else here should wait for
    except RuntimeError as error:
        raise RuntimeError(f"{error}; set NUMBA_CACHE_DIR to a folder that can be written") from error

    # One job: UMAP gives up parallel layout for a fixed seed anyway, and says so in a warning otherwise.
    reducer = umap.UMAP(n_neighbors=neighbours, min_dist=min_distance, random_state=seed, n_jobs=1)
    return reducer.fit_transform(features)


def knn_accuracy(features: Float[np.ndarray, "n d"], labels: Sequence | np.ndarray, k: int) -> float:
    """Return the mean share of a clip's k nearest others, by cosine, that are of its class.

    Raises ExplanationError for k below 1 or no fewer clips than k.
    """
    from sklearn import config_context
    from sklearn.neighbors import NearestNeighbors

    labels = _labels(features, labels)
    _neighbours(len(labels), k)
    nearest = NearestNeighbors(n_neighbors=k, metric="cosine").fit(features)
    with config_context(working_memory=_MEMORY):
        places = nearest.kneighbors(return_distance=False)  # of the clips themselves: none is its own neighbour
    return float((labels[places] == labels[:, None]).mean())


def knn_most(labels: Sequence | np.ndarray, k: int) -> float:
    """Return the most that any features reach in `knn_accuracy`: a class of n clips has n - 1 others to find.

    Raises what `knn_accuracy` raises.
    """
    _neighbours(len(labels), k)
    counts = Counter(np.asarray(labels).tolist())
    return sum(count * min(k, count - 1) for count in counts.values()) / (k * len(labels))


def silhouette(features: Float[np.ndarray, "n d"], labels: Sequence | np.ndarray) -> float:
    """Return how much nearer clips are to their class than to the next one, by cosine: -1 to 1 (Rousseeuw 1987).

    Raises ExplanationError for a single class, or as many classes as clips.
    """
    from sklearn import config_context
    from sklearn.metrics import silhouette_score

    labels = _labels(features, labels)
    classes = len(set(labels.tolist()))
    if not 2 <= classes < len(labels):
        raise ExplanationError(
            f"a silhouette needs at least 2 classes, and one of several clips; got {classes} of {len(labels)} clips"
        )
    with config_context(working_memory=_MEMORY):
        return float(silhouette_score(features, labels, metric="cosine"))


def trustworthiness(features: Float[np.ndarray, "n d"], points: Float[np.ndarray, "n 2"], k: int = 15) -> float:
    """Return how far the k nearest points are near as features too, by Euclidean distance as `embed` takes it: 0 to 1
    (Venna and Kaski 2001).

    Raises ExplanationError for points of other clips, k below 1, or k no less than half the clips.
    """
    from sklearn import manifold

    if len(features) != len(points):
        raise ExplanationError(f"{len(points)} points are not those of {len(features)} clips")
    if not 1 <= k < len(features) / 2:
        raise ExplanationError(
            f"trustworthiness of {k} neighbours needs more than {2 * max(k, 1)} clips, and k of at least 1; "
            f"got {len(features)} clips"
        )
    return float(manifold.trustworthiness(features, points, n_neighbors=k))


def _neighbours(clips: int, k: int) -> None:
    if not 1 <= k < clips:
        raise ExplanationError(f"{k} neighbours: expected 1 to {max(clips - 1, 1)}, fewer than the {clips} clips")


def _labels(features: np.ndarray, labels: Sequence | np.ndarray) -> np.ndarray:
    if len(features) != len(labels):
        raise ExplanationError(f"{len(labels)} labels are not those of {len(features)} clips")
    return np.asarray(labels)
