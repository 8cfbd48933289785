"""Patching of fusions whose margins can be written down, and of a real one against a slow loop."""

from dataclasses import replace
from itertools import combinations
from math import factorial

import pytest
import tiny
import torch

from tcar.explain.errors import ExplanationError
from tcar.explain.patching import cells_exchanged, exchange_streams, patch_cells, patch_streams, stream_shapley
from tcar.fusion.kinds import FusionConfig, create_fusion
from tcar.models.tca import TCA
from tcar.streams.grids import grid_coordinates

GRIDS = {"semantic": (2, 2, 1), "motion": (1, 1, 2)}
SMALL = FusionConfig(semantic_width=3, motion_width=2, num_classes=4, width=24, heads=4, dropout=0.5)


def cached(seed, clips=3):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for stream, width in (("semantic", 3), ("motion", 2)):
        xyz = grid_coordinates(GRIDS[stream]).flatten(0, 1)
        found += [torch.randn(clips, len(xyz), width, generator=generator), xyz]
    return tuple(found)


class Sums(torch.nn.Module):
    """Logits of the first features' sums over both grids, s and m: [s + 2 m, 0], or with `product` [s m, 0]."""

    def __init__(self, product=False, streams=("semantic", "motion")):
        super().__init__()
        self.product, self.streams = product, streams

    def forward(self, semantic, semantic_xyz, motion, motion_xyz):
        s, m = semantic[..., 0].sum(dim=1), motion[..., 0].sum(dim=1)
        logit = s if self.streams == ("semantic",) else s * m if self.product else s + 2 * m
        return torch.stack([logit, torch.zeros_like(logit)], dim=1)


def constant(semantic, motion):
    """Tokens whose first features sum to these numbers, clip by clip."""
    tokens = cached(0, len(semantic))
    for values, sums in ((tokens[0], semantic), (tokens[2], motion)):
        values[..., 0] = torch.tensor(sums)[:, None] / values.shape[1]
    return tokens


# --- streams -----------------------------------------------------------------------------------------------


def test_an_additive_fusion_has_no_interaction_and_its_shares_are_those_of_its_terms():
    clip, other = constant([4.0, 1.0], [1.0, 3.0]), constant([-4.0, 2.0], [-1.0, -2.0])
    patched = exchange_streams(Sums(), clip, other)
    # s + 2 m: first clip 6, -2 without its s, 2 without its m, -6; second 7, 8, -3, -2
    margins = {what: m.tolist() for what, m in patched.margins(0, 1).items()}
    assert margins == {"neither": [6, 7], "semantic": [-2, 8], "motion": [2, -3], "both": [-6, -2]}
    assert {s: f.tolist() for s, f in patched.flips(0, 1).items()} == {
        "semantic": [True, False],
        "motion": [False, True],
    }
    moved = patched.moved(0, 1)
    torch.testing.assert_close(moved["semantic"], torch.tensor([8 / 12, -1 / 9]))
    torch.testing.assert_close(moved["motion"], torch.tensor([4 / 12, 10 / 9]))
    torch.testing.assert_close(patched.interaction(0, 1), torch.zeros(2), atol=1e-6, rtol=0)
    shapley = stream_shapley(patched, 0)
    assert {s: v.tolist() for s, v in shapley.items()} == {"semantic": [8, -1], "motion": [4, 10]}


def test_a_product_is_interaction():
    """2 * 3 = 6 with both, (-1) * 3 and 2 * 0.5 with one exchanged, (-1) * 0.5 with both; and an exclusive or."""
    clip, other = constant([2.0, 1.0], [3.0, 1.0]), constant([-1.0, -1.0], [0.5, -1.0])
    patched = exchange_streams(Sums(product=True), clip, other)
    assert {what: m.tolist() for what, m in patched.margins(0, 1).items()} == {
        "neither": [6, 1], "semantic": [-3, -1], "motion": [1, -1], "both": [-0.5, 1],
    }  # fmt: skip
    interaction = patched.interaction(0, 1)
    torch.testing.assert_close(interaction[0], torch.tensor(1 - 9 / 6.5 - 5 / 6.5))
    assert interaction[1].isnan()  # one exchange flips the exclusive or, and the other flips it back
    flips = patched.flips(0, 1)
    assert (flips["semantic"].tolist(), flips["motion"].tolist()) == ([True, True], [False, True])
    shapley = stream_shapley(patched, 0)
    assert shapley["semantic"].tolist() == [((1 + 0.5) + (6 + 3)) / 2, 0]
    assert shapley["motion"].tolist() == [((-3 + 0.5) + (6 - 1)) / 2, 0]


