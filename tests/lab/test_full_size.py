"""Full-size streams: counts against published figures, measurements in processes of their own, the planned models."""

from math import prod
from pathlib import Path

import pytest
from videos import write_video

from tcar.data.ssv2 import Clip
from tcar.data.workers import Failure
from tcar.lab import params, pipeline
from tcar.lab.real_plans import PLANS, plan_files
from tcar.lab.steps import extractors
from tcar.lab.steps.model import planned
from tcar.streams.registry import list_streams

ROOT = Path(__file__).parents[2]


def run_with(*streams: str, **values) -> params.Params:
    return params.from_values({"full_size_streams": list(streams), **values})


# Of all that are registered, one or two of a kind: to count them all takes seconds.
REGISTERED = ["dinov2_tiny", "dinov2_vitg14", "dinov2_vits14", "i3d_r50", "i3d_tiny", "timesformer_vitb16",
              "videomae_vitb16", "vjepa2_1_vitb16_384"]  # fmt: skip


@pytest.fixture(scope="module")
def counts() -> dict[str, dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractors, "list_streams", lambda: REGISTERED)
        return {row["name"]: row for row in extractors.count_full_size(run_with("i3d_r50", "timm:resnet18"))}


def test_every_published_stream_is_counted_and_what_else_was_named(counts):
    assert set(REGISTERED) < set(list_streams())
    assert set(counts) == {*REGISTERED, "timm:resnet18"} - {"dinov2_tiny", "i3d_tiny"}
    for row in counts.values():
        assert row["tokens"] == prod(row["grid"]) > 0
        assert row["trained_parameters"] == 0
        assert not row["pretrained"]


@pytest.mark.parametrize(("name", "parameters", "gflops"), [
    # In millions and in billions of multiply-adds, as published: without the classifier, and for all frames of a clip.
    ("dinov2_vits14", 22.1, None),
    ("dinov2_vitg14", 1_136, None),
    ("i3d_r50", 28.04 - 400 * 2.049e-3, 28.41),
    ("timm:resnet18", 11.69 - 0.513, 8 * 1.81),
    ("timesformer_vitb16", 121.4 - 0.3, 196),
    ("videomae_vitb16", 86.2, 180),
])  # fmt: skip
def test_counts_are_those_that_are_published(counts, name, parameters, gflops):
    assert counts[name]["parameters"] / 1e6 == pytest.approx(parameters, rel=5e-3)
    if gflops:
        assert counts[name]["gflops"] == pytest.approx(2 * gflops, rel=0.01)


def test_families_stand_together_from_small_to_large(counts):
    names = list(counts)
    assert [name for name in names if name.startswith("dinov2")] == ["dinov2_vits14", "dinov2_vitg14"]
    roles = [row["role"] for row in counts.values()]
    assert roles == sorted(roles, reverse=True)  # semantic before motion


@pytest.fixture
def clips(tmp_path) -> list[Clip]:
    path = write_video(tmp_path / "0.webm", frames=12)
    return [Clip(str(n), path, n, "", "", ()) for n in range(3)]


def test_a_stream_is_measured_in_a_process_of_its_own(clips):
    (row,) = extractors.measure_full_size(run_with("i3d_r50", full_size_clips=1, device="cpu"), clips)
    weights = 4 * 27_223_872 / 1e6
    assert (row["name"], row["clips"], row["device"]) == ("i3d_r50", 1, "cpu")
    assert 0 < row["fastest"] <= row["seconds"] <= row["slowest"]
    # Weights and a few feature maps of 8 x 64 x 112 x 112, but neither the libraries nor this process with its data.
    assert weights < row["megabytes"] < weights + 20 * 8 * 64 * 112 * 112 * 4 / 1e6


def test_what_fails_is_reported_and_the_others_are_measured(clips, monkeypatch, caplog):
    def broken(function, tasks, **options):
        (task,) = tasks
        assert options["time_limit"] == extractors.TIME_LIMIT
        yield 0, Failure("crashed", "the process ended with exit code -9") if task.name == "i3d_r50" else {
            "name": task.name, "seconds": 1.25, "megabytes": 1234.5, "clips": 3, "device": "cpu", "threads": 1
        }  # fmt: skip

    monkeypatch.setattr(extractors, "isolated_map", broken)
    with caplog.at_level("WARNING", logger="tcar"):
        rows = extractors.measure_full_size(run_with("i3d_r50", "dinov2_vits14"), clips)
    assert "i3d_r50 was not measured: crashed, the process ended with exit code -9" in caplog.text
    shape = {"role": "motion", "frames": 8, "input_size": 224, "width": 4, "grid": [4, 7, 7], "tokens": 196,
             "parameters": 27_223_872, "gflops": 56.8}  # fmt: skip
    names = ("i3d_r50", "dinov2_vits14", "dinov2_vitg14")
    shown = {row["stream"]: row for row in extractors.full_size_table([{"name": n, **shape} for n in names], rows)}
    cells = {name: (row["seconds a clip"], row["peak MB"]) for name, row in shown.items()}
    assert cells["i3d_r50"] == ("crashed: the process ended with exit code -9", "")
    assert cells["dinov2_vits14"] == ("1.25", "1,234")
    assert cells["dinov2_vitg14"] == ("", "")
    assert shown["i3d_r50"]["parameters (M)"] == "27.2"
    assert extractors.measured_where(rows) == "Measured here, with random weights, on cpu (1 thread, 3 clips)."
    assert "No stream was measured" in extractors.measured_where(rows[:1])


def test_planned_models_stay_in_budget_with_most_of_them_frozen():
    plans = planned(ROOT)
    assert [plan["plan"] for plan in plans] == list(PLANS)
    for plan in plans:
        *parts, total = plan["parts"]
        streams = [part for part in parts if part["part"].endswith(f"({plan['semantic']})")]
        streams += [part for part in parts if part["part"].endswith(f"({plan['motion']})")]
        assert len(streams) == 2
        assert sum(part["trained"] for part in streams) == 0
        assert total["trained"] == total["total"] - sum(part["total"] for part in streams) < 20e6
        assert total["share_frozen"] >= 0.85


def test_a_plan_that_is_not_there_is_one_error(tmp_path):
    with pytest.raises(params.ParameterError, match=r"ssv2\.yaml: no such parameter file"):
        planned(tmp_path)


def test_only_the_notebook_that_shows_it_depends_on_a_plan_or_on_what_is_measured():
    run = params.from_values({"name": "nowhere"})
    other = params.from_values({"name": "nowhere", "full_size_clips": 7})
    plans = {path.relative_to(ROOT).as_posix() for path in plan_files(ROOT).values()}
    for step in pipeline.TABLE:
        made = pipeline.fingerprint(step, run)
        assert (plans <= made["inputs"].keys()) == (step.name == "02_fusion"), step.name
        changed = made["parameters"] != pipeline.fingerprint(step, other)["parameters"]
        assert changed == (step.name == "01_extractors"), step.name
