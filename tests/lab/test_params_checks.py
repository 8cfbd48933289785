"""A parameter file that cannot work is refused when it is loaded, with the fix; the tables it is checked by hold."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tcar.fusion import settings as fusion_settings
from tcar.lab import params
from tcar.lab.params import FIELDS, ParameterError
from tcar.lab.params import settings as lab_settings
from tcar.models import settings as model_settings
from tcar.tabletop import settings as tabletop_settings

ROOT = Path(__file__).parents[2]
PUSH = [86, 87, 93, 94]


def refusal(values: dict) -> str:
    with pytest.raises(ParameterError) as error:
        params.from_values(values, source="some.yaml")
    return str(error.value)


def breaking(key: str):
    """Values of a parameter that break one of its limits each, and what the error says of it."""
    limits, default = FIELDS[key].metadata, params.Params().as_dict()[key]
    items = list(default.values()) if isinstance(default, dict) else default if isinstance(default, list) else [default]

    def filled(item):
        if isinstance(default, dict):
            return {next(iter(limits.get("keys", ["x"]))): item}
        return [item] * limits.get("length", 1) if isinstance(default, list) else item

    if "minimum" in limits:
        yield filled(limits["minimum"] - 1), f"at least {limits['minimum']}"
    if "maximum" in limits:
        yield filled(limits["maximum"] + 1), f"at most {limits['maximum']}"
    if "choices" in limits:
        last = list(limits["choices"])[-1]
        yield filled(f"{last}x"), f"did you mean {last!r}?"
    if "keys" in limits:
        kind = str if key == "baseline_checkpoints" else type((items or [1])[0])
        yield {f"{next(iter(limits['keys']))}x": kind(1)}, f"did you mean {next(iter(limits['keys']))!r}?"
    if "pattern" in limits:
        yield filled("no such thing"), f"expected {limits['expected']}"
    if "length" in limits:
        for length in (limits["length"] - 1, limits["length"] + 1):
            yield [default[0]] * length, f"expected {limits['length']} numbers"
    if "shortest" in limits:
        yield [], f"at least {limits['shortest']}"
    if "distinct" in limits:
        one = [*limits.get("choices", []), *items, "untrained" if "pattern" in limits else 6][0]
        yield [one, one], "twice"


@pytest.mark.parametrize("key", [key for key in FIELDS if FIELDS[key].metadata])
def test_each_limit_of_each_parameter_is_kept(project, key):
    cases = list(breaking(key))
    assert cases
    for value, said in cases:
        message = refusal({key: value})
        assert message.startswith(f"some.yaml: {key} is ")
        assert said in message


APART = {"fusion": "gated", "methods": ["gated", "cross_attention"]}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"heads": 5}, "heads has [5] where fusion_width is 64"),
        ({"heads": 64}, "even, whole number"),
        ({"cross_width": 20}, "cross_width is 20"),
        ({"ablation_heads": [4, 5]}, "ablation_heads has [5]"),
        ({"semantic_grid": [2, 4, 4], "ablation_semantic_grids": ["4x2x2"]}, "ablation_semantic_grids has 4x2x2"),
        ({"ablation_motion_grids": ["2x4x5"]}, "no axis can have more"),
        ({"classes": [200]}, "classes names [200], which Tabletop does not render"),
        ({"classes": [93, 87]}, "classes lacks [86, 94]: family push_pull"),
        ({"dataset": "ssv2", "classes": PUSH}, "only Tabletop can be rendered in part"),
        ({"width": 320}, "4:3"),
        ({"lengths": [24, 25]}, "[25]"),
        ({"semantic": "dinov2_vitl"}, "did you mean 'dinov2_vitl14'?"),
        ({"semantic": "i3d_tiny"}, "semantic is 'i3d_tiny', expected one of dinov2_tiny"),
        ({"motion": "i3d_tny"}, "did you mean 'i3d_tiny'?"),
        ({"full_size_streams": ["i3d_r5"]}, "did you mean 'i3d_r50'?"),
        ({"semantic_grid": [4, 9, 4]}, "dinov2_tiny gives 8 x 8 x 8 tokens"),
        ({"semantic_frames": 3}, "dinov2_tiny gives 3 x 8 x 8"),
        ({"motion_frames": 2}, "i3d_tiny gives 1 x 5 x 5"),
        ({"semantic": "timm:vit_base", "semantic_frames": 3}, "gives 3 x 4 x 4"),
        ({"motion": "videomae_vitb16", "motion_frames": 24}, "reads 16 at a time"),
        ({"view_flip": 0.5}, "set views to 2 or more"),
        ({"semantic_adapters": 2}, "train end to end (task: clips)"),
        ({"semantic_adapters": 5, "task": "clips"}, "dinov2_tiny has 4 blocks"),
        ({"fusion": "late_concat_raw"}, "no attention"),
        ({"methods": ["cross_attention", "sum_averagd"]}, "did you mean 'sum_averaged'?"),
        ({"methods": ["cross_attention", "motion_averaged"]}, "methods"),
        ({"replicate_methods": ["cross_atention_averaged"]}, "did you mean 'cross_attention_averaged'?"),
        ({"appearance": "averaged", "ablation_fusions": ["sum_averaged"]}, "ablation_fusions has ['sum_averaged']"),
        ({"appearance": "averagd"}, "did you mean 'averaged'?"),
        ({"self_blocks": -1}, "self_blocks"),
        ({"fusion": "gated"}, "without gated, the headline by fusion"),
        ({"fusion": "semantic", "methods": ["semantic"]}, "without cross_attention, which the paper"),
        ({"fusion": "semantic", "contrastive_weight": 0.1}, "only a fusion of cross_attention"),
        ({"task": "baseline", "baselines": ["cast_tiny"], "order_weight": 0.1}, "only a fusion of cross_attention"),
        ({"order_weight": 0.1}, "order_weight is 0.1, but it needs clips"),
        ({"epochs": 2}, "epochs is 2, but must be above warmup_epochs"),
        ({"epochs_by_method": {"sum": 1}}, "epochs_by_method: sum is 1"),
        ({"baseline_epochs": {"cast_tiny": 1}}, "baseline_epochs: cast_tiny is 1"),
        ({"task": "baseline"}, "name the one to train"),
        ({"crop_scale": [1.0, 0.5]}, "crop_scale"),
        ({"colour_jitter": [0.0, 0.0, 0.0, 0.6]}, "hue"),
        ({"loss_terms": {"mixup": 0.0}}, "loss_terms: mixup is 0"),
        ({"loss_terms": {"drop_path": 3.0}}, "loss_terms: drop_path is 3.0, expected at most 0.95"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(project, values, said):
    assert said in refusal(values)


@pytest.mark.parametrize(
    "values",
    [
        {"classes": PUSH}, {"heads": 8, "ablation_heads": []}, {"heads": 5, "fusion_width": 80, "ablation_heads": [5]},
        {**APART, "contrastive_weight": 0.1}, {"baseline_epochs": {"cast_tiny": 0}}, {"width": 320, "height": 240},
        {"order_weight": 0.1, "task": "clips"}, {"semantic_adapters": 4, "task": "clips"},
        {"motion": "videomae_vitb16", "motion_frames": 32}, {"semantic": "timm:vit_base_patch16_224"},
        {"view_flip": 0.5, "views": 2}, {"task": "baseline", "baselines": ["cast_tiny"]},
    ],
)  # fmt: skip
def test_what_fits_is_taken(project, values):
    assert params.from_values(values).as_dict().items() >= values.items()


def test_all_mistakes_of_a_file_are_one_error(project):
    message = refusal({"epohcs": 3, "methods": ["sums"], "heads": 5, "semantic_grid": [4, 9, 4], "motion": "i3d"})
    misspelt = ("'epohcs', did you mean 'epochs'", "did you mean 'sum'", "motion is 'i3d'")
    for said in (*misspelt, "heads has [5]", "8 x 8 x 8"):
        assert said in message
    assert "without cross_attention" not in message  # the methods are misspelt, so nothing else is said of them


@pytest.mark.parametrize("file", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_of_the_project_can_be_loaded(file):
    if "space" in yaml.safe_load(file.read_text()):
        from tcar.lab.search.space import load_settings

        load_settings(file)
    else:
        params.load(file)


def test_the_check_needs_no_torch():
    code = f"import sys; from tcar.lab import params; params.load({str(ROOT / 'params/ssv2.yaml')!r}); "
    code += "sys.exit(str({'torch', 'numpy', 'timm'} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.stderr.strip() == b""


class TestTables:
    """What is written down for the check is what the registries have."""

    def test_fusions(self):
        import torch

        from tcar.fusion.kinds import _KINDS, FUSIONS, FusionConfig
        from tcar.streams.grids import grid_coordinates

        assert tuple(_KINDS) == FUSIONS
        size = {"semantic_width": 32, "motion_width": 32, "num_classes": 4, "width": 16, "heads": 2, "mlp_ratio": 4}
        places = grid_coordinates((2, 2, 2)).flatten(0, 1)
        for kind in FUSIONS:
            made = _KINDS[kind](FusionConfig(kind, **size), 64).eval()
            steps = made(*(torch.randn(1, 8, 32), places) * 2, return_intermediates=True)[1]
            attends = any(name.endswith(".weights") for name in steps)
            assert attends == (kind not in fusion_settings.WITHOUT_ATTENTION), kind
            assert (hasattr(made, "embed") and hasattr(made, "readout")) == (kind in fusion_settings.EXCHANGING), kind

    def test_the_rest(self):
        from tcar.lab.paper import report
        from tcar.models.baselines import BASELINES
        from tcar.tabletop.controls import CONTROLS
        from tcar.tabletop.templates import FAMILIES

        assert {name: family.classes for name, family in FAMILIES.items()} == {
            name: list(classes) for name, classes in tabletop_settings.FAMILIES.items()
        }
        assert {name: made.published for name, made in BASELINES.items()} == model_settings.PUBLISHED
        assert set(CONTROLS) == set(tabletop_settings.CONTROLS)
        assert report.HEADLINE == lab_settings.HEADLINE
        assert all(lab_settings.TYPES[term] is float for term in lab_settings.LOSS_TERMS)
