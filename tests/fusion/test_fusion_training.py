"""A fusion in training: tokens left out, blocks computed twice, half precision, compiled code."""

import itertools
from dataclasses import replace

import pytest
import torch
from fusion_reference import Reference
from fusions import APART, GRIDS, SMALL, batch, build
from torch._dynamo.testing import CompileCounterWithBackend

from tcar.fusion.kinds import FusionConfig, create_fusion, list_fusions
from tcar.train.compiling import compile_alone

CLOSE = {"atol": 1e-9, "rtol": 1e-9}
NOISY = {"dropout": 0.2, "drop_path": 0.3, "token_drop": 0.3}
# The published probe, a kind too, has a test file of its own, and no coordinates.
KINDS = [kind for kind in list_fusions() if "_probe_" not in kind]
CROSS = ["cross_attention", "semantic_from_motion", "motion_from_semantic"]


def gradients(fusion, inputs, seed=0):
    """Return logits and all gradients of one training step."""
    fusion.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    logits = fusion(*inputs)
    logits.float().square().sum().backward()
    return [logits.detach(), *(p.grad for p in fusion.parameters())]


# --- tokens left out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("positions", "grids"), [("rotary", GRIDS), ("learned", APART)])
@pytest.mark.parametrize(
    ("kind", "window"),
    [*((kind, "joint") for kind in KINDS), *((kind, w) for kind in [*CROSS, "gated"] for w in ("time", "space"))],
)
def test_a_step_without_some_tokens_is_the_reference_on_those_kept(kind, window, positions, grids):
    """Coordinates stay those of the kept tokens, windows those of whole grids, even where nothing is left to read."""
    sizes = {"dropout": 0, "drop_path": 0, "token_drop": 0.6}
    config = replace(SMALL, kind=kind, window=window, positions=positions, **sizes)
    fusion, inputs = build(config, shaken=True).train(), batch(grids=grids)
    logits, steps = fusion(*inputs, return_intermediates=True)
    kept = {name.partition(".")[0]: found for name, found in steps.items() if name.endswith(".kept")}
    torch.testing.assert_close(logits, torch.from_numpy(Reference(fusion)(*inputs, kept=kept)), **CLOSE)
    torch.manual_seed(5)
    fast = fusion(*inputs)
    torch.manual_seed(5)
    torch.testing.assert_close(fusion(*inputs, return_intermediates=True)[0], fast, **CLOSE)


@pytest.mark.parametrize("window", ["time", "space"])
@pytest.mark.parametrize("kind", ["cross_attention", "gated"])
def test_a_token_whose_whole_window_was_left_out_reads_nothing_there(kind, window):
    config = replace(SMALL, kind=kind, window=window, dropout=0, drop_path=0, token_drop=0.8)
    fusion, inputs = build(config, shaken=True).train(), batch()
    torch.manual_seed(1)
    logits, steps = fusion(*inputs, return_intermediates=True)
    read = steps["block0.semantic_from_motion.weights"].sum(dim=-1)
    assert (read == 0).any() and (read > 0).any()
    kept = {s: steps[f"{s}.kept"] for s in ("semantic", "motion")}
    torch.testing.assert_close(logits, torch.from_numpy(Reference(fusion)(*inputs, kept=kept)), **CLOSE)
    found = gradients(fusion, inputs, seed=1)
    torch.testing.assert_close(found[0], logits, **CLOSE)
    assert all(torch.isfinite(gradient).all() for gradient in found)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cast"])  # "cast" always has windows
def test_a_step_without_some_tokens_is_the_fusion_of_the_kept_tokens_alone(kind):
    """Where all may be read, that is: no window of a whole grid is left to be kept."""
    config = replace(SMALL, kind=kind, dropout=0, drop_path=0, token_drop=0.4)
    fusion, inputs = build(config, shaken=True).train(), batch()
    logits, steps = fusion(*inputs, return_intermediates=True)
    for place, stream in ((0, "semantic"), (2, "motion")):
        if (kept := steps.get(f"{stream}.kept")) is not None:
            inputs[place], inputs[place + 1] = inputs[place][:, kept], inputs[place + 1][kept]
    torch.testing.assert_close(logits, fusion.eval()(*inputs), **CLOSE)