def test_shapley_values_are_those_of_all_subsets():
    fusion = create_fusion(SMALL).eval()
    clip, other, target = cached(1), cached(2), torch.tensor([0, 3, 1])
    players = ("semantic", "motion")

    def value(own):
        x = {s: (clip if s in own else other)[i] for s, i in (("semantic", 0), ("motion", 2))}
        return fusion(x["semantic"], clip[1], x["motion"], clip[3])[range(3), target]

    found = stream_shapley(exchange_streams(fusion, clip, other), target)
    for player in players:
        others = [p for p in players if p != player]
        expected = torch.zeros(3)
        for size in range(len(players)):
            for subset in combinations(others, size):
                weight = factorial(size) * factorial(len(players) - size - 1) / factorial(len(players))
                expected += weight * (value({*subset, player}) - value(set(subset)))
        torch.testing.assert_close(found[player], expected.detach())
    torch.testing.assert_close(sum(found.values()), (value(set(players)) - value(set())).detach())


def test_nothing_is_dropped_while_a_model_in_training_is_patched():
    fusion = create_fusion(SMALL).eval()
    clip, other = cached(1), cached(2)
    patched, maps = exchange_streams(fusion, clip, other), cells_exchanged(fusion, clip, other, GRIDS, 0, 1)
    fusion.train()
    again = exchange_streams(fusion, clip, other)
    assert all(torch.equal(patched.logits[what], logits) for what, logits in again.logits.items())
    same = cells_exchanged(fusion, clip, other, GRIDS, 0, 1)
    assert all(torch.equal(maps[s], same[s]) for s in GRIDS)
    assert fusion.training


def test_targets_of_their_own_for_each_clip_and_sign_of_the_margin():
    patched = exchange_streams(create_fusion(SMALL).eval(), cached(1), cached(2))
    target, other = torch.tensor([0, 3, 1]), torch.tensor([1, 2, 0])
    back = patched.margins(other, target)
    for what, margin in patched.margins(target, other).items():
        expected = [patched.logits[what][i, target[i]] - patched.logits[what][i, other[i]] for i in range(3)]
        torch.testing.assert_close(margin, torch.stack(expected))
        torch.testing.assert_close(back[what], -margin)


@pytest.mark.parametrize("stream", ["semantic", "motion"])
def test_a_stream_that_is_not_read_moves_nothing(stream):
    fusion = create_fusion(replace(SMALL, kind=stream)).eval()
    clip, other = cached(1), list(cached(2))
    unread = 2 if stream == "semantic" else 0
    other[unread] = other[unread][:, :1]  # whose grid need not even be the same
    patched = exchange_streams(fusion, clip, tuple(other))
    rest = "motion" if stream == "semantic" else "semantic"
    assert torch.equal(patched.logits[rest], patched.logits["neither"])
    assert torch.equal(patched.logits[stream], patched.logits["both"])
    torch.testing.assert_close(patched.moved(0, 1)[stream], torch.ones(3))
    torch.testing.assert_close(patched.interaction(0, 1), torch.zeros(3))
    difference = (patched.logits["neither"] - patched.logits["both"])[:, 2]
    shapley = stream_shapley(patched, 2)
    assert list(patched.flips(0, 1)) == list(shapley) == [stream]
    torch.testing.assert_close(shapley[stream], difference)
    assert list(cells_exchanged(fusion, clip, tuple(other), GRIDS, 0, 1)) == [stream]


# --- cells -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_cells_are_those_of_a_slow_loop(batch):
    fusion = create_fusion(SMALL).eval()
    clip, other = cached(1), cached(2)
    target, against = torch.tensor([0, 3, 1]), torch.tensor([1, 2, 0])
    before = [x.clone() for x in (*clip, *other)]
    maps = cells_exchanged(fusion, clip, other, GRIDS, target, against, batch)
    assert {s: tuple(m.shape) for s, m in maps.items()} == {s: (3, *g) for s, g in GRIDS.items()}

    def margin(tokens, i):
        logits = fusion(*tokens)[0]
        return logits[target[i]] - logits[against[i]]

    for i in range(3):
        own = [clip[0][i : i + 1], clip[1], clip[2][i : i + 1], clip[3]]
        for stream, place in (("semantic", 0), ("motion", 2)):
            _, rows, columns = GRIDS[stream]
            for cell in range(own[place].shape[1]):
                patched = [x.clone() for x in own]
                patched[place][0, cell] = other[place][i, cell]
                t, y, x = cell // (rows * columns), cell // columns % rows, cell % columns
                expected = margin(own, i) - margin(patched, i)
                torch.testing.assert_close(maps[stream][i, t, y, x], expected.detach(), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before, (*clip, *other), strict=True))


def test_cells_of_an_additive_fusion_are_the_differences_of_its_tokens():
    clip, other = cached(1), cached(2)
    maps = cells_exchanged(Sums(), clip, other, GRIDS, 0, 1)
    torch.testing.assert_close(maps["semantic"].flatten(1), clip[0][..., 0] - other[0][..., 0])
    torch.testing.assert_close(maps["motion"].flatten(1), 2 * (clip[2][..., 0] - other[2][..., 0]))
    alone = cells_exchanged(Sums(), clip, other, GRIDS, 1, None)
    assert not alone["semantic"].any()  # the logit of the second class never moves


