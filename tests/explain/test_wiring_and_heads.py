"""What the wiring fixes is measured on random fusions of every kind; heads are measured where the answer is known."""

from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch
from fusions import APART, GRIDS, SMALL, batch, build

from tcar.explain.attention import attention_rollout, frame_to_frame, named_attention, streams_of
from tcar.explain.errors import ExplanationError
from tcar.explain.gradient_rollout import gradient_rollout
from tcar.explain.heads import coordinates_of, head_measures, measure_heads
from tcar.explain.wiring import fixed_by_wiring
from tcar.fusion.kinds import list_fusions
from tcar.streams.grids import grid_coordinates

EVEN = {"semantic": (2, 2, 2), "motion": (2, 2, 2)}
FLAT = {"semantic": (3, 1, 1), "motion": (1, 2, 2)}
WINDOWED = ("cross_attention", "semantic_from_motion", "motion_from_semantic", "gated")
MEASURES = ("entropy", "relative_entropy", "specialisation", "time", "space")


# --- what the wiring fixes ---------------------------------------------------------------------------------


def quantities(fusion, inputs: list, grids: dict) -> dict[str, torch.Tensor]:
    """All quantities of clips by name, [clip, ...], worked out from attention and maps."""
    record = fusion(*inputs, return_intermediates=True)[1]
    xyz = {"semantic": inputs[1], "motion": inputs[3]}
    found, shared = {}, record["bottleneck"].shape[1] if "bottleneck" in record else 0
    for name, weights in named_attention(record).items():
        found[f"{name}.weights"] = weights
        readers, read = streams_of(name)
        start = 1 if name.startswith("self") else 0
        for s in read:
            part = weights.mean(dim=1)[:, :, start : (start := start + len(xyz[s]))].sum(dim=1)
            cells = (part / part.sum(dim=1, keepdim=True)).unflatten(1, grids[s])
            found[f"{name}.received.{s}.per_place"] = cells.sum(dim=1)
            found[f"{name}.received.{s}.per_moment"] = cells.sum(dim=(2, 3))
        assert start + (shared if name.startswith("block") else 0) == weights.shape[3]
        if "_from_" in name:
            found[f"{name}.frame_to_frame"] = frame_to_frame(weights.mean(dim=1), grids[readers[0]], grids[read[0]])
    for name, heads in measure_heads(record, xyz).items():
        found |= {f"{name}.{measure}": torch.from_numpy(getattr(heads, measure)) for measure in MEASURES}
    used = {s: grids[s] for s in fusion.streams}
    rollouts = {
        "rollout": attention_rollout(record, used),
        "gradient_rollout": gradient_rollout(fusion, tuple(inputs), torch.tensor([1, 2, 4])),
    }
    for kind, maps in rollouts.items():
        total = sum(m.sum(dim=(1, 2, 3)) for m in maps.values()) if kind == "gradient_rollout" else 1
        for s, values in maps.items():
            mass = values.sum(dim=(1, 2, 3))
            mass = mass.where(mass > 0, torch.nan)
            found[f"{kind}.{s}.share"] = mass / total
            found[f"{kind}.{s}.per_place"] = values.sum(dim=1) / mass[:, None, None]
            found[f"{kind}.{s}.per_moment"] = values.sum(dim=(2, 3)) / mass[:, None]
    return found


def fixed(config, grids: dict) -> set[str]:
    """The names of what is the same for all clips, with two sets of random weights."""
    seen: dict[str, list] = {}
    for seed in (2, 3):
        fusion = build(config, seed=seed, shaken=True).eval()
        for name, values in quantities(fusion, batch(seed=seed, grids=grids), grids).items():
            seen.setdefault(name, []).append(values.detach())
    found = set()
    for name, values in seen.items():
        values = torch.cat(values)
        if name.startswith("gradient"):  # a map may be 0 throughout, and then has no shares
            values = values[~values.reshape(len(values), -1).isnan().any(dim=1)]
        undefined = values.isnan().all(dim=tuple(range(1, values.ndim))).all() and name.endswith((".time", ".space"))
        if not undefined and torch.allclose(values, values[:1].expand_as(values), atol=1e-7, rtol=0, equal_nan=True):
            found.add(name)
    return found


ALL = [kind for kind in list_fusions() if kind != "late_concat_raw"]
CASES = [
    *((kind, "joint", GRIDS, "ordered", 1) for kind in ALL if kind not in WINDOWED and "_probe_" not in kind),
    *((kind, "joint", GRIDS, "averaged", 0) for kind in ALL if kind not in WINDOWED),
    *((kind, window, GRIDS, "ordered", 1) for kind in WINDOWED for window in ("joint", "time", "space")),
    *((kind, window, EVEN, "ordered", 0) for kind in WINDOWED for window in ("time", "space")),
    *(("cross_attention", window, APART, "ordered", 0) for window in ("time", "space")),
    *((kind, window, FLAT, "averaged", 0) for kind in WINDOWED[1:3] for window in ("joint", "time")),
    ("cross_attention", "time", EVEN, "averaged", 1),
]


@pytest.mark.parametrize(("kind", "window", "grids", "appearance", "self_blocks"), CASES)
def test_exactly_what_is_named_is_fixed(kind, window, grids, appearance, self_blocks):
    config = replace(SMALL, kind=kind, window=window, appearance=appearance, self_blocks=self_blocks)
    named = fixed_by_wiring(config, grids)
    assert set(named) == fixed(config, grids)
    assert all(named.values())


