"""Light adapters in the last blocks of a frozen semantic stream: the only weights of a stream that are ever trained.

They hang on the blocks from outside, so the backbone, its keys and the digest of its weights stay what they were.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tcar.streams.stream import Stream

SCALE = 0.1  # of what an adapter adds, as published


class ParallelAdapter(nn.Module):
    """A bottleneck beside the feed-forward of a block, scaled; its last layer starts at zero, where it adds nothing.

    It reads what the feed-forward reads, and is added to what that gives before the block's layer scale, if it has one.
    Source: Chen et al. 2022, AdaptFormer.
    """

    def __init__(self, stream_width: int, width: int):
        super().__init__()
        self.down, self.up = nn.Linear(stream_width, width), nn.Linear(width, stream_width)
        nn.init.kaiming_uniform_(self.down.weight, nonlinearity="relu")
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b n d"]:
        """Return what is added to the feed-forward's output for its input."""
        return SCALE * self.up(self.down(x).relu())

    def beside(self, _: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        """Add to the output of a feed-forward layer: the hook that ties an adapter to it."""
        return output + self(inputs[0])


def add_adapters(stream: Stream, blocks: int, width: int, *, seed: int = 0) -> Stream:
    """Give the last blocks of a semantic stream an adapter each, `width` channels wide; return the stream.

    The stream gives the same tokens as before until they are trained; below the first of these blocks nothing is kept
    for the backward pass. Weights are drawn from `seed`, torch's generator is left alone. Raises ValueError for a
    stream that reads clips, a network without transformer blocks, more blocks than there are, or a second call.
    """
    if blocks < 1 or width < 1:
        raise ValueError(f"{stream.name}: adapters need at least 1 block and 1 channel, got {blocks} and {width}")
    if len(stream.adapters):
        raise ValueError(f"{stream.name} has {len(stream.adapters)} adapters already")
    found = _adaptable(stream)
    if blocks > len(found):
        raise ValueError(
            f"{stream.name} has {len(found)} blocks, semantic_adapters is {blocks}; set it to {len(found)} at most"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stream.adapters.extend(ParallelAdapter(stream.width, width) for _ in range(blocks))
    stream.adapters.to(stream.mean.device)
    for block, adapter in zip(found[len(found) - blocks :], stream.adapters, strict=True):
        # A bound method, so that a copy of the stream calls the copy of its adapter.
        block.mlp.register_forward_hook(adapter.beside)
    return stream


def _adaptable(stream: Stream) -> nn.ModuleList | nn.Sequential:
    """Return the transformer blocks of a stream, first to last; raises ValueError where it has none to adapt."""
    fix = "set semantic_adapters to 0, or take a vision transformer, such as dinov2_vits14, as semantic stream"
    if stream.role != "semantic":
        raise ValueError(f"{stream.name} is a {stream.role} stream, and adapters go into the semantic one; {fix}")
    try:
        found = stream.blocks
    except ValueError as error:
        raise ValueError(f"{error}, so it takes no adapters; {fix}") from error
    if not all(hasattr(block, "mlp") for block in found):
        raise ValueError(f"{stream.name} has blocks without a feed-forward layer of their own to adapt; {fix}")
    return found
