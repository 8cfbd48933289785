"""A model with its losses as one module, so that processes that train together see one forward pass.

The classes' loss is always there; that of aligned streams and that of the order of time have weights, and come on top.
Those that need exponentials or differences of scores are worked out in float32 at least.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from tcar.fusion.blocks import STREAMS
from tcar.train.watch import TrainingError

Inputs = tuple[Shaped[Tensor, "b ..."], ...]


class Learner(nn.Module):
    """The losses of a model on a batch.

    `contrastive` weighs the alignment of both streams' embedded tokens (their means over the clip, before the streams
    read each other), among the clips that one process has at once. `order` weighs telling clips from the same clips
    played backwards by `reverse`, from the readout; the model then runs twice. Raises TrainingError for a model or
    inputs that cannot have these.
    """

    def __init__(
        self,
        model: nn.Module,
        label_smoothing: float,
        contrastive: float = 0.0,
        order: float = 0.0,
        reverse: Callable[[Inputs], Inputs] | None = None,
    ):
        super().__init__()
        self.model, self.reverse = model, reverse
        self.loss_of = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.contrastive, self.order = contrastive, order
        weights = {"classes": 1.0, "contrastive": contrastive, "order": order}
        self.terms = [name for name, weight in weights.items() if weight]
        self._seen: dict[str, Tensor] = {}
        fusion = getattr(model, "fusion", None)
        if contrastive:
            embeds = getattr(fusion, "embed", None)
            if not isinstance(embeds, nn.ModuleDict):
                raise TrainingError(
                    "contrastive_weight needs a fusion that embeds both streams, such as cross_attention; set it to 0"
                )
            for name in STREAMS:
                embeds[name].register_forward_hook(self._keep(name))
        if order:
            if reverse is None:
                raise TrainingError(
                    "order_weight needs clips that can be played backwards, which kept tokens cannot: set it to 0, or "
                    "train from clips (task)"
                )
            if not hasattr(fusion, "readout"):
                raise TrainingError("order_weight needs a fusion with one readout, as cross_attention has; set it to 0")
            fusion.readout.register_forward_hook(self._keep("readout"))
            self.order_head = OrderHead(fusion.config.width)

    def forward(
        self, inputs: Inputs, targets: Int[Tensor, " b"] | Float[Tensor, "b c"]
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]], Float[Tensor, "b c"]]:
        """Return the loss, each of its terms before its weight, and the logits."""
        logits = self.model(*inputs).float()
        terms = {"classes": self.loss_of(logits, targets)}
        loss = terms["classes"]
        if self.contrastive and len(logits) > 1:
            terms["contrastive"] = contrastive_alignment(*(self._seen[name].mean(dim=1) for name in STREAMS))
            loss = loss + self.contrastive * terms["contrastive"]
        if self.order:
            forwards = self._seen["readout"]
            self.model(*self.reverse(inputs))
            terms["order"] = temporal_order(*map(self.order_head, (forwards, self._seen["readout"])))
            loss = loss + self.order * terms["order"]
        self._seen.clear()
        return loss, {name: term.detach() for name, term in terms.items()}, logits.detach()

    def _keep(self, name: str) -> Callable:
        def hook(_: nn.Module, __: tuple, output: Tensor) -> None:
            self._seen[name] = output

        return hook


def contrastive_alignment(
    semantic: Float[Tensor, "b d"], motion: Float[Tensor, "b d"], temperature: float = 0.07
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE: each clip's embedding of one stream must find that of the other stream in the batch.

    With s_ij = cos(semantic_i, motion_j) / temperature,

        loss = -1 / (2 b) sum_i [log softmax_j(s_ij) at j = i  +  log softmax_j(s_ji) at j = i],

    which is log b where nothing is aligned (all s equal) and bounds the streams' mutual information from below
    by log b - loss. Source: van den Oord et al. 2018 (arXiv:1807.03748), both ways as in CLIP (Radford et al.
    2021, arXiv:2103.00020), whose first temperature is the default. Two clips of one class are negatives too.
    """
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

    def forward(self, readout: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """Return one score a clip; higher means forwards."""
        return self.linear(self.norm(readout))[:, 0]


def temporal_order(forward_scores: Float[Tensor, " b"], reversed_scores: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """Which of two clips is the reversed one: binary cross entropy on the difference of their scores.

    The model scores the two clips of a pair apart, a clip as it was filmed (f_i) and one played backwards (r_i),
    of the same video or of another. The logit of the pair is f_i - r_i, so that p_i = sigmoid(f_i - r_i) is the
    probability of the right answer, and the two clips' places in the pair tell nothing:

        loss = -1 / b sum_i log p_i = 1 / b sum_i softplus(r_i - f_i).

    It is log 2 for a guess. Source of the task: Pickup et al. 2014 (Seeing the arrow of time) and Wei et al. 2018
    (Learning and using the arrow of time), who classify single clips; of the pairwise logit: Burges et al. 2005
    (RankNet). Videos of reversible actions have no right answer, and keep the loss near log 2.
    """
    return F.softplus(_at_least_float32(reversed_scores) - _at_least_float32(forward_scores)).mean()


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
