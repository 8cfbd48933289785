"""Explanations of a model's decision, and what they are worth where the right answer is known.

Attention says where a model read; pixels, moments and exchanged parts say what its decision depends on, and they alone
are tied to the output. Maps are [t, y, x] over the whole clip. One call does all: `tcar.study`.
"""

from tcar.explain.attention import attention_of, attention_rollout, frame_to_frame, named_attention
from tcar.explain.backbone import backbone_rollout, pixel_rollout
from tcar.explain.curves import growing_clip, insertion_deletion
from tcar.explain.embedding import UMAP_CLIPS, embed, knn_accuracy, knn_most, silhouette, trustworthiness
from tcar.explain.errors import ExplanationError
from tcar.explain.gradient_rollout import gradient_rollout
from tcar.explain.heads import measure_heads
from tcar.explain.methods import LABELS, METHODS, Explanation, explain
from tcar.explain.patching import exchange_streams, patch_cells, patch_streams, stream_shapley
from tcar.explain.pixels import Attribution, attribute
from tcar.explain.scores import auc, grid_limit, mass_gain, mass_inside, moment_inside, pointing, strength
from tcar.explain.study import Study, study
from tcar.explain.time import frame_importance, temporal_importance
from tcar.explain.verdicts import Verdict, verdict
from tcar.explain.wiring import fixed_by_wiring

__all__ = [
    "LABELS", "METHODS", "UMAP_CLIPS", "Attribution", "Explanation", "ExplanationError", "Study", "Verdict",
    "attention_of", "attention_rollout", "attribute", "auc", "backbone_rollout", "embed", "exchange_streams", "explain",
    "fixed_by_wiring", "frame_importance", "frame_to_frame", "gradient_rollout", "grid_limit", "growing_clip",
    "insertion_deletion", "knn_accuracy", "knn_most", "mass_gain", "mass_inside", "measure_heads", "moment_inside",
    "named_attention", "patch_cells", "patch_streams", "pixel_rollout", "pointing", "silhouette", "stream_shapley",
    "strength", "study", "temporal_importance", "trustworthiness", "verdict",
]  # fmt: skip
