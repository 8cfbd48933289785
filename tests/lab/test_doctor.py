"""The doctor finds what is wrong, says how to mend it, and looks at everything else as well."""

import errno
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from archive_files import VIDEOS, annotations, bare, labels_zip, write
from hub_files import hub_cache

from tcar.__main__ import command
from tcar.lab import doctor, params
from tcar.lab.demand import sizes
from tcar.lab.doctor import fitness, installation
from tcar.lab.doctor.finding import FAULT, GIB, OK, REMARK, Finding
from tcar.lab.params import Params
from tcar.streams import packaged
from tcar.tabletop import dataset


def states(findings) -> dict[str, str]:
    return {finding.subject: finding.state for finding in findings}


def test_a_tiny_clip_goes_through_both_decoders():
    found = list(installation.check_decoders())
    assert [f.subject.split()[0] for f in found] == ["PyAV", "decord"]
    assert {f.state for f in found} == {OK}


def test_a_decoder_that_drops_or_spoils_frames_is_a_fault():
    frames = np.stack([np.full((4, 4, 3), 20 * i, np.uint8) for i in range(5)])
    assert installation.compared("decord", frames, frames).state == OK
    assert "4 of 5" in installation.compared("decord", frames, frames[:-1]).detail
    assert installation.compared("decord", frames, frames[::-1]).state == FAULT


