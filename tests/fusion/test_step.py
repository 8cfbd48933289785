"""STEP as a fusion kind: what it knows of order, how wide it is, and that it learns what a bag of tokens cannot."""

from dataclasses import replace

import pytest
import torch
from fusions import GRIDS, SMALL, batch, build
from torch.nn.functional import cross_entropy

from tcar.fusion.kinds import FusionConfig, create_fusion, fusion_cost, hidden_width, trained_parameters
from tcar.fusion.positions import LEARNED_BINS
from tcar.fusion.settings import method_settings
from tcar.fusion.step import STEPS
from tcar.streams.grids import grid_coordinates
from tcar.train.recipe import parameter_groups

DEMO = FusionConfig(semantic_width=128, motion_width=96, num_classes=32, width=64, heads=4, mlp_ratio=2.0)
FULL = FusionConfig()


def size(config: FusionConfig) -> int:
    with torch.device("meta"):
        return trained_parameters(create_fusion(config))


@pytest.mark.parametrize("kind", STEPS)
def test_frames_have_an_order_and_tokens_within_a_frame_have_none(kind):
    fusion, place = build(replace(SMALL, kind=kind), shaken=True).eval(), 2 * (kind == "motion_step")
    frames = GRIDS[STEPS[kind]][0]
    whole = fusion(*batch())

    def moved(turn) -> torch.Tensor:
        inputs = batch()
        inputs[place] = turn(inputs[place].unflatten(1, (frames, -1))).flatten(1, 2)
        return fusion(*inputs)

    torch.testing.assert_close(moved(lambda x: x[:, :, [2, 0, 3, 1]]), whole)
    assert (moved(lambda x: x.flip(1)) - whole).abs().max() > 1e-3


@pytest.mark.parametrize("frames", [1, 2, 5, 8, LEARNED_BINS])
def test_each_frame_has_an_embedding_of_its_own(frames):
    xyz = grid_coordinates((frames, 2, 1)).flatten(0, 1).double()
    shares = build(replace(SMALL, kind="semantic_step")).frames(xyz).unflatten(0, (frames, 2))
    assert torch.equal(shares[:, 0], shares[:, 1])
    assert torch.linalg.matrix_rank(shares[:, 0]) == frames
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(frames, 2, dtype=torch.float64))


def test_it_is_as_wide_as_the_stream_where_that_fits_the_budget_and_says_where_nothing_does():
    fusion = create_fusion(replace(DEMO, kind="semantic_step"))
    assert isinstance(fusion.probe.reduce, torch.nn.Identity) and fusion.probe.out.weight.shape == (128, 128)
    # Two norms, projections of query, key and value, that of what was read, 16 cells of time, a class token; the head.
    block = 2 * 2 * 128 + 4 * (128 + 1) * 128 + 16 * 128 + 128
    assert size(replace(DEMO, kind="semantic_step")) == block + 2 * 128 + (128 + 1) * 32
    assert size(replace(DEMO, kind="semantic_step")) < size(DEMO)
    wide = replace(FULL, kind="motion_step")
    assert hidden_width(wide) < FULL.motion_width and hidden_width(wide) % FULL.heads == 0
    assert 0.98 * size(FULL) < size(wide) <= size(FULL)
    with pytest.raises(ValueError, match="semantic_step on tokens of width 2 never has at most .* of cross_attention"):
        hidden_width(FusionConfig("semantic_step", 2, 2, 2, width=32, heads=16, mlp_ratio=0.1, blocks=1))


def test_a_state_dict_opens_for_any_number_of_frames_and_the_cost_is_counted():
    config = replace(SMALL, kind="semantic_step")
    first, second = build(config, seed=0).eval(), build(config, seed=1).eval()
    first(*batch())
    second.load_state_dict(first.state_dict())
    for frames in (4, 7, 40):
        inputs = batch(grids=GRIDS | {"semantic": (frames, 2, 2)})
        assert torch.equal(first(*inputs), second(*inputs))
    cost = fusion_cost(replace(DEMO, kind="semantic_step"), 8, 8)
    assert cost["trained_parameters"] == size(replace(DEMO, kind="semantic_step"))
    assert cost["gflops"] > 0


def test_positions_of_frames_do_not_decay():
    decaying, others = parameter_groups(build(replace(SMALL, kind="semantic_step")), 0.1)
    fusion = build(replace(SMALL, kind="semantic_step"))
    assert fusion.probe.position.weight.shape in [p.shape for p in others["params"]]
    assert len(decaying["params"]) == 3  # of the projections and of the head


def order_task(clips: int, seed: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Two contents in two of four semantic frames, at any place; the class is which comes first."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (clips,), generator=generator)
    inputs = [x.float() for x in batch(replace(SMALL), clips, seed)]
    early = torch.randint(2, (clips,), generator=generator)
    late = 2 + torch.randint(2, (clips,), generator=generator)
    places = torch.randint(4, (clips, 2), generator=generator)
    for clip in range(clips):
        for when, where, what in ((early, 0, labels[clip]), (late, 1, 1 - labels[clip])):
            inputs[0][clip, 4 * when[clip] + places[clip, where], :6] = 0
            inputs[0][clip, 4 * when[clip] + places[clip, where], what] = 8
    return inputs, labels


@pytest.mark.parametrize(
    ("method", "learns"),
    [("semantic_step", True), ("joint", True), ("semantic_probe_1", False), ("semantic_step_averaged", False)],
)
def test_which_comes_first_is_learnt_by_what_knows_time_alone(method, learns):
    config = replace(
        SMALL, **method_settings(method), num_classes=2, width=64, mlp_ratio=2, blocks=1, dropout=0, drop_path=0
    )  # fmt: skip
    torch.manual_seed(0)
    fusion = create_fusion(config)
    optimiser = torch.optim.AdamW(parameter_groups(fusion, 0.05), lr=3e-3)
    inputs, labels = order_task(512, seed=1)
    for step in range(160):
        rows = torch.arange(64 * (step % 8), 64 * (step % 8) + 64)
        loss = cross_entropy(fusion(inputs[0][rows], inputs[1], inputs[2][rows], inputs[3]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    fresh, truth = order_task(256, seed=2)
    right = (fusion.eval()(*fresh).argmax(dim=1) == truth).float().mean()
    assert right > 0.9 if learns else right < 0.65
