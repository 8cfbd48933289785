"""The switches of an ablation, of every kind: an appearance that is averaged, and no blocks at the end."""

from dataclasses import replace

import pytest
import torch
from fusion_reference import Reference
from fusions import APART, GRIDS, SMALL, batch, build

from tcar.explain import attention_rollout
from tcar.fusion.kinds import create_fusion, list_fusions
from tcar.fusion.settings import METHODS, MOTION_ALONE, method_settings
from tcar.fusion.step import STEPS

CLOSE = {"atol": 1e-9, "rtol": 1e-9}
AVERAGED = replace(SMALL, appearance="averaged")
SEEING = [kind for kind in list_fusions() if kind not in MOTION_ALONE]
WRITTEN_OUT = [kind for kind in list_fusions() if "_probe_" not in kind]  # probes have a reference of their own
ORDERED = [kind for kind in WRITTEN_OUT if kind not in (*MOTION_ALONE, "late_concat_raw", "semantic_bag")]
ATTENDING = [kind for kind in WRITTEN_OUT if kind != "late_concat_raw" and kind not in STEPS]


def frames_moved(inputs: list, order: list[int]) -> list:
    """The same clips with their semantic frames in another order, at the coordinates of the old one."""
    semantic = inputs[0].unflatten(1, (len(order), -1))[:, order].flatten(1, 2)
    return [semantic, *inputs[1:]]


def is_the_reference(fusion):
    """On grids of one size and of two, with intermediates and without."""
    for grids in (GRIDS, APART):
        inputs = batch(size=2, grids=grids)
        expected = torch.from_numpy(Reference(fusion)(*inputs))
        torch.testing.assert_close(fusion(*inputs), expected, **CLOSE)
        torch.testing.assert_close(fusion(*inputs, return_intermediates=True)[0], expected, **CLOSE)


# --- appearance --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", ["joint", "time"])
@pytest.mark.parametrize("kind", WRITTEN_OUT)
def test_an_averaged_appearance_is_the_plain_reference(kind, window):
    fusion = build(replace(AVERAGED, kind=kind, window=window), shaken=True).eval()
    is_the_reference(fusion)


@pytest.mark.parametrize("kind", list_fusions())
def test_an_averaged_appearance_has_no_order_of_semantic_frames(kind):
    fusion, inputs = build(replace(AVERAGED, kind=kind), shaken=True).eval(), batch()
    moved = frames_moved(inputs, [2, 0, 3, 1])
    torch.testing.assert_close(fusion(*moved), fusion(*inputs), **CLOSE)
    frozen = [inputs[0].unflatten(1, (4, 4)).mean(dim=1, keepdim=True).expand(-1, 4, -1, -1).flatten(1, 2), *inputs[1:]]
    torch.testing.assert_close(fusion(*frozen), fusion(*inputs), **CLOSE)