def test_a_package_that_is_not_as_pinned_is_named(monkeypatch):
    installed = {"torch": "2.13.0+cpu", "numpy": "1.0"}

    def version(name):
        if name in installed:
            return installed[name]
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    pins = ["torch==2.13.0", "numpy==2.4.6", 'timm==1.0.31 ; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: pins)
    (finding,) = [f for f in installation.check_python() if f.subject == "packages"]
    assert finding.state == FAULT
    assert finding.detail == "numpy is 1.0, not 2.4.6; timm is missing"


def found_in(**values) -> tuple[str, str, str]:
    """State, detail and fix of the dataset in the folder ssv2."""
    found = fitness.check_dataset(params.from_values({"dataset": "ssv2", "data_root": "ssv2"} | values))
    finding = next(finding for finding in found if finding.subject == "dataset")
    return finding.state, finding.detail, finding.fix


def test_a_test_split_without_answers_is_found_before_the_audit(project):
    """Notebook 01 would refuse it, hours later."""
    write(project / "ssv2", annotations() | {"test-answers.csv": b""})
    run = params.from_values({"dataset": "ssv2", "data_root": "ssv2"})
    found = {finding.subject: finding for finding in fitness.check_dataset(run)}
    assert found["test split"].state == FAULT
    assert "test-answers.csv (id;template)" in found["test split"].fix
    assert not {"train split", "validation split"} & set(found)


def test_a_dataset_that_is_not_there_is_said_to_be_missing(project):
    state, detail, fix = found_in()
    assert state == FAULT
    assert "no such dataset folder; set data_root" in detail
    assert "tcar prepare" in fix
    (project / "ssv2" / "videos").mkdir(parents=True)
    assert "no labels.json" in found_in()[1]
    write(project / "ssv2", {name: content for name, content in annotations().items() if name != "test.json"})
    assert "no test.json" in found_in()[1]


def test_a_dataset_made_by_hand_is_compared_with_its_lists(project):
    write(project / "ssv2", annotations())
    (project / "ssv2" / "videos").mkdir()
    state, detail, fix = found_in()
    assert state == FAULT
    assert detail.endswith("0 videos, 60 listed, 60 missing, never prepared")
    assert "videos/" in fix and "tcar prepare" in fix
    write(project / "ssv2" / "videos", {f"{video}.webm": content for video, content in list(VIDEOS.items())[1:]})
    assert found_in(quarantine_threshold=0.02)[0] == REMARK  # 1 of 60 is less than the audit bears with
    assert found_in(quarantine_threshold=0.01)[0] == FAULT
    write(project / "ssv2" / "videos", {f"{video}.webm": content for video, content in VIDEOS.items()})
    assert found_in()[:2] == (OK, f"{project / 'ssv2'}: 60 videos, 60 listed, complete")


def test_a_dataset_that_was_cut_off_is_told_from_one_that_lacks_videos(project):
    (project / "downloads").mkdir()
    whole = bare()
    write(project / "downloads", {name: whole[name] for name in list(whole)[:9]} | labels_zip())
    assert command("prepare", ["downloads", "ssv2"]) == 1
    state, detail, fix = found_in()
    assert state == FAULT
    assert "missing, cut off midway: 20bn-something-something-v2- has not come to its end" in detail
    assert f"`tcar prepare DOWNLOADS {project / 'ssv2'}`, with the same folder" in fix
    write(project / "downloads", whole)
    assert command("prepare", ["downloads", "ssv2"]) == 0
    assert found_in()[0] == OK
    lost = project / "ssv2" / "videos" / f"{next(iter(VIDEOS))}.webm"
    lost.unlink()
    state, detail, fix = found_in()
    assert (state, detail.rpartition(", ")[2]) == (REMARK, "1 missing")
    assert "prepare.json" in fix
    (project / "ssv2" / "prepare.json").unlink()  # it was killed while it linked videos
    assert "1 missing, cut off midway" in found_in()[1]


def test_the_demo_needs_no_dataset_no_download_and_little_memory(project, monkeypatch):
    memory = type("memory", (), {"total": 4 * GIB, "available": GIB})
    monkeypatch.setattr(fitness.psutil, "virtual_memory", lambda: memory)
    run = params.from_values({"device": "cpu", "workers": 2, "batch_clips": 8})
    assert states(fitness.check_dataset(run)) == {"dataset": OK}
    assert states(fitness.check_checkpoints(run)) == {"semantic stream": OK, "motion stream": OK}
    assert list(fitness.check_baselines(run)) == []
    assert set(states(fitness.check_memory(run)).values()) == {OK}


def test_checkpoints_are_found_or_said_to_be_missing(project):
    values = {"semantic": "dinov2_vits14", "semantic_checkpoint": "w.safetensors", "motion": "i3d_r50"}
    semantic, motion = fitness.check_checkpoints(params.from_values(values))
    assert (semantic.state, motion.state) == (FAULT, FAULT)
    assert "w.safetensors" in semantic.detail and "tcar fetch" in semantic.fix
    assert "I3D_8x8_R50" in motion.detail and "tcar fetch" in motion.fix
    (project / "w.safetensors").touch()  # a download that was cut off
    semantic, _ = fitness.check_checkpoints(params.from_values(values))
    assert semantic.state == FAULT and "semantic_checkpoint" in semantic.fix


def test_weights_are_opened_and_those_of_another_stream_refused(project):
    weights = packaged.WEIGHTS
    own, other = (str(weights / f"{name}.safetensors") for name in ("dinov2_tiny", "i3d_tiny"))
    for file, state in ((own, OK), (other, FAULT)):
        semantic, _ = fitness.check_checkpoints(params.from_values({"semantic_checkpoint": file}))
        assert semantic.state == state, semantic


def test_the_weights_of_baselines_are_looked_for_like_those_of_streams(project, cache):
    values = {"baselines": ["cast_b16", "timesformer_vitb16"], "baseline_checkpoints": {
        "cast_b16.clip": "openai/clip-vit-base-patch16", "timesformer_vitb16": "weights"}}  # fmt: skip
    clip, videomae, timesformer = fitness.check_baselines(params.from_values(values))
    assert {f.state for f in (clip, videomae, timesformer)} == {FAULT}
    assert clip.detail == "cast_b16.clip: openai/clip-vit-base-patch16 in the cache of the Hub is missing"
    assert "tcar fetch" in clip.fix
    assert "no parameter names it" in videomae.detail
    assert "baseline_checkpoints: {cast_b16.videomae: MCG-NJU/videomae-base-finetuned-ssv2}" in videomae.fix
    assert timesformer.detail == "timesformer_vitb16: weights is missing"
    write(project / "weights", {"model.safetensors": b"1", "config.json": b"{}"})
    hub_cache(cache, "openai/clip-vit-base-patch16", {"model.safetensors": b"1"})
    assert [f.state for f in fitness.check_baselines(params.from_values(values))] == [OK, FAULT, OK]


@pytest.fixture
def free(monkeypatch):
    """Set how many bytes are free on every disk."""

    def call(size):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: type("usage", (), {"free": int(size)}))

    return call


def disks(run):
    return {finding.subject: finding for finding in fitness.check_disks(run)}


def test_a_disk_is_measured_against_what_this_parameter_file_writes(project, free):
    """One gigabyte, the clips, and their tokens, of which the small streams have few."""
    small = {"classes": [42, 40], "train_sets": 2, "validation_sets": 2, "test_sets": 2, "control_sets": 1}
    run = params.from_values(small)
    clips = sum(len(planned.ids) for planned in dataset.plan_sets(
        dataset.chosen_families([42, 40]), dict.fromkeys(dataset.SPLITS, 2), 0))  # fmt: skip
    tokens = clips * 2 * (64 * 128 + 32 * 128)  # of the demo's grids and widths, two bytes a number
    fits = sizes.checkpoint_bytes(run)
    learned = 2 * clips // 3  # of training and validation
    table = learned * 4 * 4 * 128  # one stream's moments, four of 128 numbers of four bytes
    again = 6 * 2  # a set of two clips under each of six controls
    tokens += again * (64 * 128 + 32 * 128) * 2 + again * 40_000
    needed = 10**9 + 40_000 * clips + tokens + fits + table
    free(needed)
    assert disks(run)["disk"].state == OK
    free(needed - 1)
    assert disks(run)["disk"].state == FAULT and "runs:" in disks(run)["disk"].fix
    cached = disks(params.from_values(small | {"frame_cache_gb": 6.0}))["disk"]
    assert cached.state == FAULT and "6.0 GB of frames" in cached.fix
    (run.run_dir / "data").mkdir(parents=True)
    (run.run_dir / "data" / "made").write_bytes(bytes(40_000 * clips))
    free(10**9 + tokens + fits + table)
    assert disks(run)["disk"].state == OK, "what is there already is not needed again"


