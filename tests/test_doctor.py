"""The doctor finds what is wrong, says how to mend it, and looks at everything else as well."""

import importlib.metadata
import sys
from pathlib import Path

import numpy as np
import pytest

from tcar import doctor, params
from tcar.doctor import FAULT, OK, REMARK, Finding
from tcar.params import Params


def states(findings) -> dict[str, str]:
    return {finding.subject: finding.state for finding in findings}


def test_a_tiny_clip_goes_through_both_decoders():
    found = list(doctor.check_decoders())
    assert [f.subject.split()[0] for f in found] == ["PyAV", "decord"]
    assert {f.state for f in found} == {OK}


def test_a_decoder_that_drops_or_spoils_frames_is_a_fault():
    frames = [np.full((4, 4, 3), 20 * i, np.uint8) for i in range(5)]
    assert doctor._compared("decord", frames, frames).state == OK
    assert "4 of 5" in doctor._compared("decord", frames, frames[:-1]).detail
    assert doctor._compared("decord", frames, frames[::-1]).state == FAULT


def test_a_package_that_is_not_as_pinned_is_named(monkeypatch):
    installed = {"torch": "2.13.0+cpu", "numpy": "1.0"}

    def version(name):
        if name in installed:
            return installed[name]
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    pins = ["torch==2.13.0", "numpy==2.4.6", 'timm==1.0.31 ; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: pins)
    (finding,) = [f for f in doctor.check_python() if f.subject == "packages"]
    assert finding.state == FAULT
    assert finding.detail == "numpy is 1.0, not 2.4.6; timm is missing"


def test_the_real_dataset_is_found_or_said_to_be_missing(project):
    run = params.from_values({"dataset": "ssv2", "data_root": "ssv2"})
    (finding,) = doctor.check_dataset(run)
    assert finding.state == FAULT
    assert "no such folder" in finding.detail
    assert "data_root" in finding.fix
    assert "tcar.data.prepare" in finding.fix
    (project / "ssv2" / "videos").mkdir(parents=True)
    assert "no labels.json" in next(doctor.check_dataset(run)).detail
    (project / "ssv2" / "labels.json").write_text("{}")
    assert next(doctor.check_dataset(run)).state == FAULT
    (project / "ssv2" / "videos" / "1.webm").touch()
    assert next(doctor.check_dataset(run)).state == OK
    assert "1 videos" in next(doctor.check_dataset(run)).detail


def test_tabletop_needs_nothing(project):
    assert states(doctor.check_dataset(Params())) == {"dataset": OK}


def test_checkpoints_are_found_or_said_to_be_missing(project):
    values = {"semantic": "dinov2_vits14", "semantic_checkpoint": "w.safetensors", "motion": "nothing_r50"}
    semantic, motion = doctor.check_checkpoints(params.from_values(values))
    assert (semantic.state, motion.state) == (FAULT, FAULT)
    assert "w.safetensors" in semantic.detail and "tcar.models.fetch" in semantic.fix
    assert "no such stream" in motion.detail
    assert "i3d_r50" in motion.fix
    (project / "w.safetensors").touch()
    semantic, _ = doctor.check_checkpoints(params.from_values(values))
    assert semantic.state == OK


def test_a_full_disk_and_little_memory_are_seen(project, monkeypatch):
    assert states(doctor.check_machine(Params())).keys() == {"CPU", "memory", "disk"}
    usage = type("usage", (), {"free": 10**8})
    memory = type("memory", (), {"total": 4 * doctor.GIB, "available": doctor.GIB})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: memory)
    found = states(doctor.check_machine(Params()))
    assert (found["disk"], found["memory"]) == (FAULT, REMARK)


def test_torch_and_its_neighbours_import():
    assert {s for k, s in states(doctor.check_torch()).items() if k != "torch"} == {OK}


def test_a_kernel_of_another_python_is_a_remark_with_its_fix(project, monkeypatch):
    folder = project / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text('{"argv": ["/opt/other/bin/python"], "display_name": "x"}')
    monkeypatch.setenv("JUPYTER_PATH", str(project / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    (finding,) = doctor.check_jupyter()
    assert finding.state == REMARK
    assert "/opt/other/bin/python" in finding.detail
    assert sys.executable in finding.fix


def test_the_compiler_of_the_paper_works():
    assert states(doctor.check_typst()) == {"typst": OK}


def test_a_check_that_dies_is_a_fault_and_the_others_still_run(project, monkeypatch, capsys):
    quick = {"check_torch", "check_accelerator", "check_decoders", "check_jupyter", "check_checkpoints"}
    for name in quick:
        monkeypatch.setattr(doctor, name, lambda *_: iter([Finding("quick", OK, "")]))
    monkeypatch.setattr(doctor, "check_python", lambda: iter([Finding("Python", OK, "3.11")]))
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.endswith("ready\n")

    def broken():
        raise OSError("libstdc++ is missing")
        yield

    monkeypatch.setattr(doctor, "check_torch", broken)
    assert doctor.main([]) == 1
    output = capsys.readouterr().out
    assert "OSError: libstdc++ is missing" in output
    assert "make setup" in output
    assert output.index("torch") < output.index("typst")
    assert output.endswith("1 fault\n")


def test_a_fix_stands_only_under_what_is_not_ok():
    assert "->" not in doctor.lines(Finding("disk", OK, "9 GiB", "free some"))
    assert doctor.lines(Finding("disk", REMARK, "1 GiB", "free some")).endswith("-> free some")
    assert "\x1b" not in doctor.lines(Finding("disk", FAULT, "0 GiB", "free some"))
    assert "\x1b[31" in doctor.lines(Finding("disk", FAULT, "0 GiB", "free some"), coloured=True)


@pytest.mark.parametrize("name", ["nope.yaml"])
def test_a_missing_parameter_file_is_one_line(project, capsys, name):
    assert doctor.main([name]) == 1
    assert capsys.readouterr().out.startswith(f"error: {Path(name)}: no such parameter file")