def test_kept_tokens_are_drawn_in_training_alone_by_the_seed_and_in_their_order():
    config = replace(SMALL, kind="late_concat_raw", dropout=0, token_drop=0.3)  # the quickest: all draw alike
    fusion, inputs = build(config), batch()

    def drawn(seed):
        torch.manual_seed(seed)
        return fusion(*inputs, return_intermediates=True)[1]

    steps = [drawn(seed) for seed in range(150)]
    for stream, count, left in (("semantic", 16, 11), ("motion", 8, 6)):
        found = torch.stack([step[f"{stream}.kept"] for step in steps])
        assert found.shape == (150, left)
        assert (found.diff(dim=1) > 0).all()
        shares = found.flatten().bincount(minlength=count) / 150
        assert (shares - left / count).abs().max() < 0.16  # over four standard deviations of a fair draw
    assert all(torch.equal(drawn(1)[name], steps[1][name]) for name in steps[1])
    assert not torch.equal(steps[1]["semantic.kept"], steps[2]["semantic.kept"])
    fusion.eval()
    plain = build(replace(config, token_drop=0)).eval()
    assert torch.equal(fusion(*inputs), plain(*inputs))
    assert "semantic.kept" not in drawn(1)


def test_a_token_left_out_gets_no_gradient_and_one_always_stays():
    fusion, inputs = build(replace(SMALL, token_drop=0.99)).train(), batch()
    inputs[0].requires_grad_()
    logits, steps = fusion(*inputs, return_intermediates=True)
    logits.square().sum().backward()
    kept = steps["semantic.kept"]
    assert len(kept) == len(steps["motion.kept"]) == 1
    reached = inputs[0].grad.abs().sum(dim=(0, 2)).nonzero().flatten()
    assert torch.equal(reached, kept)


# --- blocks computed twice ---------------------------------------------------------------------------------


