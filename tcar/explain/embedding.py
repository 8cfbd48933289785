"""Clips as points of a plane, by what the model makes of them."""

import numpy as np
from jaxtyping import Float

UMAP_CLIPS = 4  # the fewest that UMAP lays out: its spectral start needs more points than it takes eigenvectors


def umap_embedding(
    features: Float[np.ndarray, "n d"], seed: int, *, neighbours: int = 15, min_distance: float = 0.1
) -> Float[np.ndarray, "n 2"]:
    """Return a 2-D UMAP of features; the same seed gives the same points (McInnes et al. 2018).

    Raises ValueError for fewer than `UMAP_CLIPS` clips, and for no more than `neighbours`.
    """
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or len(features) <= max(neighbours, UMAP_CLIPS - 1):
        raise ValueError(
            f"UMAP needs [n, d] features of at least {UMAP_CLIPS} clips, and more than neighbours={neighbours}, "
            f"got {list(features.shape)}"
        )
    try:
        import umap  # numba compiles at import, which nothing else here should wait for
    except RuntimeError as error:
        raise RuntimeError(f"{error}; set NUMBA_CACHE_DIR to a folder that can be written") from error

    # One job: UMAP gives up parallel layout for a fixed seed anyway, and says so in a warning otherwise.
    reducer = umap.UMAP(n_neighbors=neighbours, min_dist=min_distance, random_state=seed, n_jobs=1)
    return reducer.fit_transform(features)