def test_what_the_issue_names_is_named_without_grids():
    """Issue: received per place with window "time", per moment with "space"; shares in bidirectional fusions."""
    time = fixed_by_wiring(replace(SMALL, window="time"))
    assert "at one place alone" in time["block0.semantic_from_motion.received.motion.per_place"]
    assert "block0.semantic_from_motion.received.motion.per_moment" not in time
    space = fixed_by_wiring(replace(SMALL, window="space"))
    assert "at one moment alone" in space["block1.motion_from_semantic.received.semantic.per_moment"]
    assert "block1.motion_from_semantic.frame_to_frame" in space
    for kind in ("cross_attention", "gated", "cast"):
        named = fixed_by_wiring(replace(SMALL, kind=kind))
        assert "one half each" in named["rollout.semantic.share"]
        assert "gradient_rollout.semantic.share" not in named
    assert "rollout.semantic.share" not in fixed_by_wiring(replace(SMALL, kind="joint"))
    assert fixed_by_wiring(replace(SMALL, kind="late_concat_raw")) == {}
    one = fixed_by_wiring(replace(SMALL, heads=1))
    assert "one head" in one["self0.specialisation"]
    assert "self0.entropy" not in one


# --- heads -------------------------------------------------------------------------------------------------

LINE = grid_coordinates((4, 1, 1)).flatten(0, 1)


def test_heads_whose_measures_are_known():
    """Of four keys in a row, one query: even weights, one key alone, and a half each on the outer two."""
    weights = torch.tensor([[[[0.25] * 4], [[1.0, 0, 0, 0]], [[0.5, 0, 0, 0.5]]]])
    found = head_measures(weights, LINE[:1], LINE)
    np.testing.assert_allclose(found.entropy, [[log(4), 0, log(2)]], atol=1e-12)
    np.testing.assert_allclose(found.relative_entropy, [[1, 0, 0.5]], atol=1e-12)
    np.testing.assert_allclose(found.time, [[(0.25 + 0.5 + 0.75) / 4, 0, 0.375]], atol=1e-7)
    np.testing.assert_allclose(found.space, [[0, 0, 0]], atol=1e-7)
    between = weights[0].mean(dim=0)[0].double()  # 7/12, 1/12, 1/12, 1/4
    expected = [sum(p * log(p / q) for p, q in zip(row, between.tolist(), strict=True) if p > 0)
                for row in weights[0, :, 0].tolist()]  # fmt: skip
    np.testing.assert_allclose(found.specialisation, [expected], atol=1e-6)


def test_the_mean_specialisation_is_the_information_between_head_and_key():
    weights = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    weights = weights / weights.sum(dim=3, keepdim=True)
    found = head_measures(weights, LINE[[0, 1, 2, 3, 3]], LINE).specialisation.mean(axis=1)
    for clip in range(2):
        information = 0
        for query in range(5):
            joint = weights[clip, :, query].numpy() / 3
            outer = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
            information += (joint * np.log(joint / outer)).sum() / 5
        assert found[clip] == pytest.approx(information)


def test_heads_that_share_nothing_and_heads_that_share_all():
    apart = torch.eye(4)[None, :, None].expand(2, 4, 3, 4)
    same = torch.full((2, 4, 3, 4), 0.25)
    np.testing.assert_allclose(head_measures(apart, LINE[:3], LINE).specialisation, log(4))
    np.testing.assert_allclose(head_measures(same, LINE[:3], LINE).specialisation, 0, atol=1e-12)


def test_entropy_is_relative_to_what_a_mask_leaves():
    weights = torch.tensor([[[[0.5, 0.5, 0, 0], [0, 0, 1, 0.0]]]])
    found = head_measures(weights, LINE[:2], LINE)
    np.testing.assert_allclose(found.entropy, [[log(2) / 2]])
    np.testing.assert_allclose(found.relative_entropy, [[1]])  # the second query has no choice


def test_places_of_the_readout_and_of_fusion_tokens_are_left_out_of_distances():
    steps = build(replace(SMALL, kind="bottleneck")).eval()(*batch(), return_intermediates=True)[1]
    xyz = {"semantic": batch()[1], "motion": batch()[3]}
    queries, keys = coordinates_of("block0.motion", steps["block0.motion.weights"], xyz, shared=4)
    assert queries.isnan().any(dim=1).tolist() == [False] * 8 + [True] * 4
    assert coordinates_of("self0", steps["self0.weights"], xyz)[1].isnan().any(dim=1).tolist() == [True] + [False] * 24
    found = measure_heads(steps, xyz)["block0.motion"]
    weights, clip, head = steps["block0.motion.weights"].detach().numpy(), 1, 2
    far = []
    for n in range(8):
        row = weights[clip, head, n, :8]
        gaps = np.linalg.norm((xyz["motion"] - xyz["motion"][n]).numpy()[:, 1:], axis=1)
        far.append((row * gaps).sum() / row.sum())
    assert found.space[clip, head] == pytest.approx(np.mean(far))
    assert np.isfinite(found.entropy).all()
    probe = build(replace(SMALL, kind="motion_probe_1")).eval()(*batch(), return_intermediates=True)[1]
    assert np.isnan(measure_heads(probe, xyz)["cross.motion"].time).all()
    with pytest.raises(ExplanationError, match="needs the coordinates of the motion stream"):
        measure_heads(probe, {"semantic": xyz["semantic"]})
    with pytest.raises(ExplanationError, match="is among 8 tokens"):
        measure_heads(probe, {"motion": xyz["motion"][1:]})