# --- frames ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    grids = {"semantic": (2, 2, 2), "motion": (1, 2, 2)}
    torch.manual_seed(0)
    return TCA.create(tiny.config(SMALL, tuple("abcd"), {"semantic": 2, "motion": 8}, grids)).eval()


def test_frames_are_patched_by_their_tokens(model):
    generator = torch.Generator().manual_seed(0)
    clip, other = (torch.rand(2, 9, 24, 32, 3, generator=generator) for _ in range(2))
    patched = patch_streams(model, clip, other)
    torch.testing.assert_close(patched.logits["neither"], model(clip).detach())
    torch.testing.assert_close(patched.logits["both"], model(other).detach())
    torch.testing.assert_close(
        patched.logits["semantic"], model(model.pick(other)[0], model.pick(clip)[1]).detach()
    )
    pairs = patch_streams(model, model.pick(clip), model.pick(other))
    assert all(torch.equal(pairs.logits[what], logits) for what, logits in patched.logits.items())

    maps = patch_cells(model, clip, other, 0, 2)
    assert {s: tuple(m.shape) for s, m in maps.items()} == {"semantic": (2, 2, 2, 2), "motion": (2, 1, 2, 2)}
    tokens = [(*model.tokens("semantic", a), *model.tokens("motion", b)) for a, b in map(model.pick, (clip, other))]
    grids = {"semantic": (2, 2, 2), "motion": (1, 2, 2)}
    again = cells_exchanged(model.fusion, *tokens, grids, 0, 2, 7)
    assert all(torch.allclose(maps[s], again[s], atol=1e-5) for s in maps)
    nothing = patch_cells(model, clip, clip, 0, 2)
    assert all(torch.allclose(m, torch.zeros_like(m), atol=1e-5) for m in nothing.values())


def test_bytes_are_the_frames_that_they_are(model):
    generator = torch.Generator().manual_seed(0)
    clip, other = (
        torch.randint(0, 256, (1, 8, 24, 32, 3), generator=generator, dtype=torch.uint8) for _ in range(2)
    )
    bytes_, floats = patch_streams(model, clip, other), patch_streams(model, clip / 255, other / 255)
    assert all(torch.allclose(bytes_.logits[what], floats.logits[what], atol=1e-5) for what in bytes_.logits)


# --- errors ------------------------------------------------------------------------------------------------


def test_grids_that_differ_are_refused():
    fusion, clip = create_fusion(SMALL).eval(), cached(1)
    fewer, moved, wider = list(cached(2)), list(cached(2)), list(cached(2))
    fewer[2:] = fewer[2][:, :1], fewer[3][:1]
    moved[1] = moved[1] * 0.5
    wider[0] = torch.zeros(3, 4, 5)
    for other, words in ((fewer, "motion has tokens"), (wider, "semantic has tokens"), (moved, "other coordinates")):
        for call in (exchange_streams, lambda *x: cells_exchanged(*x, GRIDS, 0, 1)):
            with pytest.raises(ExplanationError, match=f"patching needs equal grids: .*{words}"):
                call(fusion, clip, tuple(other))


def test_what_cannot_be_patched_is_refused(model):
    fusion, clip, other = create_fusion(SMALL).eval(), cached(1), cached(2)
    with pytest.raises(ExplanationError, match="each clip needs one to exchange with, got 3 and 2"):
        exchange_streams(fusion, clip, cached(2, clips=2))
    with pytest.raises(ExplanationError, match=r"4 tokens, which are no grid \(3, 1, 1\)"):
        cells_exchanged(fusion, clip, other, GRIDS | {"semantic": (3, 1, 1)}, 0, 1)
    with pytest.raises(ExplanationError, match="at least one at a time"):
        cells_exchanged(fusion, clip, other, GRIDS, 0, 1, 0)
    patched = exchange_streams(fusion, clip, other)
    with pytest.raises(ExplanationError, match="target and against are the same class"):
        patched.margins(torch.tensor([0, 1, 2]), torch.tensor([1, 1, 0]))
    with pytest.raises(ExplanationError, match="classes are 0 to 3, got 4 to 4"):
        stream_shapley(patched, 4)
    with pytest.raises(ExplanationError, match="one class, or one for each of 3 clips"):
        patched.moved(torch.tensor([0, 1]), 2)
    short = torch.rand(1, 5, 24, 32, 3)
    with pytest.raises(ExplanationError, match="at least 8 frames"):
        patch_streams(model, short, short)
    with pytest.raises(ExplanationError, match="each stream needs frames of every clip"):
        patch_streams(model, (torch.rand(1, 2, 24, 32, 3), torch.rand(2, 8, 24, 32, 3)), short)
