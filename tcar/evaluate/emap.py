"""How much of a model is an interaction of its two streams, and how much a sum of what each says alone.

EMAP is the empirical multimodally-additive projection (Hessel and Lee 2020, "Does my multimodal model learn cross-modal
interactions? It's harder to tell than you might think!", EMNLP, arXiv:2010.06572): of all functions a(semantic) +
b(motion) the one that is nearest to the model, in least squares, over every semantic stream put together with every
motion stream of the same clips.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from tcar.evaluate.confidence import EvaluationError


def emap(rows: Iterable[Float[np.ndarray, "n c"]]) -> Float[np.ndarray, "n c"]:
    """Return the logits of the additive projection for each of n clips.

    Row i holds the model's logits where the semantic stream is that of clip i and the motion stream that of each of
    the n clips, in the order of the rows: an array [n n c], or an iterator that makes one row after the other, of which
    only sums are kept. Clip i gets the mean of row i, plus the mean of column i, minus the mean of all.

    Raises:
        EvaluationError: no row, rows that are not as many as their clips, or of different sizes, or not finite.
    """
    of_semantic, of_motion = [], np.zeros(0)
    for number, row in enumerate(rows):
        values = np.asarray(row, dtype=np.float64)
        if not number:
            of_motion = np.zeros_like(values)
        if values.shape != of_motion.shape:
            raise EvaluationError(f"row {number} is {list(values.shape)}, those before it {list(of_motion.shape)}")
        if not np.isfinite(values).all():
            raise EvaluationError(f"logits of semantic stream {number} with other motion streams are not finite")
        of_semantic.append(values.mean(axis=0))
        of_motion += values
    if not of_semantic or len(of_semantic) != len(of_motion):
        raise EvaluationError(
            f"{len(of_semantic)} semantic streams and {len(of_motion)} motion streams: both of each clip expected"
        )
    by_semantic, by_motion = np.stack(of_semantic), of_motion / len(of_semantic)
    return by_semantic + by_motion - by_semantic.mean(axis=0)
