"""Gradient-weighted rollout, against the equations of the paper written out with a loop for every sum."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fusions import GRIDS, SMALL, batch, build

from tcar.explain.errors import ExplanationError
from tcar.explain.gradient_rollout import gradient_rollout, weighted_attention
from tcar.fusion import exchange
from tcar.fusion.kinds import list_fusions

OTHER = {"semantic": "motion", "motion": "semantic"}


def times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A product of matrices, sum by sum."""
    found = np.zeros((len(a), b.shape[1]))
    for i in range(len(a)):
        for j in range(b.shape[1]):
            for k in range(len(b)):
                found[i, j] += a[i, k] * b[k, j]
    return found


def normalised(matrix: np.ndarray) -> np.ndarray:
    found = np.eye(len(matrix))
    for i in range(len(matrix)):
        row = [matrix[i, j] - (i == j) for j in range(len(matrix))]
        for j in range(len(matrix)):
            found[i, j] += row[j] / sum(row) if sum(row) > 0 else 0
    return found


def weighted(fusion, inputs: list, clip: int, score) -> dict[str, np.ndarray]:
    """Attention times gradient of one clip by name, heads averaged one by one; parameters give the graph."""
    logits, record = fusion(*inputs, return_intermediates=True)
    names = [name for name in record if name.endswith(".weights")]
    slopes = torch.autograd.grad(score(logits[clip]), [record[n] for n in names], allow_unused=True)
    found = {}
    for name, slope in zip(names, slopes, strict=True):
        products = (record[name] * (0 if slope is None else slope))[clip].detach().numpy()
        found[name.removesuffix(".weights")] = sum(np.maximum(head, 0) for head in products) / len(products)
    return found


@pytest.mark.parametrize("against", [None, 0])
def test_two_blocks_of_cross_attention_by_hand(against):
    fusion, inputs = build(replace(SMALL, blocks=2), shaken=True).eval(), batch()
    maps = gradient_rollout(fusion, tuple(inputs), 3, against)
    count = {s: int(np.prod(grid)) for s, grid in GRIDS.items()}
    for clip in range(3):
        cams = weighted(fusion, inputs, clip, lambda x: x[3] - (0 if against is None else x[against]))
        relevance = {(a, b): np.eye(count[a], count[b]) * (a == b) for a in count for b in count}
        for i in range(2):
            after = dict(relevance)
            for s, q in OTHER.items():
                cam = cams[f"block{i}.{s}_from_{q}"]
                selves = normalised(relevance[s, s]).T, normalised(relevance[q, q])
                after[s, q] = relevance[s, q] + times(times(selves[0], cam), selves[1])
                after[s, s] = relevance[s, s] + times(cam, relevance[q, s])
            relevance = after
        whole = np.eye(1 + sum(count.values()))
        both = [[relevance[a, b] for b in count] for a in count]
        whole[1:, 1:] = np.block(both)
        whole = whole + times(cams["self0"], whole)
        semantic, motion = np.split(whole[0, 1:], [count["semantic"]])
        np.testing.assert_allclose(maps["semantic"][clip].flatten(), semantic, atol=1e-10)
        np.testing.assert_allclose(maps["motion"][clip].flatten(), motion, atol=1e-10)


def test_joint_blocks_are_self_attention_of_one_sequence():
    fusion, inputs = build(replace(SMALL, kind="joint", self_blocks=2), shaken=True).eval(), batch()
    maps = gradient_rollout(fusion, tuple(inputs), torch.tensor([0, 1, 2]))
    cams = weighted(fusion, inputs, 1, lambda x: x[1])
    relevance = np.eye(25)
    for i in range(2):
        relevance[1:] += times(cams[f"block{i}.joint"], relevance[1:])
    for i in range(2):
        relevance = relevance + times(cams[f"self{i}"], relevance)
    found = torch.cat([maps[s][1].flatten() for s in GRIDS])
    np.testing.assert_allclose(found, relevance[0, 1:], atol=1e-10)


def test_copies_of_fusion_tokens_are_averaged():
    fusion, inputs = build(replace(SMALL, kind="bottleneck", bottleneck_tokens=2), shaken=True).eval(), batch()
    maps = gradient_rollout(fusion, tuple(inputs), 2)
    cams = weighted(fusion, inputs, 0, lambda x: x[2])
    rows = {"semantic": [*range(16), 24, 25], "motion": [*range(16, 24), 24, 25]}
    relevance = np.eye(26)
    for i in range(2):
        copies = {}
        for s, of in rows.items():
            copies[s] = relevance[of] + times(cams[f"block{i}.{s}"], relevance[of])
        relevance = np.concatenate(
            [copies["semantic"][:16], copies["motion"][:8], (copies["semantic"][16:] + copies["motion"][8:]) / 2]
        )
    cam = cams["self0"][0]
    expected = sum(cam[1 + n] * relevance[n] for n in range(24))[:24]
    np.testing.assert_allclose(torch.cat([maps[s][0].flatten() for s in GRIDS]), expected, atol=1e-10)


