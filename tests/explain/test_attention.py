"""Attention by name: against products written out from the weights of a block, and hand-made matrices."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fusion_reference import Weights, allowed, rotations
from fusions import GRIDS, SMALL, batch, build

from tcar.explain.attention import attention_of, attention_received, frame_to_frame, named_attention, streams_of
from tcar.explain.errors import ExplanationError
from tcar.fusion.kinds import list_fusions

OTHER = {"semantic": "motion", "motion": "semantic"}


def intermediates(**changes) -> dict:
    return build(replace(SMALL, **changes)).eval()(*batch(), return_intermediates=True)[1]


@pytest.mark.parametrize("window", ["joint", "time", "space"])
def test_weights_are_those_of_an_einsum_of_the_block_s_own_projections(window):
    fusion = build(replace(SMALL, window=window, blocks=1), shaken=True).eval()
    inputs = batch()
    state, steps = Weights(fusion.state_dict()), fusion(*inputs, return_intermediates=True)[1]
    given = {"semantic": inputs[:2], "motion": inputs[2:]}
    parts, places = {}, {s: xyz.numpy() for s, (_, xyz) in given.items()}
    for s, (tokens, _) in given.items():
        embed, block = state["embed"][s], state["blocks"][0]["project"][s]
        x = embed["project"].linear(embed["norm"].norm(tokens.numpy())) + embed.array("stream")
        parts[s] = np.split(block["linear"].linear(block["norm"].norm(x)), 3, axis=-1)
    for s in given:
        q, k = parts[s][0], parts[OTHER[s]][1]
        turns = [rotations(places[r], 4, 6) for r in (s, OTHER[s])]
        q, k = (
            np.einsum("hnij,bnhj->bhni", turn, x.reshape(*x.shape[:2], 4, 6))
            for turn, x in zip(turns, (q, k), strict=True)
        )
        scores = np.exp(np.einsum("bhni,bhmi->bhnm", q, k) / np.sqrt(6)) * allowed(places[s], places[OTHER[s]], window)
        expected = scores / scores.sum(axis=-1, keepdims=True)
        name = f"block0.{s}_from_{OTHER[s]}"
        for head in range(4):
            found = attention_of(steps, f"{name}.head{head}")
            np.testing.assert_allclose(found.detach(), expected[:, head], atol=1e-6, rtol=0)
        np.testing.assert_allclose(attention_of(steps, name).detach(), expected.mean(axis=1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", list_fusions())
def test_every_attention_has_a_name_and_says_whose_tokens_it_joins(kind):
    steps = intermediates(kind=kind)
    named = named_attention(steps)
    assert sorted(named) == sorted(n.removesuffix(".weights") for n in steps if "weights" in n)
    count = {s: int(np.prod(grid)) for s, grid in GRIDS.items()}
    for name, weights in named.items():
        readers, read = streams_of(name)
        beside = 1 if name.startswith("self") else 4 if kind == "bottleneck" and name.startswith("block") else 0
        assert weights.shape[2] == (sum(count[s] for s in readers) + beside if readers else 1)
        assert weights.shape[3] == sum(count[s] for s in read) + beside


def test_a_name_that_is_not_there_is_refused_with_those_that_are():
    steps = intermediates()
    with pytest.raises(ExplanationError, match="'block7.*block0.semantic_from_motion.*did you mean 'block1.semantic"):
        attention_of(steps, "block7.semantic_from_motion")
    with pytest.raises(ExplanationError, match="self0 has no head4: it has head0 to head3"):
        attention_of(steps, "self0.head4")
    with pytest.raises(ExplanationError, match="has no headtwo"):
        attention_of(steps, "self0.headtwo")
    with pytest.raises(ExplanationError, match="it has head0 alone"):
        attention_of(intermediates(kind="gated"), "block0.semantic_from_motion.head1")
    with pytest.raises(ExplanationError, match="no attention"):
        attention_of(intermediates(kind="late_concat_raw"), "self0")


def test_frames_read_frames():
    weights = attention_of(intermediates(window="joint"), "block1.semantic_from_motion").detach()
    found = frame_to_frame(weights, GRIDS["semantic"], GRIDS["motion"])
    assert found.shape == (3, 4, 2)
    for t in range(4):
        for u in range(2):
            rows = weights[:, 4 * t : 4 * t + 4, 4 * u : 4 * u + 4]
            torch.testing.assert_close(found[:, t, u], rows.sum(dim=(1, 2)) / 4)
    torch.testing.assert_close(found.sum(dim=2), torch.ones(3, 4, dtype=found.dtype))
    with pytest.raises(ExplanationError, match="is not from 8 tokens"):
        frame_to_frame(weights, GRIDS["motion"], GRIDS["semantic"])


def test_what_tokens_receive_is_a_share_of_all_that_is_given():
    weights = torch.tensor([[[0.5, 0.5, 0, 0], [1.0, 0, 0, 0]]])
    expected = torch.tensor([[[[0.75, 0.25]], [[0, 0]]]])
    torch.testing.assert_close(attention_received(weights, (2, 1, 2)), expected)
    with pytest.raises(ExplanationError, match="attention to 4 tokens"):
        attention_received(weights, (1, 1, 2))
