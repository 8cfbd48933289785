"""The budget: what each part costs, which part is frozen, and the refusal of a model that trains too much."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tcar.fusion.kinds import FusionConfig
from tcar.lab import params
from tcar.models.budget import BudgetError, table_text
from tcar.models.tca import TCA, TCAConfig
from tcar.streams.grids import pool_tokens
from tcar.streams.registry import count_stream, create_stream, stream_spec

FOLDER = Path(__file__).parents[2] / "params"
NAMES = [f"class {k}" for k in range(174)]
FILES = ("ssv2", "ssv2_vjepa2")


def planned(name: str, **changes) -> TCAConfig:
    """What a parameter file builds for the real dataset."""
    run = params.load(FOLDER / f"{name}.yaml", **changes)
    return TCAConfig.of(run.streams, run.fusion, NAMES)


def on_meta(config: TCAConfig) -> TCA:
    with torch.device("meta"):
        return TCA.create(config)


@pytest.fixture(scope="module", params=FILES)
def model(request) -> TCA:
    return on_meta(planned(request.param))


def test_the_planned_models_stay_in_budget_with_at_least_85_percent_frozen(model):
    total = model.parameter_table()[-1]
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (total["total"], total["trained"]) == (parameters, trained)
    assert trained < 20e6
    assert total["share_frozen"] == 1 - trained / parameters >= 0.85


def test_their_grids_are_pooled_from_what_the_streams_give(model):
    for role in ("semantic", "motion"):
        stream, grid = getattr(model, role), getattr(model.config, f"{role}_grid")
        tokens, _ = count_stream(stream, getattr(model.config, f"{role}_frames"))
        pooled = pool_tokens(tokens, grid)
        assert pooled.values.shape == (1, grid[0], grid[1] * grid[2], stream.width)


def test_the_cells_of_the_stronger_plan_are_whole_numbers_of_tokens():
    model = on_meta(planned("ssv2_vjepa2"))
    for role in ("semantic", "motion"):
        tokens, _ = count_stream(getattr(model, role), getattr(model.config, f"{role}_frames"))
        assert all(old % new == 0 for old, new in zip(tokens.grid, getattr(model.config, f"{role}_grid"), strict=True))


@pytest.mark.parametrize("name", FILES)
def test_what_a_plan_says_of_its_size_is_so(name):
    """The megabytes a clip, of 16-bit tokens, and the gigabytes of all 220,847 clips, in the comments of the file."""
    config, text = planned(name), (FOLDER / f"{name}.yaml").read_text()
    tokens = {role: torch.Size(getattr(config, f"{role}_grid")).numel() for role in ("semantic", "motion")}
    count = 2 * sum(tokens[role] * stream_spec(getattr(config, role)).width for role in tokens)
    assert f"{count / 1e6:.1f} MB a clip" in text
    assert f"{220_847 * count / 1e9:.0f} GB of disk" in text
    trained = on_meta(config).parameter_table()[-1]["trained"]
    assert f"{trained / 1e6:.1f} M" in text


@pytest.mark.parametrize("name", FILES)
def test_a_fusion_that_is_too_wide_is_refused_with_the_table(name):
    with pytest.raises(BudgetError) as error:
        on_meta(planned(name, fusion_width=1024, cross_width=0, mlp_ratio=4.0))
    first, heading, *rows = str(error.value).splitlines()
    assert "max_trained_parameters is 20,000,000; lower one of fusion_width" in first
    assert heading.split() == ["part", "parameters", "trained", "MB", "GFLOPs", "frozen"]
    assert [row.split()[0] for row in rows] == [
        "semantic", "motion", "fusion.embed", "fusion.blocks", "fusion.readout", "fusion.head", "sum",
    ]  # fmt: skip
    trained = rows[-1].split()[2]
    assert first.startswith(f"{trained} trained parameters") and int(trained.replace(",", "")) > 20_000_000


def test_a_model_of_exactly_the_limit_is_built():
    config = planned("ssv2")
    trained = on_meta(config).parameter_table()[-1]["trained"]
    on_meta(replace(config, max_trained_parameters=trained))
    with pytest.raises(
        BudgetError, match=f"^{trained:,} trained parameters, max_trained_parameters is {trained - 1:,};"
    ):
        on_meta(replace(config, max_trained_parameters=trained - 1))


@pytest.fixture(scope="module")
def small() -> TCA:
    fusion = FusionConfig(semantic_width=128, motion_width=128, num_classes=3, width=16, heads=2)
    torch.manual_seed(0)
    grids = (4, 2, 2), (2, 2, 2)
    return TCA.create(TCAConfig("dinov2_tiny", "i3d_tiny", 4, 8, *grids, ("a", "b", "c"), fusion)).eval()


def test_the_table_adds_up(small):
    *parts, total = small.parameter_table()
    assert total["part"] == "sum"
    for column in ("total", "trained", "megabytes", "gflops"):
        assert sum(row[column] for row in parts) == pytest.approx(total[column])
    assert total["total"] == sum(p.numel() for p in small.parameters())
    assert {row["trained"] for row in parts if "stream" in row["part"]} == {0}
    assert total["trained"] == sum(p.numel() for p in small.fusion.parameters())
    kept = small.state_dict().values()  # statistics of batch norms among them
    assert total["megabytes"] == pytest.approx(sum(v.numel() * v.element_size() for v in kept) / 1e6)


def test_the_flops_are_those_of_a_run(small):
    """Counted on the meta device; here the whole model runs on real frames, at the sizes that its streams take."""
    sizes = (small.config.semantic_frames, small.semantic.input_size), (8, small.motion.input_size)
    clips = [torch.zeros(1, count, side, side, 3, dtype=torch.uint8) for count, side in sizes]
    # The counter knows the products of plain attention, not the fused kernel of a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        small(*clips)
    # Tables of rotary positions are made once for all clips and belong to no part.
    assert small.parameter_table()[-1]["gflops"] == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-5)


def test_what_cannot_be_counted_is_left_empty(small):
    """A stream that cannot read as many frames as the configuration says: no number is better than a guessed one."""
    config = replace(small.config, motion="timesformer_vitb16", motion_frames=11,
                     fusion=replace(small.config.fusion, motion_width=768))  # fmt: skip
    with torch.device("meta"):
        rows = TCA(config, small.semantic, create_stream("timesformer_vitb16")).parameter_table()
    gflops = {row["part"]: row["gflops"] for row in rows}
    assert gflops["motion stream (timesformer_vitb16)"] is None
    assert gflops["sum"] is None
    assert gflops["semantic stream (dinov2_tiny)"] > 0
    assert "timesformer_vitb16" in table_text(rows)
