"""The training losses: of the classes, and of what a model can also learn from the clips themselves.

Each takes a batch and returns its mean. Those that need exponentials or differences of scores are worked out in
float32 at least, whatever the precision of their input.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def build_loss(label_smoothing: float = 0.0) -> nn.CrossEntropyLoss:
    """Cross entropy over logits `[b c]`, averaged over the batch, with smoothed targets.

    Targets are class indices `[b]` or class probabilities `[b c]` (mixed labels, a teacher's distribution).
    Smoothing by s trains towards (1 - s) * target + s / c (Szegedy et al. 2016, arXiv:1512.00567).

    Raises:
        ValueError: `label_smoothing` is not in [0, 1).
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}, but must be at least 0 and below 1")
    return nn.CrossEntropyLoss(label_smoothing=label_smoothing)


def soft_targets(
    labels: Int[Tensor, "b"],
    other_labels: Int[Tensor, "b"],
    share: float | Float[Tensor, "b"],
    num_classes: int,
) -> Float[Tensor, "b c"]:
    """Class probabilities of clips that were mixed of two: share * onehot(label) + (1 - share) * onehot(other).

    `share` in [0, 1] is the first clip's, one for the batch or one a clip: the weight of its pixels for mixup
    (Zhang et al. 2018, arXiv:1710.09412), the part of the area that was kept of it for cutmix (Yun et al. 2019,
    arXiv:1905.04899). Cross entropy is linear in its target, so `build_loss(s)` of these targets is
    share * loss(label) + (1 - share) * loss(other) for every smoothing s.

    Raises:
        ValueError: lengths differ, a label is not in [0, num_classes), or a share is not in [0, 1].
    """
    share = torch.as_tensor(share, dtype=torch.get_default_dtype(), device=labels.device)
    if labels.ndim != 1 or other_labels.shape != labels.shape or share.shape not in ((), labels.shape):
        raise ValueError(
            f"labels {list(labels.shape)}, other_labels {list(other_labels.shape)} and share {list(share.shape)} "
            "must be lists of one length; share may also be one number"
        )
    for name, values in (("labels", labels), ("other_labels", other_labels)):
        if ((values < 0) | (values >= num_classes)).any():
            raise ValueError(
                f"{name} hold {values.min().item()} to {values.max().item()}, but num_classes is {num_classes}"
            )
    if not ((share >= 0) & (share <= 1)).all():
        raise ValueError(f"share is {share.tolist()}, but must lie in [0, 1]")
    first, second = (F.one_hot(values.long(), num_classes).to(share.dtype) for values in (labels, other_labels))
    return torch.lerp(second, first, share.expand(labels.shape)[:, None])


def contrastive_alignment(
    semantic: Float[Tensor, "b d"], motion: Float[Tensor, "b d"], temperature: float = 0.07
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE: each clip's embedding of one stream must find that of the other stream in the batch.

    With s_ij = cos(semantic_i, motion_j) / temperature,

        loss = -1 / (2 b) sum_i [log softmax_j(s_ij) at j = i  +  log softmax_j(s_ji) at j = i],

    which is log b where nothing is aligned (all s equal) and bounds the streams' mutual information from below
    by log b - loss. Source: van den Oord et al. 2018 (arXiv:1807.03748), both ways as in CLIP (Radford et al.
    2021, arXiv:2103.00020), whose first temperature is the default. Two clips of one class are negatives too.

    Raises:
        ValueError: shapes differ, fewer than two clips, or a temperature not above 0.
    """
    if semantic.ndim != 2 or semantic.shape != motion.shape:
        raise ValueError(
            f"embeddings {list(semantic.shape)} and {list(motion.shape)}: two of one shape [batch, width] expected"
        )
    if len(semantic) < 2:
        raise ValueError(f"a batch of {len(semantic)} has nothing to tell a clip from; give two clips or more")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but must be above 0")
    # Autocast would take the similarities back to half precision, which the temperature then magnifies.
    with torch.autocast(semantic.device.type, enabled=False):
        semantic, motion = (F.normalize(_at_least_float32(x), dim=1) for x in (semantic, motion))
        similarity = semantic @ motion.T / temperature
        clips = torch.arange(len(similarity), device=similarity.device)
        return (F.cross_entropy(similarity, clips) + F.cross_entropy(similarity.T, clips)) / 2


class OrderHead(nn.Module):
    """Score how much a clip looks as if it ran forwards, of its readout: a LayerNorm and a linear layer.

    It has no bias, since `temporal_order` reads differences of scores alone.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, 1, bias=False)

    def forward(self, readout: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
        """Return one score a clip; higher means forwards."""
        return self.linear(self.norm(readout))[:, 0]


def temporal_order(forward_scores: Float[Tensor, "b"], reversed_scores: Float[Tensor, "b"]) -> Float[Tensor, ""]:
    """Which of two clips is the reversed one: binary cross entropy on the difference of their scores.

    The model scores the two clips of a pair apart, a clip as it was filmed (f_i) and one played backwards (r_i),
    of the same video or of another. The logit of the pair is f_i - r_i, so that p_i = sigmoid(f_i - r_i) is the
    probability of the right answer, and the two clips' places in the pair tell nothing:

        loss = -1 / b sum_i log p_i = 1 / b sum_i softplus(r_i - f_i).

    It is log 2 for a guess. Source of the task: Pickup et al. 2014 (Seeing the arrow of time) and Wei et al. 2018
    (Learning and using the arrow of time), who classify single clips; of the pairwise logit: Burges et al. 2005
    (RankNet). Videos of reversible actions have no right answer, and keep the loss near log 2.

    Raises:
        ValueError: not two lists of one length of at least 1.
    """
    if forward_scores.ndim != 1 or forward_scores.shape != reversed_scores.shape or not len(forward_scores):
        raise ValueError(
            f"scores {list(forward_scores.shape)} and {list(reversed_scores.shape)}: one score a clip expected, "
            "as many forwards as reversed"
        )
    return F.softplus(_at_least_float32(reversed_scores) - _at_least_float32(forward_scores)).mean()


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
