"""The plan of an extraction against arithmetic done by hand and against a store that was really made."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
from bright import extract_one, in_this_process
from videos import write_video

from tcar.__main__ import main
from tcar.features import FeatureError
from tcar.features.views import SegmentView
from tcar.lab import params, plan
from tcar.lab.params import from_values
from tcar.streams.registry import create_stream
from tcar.streams.settings import StreamSettings

SMALL = {"name": "t", "dataset": "ssv2", "data_root": "data", "semantic_grid": [4, 2, 2], "motion_grid": [2, 2, 2]}


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
    run = params.load(Path(__file__).parents[2] / "params" / "ssv2.yaml")
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, data_root="not/here"))
    (file,) = plan.BENCHMARKS.glob("NVIDIA_H100*.json")
    measured = json.loads(file.read_text())
    gpu = measured["gpu"]
    semantic, motion = planned = plan.plan(run, gpu)
    assert semantic.bytes == 220_847 * 8 * 7 * 7 * 384 * 2
    assert motion.bytes == 220_847 * 4 * 7 * 7 * 2048 * 2
    files = measured["from_files"]
    rates = [files.get("together", files[name])["clips_per_second"] for name in ("dinov2_vits14", "i3d_r50")]
    assert [found.rate for found in planned] == rates
    assert plan.hours(planned) == pytest.approx(sum(220_847 / rate / 3600 for rate in dict.fromkeys(rates)))
    said = plan.text(planned)
    assert "243.8 GB" in said
    assert said.count(f"measured on one {gpu}") == 2
    assert "decoding   not measured" in said


def test_a_speed_that_nobody_measured_is_not_invented():
    run = params.load(Path(__file__).parents[2] / "params" / "ssv2.yaml", data_root="not/here")
    planned = plan.plan(run, "a card of tomorrow")
    assert plan.hours(planned) is None
    assert plan.text(planned).count("not known: no extraction was measured") == 2


def test_it_is_the_size_of_the_store_that_is_then_made(dataset, monkeypatch):
    run = from_values(SMALL | {"token_type": "bf16", "views": 2, "batch_clips": 2})
    clips = [clip for clip in plan._clips(run) if clip.id != "a"]
    semantic, _ = plan.plan(run)
    assert semantic.clips == 3
    stream = partial(create_stream, "dinov2_tiny")
    monkeypatch.setattr("tcar.features.extraction.isolated_map", in_this_process)
    store = extract_one(clips, stream, dataset / "s", SegmentView(8), grid=[4, 2, 2], workers=1, batch_clips=2, views=2,
                        token_type="bf16", device="cpu:0")  # fmt: skip
    made = (store.root / "tokens.npy").stat().st_size
    assert made - store.start == semantic.bytes // 3 * 2  # one of the three clips is broken


def test_decoding_is_measured_here_and_an_extraction_speaks_for_itself(dataset, capsys, monkeypatch):
    monkeypatch.setattr("tcar.lab.plan.isolated_map", in_this_process)
    run = from_values(SMALL)
    assert plan.plan(run, measure=True)[0].decoding > 0
    folder = run.run_dir / "features" / "i3d_tiny-0123"
    folder.mkdir(parents=True)
    (folder / "store.meta.json").write_text('{"clips_per_second": 0.75, "device": "a card", "ranks": 4}')
    (dataset / "p.yaml").write_text("\n".join(f"{key}: {value}" for key, value in SMALL.items()))
    assert main(["plan", "p.yaml"]) == 0
    said = capsys.readouterr().out
    assert said.count("1 s at 3.0 clips/s, measured on a card in an earlier extraction of 4 process(es)") == 1
    assert said.index("motion: i3d_tiny") < said.index("3.0 clips/s")
    (folder / "store.meta.json").write_text("")
    assert main(["plan", "p.yaml"]) == 2 and "store.meta.json: not JSON" in capsys.readouterr().err


def test_streams_that_were_made_together_take_their_time_once(dataset):
    run = from_values(SMALL)
    for stream in ("i3d_tiny", "dinov2_tiny"):
        folder = run.run_dir / "features" / f"{stream}-0123"
        folder.mkdir(parents=True)
        made = {"clips_per_second": 0.5, "device": "a card", "ranks": 1, "stores": ["i3d_tiny-0", "dinov2_tiny-0"]}
        (folder / "store.meta.json").write_text(json.dumps(made))
    assert plan.hours(plan.plan(run)) == pytest.approx(3 / 0.5 / 3600)


def test_what_cannot_be_planned(project):
    with pytest.raises(FeatureError, match="no dataset to measure decoding with"):
        plan.plan(from_values({"dataset": "ssv2", "data_root": "nowhere"}), measure=True)
    with pytest.raises(ValueError, match="unheard"):
        plan.plan(dataclasses.replace(from_values({}), streams=StreamSettings(motion="unheard")))