def kept_bytes(fusion, inputs) -> int:
    """Return how much a forward pass keeps for the backward pass, weights not counted."""
    weights, found = {p.untyped_storage().data_ptr() for p in fusion.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        fusion(*inputs)
    return sum(found.values())


@pytest.mark.parametrize("window", ["joint", "time"])
@pytest.mark.parametrize("kind", [k for k in list_fusions() if k != "late_concat_raw"])
def test_blocks_computed_twice_give_the_same_gradients_from_less_memory(kind, window):
    config = replace(SMALL, kind=kind, window=window, self_blocks=2, **NOISY)
    plain, twice = (build(replace(config, checkpointing=again)).train() for again in (False, True))
    inputs = batch(size=8)
    for seed in (1, 2):
        for expected, found in zip(gradients(plain, inputs, seed), gradients(twice, inputs, seed), strict=True):
            assert torch.equal(expected, found)
    assert kept_bytes(twice, inputs) < 0.4 * kept_bytes(plain, inputs)


def test_every_block_adds_a_few_tokens_to_what_is_kept_and_not_its_inside():
    inputs = batch(size=8)
    kept = {
        (again, blocks): kept_bytes(build(replace(SMALL, blocks=blocks, checkpointing=again)).train(), inputs)
        for again in (False, True)
        for blocks in (2, 6)
    }
    plain, twice = (kept[again, 6] - kept[again, 2] for again in (False, True))
    assert twice <= 4 * 8 * (16 + 8) * 24 * 8  # four blocks, eight clips, all tokens, 24 channels, 8 bytes
    assert plain > 10 * twice


# --- half precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", list_fusions())
def test_autocast_trains_near_full_precision(kind, half, positions):
    config = FusionConfig(kind, 128, 96, 32, width=64, window="time", positions=positions, **NOISY)
    torch.manual_seed(0)
    fusion, inputs = create_fusion(config).train(), batch(config, dtype=torch.float32)
    with torch.autocast("cpu", half):
        found = gradients(fusion, inputs)
        explicit, _ = fusion.eval()(*inputs, return_intermediates=True)
        fast = fusion(*inputs)
    for tensor in found:
        assert torch.isfinite(tensor).all()
    torch.testing.assert_close(explicit.float(), fast.float(), atol=0.1, rtol=0.05)
    # Random numbers of another type are other numbers, so full precision is compared without any.
    torch.testing.assert_close(fast.float(), fusion(*inputs), atol=0.1, rtol=0.05)


# --- compiled ----------------------------------------------------------------------------------------------


@pytest.fixture
def dynamo(unchecked):
    """A fresh compiler, and no type checks, which are of the tests alone and would end a graph."""
    torch._dynamo.reset()
    yield torch._dynamo
    torch._dynamo.reset()


def test_the_compiler_finds_one_graph_without_a_break(dynamo):
    fusion, inputs = build(replace(SMALL, window="time")).eval(), batch()
    fusion(*inputs)  # fills what is remembered of coordinates
    report = dynamo.explain(fusion)(*inputs)
    assert (report.graph_count, report.graph_break_count) == (1, 0)
    assert "complex" not in report.graphs[0].code  # inductor has no code for such numbers


# One for each way in which streams meet.
@pytest.mark.parametrize(("kind", "appearance"), [
    *((kind, "ordered") for kind in ("cross_attention", "gated", "bottleneck", "cast", "late_concat", "joint")),
    ("semantic_step", "ordered"), ("cross_attention", "averaged"),
])  # fmt: skip
def test_a_compiled_fusion_gives_the_same_logits(kind, appearance, dynamo):
    fusion = build(replace(SMALL, kind=kind, window="time", blocks=1, appearance=appearance)).eval()
    inputs = batch()
    compiled = torch.compile(fusion, fullgraph=True, backend="eager")  # a break would be an error
    torch.testing.assert_close(compiled(*inputs), fusion(*inputs), **CLOSE)


# A stream that is not read draws nothing: the compiler would leave the draw out, and all later ones were others.
@pytest.mark.parametrize("kind", ["cross_attention", "motion", "motion_probe_1"])
def test_a_compiled_training_step_has_the_same_gradients(kind, dynamo):
    config = replace(SMALL, kind=kind, blocks=1, window="time", checkpointing=True, **NOISY)
    fusion, inputs = build(config).train(), batch()
    compiled = torch.compile(fusion, fullgraph=True, backend="aot_eager")
    eager = gradients(fusion, inputs)
    for expected, found in zip(eager, gradients(compiled, inputs), strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


def test_models_are_compiled_whatever_was_compiled_before(dynamo):
    """Two configurations of one class and other batches, in turn: each graph is made once, for its model alone."""
    counter = CompileCounterWithBackend("aot_eager")
    configs = [replace(SMALL, blocks=1, **sizes) for sizes in ({}, {"semantic_width": 14, "window": "time"})]
    models = []
    for config, grids in zip(configs, (GRIDS, APART), strict=True):
        plain, compiled = build(config), build(config)
        compile_alone(compiled, fullgraph=True, backend=counter)
        models.append((plain, compiled, grids))
    for turn in range(2):
        for (plain, compiled, grids), clips in itertools.product(models, (4, 3)):  # the last batch is smaller
            inputs = batch(plain.config, clips, turn, grids=grids)
            for expected, found in zip(gradients(plain, inputs), gradients(compiled, inputs), strict=True):
                torch.testing.assert_close(found, expected, **CLOSE)
            with torch.no_grad():
                torch.testing.assert_close(compiled.eval()(*inputs), plain.eval()(*inputs), **CLOSE)
            for model in (plain, compiled):
                model.train()
        assert counter.frame_count == 2 * 2 * 2
    assert models[0][1].state_dict().keys() == models[0][0].state_dict().keys()
