"""Explanations of a model's decision, and their agreement with where the moving object truly is.

Attention says where the model read; pixels and moments say what the decision depends on, and they alone are tied to the
output. All maps are [t, y, x] over the clip, and scored against ground-truth instance masks.
"""

from tcar.explain.attention import attention_rollout
from tcar.explain.embedding import UMAP_CLIPS, umap_embedding
from tcar.explain.pixels import Attribution, saliency
from tcar.explain.scores import mass_inside
from tcar.explain.time import temporal_importance

__all__ = [
    "UMAP_CLIPS", "Attribution", "attention_rollout", "mass_inside", "saliency", "temporal_importance",
    "umap_embedding",
]  # fmt: skip
