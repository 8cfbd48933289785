"""Explanations in cases whose answer is known: linear models, hand-made attention."""

from dataclasses import replace

import pytest
import torch

from tcar.explain import attention_rollout, temporal_importance
from tcar.fusion.kinds import FusionConfig, create_fusion, list_fusions
from tcar.streams.grids import grid_coordinates

GRIDS = {"semantic": (4, 2, 2), "motion": (2, 2, 2)}
SMALL = FusionConfig(semantic_width=12, motion_width=10, num_classes=5, width=24, heads=4)


def tokens(seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for grid, width in ((GRIDS["semantic"], 12), (GRIDS["motion"], 10)):
        xyz = grid_coordinates(grid).flatten(0, 1)
        found += [torch.randn(3, len(xyz), width, generator=generator), xyz]
    return found


# --- attention ---------------------------------------------------------------------------------------------


def test_rollout_follows_attention_by_hand():
    """One readout, two semantic and one motion token, one head, every product written out."""
    weights = {
        "block0.semantic_from_motion.weights": torch.ones(1, 1, 2, 1),
        "block0.motion_from_semantic.weights": torch.tensor([[[[0.25, 0.75]]]]),
        "self0.weights": torch.tensor([0.0, 0.5, 0.1, 0.4]).expand(1, 1, 4, 4),
        "readout": torch.zeros(1, 8),
    }
    maps = attention_rollout(weights, {"semantic": (2, 1, 1), "motion": (1, 1, 1)})
    first, second, motion = 0.5, 0.1, 0.4  # what the readout reads; half of it was read from the other stream
    expected = [
        first / 2 + motion / 2 * 0.25,
        second / 2 + motion / 2 * 0.75,
        motion / 2 + (first + second) / 2,
    ]
    torch.testing.assert_close(maps["semantic"][0].flatten(), torch.tensor(expected[:2]))
    torch.testing.assert_close(maps["motion"][0].flatten(), torch.tensor(expected[2:]))


def test_rollout_runs_the_blocks_backwards():
    """The readout reads token 1; the later block moves its gaze to 0, and the earlier one from 0 to 1."""
    to_first, to_second = torch.tensor([[1.0, 0.0], [1, 0]]), torch.tensor([[0.0, 1.0], [0, 1]])
    weights = {
        "block0.motion.weights": to_second[None, None],
        "block1.motion.weights": to_first[None, None],
        "self0.motion.weights": torch.tensor([0.0, 0.0, 1.0]).expand(1, 1, 3, 3),
    }
    # 1 -> half stays at 1, half to 0 -> of each, half stays and half goes to 1
    expected = torch.tensor([0.25, 0.75])
    torch.testing.assert_close(
        attention_rollout(weights, {"motion": (2, 1, 1)})["motion"].flatten(), expected
    )


def test_rollout_passes_through_fusion_tokens_and_leaves_what_ends_in_them():
    """The readout reads semantic token 0, that the fusion token, and of this one the motion stream's copy reads motion.
    """
    itself = torch.eye(3)[None, None]
    weights = {
        "block0.semantic.weights": itself,  # two semantic tokens, then the fusion token
        "block0.motion.weights": torch.tensor([[1.0, 0], [1, 0]])[None, None],
        "block1.semantic.weights": torch.tensor([[0.0, 0, 1], [0, 1, 0], [0, 0, 1]])[None, None],
        "block1.motion.weights": torch.eye(2)[None, None],
        "self0.weights": torch.tensor([0.0, 1, 0, 0]).expand(1, 1, 4, 4),
        "bottleneck": torch.zeros(1, 1, 8),
    }
    maps = attention_rollout(weights, {"semantic": (2, 1, 1), "motion": (1, 1, 1)})
    # Half stays at token 0, half goes to the fusion token; of its two copies one keeps all, the other half.
    stayed, through = 1 / 2, 1 / 2 * (1 / 2 * 1 / 2)
    expected = torch.tensor([stayed, 0, through]) / (stayed + through)
    torch.testing.assert_close(torch.cat([maps["semantic"].flatten(), maps["motion"].flatten()]), expected)


@pytest.mark.parametrize("kind", [k for k in list_fusions() if k != "late_concat_raw"])
def test_rollout_of_every_kind_is_a_distribution(kind):
    torch.manual_seed(0)
    fusion = create_fusion(replace(SMALL, kind=kind, self_blocks=2)).eval()
    _, steps = fusion(*tokens(), return_intermediates=True)
    one = kind in ("semantic", "motion", "semantic_bag") or "_probe_" in kind or kind.endswith("_step")
    read = [kind.partition("_")[0]] if one else list(GRIDS)
    maps = attention_rollout(steps, {s: GRIDS[s] for s in read})
    assert {s: tuple(m.shape) for s, m in maps.items()} == {s: (3, *GRIDS[s]) for s in read}
    assert all((m >= 0).all() for m in maps.values())
    sums = torch.stack([m.sum(dim=(1, 2, 3)) for m in maps.values()])
    apart = kind in ("late_concat", "sum")  # each stream has a readout of its own
    torch.testing.assert_close(
        sums if apart else sums.sum(dim=0), torch.ones_like(sums) if apart else torch.ones(3)
    )


def test_rollout_refuses_what_it_cannot_follow():
    _, steps = create_fusion(SMALL).eval()(*tokens(), return_intermediates=True)
    with pytest.raises(ValueError, match="attention over 24 tokens, but the grids"):
        attention_rollout(steps, {"semantic": (4, 2, 2), "motion": (1, 2, 2)})
    with pytest.raises(ValueError, match="no attention of semantic among the intermediates"):
        attention_rollout({"readout": torch.zeros(1, 4)}, {"semantic": (4, 2, 2)})


# --- time --------------------------------------------------------------------------------------------------


class Watch(torch.nn.Module):
    """Says class 1 by as much as the first feature holds between two times, wherever the tokens are."""

    streams = ("semantic",)

    def forward(self, semantic, semantic_xyz, motion, motion_xyz):
        logit = semantic.new_zeros(len(semantic))
        for x, xyz in ((semantic, semantic_xyz), (motion, motion_xyz)):
            when = (xyz[:, 0] > 0.5) & (xyz[:, 0] < 0.75)
            logit = logit + (x[:, :, 0] * when).sum(dim=1)
        return torch.stack([torch.zeros_like(logit), logit], dim=1)


def test_only_the_moment_that_counts_is_important():
    semantic, semantic_xyz, motion, motion_xyz = tokens()
    semantic[:] = 0
    semantic[:, (semantic_xyz[:, 0] - 0.625).abs() < 1e-6] = torch.tensor([1.0, 2.0, -1.0])[:, None, None]
    target = torch.ones(3, dtype=torch.long)
    moments, falls = temporal_importance(Watch(), semantic, semantic_xyz, motion, motion_xyz, target)
    torch.testing.assert_close(moments, torch.tensor([0.125, 0.375, 0.625, 0.875]))
    sure = (4 * torch.tensor([1.0, 2.0, -1.0])).sigmoid()  # four tokens a moment; without them, undecided
    expected = torch.zeros(3, 4)
    expected[:, 2] = sure - 0.5
    torch.testing.assert_close(falls, expected)


def test_a_finer_stream_loses_the_tokens_nearest_to_each_moment():
    semantic, semantic_xyz, motion, motion_xyz = tokens()
    seen = []

    class Spy(torch.nn.Module):
        streams = ("semantic", "motion")

        def forward(self, semantic, semantic_xyz, motion, motion_xyz):
            seen.append((semantic_xyz[:, 0].unique().tolist(), motion_xyz[:, 0].unique().tolist()))
            return torch.zeros(3, 5)

    moments, falls = temporal_importance(
        Spy(), semantic, semantic_xyz, motion, motion_xyz, torch.zeros(3, dtype=torch.long)
    )
    assert moments.tolist() == [0.25, 0.75]
    assert seen[1:] == [([0.625, 0.875], [0.75]), ([0.125, 0.375], [0.25])]
    assert falls.shape == (3, 2)


def test_temporal_importance_runs_on_a_real_fusion_and_refuses_one_moment():
    fusion, inputs = create_fusion(SMALL).eval(), tokens()
    target = torch.tensor([0, 1, 2])
    _, falls = temporal_importance(fusion, *inputs, target)
    whole = fusion(*inputs).softmax(dim=1)[range(3), target]
    half = [inputs[0][:, 8:], inputs[1][8:], inputs[2][:, 4:], inputs[3][4:]]
    torch.testing.assert_close(falls[:, 0], whole - fusion(*half).softmax(dim=1)[range(3), target])
    with pytest.raises(ValueError, match="at least two moments"):
        temporal_importance(fusion, inputs[0][:, :4], inputs[1][:4], *inputs[2:], target)
