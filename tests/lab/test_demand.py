"""What a run will take, against arithmetic by hand, committed results, a store that was made, and the allocator."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
from bright import extract_one, in_this_process
from torch.profiler import ProfilerActivity, profile
from videos import write_video

from tcar.__main__ import main
from tcar.data.ssv2 import load_split
from tcar.data.video import VideoError
from tcar.data.views import SegmentView
from tcar.data.workers import Failure
from tcar.features import FeatureError
from tcar.fusion.kinds import create_fusion
from tcar.lab import params
from tcar.lab.demand import bill, hours, sizes
from tcar.lab.paper import given
from tcar.streams.registry import create_stream

ROOT = Path(__file__).parents[2]
MEASURED = ["cross_attention", "late_concat", "late_concat_raw", "semantic", "motion"]
OFF = dict.fromkeys(
    (f"ablation_{factor}" for factor in
     ("directions", "windows", "positions", "fusion_blocks", "self_blocks", "semantic_grids", "motion_grids")), [],
)  # fmt: skip
SMALL = {**OFF, "methods": ["cross_attention", "motion"], "seeds": [0, 1], "epochs": 14,
         "epochs_by_method": {"motion": 20}, "ablation_heads": [4, 8], "ablation_fusions": ["cross_attention"],
         "ablation_seeds": [1, 2, 3]}  # fmt: skip
FILES = {"name": "t", "dataset": "ssv2", "data_root": "data", "semantic_grid": [4, 2, 2], "motion_grid": [2, 2, 2],
         "ablation_semantic_grids": [], "ablation_motion_grids": []}  # fmt: skip


# ---- sizes ----
def test_the_clips_of_the_demo_are_those_that_its_audit_found():
    audited = json.loads((ROOT / "paper" / "results" / "audit.json").read_text())
    run = params.load(ROOT / "params" / "demo.yaml", data_root="not/there")
    assert sizes.clip_counts(run) == audited["clips"]
    assert sizes.class_count(run) == len(audited["classes"])


def test_each_configuration_is_trained_once_with_the_seeds_of_all_who_ask(project):
    found = {(each.fusion.kind, each.fusion.heads): each for each in sizes.trainings(params.from_values(SMALL))}
    assert {key: (each.epochs, each.seeds) for key, each in found.items()} == {
        ("cross_attention", 4): (14, 4),  # seeds 0 and 1 of the methods, 1 to 3 of the ablations
        ("motion", 4): (20, 4),
        ("cross_attention", 8): (14, 3),
        ("semantic", 4): (14, 3),
    }


def test_tokens_on_a_coarser_grid_are_a_training_of_their_own_and_cost_less(project):
    few = {**SMALL, "ablation_heads": [4], "ablation_semantic_grids": ["4x2x2"]}
    planned = sizes.trainings(params.from_values(few))
    whole, coarse = (each for each in planned if each.fusion.kind == "cross_attention")
    assert (whole.fusion, whole.parameters) == (coarse.fusion, coarse.parameters)
    assert (whole.seeds, coarse.seeds) == (4, 3) and coarse.gflops < 0.7 * whole.gflops


def test_every_training_of_the_demo_is_counted():
    """Those of the methods, with the epochs that training.json states, and what its ablations add."""
    made = json.loads((ROOT / "paper" / "results" / "training.json").read_text())["methods"]
    demo = params.load(ROOT / "params" / "demo.yaml")
    apart = ("ablation_seeds", "ablation_streams")  # the second is of a command of its own
    varied = [key for key in vars(demo.ablations) if key.startswith("ablation_") and key not in apart]
    only = dict.fromkeys(varied, [])
    planned = sizes.trainings(params.load(ROOT / "params" / "demo.yaml", **only, ablation_seeds=[0]))
    assert sum(each.epochs * each.seeds for each in planned) == sum(
        row["epochs"] * len(row["seeds"]) for row in made.values()
    )
    levels = sum(len(getattr(demo.ablations, key)) for key in varied)
    assert len(planned) < len(sizes.trainings(demo)) < len(planned) + levels
    trained = json.loads((ROOT / "paper" / "results" / "evaluation.json").read_text())["methods"]
    for each in planned[:5]:
        assert each.parameters == trained[each.fusion.kind]["trained_parameters"]


def test_what_a_step_keeps_is_what_the_allocator_gave_and_did_not_get_back():
    run = params.load(ROOT / "params" / "ssv2.yaml", data_root="not/there")
    fusion = sizes.trainings(run)[0].fusion
    model, inputs = create_fusion(fusion).train(), sizes.noise(run, fusion, 1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as made:
        result = model(*inputs)
    grown = sum(event.self_cpu_memory_usage for event in made.events())
    assert result is not None and grown > 1e7
    assert sizes.kept_for_backward(run, fusion) == pytest.approx(grown, rel=0.1)


def test_memory_grows_with_the_batch_and_lies_where_the_work_is_done(project):
    few, many = (sizes.memory(params.from_values({**SMALL, "batch_size": size}), False) for size in (24, 2400))
    assert [peak.work for peak in few] == ["extraction", "training"]
    assert few[0] == many[0]
    assert many[1].host - sizes.PROCESS > 10 * (few[1].host - sizes.PROCESS)
    assert many[1].device == 0
    on_card = sizes.memory(params.from_values({**SMALL, "batch_size": 2400}), True)[1]
    assert on_card.device + sizes.PROCESS > on_card.host
    assert on_card.host < many[1].host


def test_a_training_keeps_three_snapshots_and_its_best_weights(project):
    """Of weights, two moments and with averaging their average; all begin one more beside those that are kept."""
    one = {**SMALL, "ablation_heads": [], "seeds": [0], "ablation_seeds": [0]}
    run = params.from_values(one)
    counts = [each.parameters for each in sizes.trainings(run)]
    assert len(counts) == 3
    assert sizes.checkpoint_bytes(run) == sum(4 * count * (1 + 4 * 3) for count in counts)
    averaged = params.from_values({**one, "weight_averaging": 0.99})
    assert sizes.checkpoint_bytes(averaged) == sum(4 * count * (1 + 4 * 4) for count in counts)


# ---- hours ----
@pytest.fixture
def card(tmp_path, monkeypatch):
    """What tests/benchmarks/gpu.py wrote of a card: five heads, 4,096 clips, an epoch of 8 seconds."""
    alone = dict.fromkeys(MEASURED, 2.0)
    values = {"from_files": {"dinov2_vits14": {"clips_per_second": 200.0}, "i3d_r50": {"clips_per_second": 100.0}},
              "trainings": {"clips": 4096, "heads": 5, "seconds_in_company": 8.0, "seconds_alone": alone}}  # fmt: skip
    file = tmp_path / "A_card.json"
    file.write_text(json.dumps(values))
    monkeypatch.setattr(hours, "BENCHMARKS", tmp_path)
    return file


def real(**values) -> params.Params:
    few = {"seeds": [0], "ablation_heads": [], "ablation_fusions": [], "ablation_seeds": [0]}
    return params.load(ROOT / "params" / "ssv2.yaml", data_root="not/there", **few | values)


def test_hours_are_work_over_measured_speed(card):
    extraction, views, training = hours.hours(real(methods=MEASURED), "A card")
    assert extraction.hours == pytest.approx(220_847 * (1 / 200 + 1 / 100) / 3600)
    assert views.hours == pytest.approx(extraction.hours * 6 * 24_777 / 220_847)
    assert training.hours == pytest.approx(168_913 * 30 / 4096 * 8 / 3600)  # the five, and no other
    assert "5 configurations, 150 epochs" in training.source
    assert "A card" in extraction.source and "A card" in training.source
    files = json.loads(card.read_text())
    files["from_files"]["together"] = {"clips_per_second": 90.0}
    card.write_text(json.dumps(files | {"reading": {"audit": 250.0}}))
    run = real(methods=["cross_attention"], views=2)
    found = {each.work: each.hours for each in hours.hours(run, "A card")}
    assert found["extraction"] == pytest.approx(2 * 220_847 / 90 / 3600)
    assert found["2x3 views"] == pytest.approx(found["extraction"] * 3 * 24_777 / 220_847)
    assert found["audit"] == pytest.approx(220_847 / 250 / 3600)
    work = {each.fusion.kind: each.gflops for each in sizes.trainings(real(methods=MEASURED))}
    alone = sum(work[kind] for kind in ("cross_attention", "semantic", "motion"))  # of these, two as ablations
    assert found["training"] == pytest.approx(training.hours * alone / sum(work.values()))


def test_the_time_of_keeping_weights_is_no_time_of_a_step(card):
    files = json.loads(card.read_text())
    before = hours.hours(real(), "A card")[-1].hours
    card.write_text(json.dumps(files | {"trainings": files["trainings"] | {"seconds_of_keeping": 2.0}}))
    assert hours.hours(real(), "A card")[-1].hours == pytest.approx(before * 6 / 8)


def test_the_bill_of_the_real_runs_is_what_was_measured_times_what_is_to_be_done():
    """By hand, from the committed measurements."""
    folder = ROOT / "tests" / "benchmarks" / "results"
    made = json.loads((folder / f"{bill.GPU.replace(' ', '_')}.json").read_text())
    alone = json.loads((folder / bill.MODEL_ALONE).read_text())["on_device"]["vjepa2_1_vitl16_384"]
    items = {(item.run, item.work): item for item in bill.real_run()}
    tokens = 220_847 * (392 * 384 + 196 * 2048) * 2
    assert items["ssv2", "tokens"].gigabytes == pytest.approx(tokens / 1e9)
    together = made["from_files"]["together"]["clips_per_second"]
    assert items["ssv2", "extraction"].hours == pytest.approx(220_847 / together / 3600)
    for plan in ("ssv2", "ssv2_vjepa2"):
        rate = made["fusion_steps"][f"{plan}, eager"]["clips_per_second"]
        assert items[plan, "headline, one seed"].hours == pytest.approx(30 * 168_913 / rate / 3600)
    parts = [items["ssv2", work].hours for work in ("extraction", "2x3 views", "audit", "training")]
    assert items["ssv2", "together"].hours == pytest.approx(sum(parts))
    assert items["ssv2_vjepa2", "extraction"].hours is items["ssv2_vjepa2", "together"].hours is None
    model = items["ssv2_vjepa2", "extraction, vjepa2_1_vitl16_384 alone"]
    assert model.hours == pytest.approx(220_847 / alone["clips_per_second"] / 3600)


def test_money_is_hours_times_a_price_that_is_said_to_be_assumed():
    table = given.real_run_table(4.0)
    assert "assumed price of 4 USD" in table.caption and "nobody's offer" in table.caption
    for row, item in zip(table.rows, bill.real_run(), strict=True):
        run, work, source, gigabytes, took, price = row
        assert (run, work, source) == (item.run, item.work, item.source)
        assert bool(took) == bool(price) == (item.hours is not None) and bool(gigabytes) == (work == "tokens")
        assert not price or float(price) == pytest.approx(4 * item.hours, abs=0.0051)
    assert given.real_run_table(None).rows == []


def test_what_nobody_measured_is_unknown(card, project):
    for found in hours.hours(real(), "another card"):
        assert found.hours is None
        assert "measured" in found.source
    assert hours.hours(real(motion="i3d_r50_inflated"), "A card")[0].hours is None
    small = dataclasses.replace(params.from_values({}), root=ROOT)
    assert hours.hours(small, "A card")[1].hours is None  # a thousandth of the operations, and not of the time
    assert "of another size" in hours.hours(small, "A card")[1].source


def test_steps_that_are_timed_here_give_hours(project, monkeypatch):
    monkeypatch.setattr(hours, "TIMED", 0.0)
    run = params.from_values({**SMALL, "device": "cpu", "batch_size": 4})
    training = hours.hours(run, measure=True)[1]
    assert training.hours > 0
    assert "measured here on cpu" in training.source


# ---- the plan of an extraction ----
@pytest.fixture
def dataset(project):
    """Four clips, of which one has no known class and one is no video."""
    (project / "data" / "videos").mkdir(parents=True)
    (project / "data" / "labels.json").write_text(json.dumps({"Moving up": "0"}))
    for split, ids in (("train", "ab"), ("validation", "c")):
        (project / "data" / f"{split}.csv").write_text("id,label_index\n" + "".join(f"{i},0\n" for i in ids))
    (project / "data" / "test.json").write_text('[{"id": "d"}]')
    for identifier in "bc":
        write_video(project / "data" / "videos" / f"{identifier}.webm", 9, width=64, height=48)
    (project / "data" / "videos" / "a.webm").write_bytes(b"nothing")
    return project


def test_the_published_dataset_by_hand():
    """ViT-S/14 is 384 wide and I3D 2048; 220,847 clips; half precision is two bytes; the card that was measured."""
    (file,) = hours.BENCHMARKS.glob("NVIDIA_H100*.json")
    measured = json.loads(file.read_text())
    run, gpu = real(), measured["gpu"]
    semantic, motion = planned = hours.extraction(run, gpu)
    assert semantic.bytes == 220_847 * 8 * 7 * 7 * 384 * 2
    assert motion.bytes == 220_847 * 4 * 7 * 7 * 2048 * 2
    rate = measured["from_files"]["together"]["clips_per_second"]
    assert [found.rate for found in planned] == [rate, rate]
    assert hours.extraction_hours(planned) == pytest.approx(220_847 / rate / 3600)
    said = hours.text(run, planned)
    assert "220,847 as published" in said and "243.8 GB" in said
    assert said.count(f"measured on one {gpu}") == 2
    assert "decoding   not measured" in said
    unknown = hours.text(run, hours.extraction(run, "a card of tomorrow"))
    assert unknown.count("not known: no extraction was measured") == 2


def test_it_is_the_size_of_the_store_that_is_then_made(dataset, monkeypatch):
    run = params.from_values(FILES | {"token_type": "bf16", "views": 2, "batch_clips": 2})
    clips = [clip for split in ("train", "validation") for clip in load_split(run.data_root, split) if clip.id != "a"]
    semantic, _ = hours.extraction(run)
    assert semantic.clips == 3
    stream = partial(create_stream, "dinov2_tiny")
    monkeypatch.setattr("tcar.features.extraction.isolated_map", in_this_process)
    store = extract_one(clips, stream, dataset / "s", SegmentView(8), grid=[4, 2, 2], workers=1, batch_clips=2, views=2,
                        token_type="bf16", device="cpu:0")  # fmt: skip
    made = (store.root / "tokens.npy").stat().st_size
    assert made - store.start == semantic.bytes // 3 * 2  # one of the three clips is broken


def test_decoding_is_measured_here_and_an_extraction_speaks_for_itself(dataset, capsys, monkeypatch):
    def failing(function, items, **_):
        for number, item in enumerate(items):
            try:
                yield number, function(item)
            except VideoError as error:
                yield number, Failure("error", str(error))

    monkeypatch.setattr(hours, "isolated_map", failing)
    run = params.from_values(FILES)
    assert hours.extraction(run, measure=True)[0].decoding > 0
    folder = run.run_dir / "features" / "i3d_tiny-0123"
    folder.mkdir(parents=True)
    (folder / "store.meta.json").write_text('{"clips_per_second": 0.75, "device": "a card", "ranks": 4}')
    (dataset / "p.yaml").write_text("\n".join(f"{key}: {value}" for key, value in FILES.items()))
    assert main(["plan", "p.yaml"]) == 0
    said = capsys.readouterr().out
    assert said.count("1 s at 3.0 clips/s, measured on a card in an earlier extraction of 4 process(es)") == 1
    assert said.index("motion: i3d_tiny") < said.index("3.0 clips/s")
    (folder / "store.meta.json").write_text("")
    assert main(["plan", "p.yaml"]) == 2 and "store.meta.json: not JSON" in capsys.readouterr().err


def test_streams_that_were_made_together_take_their_time_once(dataset):
    run = params.from_values(FILES)
    for stream in ("i3d_tiny", "dinov2_tiny"):
        folder = run.run_dir / "features" / f"{stream}-0123"
        folder.mkdir(parents=True)
        made = {"clips_per_second": 0.5, "device": "a card", "ranks": 1, "stores": ["i3d_tiny-0", "dinov2_tiny-0"]}
        (folder / "store.meta.json").write_text(json.dumps(made))
    assert hours.extraction_hours(hours.extraction(run)) == pytest.approx(3 / 0.5 / 3600)


def test_without_a_dataset_there_is_no_decoding_to_measure(project):
    with pytest.raises(FeatureError, match="no dataset to measure decoding with"):
        hours.extraction(params.from_values({"dataset": "ssv2", "data_root": "nowhere"}), measure=True)