def test_a_tower_and_a_probe_by_hand():
    """A probe's query reads from outside, as a decoder's: what it reads is normalised."""
    tower, inputs = build(replace(SMALL, kind="late_concat", blocks=1), shaken=True).eval(), batch()
    maps, cams = gradient_rollout(tower, tuple(inputs), 1), weighted(tower, inputs, 0, lambda x: x[1])
    for s in GRIDS:
        expected = cams[f"self0.{s}"][:1, 1:] @ (np.eye(len(cams[f"block0.{s}"])) + cams[f"block0.{s}"])
        np.testing.assert_allclose(maps[s][0].flatten(), expected[0], atol=1e-10)
    probe = build(replace(SMALL, kind="motion_probe_4"), shaken=True).eval()
    maps, cams = gradient_rollout(probe, tuple(inputs), 1), weighted(probe, inputs, 0, lambda x: x[1])
    relevance = np.eye(8)
    for i in range(3):
        relevance = relevance + times(cams[f"block{i}.motion"], relevance)
    expected = times(cams["cross.motion"], normalised(relevance))[0]
    np.testing.assert_allclose(maps["motion"][0].flatten(), expected, atol=1e-10)


@pytest.mark.parametrize("window", ["joint", "time"])
def test_shares_of_gates_have_the_gradient_of_a_difference(window, monkeypatch):
    fusion, inputs = build(replace(SMALL, kind="gated", window=window), shaken=True).eval(), batch()
    record = fusion(*inputs, return_intermediates=True)[1]
    found = weighted_attention(fusion, tuple(inputs), 2, None)[0]["block1.semantic_from_motion.weights"]
    shares, calls, step = exchange._equal_shares, [], {}

    def moved(mask, read):
        calls.append(0)
        given = shares(mask, read).expand(16, -1) if len(calls) == 3 else shares(mask, read)  # block1, semantic
        return given + step.get("by", 0) if len(calls) == 3 else given

    monkeypatch.setattr(exchange, "_equal_shares", moved)
    weights = record["block1.semantic_from_motion.weights"][:, 0]
    for n, m in ((0, 0), (5, 5), (6, 3), (15, 7)):
        ends = []
        for sign in (1, -1):
            step["by"] = torch.zeros(16, 8, dtype=torch.float64)
            step["by"][n, m] = sign * 1e-5
            calls.clear()
            ends.append(fusion(*inputs)[:, 2].detach())
        slope = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close(found[:, n, m], (slope * weights[:, n, m]).clamp_min(0), atol=1e-9, rtol=1e-5)
    assert (found > 0).any()


def test_shares_of_a_mean_have_the_gradient_of_a_difference():
    fusion, inputs = build(replace(SMALL, self_blocks=0), shaken=True).eval(), batch()
    record = fusion(*inputs, return_intermediates=True)[1]
    found = weighted_attention(fusion, tuple(inputs), 4, None)[0]["mean.weights"]
    normed = fusion.readout.norm(torch.cat([record["semantic"], record["motion"]], dim=1))
    for m in (0, 11, 23):
        ends = [fusion.head(record["readout"] + sign * 1e-5 * normed[:, m])[:, 4].detach() for sign in (1, -1)]
        expected = ((ends[0] - ends[1]) / 2e-5 / 24).clamp_min(0)
        torch.testing.assert_close(found[:, 0, m], expected, atol=1e-9, rtol=1e-5)


@pytest.mark.parametrize("self_blocks", [0, 2])
@pytest.mark.parametrize("kind", [kind for kind in list_fusions() if kind != "late_concat_raw"])
def test_maps_of_every_kind_are_never_negative_and_of_each_clip_alone(kind, self_blocks):
    fusion, inputs = build(replace(SMALL, kind=kind, self_blocks=self_blocks)).eval(), batch()
    target = torch.tensor([0, 1, 2])
    with torch.inference_mode():
        maps = gradient_rollout(fusion, tuple(inputs), target, grids=GRIDS)
    assert set(maps) == set(fusion.streams)
    alone = gradient_rollout(fusion, (inputs[0][1:2], inputs[1], inputs[2][1:2], inputs[3]), 1)
    for s, values in maps.items():
        assert values.shape == (3, *GRIDS[s])
        assert (values >= 0).all()
        assert values.sum() > 0
        torch.testing.assert_close(alone[s][0], values[1])
    assert all(p.grad is None for p in fusion.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in fusion.modules())


def test_what_cannot_be_explained_is_refused():
    fusion, inputs = build(SMALL).eval(), tuple(batch())
    for given, message in (
        ((5,), "classes 0 to 4"), ((2, 2), "against is the target"), ((torch.tensor([0, 1]),), "2 targets for 3 clips")
    ):  # fmt: skip
        with pytest.raises(ExplanationError, match=message):
            gradient_rollout(fusion, inputs, *given)
    with pytest.raises(ExplanationError, match="eval"):
        gradient_rollout(fusion.train(), inputs, 0)
    with pytest.raises(ExplanationError, match="late_concat_raw has no attention"):
        gradient_rollout(build(replace(SMALL, kind="late_concat_raw")).eval(), inputs, 0)
    with pytest.raises(ExplanationError, match="make no grid"):
        gradient_rollout(fusion.eval(), (inputs[0][:, 1:], inputs[1][1:], *inputs[2:]), 0)
