"""Rehearsals: an imitation in the official form, weights in the published layouts, and what the steps take."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import av
import held
import psutil
import pytest
import torch
from i3d_files import published_state
from i3d_files import weights as i3d_weights
from safetensors.torch import load_file

from tcar.__main__ import main
from tcar.data.ssv2 import flip_pairs
from tcar.lab import params, pipeline, results
from tcar.lab.real_plans import ALL_CLIPS
from tcar.lab.rehearsal import imitation, measuring, projection, rehearse, weights
from tcar.lab.rehearsal.measuring import Taken
from tcar.streams.i3d import I3DConfig
from tcar.streams.registry import create_stream
from tcar.tabletop.templates import LABELS

ROOT = Path(__file__).parents[2]
SSV2 = ROOT / "params" / "ssv2.yaml"
TINY = ("semantic=dinov2_tiny", "motion=i3d_tiny", 'semantic_checkpoint=""', 'motion_checkpoint=""', "motion_frames=16",
        "semantic_grid=[4,4,4]", "motion_grid=[2,4,4]", "fusion_width=64", "cross_width=0", "full_size_streams=[]",
        "quarantine_threshold=0.0")  # fmt: skip


def command(folder: Path, *options: str) -> list[str]:
    changes = [part for change in TINY for part in ("--set", change)]
    return [str(SSV2), str(folder), *changes, *options]


# ---- the imitation ----
def test_four_hundred_clips_show_every_class_and_are_shared_as_published():
    plans = imitation.planned(400, seed=0)
    assert len({plan.id for plan in plans}) == 400
    assert all(re.fullmatch(r"[1-9]\d{0,5}", plan.id) and int(plan.id) <= ALL_CLIPS for plan in plans)
    assert Counter(plan.split for plan in plans) == {"train": 306, "validation": 45, "test": 49}
    assert {plan.label for plan in plans if plan.split == "train"} == set(range(174))
    assert all(plan.shown == plan.label or plan.label not in LABELS for plan in plans)
    assert plans != imitation.planned(400, seed=1)


def test_labels_stand_where_the_official_list_has_them(shared):
    official = sorted(json.loads((shared / "ssv2" / "labels.json").read_text()).items(), key=lambda item: int(item[1]))
    texts = imitation.texts()
    assert len(set(texts)) == len(official) == 174
    assert [n for n, (text, _) in enumerate(official) if texts[n] == text] == sorted(LABELS)
    assert flip_pairs(texts) == flip_pairs([text for text, _ in official])


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("once") / "downloads"
    imitation.downloads(folder, 10, seed=3, workers=1)
    return folder


def unpacked(folder: Path) -> dict[str, bytes]:
    """The videos of the archive that comes in parts, by id."""
    parts = sorted(path for path in folder.iterdir() if not path.suffix)
    assert [path.name for path in parts] == [f"20bn-something-something-v2-{n:02d}" for n in range(20)]
    whole = b"".join(path.read_bytes() for path in parts)
    with tarfile.open(fileobj=io.BytesIO(whole), mode="r:gz") as archive:
        return {Path(m.name).stem: archive.extractfile(m).read() for m in archive if m.isfile()}


def test_downloads_are_those_of_the_publisher(downloads):
    videos = unpacked(downloads)
    with zipfile.ZipFile(downloads / imitation.LABELS_ZIP) as archive:
        labels, train, validation, test = (
            json.loads(archive.read(f"labels/{name}.json")) for name in ("labels", "train", "validation", "test")
        )
        answers = dict(row.split(";") for row in archive.read("labels/test-answers.csv").decode().splitlines())
    assert {entry["id"] for entry in train + validation + test} == videos.keys()
    assert all(entry.keys() == {"id"} and answers[entry["id"]] in labels for entry in test)
    for entry in train + validation:
        assert labels[entry["template"].replace("[", "").replace("]", "")]
        filled = re.sub(r"\[\w+\]", "{}", entry["template"], flags=re.IGNORECASE).format(*entry["placeholders"])
        assert filled.lower() == entry["label"].lower()
    for content in videos.values():
        with av.open(io.BytesIO(content)) as file:
            frames = list(file.decode(video=0))
            assert file.streams.video[0].codec_context.name in ("vp9", "libvpx-vp9")
        assert {(frame.width, frame.height) for frame in frames} == {(427, 240)}
        assert 24 <= len(frames) <= 72
    weight = sum(map(len, videos.values())) / len(videos)
    assert 0.5 < weight / (projection.FULL_BYTES / ALL_CLIPS) < 2


def test_a_call_that_was_cut_off_makes_the_same_downloads(downloads, tmp_path):
    """All clips but one are there; what was packed by half is packed anew."""
    rendered = tmp_path / "rendered" / imitation.STEM
    rendered.mkdir(parents=True)
    whole = unpacked(downloads)
    for name, content in list(whole.items())[1:]:
        (rendered / f"{name}.webm").write_bytes(content)
    (tmp_path / ".downloads").mkdir()
    (tmp_path / ".downloads" / f"{imitation.STEM}-00").write_bytes(b"cut off")
    imitation.downloads(tmp_path / "downloads", 10, seed=3, workers=1)
    assert not rendered.exists()
    assert unpacked(tmp_path / "downloads") == whole
    with zipfile.ZipFile(downloads / imitation.LABELS_ZIP) as one, zipfile.ZipFile(
        tmp_path / "downloads" / imitation.LABELS_ZIP
    ) as other:
        assert [one.read(name) for name in one.namelist()] == [other.read(name) for name in other.namelist()]


# ---- weights ----
def test_weights_have_the_published_names_and_load_strictly(tmp_path):
    stated = {"semantic": "dinov2_vits14", "semantic_checkpoint": str(tmp_path / "dinov2_vits14.safetensors"),
              "motion": "i3d_r50", "motion_checkpoint": str(tmp_path / "i3d_r50.pyth")}  # fmt: skip
    run = params.load(SSV2, **stated)
    assert len(weights.imitate(run, seed=0)) == 2
    network = torch.load(tmp_path / "i3d_r50.pyth", weights_only=True)["model_state"]
    published = published_state("pytorchvideo", i3d_weights(I3DConfig()))
    assert {key: value.shape for key, value in network.items()} == {k: v.shape for k, v in published.items()}
    motion = create_stream("i3d_r50", pretrained=True, checkpoint=stated["motion_checkpoint"])
    assert all(torch.equal(network[key], value) for key, value in motion.backbone.state_dict().items())
    semantic = load_file(tmp_path / "dinov2_vits14.safetensors")
    # As the Hub lists them for facebook/dinov2-small.
    assert semantic["embeddings.cls_token"].shape == (1, 1, 384)
    assert semantic["embeddings.position_embeddings"].shape == (1, 1370, 384)
    assert semantic["encoder.layer.11.layer_scale2.lambda1"].shape == (384,)
    image = create_stream("dinov2_vits14", pretrained=True, checkpoint=stated["semantic_checkpoint"])
    name = "encoder.layer.3.mlp.fc1.weight"
    assert torch.equal(image.backbone.state_dict()[name], semantic[name])
    clips = torch.randint(0, 256, (1, 8, 224, 224, 3), dtype=torch.uint8)
    for stream in (image, motion):
        values = stream(clips).values
        assert 1e-2 < values.std() < 1e3  # neither nothing nor what fp16 cannot hold


@pytest.mark.parametrize(("changes", "message"), [
    ({"motion": "videomae_vitb16", "motion_checkpoint": "x", "motion_frames": 16}, "videomae_vitb16 is not imitated"),
    ({"baselines": ["cast_b16"], "baseline_checkpoints": {"cast_b16.clip": "x"}}, "are not imitated"),
])  # fmt: skip
def test_what_is_not_imitated_is_one_error(tmp_path, changes, message):
    run = params.load(SSV2, semantic="dinov2_tiny", semantic_checkpoint="", **changes)
    with pytest.raises(params.ParameterError, match=message):
        weights.imitate(run, seed=0)


# ---- measuring ----
@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(measuring, "INTERVAL", 0.05)
    monkeypatch.setattr(measuring, "LOOKS", 2)


def test_memory_and_disk_of_a_tree_are_what_it_took(tmp_path, often):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "before").write_bytes(b"\1" * 5_000_000)
    notes = tmp_path / "notes.json"
    assert measuring.run_measured("held", ["0", str(tmp_path / "folder"), "3"], tmp_path / "folder", notes) == 3
    empty = measuring.taken(notes)
    assert measuring.run_measured("held", ["400", str(tmp_path / "folder"), "0"], tmp_path / "folder", notes) == 0
    found = measuring.taken(notes)
    assert not empty.finished
    assert found.finished
    assert (empty.attempts, found.attempts) == (1, 2)
    assert 380e6 < found.memory - empty.memory < 480e6
    assert found.seconds > empty.seconds + held.SECONDS
    assert held.LEFT <= found.disk < held.LEFT + 1e6  # the second attempt writes the same file again
    assert held.PASSING + held.LEFT <= found.most + 1e6 < held.PASSING + held.LEFT + 3e6


def test_what_processes_share_counts_once():
    if measuring.memory_kind() != "PSS":
        pytest.skip("this system does not tell what processes share")
    code = "import held, sys; sys.exit(held.forked([]))"
    started = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1] / "support")
    process, most = psutil.Process(started.pid), 0
    while started.poll() is None:
        if len(process.children()) == 1:
            most = max(most, measuring.memory(process))
        time.sleep(0.05)
    assert 200e6 < most < 300e6


def test_a_file_with_two_names_counts_once_and_a_hole_not_at_all(tmp_path):
    (tmp_path / "one").write_bytes(b"\1" * 1_000_000)
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(10**9)
    assert 1_000_000 <= measuring.occupied(tmp_path) < 1_100_000


def test_a_killed_measurement_ends_its_process_and_counts_when_it_goes_on(tmp_path):
    notes = tmp_path / "notes.json"
    code = (
        "from tcar.lab.rehearsal import measuring\nmeasuring.INTERVAL, measuring.LOOKS = 0.05, 1\n"
        "from pathlib import Path\n"
        f"measuring.run_measured('held', ['100', {str(tmp_path)!r}, '0'], None, Path({str(notes)!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1] / "support"), str(ROOT)])}
    started = subprocess.Popen([sys.executable, "-c", code], env=environment)
    while not (notes.is_file() and json.loads(notes.read_text())["memory"] > 100e6):
        time.sleep(0.05)
    children = psutil.Process(started.pid).children(recursive=True)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert children
    assert not alive
    before = measuring.taken(notes)
    assert not before.finished
    assert before.attempts == 1
    assert measuring.run_measured("held", ["2", str(tmp_path), "0"], tmp_path, notes) == 0
    after = measuring.taken(notes)
    assert after.finished
    assert after.attempts == 2
    assert after.memory >= before.memory
    assert after.seconds >= before.seconds + held.SECONDS


# ---- projecting ----
def test_what_grows_is_in_the_notebooks():
    """A function that is renamed would let its cells pass for fixed ones."""
    grown = {}
    for step in pipeline.TABLE:
        cells = json.loads((ROOT / "notebooks" / f"{step.name}.ipynb").read_text())["cells"]
        for source in ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"):
            grown.setdefault(step.name, set()).update(name for name in projection.GROWING if f"{name}(" in source)
    assert set().union(*grown.values()) == set(projection.GROWING)
    assert [name for name, found in grown.items() if not found] == ["02_fusion"]


def test_projection_multiplies_what_grows_and_nothing_else(tmp_path):
    whole = params.load(SSV2, epochs=30)
    run = params.load(SSV2, epochs=3, warmup_epochs=1, name="r", runs=str(tmp_path / "runs"))
    rehearsal = projection.Rehearsal(tmp_path, 400, 0, whole, run, ())
    notes = {"03_training": Taken(500.0, 500.0, 10**9, 7, 9, 1, True),
             "02_fusion": Taken(20.0, 20.0, 10, 5, 5, 2, True),
             "01_extractors": Taken(260.0, 160.0, 10**9, 10**9, 10**9, 2, True)}  # fmt: skip
    for name, found in notes.items():
        results.write(rehearsal.notes(name), asdict(found))
    durations = {"03_training": ("fit_all(run)", 400.0), "01_extractors": ("extract(run)", 100.0),
                 "02_fusion": ("y = extracted(x)", 3.0)}  # fmt: skip
    (run.run_dir / "notebooks").mkdir(parents=True)
    for name, (source, seconds) in durations.items():
        code = [{"cell_type": "code", "source": text, "metadata": {"papermill": {"duration": one}}, "outputs": [],
                 "execution_count": 1} for text, one in (("import x", 30.0), (source, seconds))]  # fmt: skip
        notebook = {"cells": code, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
        (run.run_dir / "notebooks" / f"{name}.ipynb").write_text(json.dumps(notebook))
    # Of the cell's 400 seconds, 350 were epochs.
    results.write(run.results_dir / "training.meta.json", {"extra": {"seconds": {"a": [200.0, 100.0], "b": [50.0]}}})
    share = ALL_CLIPS / 400
    projected = {name: projection.row(rehearsal, name)["projected"] for name in notes}
    assert projected["02_fusion"] == {"seconds": 20.0, "memory": 10, "disk": 5, "passing": 0}
    assert projected["03_training"]["seconds"] == pytest.approx(150 + 350 * share * 10)
    # two attempts with 60 seconds each that do not grow
    assert projected["01_extractors"]["seconds"] == pytest.approx(120 + 140 * share)
    # 588 tokens: 392 of 384 numbers, 196 of 2,048, two bytes each
    assert projected["01_extractors"]["disk"] - 10**9 == pytest.approx(
        (ALL_CLIPS - 400) * 2 * (392 * 384 + 196 * 2048), rel=1e-6
    )


@pytest.fixture
def short():
    """A folder whose path is short enough for the sockets of temporary files in it."""
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as folder:
        yield Path(folder)


# ---- the command ----
def here(arguments: list[str], notes: Path) -> int:
    """Run a step in this process, which has imported all that takes long."""
    began = time.monotonic()
    status = main(arguments)
    seconds = time.monotonic() - began
    results.write(notes, asdict(Taken(seconds, seconds, memory=1, attempts=1, finished=status == 0)))
    return status


def test_tiny_rehearsal(short, downloads, capfd, monkeypatch):
    def run_measured(module: str, arguments: list[str], folder: Path, notes: Path) -> int:
        if arguments[0] == "prepare":
            return measuring.run_measured(module, arguments, folder, notes)
        return here(arguments, notes)

    monkeypatch.setattr(rehearse, "run_measured", run_measured)
    monkeypatch.setattr("tcar.lab.doctor.INSTALLATION", {})  # is that of any run
    monkeypatch.setenv("TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    monkeypatch.chdir(ROOT)
    shutil.copytree(downloads, short / "r" / "downloads")
    arguments = command(short / "r", "--clips", "10", "--seed", "3", "--until", "00_data_audit")
    assert main(["rehearse", *arguments]) == 0
    said = capfd.readouterr().out
    assert "10 clips of 220,847" in said
    assert "epochs: 3, not 30" in said
    run = params.load(short / "r" / "ssv2-rehearsal.yaml")
    given = params.load(SSV2, **params.changes(TINY)).as_dict()
    own = {"name", "runs", "figures", "data_root", "epochs", "warmup_epochs", "precision"}
    assert {key: value for key, value in run.as_dict().items() if key not in own} == {
        key: value for key, value in given.items() if key not in own
    }
    audit = results.load(run.results_dir / "audit.json")
    assert sum(audit["clips"].values()) == 10
    assert len(audit["classes"]) == 174
    written = results.load(short / "r" / "rehearsal.json")
    assert [row["step"] for row in written["steps"]] == list(projection.STEPS[:4])
    for row in written["steps"]:
        assert row["seconds"] > 0
        assert row["memory"] > 0
    assert results.load(short / "r" / "rehearsal.meta.json")["parameters"]["name"] == "ssv2-rehearsal"
    assert main(["rehearse", *arguments]) == 0
    assert "== " not in capfd.readouterr().out
    assert results.load(short / "r" / "rehearsal.json")["steps"] == written["steps"]
    assert main(["rehearse", *command(short / "r", "--clips", "11")]) == 2
    assert "holds another rehearsal" in capfd.readouterr().err


def test_epochs_that_are_asked_for_are_the_rehearsal_s_and_not_what_is_projected_to(short):
    changes = params.changes([*TINY, "epochs=2", "learning_rate=1.0e-3"])
    made = rehearse.begin(SSV2, short, 10, 0, changes)
    assert (made.run.training.epochs, made.run.training.warmup_epochs, made.whole.training.epochs) == (2, 1, 30)
    assert {"epochs: 2, not 30", "warmup_epochs: 1, not 3"} <= set(made.reduced)
    assert made.whole.training.learning_rate == made.run.training.learning_rate == 1e-3


@pytest.mark.parametrize(("options", "message"), [
    (["params/smoke.yaml", "{}"], "dataset is 'tabletop'"),
    (["params/ssv2.yaml", "{}", "--clips", "4"], "--clips 4: each split needs one"),
    (["params/ssv2.yaml", "{}", "--set", "epochs"], "not of the form key=value"),
    (["params/ssv2.yaml", "{}", "--set", "epoch=3"], "unknown parameter 'epoch', did you mean 'epochs'"),
    (["params/ssv2.yaml", "{}" + "/x" * 40], "too long a path"),
])  # fmt: skip
def test_what_cannot_be_rehearsed_is_one_error(short, capsys, monkeypatch, options, message):
    monkeypatch.setenv("TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    monkeypatch.chdir(ROOT)
    assert main(["rehearse", *(option.format(short) for option in options)]) == 2
    assert message in capsys.readouterr().err