def test_the_published_set_wants_the_hundreds_of_gigabytes_of_its_tokens(project, free):
    values = {"dataset": "ssv2", "data_root": "nowhere", "semantic": "dinov2_vitb14", "semantic_grid": [8, 4, 4],
              "methods": ["cross_attention"], "ablation_heads": [], "ablation_fusions": []}  # fmt: skip
    free(44e9)
    found = disks(params.from_values(values))["disk"]
    assert found.state == FAULT  # 128 places of 768 numbers of two bytes, of 220,847 clips: 43 GB for one stream alone
    assert re.search(r"(4[3-9]|[5-9][0-9])\.[0-9] GB of features", found.fix)


def test_a_small_or_wrong_folder_for_temporary_files_is_seen(project, free, monkeypatch, tmp_path):
    free(20e6)
    found = disks(Params())["temporary files"]
    assert found.state == FAULT and "TMPDIR" in found.fix
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    free(1e12)
    assert disks(Params())["TMPDIR"].state == REMARK
    (deep := tmp_path / ("x" * 90)).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    monkeypatch.setenv("TMPDIR", str(deep))
    assert "at most" in disks(Params())["TMPDIR"].fix


def refuse(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_folders_that_may_only_be_read_are_named_with_what_to_set(project, monkeypatch):
    assert set(states(installation.check_system()).values()) == {OK}
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("multiprocessing.context.BaseContext.Lock", refuse)
    workers, *caches = installation.check_system()
    assert workers.state == FAULT and "/dev/shm" in workers.fix and "Read-only file system" in workers.detail
    assert [finding.state for finding in caches] == [REMARK, REMARK, FAULT]
    for finding, variable in zip(caches, ("MPLCONFIGDIR", "IPYTHONDIR", "NUMBA_CACHE_DIR"), strict=True):
        assert variable in finding.fix
    assert {finding.state for finding in disks(Params()).values()} == {FAULT}


def test_torch_and_its_neighbours_import():
    # Of another build than torch is a torchvision that imports with the repair of tcar alone: then the doctor says so.
    with subprocess.Popen([sys.executable, "-c", "import torchvision"], stderr=subprocess.DEVNULL) as bare:
        found = states(installation.check_torch())
    assert found["models"] == OK
    assert found["torchvision"] == (REMARK if bare.returncode else OK)


def test_a_kernel_of_another_python_is_a_remark_with_its_fix(project, monkeypatch):
    folder = project / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text('{"argv": ["/opt/other/bin/python"], "display_name": "x"}')
    monkeypatch.setenv("JUPYTER_PATH", str(project / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    (finding,) = installation.check_jupyter()
    assert finding.state == REMARK
    assert "/opt/other/bin/python" in finding.detail
    assert sys.executable in finding.fix


def test_the_compiler_of_the_paper_works():
    assert states(installation.check_typst()) == {"typst": OK}


def test_a_check_that_dies_is_a_fault_and_the_others_still_run(project, monkeypatch, capsys):
    for checks in (doctor.INSTALLATION, doctor.FITNESS):
        for name in checks:
            monkeypatch.setitem(checks, name, lambda *_, name=name: iter([Finding(name, OK, "")]))
    monkeypatch.setattr(fitness, "check_hours", lambda *_: iter(()))
    assert command("doctor", []) == 0
    assert capsys.readouterr().out.endswith("ready\n")

    def broken():
        raise OSError("libstdc++ is missing")
        yield

    monkeypatch.setitem(doctor.INSTALLATION, "torch", broken)
    assert command("doctor", []) == 1
    output = capsys.readouterr().out
    assert "OSError: libstdc++ is missing" in output
    assert "make setup" in output
    assert output.index("torch") < output.index("typst")
    assert output.endswith("1 fault\n")


def test_a_fix_stands_only_under_what_is_not_ok():
    assert "->" not in Finding("disk", OK, "9 GiB", "free some").text()
    assert Finding("disk", REMARK, "1 GiB", "free some").text().endswith("-> free some")
    assert "\x1b" not in Finding("disk", FAULT, "0 GiB", "free some").text()
    assert "\x1b[31" in Finding("disk", FAULT, "0 GiB", "free some").text(coloured=True)


def test_a_missing_parameter_file_is_one_line(project, capsys):
    assert command("doctor", ["nope.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: nope.yaml: no such parameter file")
