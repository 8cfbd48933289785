"""A model with its losses as one module, so that processes that train together see one forward pass.

The classes' loss is always there; that of aligned streams and that of the order of time have weights, and come on top.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tcar.fusion.blocks import STREAMS
from tcar.train.losses import OrderHead, build_loss, contrastive_alignment, temporal_order
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
        self.model, self.loss_of, self.reverse = model, build_loss(label_smoothing), reverse
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


def checkpoint_blocks(model: nn.Module) -> None:
    """Compute blocks a second time in the backward pass instead of keeping what is inside them.

    Those are the blocks of a baseline, and the ones of a stream that have an adapter: the same numbers, less memory
    (Chen et al. 2016, arXiv:1604.06174). The blocks of a fusion have a switch of their own, `fusion_checkpointing`.
    """
    if hasattr(model, "checkpointing"):
        model.checkpointing = True
    elif hasattr(model, "network"):
        model.network.gradient_checkpointing_enable({"use_reentrant": False})
    for block in _adapted_blocks(model):
        block.forward = _again(block.forward)


def _adapted_blocks(model: nn.Module) -> list[nn.Module]:
    stream = getattr(model, "semantic", None)
    return list(stream.blocks)[-len(stream.adapters) :] if stream is not None and len(stream.adapters) else []


def _again(forward: Callable) -> Callable:
    def twice(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return twice