@pytest.mark.parametrize("kind", ORDERED)
def test_an_ordered_appearance_has_one(kind):
    fusion, inputs = build(replace(SMALL, kind=kind), shaken=True).eval(), batch()
    assert (fusion(*frames_moved(inputs, [2, 0, 3, 1])) - fusion(*inputs)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", SEEING)
def test_an_averaged_appearance_keeps_places_and_the_order_of_motion(kind):
    fusion, inputs = build(replace(AVERAGED, kind=kind), shaken=True).eval(), batch()
    whole = fusion(*inputs)
    changed = [inputs[0].clone(), *inputs[1:]]
    changed[0][:, 5, :6] += 2  # one token of one frame
    assert (fusion(*changed) - whole).abs().max() > 1e-4
    if "motion" in fusion.streams and kind != "late_concat_raw":
        turned = inputs[2].unflatten(1, (2, 4)).flip(1).flatten(1, 2)
        assert (fusion(*inputs[:2], turned, inputs[3]) - whole).abs().max() > 1e-3


def test_tokens_are_averaged_over_whole_clips_before_any_are_left_out():
    config = replace(AVERAGED, dropout=0, drop_path=0, token_drop=0.6)
    fusion, inputs = build(config, shaken=True).train(), batch()
    logits, steps = fusion(*inputs, return_intermediates=True)
    kept = {s: steps[f"{s}.kept"] for s in GRIDS}
    torch.testing.assert_close(logits, torch.from_numpy(Reference(fusion)(*inputs, kept=kept)), **CLOSE)


def test_a_stream_that_trains_gets_its_share_of_the_gradient_at_every_moment():
    fusion, inputs = build(AVERAGED).eval(), batch()
    inputs[0].requires_grad_()
    fusion(*inputs).square().sum().backward()
    by_frame = inputs[0].grad.unflatten(1, (4, 4))
    torch.testing.assert_close(by_frame, by_frame[:, :1].expand_as(by_frame))
    assert by_frame.abs().max() > 0


def test_means_of_half_precision_tokens_are_summed_in_full():
    fusion = build(replace(AVERAGED, kind="late_concat_raw")).float().eval()
    inputs = batch(dtype=torch.float32)
    inputs[0] = (inputs[0] + 1000).half()
    captured = []
    fusion.norm["semantic"].register_forward_pre_hook(lambda _, given: captured.append(given[0]))
    with torch.autocast("cpu", torch.float16):
        fusion(*inputs)
    expected = inputs[0].double().unflatten(1, (4, 4)).mean(dim=1).half()
    assert torch.equal(captured[0][:, :4], expected)


@pytest.mark.parametrize("kind", list_fusions())
def test_what_sees_has_an_averaged_form_under_a_name_of_its_own(kind):
    with torch.device("meta"):
        seeing = "semantic" in create_fusion(replace(SMALL, kind=kind)).streams
    assert (f"{kind}_averaged" in METHODS) == seeing
    for method in {kind, f"{kind}_averaged"} & set(METHODS):
        config = replace(SMALL, **method_settings(method))
        assert (config.kind, config.method) == (kind, method)
        assert config.appearance == ("ordered" if method == kind else "averaged")
    assert replace(AVERAGED, kind=kind).method == (f"{kind}_averaged" if seeing else kind)


# --- no blocks at the end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("appearance", ["ordered", "averaged"])
@pytest.mark.parametrize("kind", WRITTEN_OUT)
def test_without_blocks_at_the_end_the_readout_is_the_mean_of_the_plain_reference(kind, appearance):
    config = replace(SMALL, kind=kind, self_blocks=0, appearance=appearance, mlp_ratio=6)
    fusion = build(config, shaken=True).eval()
    is_the_reference(fusion)


@pytest.mark.parametrize("kind", list_fusions())
def test_without_blocks_at_the_end_every_parameter_learns(kind):
    fusion = build(replace(SMALL, kind=kind, self_blocks=0, mlp_ratio=6))
    fusion(*batch()).square().sum().backward()
    idle = [name for name, p in fusion.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [name for name in idle if not name.endswith("linear.bias")] == []


@pytest.mark.parametrize("kind", ATTENDING)
def test_attention_is_followed_back_from_a_mean(kind):
    fusion = build(replace(SMALL, kind=kind, self_blocks=0, mlp_ratio=6)).eval()
    _, steps = fusion(*batch(), return_intermediates=True)
    maps = attention_rollout(steps, {s: GRIDS[s] for s in fusion.streams})
    apart = kind in ("late_concat", "sum")
    sums = torch.stack([m.sum(dim=(1, 2, 3)) for m in maps.values()])
    torch.testing.assert_close(sums if apart else sums.sum(dim=0), torch.ones_like(sums if apart else sums[0]))


def test_a_mean_of_tokens_that_read_themselves_alone_counts_them_alike():
    """One stream's blocks with a weight of 1 on each token itself: an even map is all that a mean can give."""
    itself = torch.eye(8).expand(1, 2, 8, 8)
    steps = {"block0.motion.weights": itself, "mean.motion.weights": torch.full((1, 1, 1, 8), 1 / 8)}
    even = attention_rollout(steps, {"motion": GRIDS["motion"]})["motion"]
    torch.testing.assert_close(even, torch.full((1, *GRIDS["motion"]), 1 / 8))


def test_attention_among_both_streams_is_followed_back_by_hand():
    """Two semantic tokens and one of motion; the readout reads motion alone, which read the first semantic token."""
    joint = torch.eye(3)[[0, 1, 0]].expand(1, 1, 3, 3)
    readout = torch.eye(4)[[3, 1, 2, 3]].expand(1, 1, 4, 4)
    grids = {"semantic": (2, 1, 1), "motion": (1, 1, 1)}
    maps = attention_rollout({"block0.joint.weights": joint, "self0.weights": readout}, grids)
    assert maps["semantic"].flatten().tolist() == [0.5, 0]
    assert maps["motion"].flatten().tolist() == [0.5]
