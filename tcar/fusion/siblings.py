"""The rivals of cross-attention: streams that meet late, by other means, or not at all."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tcar.fusion.base import CrossFusion, Fusion, block_sizes, classifier, embedding, final_blocks, geometry
from tcar.fusion.blocks import STREAMS, Record, SelfBlock, Tokens, run_block
from tcar.fusion.config import FusionConfig
from tcar.fusion.exchange import BOTTLENECK, BottleneckBlock, JointBlock


class Tower(nn.Module):
    """A transformer on one stream, as deep as the cross-attention model; it ends in its readout `[b d]`."""

    def __init__(self, config: FusionConfig, hidden: int, stream: str, timeless: bool = False):
        super().__init__()
        self.stream = stream
        self.checkpointing = config.checkpointing
        self.geometry = geometry(config, ("joint",), timeless)
        self.embed = embedding(config, stream)
        self.blocks = nn.ModuleList(SelfBlock(**block_sizes(config, hidden)) for _ in range(config.blocks))
        self.readout = final_blocks(config, hidden)

    def forward(
        self, tokens: Tokens, xyz: dict[str, Tensor], kept: dict[str, Tensor], record: Record | None
    ) -> Float[Tensor, "b d"]:
        """Return the readout of the tower's own stream; the arguments are those of `Fusion._logits`."""
        s = self.stream
        tables = self.geometry({s: xyz[s]}, kept)
        x = self.embed(tokens[s], tables["places"][s])
        for i, block in enumerate(self.blocks):
            name = f"block{i}.{s}"
            x = run_block(block, x, tables["rotary"][s], record=record, name=name, again=self.checkpointing)
        readout = self.readout(x, tables["rotary"][s], record, suffix=f".{s}")
        if record is not None:
            record |= {s: x, f"{s}.readout": readout}
        return readout


class LateConcat(Fusion):
    """A transformer on each stream; the two readouts side by side go through a perceptron to the classes.

    The perceptron can combine the streams in any way (a linear head could only add them), so what this rival
    lacks is reading one stream at the place of the other, and nothing else.
    """

    def __init__(self, config: FusionConfig, hidden: int):
        super().__init__(config)
        both = 2 * config.width
        self.towers = nn.ModuleDict({s: Tower(config, hidden, s) for s in STREAMS})
        self.head = nn.Sequential(
            nn.LayerNorm(both),
            nn.Linear(both, both),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(both, config.num_classes),
        )

    def _logits(self, tokens, xyz, kept, record):
        readout = torch.cat([self.towers[s](tokens, xyz, kept, record) for s in STREAMS], dim=-1)
        if record is not None:
            record["readout"] = readout
        return self.head(readout)


class SumOfScores(Fusion):
    """A transformer and a classifier on each stream, whose logits are added: what no stream knows alone, and no sum
    of the two, is out of reach."""

    def __init__(self, config: FusionConfig, hidden: int):
        super().__init__(config)
        self.towers = nn.ModuleDict({s: Tower(config, hidden, s) for s in STREAMS})
        self.head = nn.ModuleDict({s: classifier(config) for s in STREAMS})

    def _logits(self, tokens, xyz, kept, record):
        readouts = {s: self.towers[s](tokens, xyz, kept, record) for s in STREAMS}
        if record is not None:
            record["readout"] = torch.cat([readouts[s] for s in STREAMS], dim=-1)
        return sum(self.head[s](readouts[s]) for s in STREAMS)


class LateConcatRaw(Fusion):
    """Mean-pooled raw features of both streams side by side, through a perceptron of two hidden layers."""

    def __init__(self, config: FusionConfig, hidden: int):
        super().__init__(config)
        self.norm = nn.ModuleDict({s: nn.LayerNorm(config.stream_width(s)) for s in STREAMS})
        self.hidden = nn.Sequential(
            nn.Linear(config.semantic_width + config.motion_width, hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )
        self.head = nn.Linear(hidden, config.num_classes)

    def _logits(self, tokens, xyz, kept, record):
        pooled = {s: self.norm[s](tokens[s]).mean(dim=1) for s in STREAMS}
        readout = self.hidden(torch.cat([pooled[s] for s in STREAMS], dim=-1))
        if record is not None:
            record |= pooled | {"readout": readout}
        return self.head(readout)


class SingleStream(Fusion):
    """A transformer on one stream; the other is ignored. `timeless` makes its frames a set without order."""

    def __init__(self, config: FusionConfig, hidden: int, stream: str, timeless: bool = False):
        super().__init__(config)
        self.streams = (stream,)
        self.tower = Tower(config, hidden, stream, timeless)
        self.head = classifier(config)

    def _logits(self, tokens, xyz, kept, record):
        readout = self.tower(tokens, xyz, kept, record)
        if record is not None:
            record["readout"] = readout
        return self.head(readout)


class JointTransformer(CrossFusion):
    """One transformer over the tokens of both streams from the first block on: nothing is said of who reads whom.

    `window` does not hold here, as no attention is across streams alone. Source of one joint sequence of the tokens of
    all modalities: Chen et al. 2020 (UNITER, arXiv:1909.11740), called early fusion by Nagrani et al. 2021.
    """

    def __init__(self, config: FusionConfig, hidden: int):
        windows = "joint", "joint"
        super().__init__(config, hidden, lambda: JointBlock(**block_sizes(config, hidden)), windows=windows)


class BottleneckFusion(CrossFusion):
    """Streams that exchange through a few learned fusion tokens alone, and through the readout at the end."""

    def __init__(self, config: FusionConfig, hidden: int):
        super().__init__(config, hidden, lambda: BottleneckBlock(**block_sizes(config, hidden)))
        self.shared = nn.Parameter(torch.randn(config.bottleneck_tokens, config.width) * 0.02)

    def _embedded(self, tokens, tables):
        x = super()._embedded(tokens, tables)
        return x | {BOTTLENECK: self.shared.expand(len(x["semantic"]), -1, -1)}
