"""What is chosen is what plays, what cannot be shown is one line, and looking writes nothing."""

import base64
import io
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import twins
from clip_files import write_clip
from PIL import Image
from videos import write_video

from tcar.data.ssv2 import SPLITS, Clip, DatasetError, load_split
from tcar.data.video import probe
from tcar.explain.methods import CELLS
from tcar.lab import browsing, exploring, params, results
from tcar.lab.browsing import ClipPicker
from tcar.lab.exploring import ANOTHER, OWN, Explorer, WrongClips
from tcar.lab.steps.clips import healthy_clips
from tcar.lab.steps.studies import wrong_clips
from tcar.tabletop.dataset import load_index

VALUES = {"name": "t", "classes": twins.CLASSES, "train_sets": 1, "validation_sets": 1, "test_sets": 2,
          "lengths": [24], "seed": 3, "device": "cpu"}  # fmt: skip


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A project with a run of a few twins, as notebooks 00 and 03 leave one."""
    root = tmp_path_factory.mktemp("project")
    (root / "pyproject.toml").write_text('[project]\nname = "tcar"\n')
    run = replace(params.from_values(VALUES), root=root)
    twins.rendered(run.data_root)
    model = twins.model(run.data_root)
    model.save_pretrained(run.run_dir / "model")
    audit = {"quarantined": [], "classes": list(model.config.class_names)}
    results.save(run.results_dir / "audit.json", audit, params=run)
    return run


@pytest.fixture
def run(rendered, monkeypatch):
    monkeypatch.chdir(rendered.root)
    return rendered


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its size and when it was written."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


@pytest.fixture
def untouched(run):
    before = everything(run.root)
    yield
    assert everything(run.root) == before


def browser_of(run):
    names = results.load(run.results_dir / "audit.json")["classes"]
    return browsing.clip_browser(run, {split: load_split(run.data_root, split) for split in SPLITS}, names)


def named(browser) -> list[str]:
    return [clip["name"] for clip in browser.stage.viewer.contents["clips"]]


@pytest.mark.usefixtures("untouched")
def test_a_clip_of_tabletop_plays_beside_its_twin_with_what_is_known(run):
    browser, index = browser_of(run), load_index(run.data_root)
    browser.picker.split.value = "test"
    first = browser.picker.clip.id
    assert index[first]["split"] == "test"
    assert named(browser) == [first, index[first]["twin"]]
    shown = browser.stage.contents
    assert shown.answers == {} and shown.title == index[first]["class"] and shown.group == "bound"
    assert {"mover", "hand"} <= shown.clips[0].roles.keys() and shown.clips[0].events
    assert shown.clips[0].decisive.any() and shown.footer.synthetic and not shown.footer.remarks
    second = browser.picker.listed.options[1][1]
    browser.picker.listed.value = second
    assert named(browser)[0] == second.id != first
    data = browser._repr_mimebundle_()
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).format == "PNG"


@pytest.mark.usefixtures("untouched")
def test_a_class_without_clips_and_ids(run):
    browser, index = browser_of(run), load_index(run.data_root)
    picker = browser.picker
    picker.kind.value = 2  # of the model alone
    assert picker.clip is None and browser.stage.viewer is None and browser.stage.contents is None
    assert picker.note.value == "No clip of this class in train."
    wanted = next(clip for clip, told in index.items() if told["split"] == "validation")
    picker.id.value = wanted
    assert named(browser)[0] == wanted and picker.split.value == "validation"
    assert picker.listed.value.id == wanted and picker.kind.value == picker.clip.label
    picker.id.value = "<b>none</b>"
    assert "&lt;b&gt;none" in picker.note.value and named(browser)[0] == wanted
    picker.group.value = "bound"
    assert [value for _, value in picker.kind.options] == [0, 1]


def test_settings_that_draw_other_clips_are_a_remark_and_no_outline(run):
    other = params.from_values(VALUES | {"lengths": [32], "data_root": str(run.data_root)})
    browser = browser_of(other)
    assert browser.stage.contents.clips[0].decisive is None
    assert "not what these settings draw" in browser.stage.contents.footer.remarks[0]


@pytest.fixture
def real(project):
    """A dataset without ground truth: five clips of a class, none of the other, and one that is no video."""
    run = params.from_values({"name": "r", "dataset": "ssv2", "data_root": "data"})
    (run.data_root / "videos").mkdir(parents=True)
    clips = [Clip(str(n), run.data_root / "videos" / f"{n}.webm", 0, "", "", ()) for n in range(5)]
    for clip in clips[:4]:
        write_clip(clip.path, (170, 90, 90), seed=int(clip.id))
    clips[4].path.write_bytes(b"no video")
    return run, clips


def test_of_a_real_clip_the_frames_alone_are_shown(real):
    run, clips = real
    browser = browsing.clip_browser(run, {"train": clips}, ["Moving something down", "Moving something up"])
    assert named(browser) == ["0"] and not browser.stage.contents.footer.synthetic
    assert browser.stage.contents.clips[0].masks() == {} and browser.stage.contents.clips[0].events == ()
    assert len(browser.picker.children[0].children) == 1  # no groups to choose
    browser.picker.listed.value = clips[4]
    assert browser.stage.viewer is None and browser.stage.line.value.startswith("4.webm: not a video")
    browser.picker.listed.value = clips[1]
    assert named(browser) == ["1"] and browser.stage.line.value == ""


def test_of_very_many_clips_few_are_listed_and_only_the_chosen_is_read(real, monkeypatch):
    run, (real_clip, *_) = real
    read = []
    monkeypatch.setattr(browsing, "probe", lambda path: read.append(path.stem) or probe(path))
    many = [Clip(str(n), real_clip.path.with_name(f"{n}.webm"), n % 2, "", "", ()) for n in range(4_000)]
    browser = browsing.clip_browser(run, {"train": many}, ["down", "up"])
    assert read == ["0"] and len(browser.picker.listed.options) == browsing.LISTED
    assert browser.picker.note.value == "The first 50 of 2,000 clips; the others by their id."
    assert browser.picker.kind.options[0][0] == "down (2,000)"
    browser.picker.id.value = "3003"
    assert browser.picker.clip.id == "3003" and browser.picker.kind.value == 1
    assert browser.stage.line.value.startswith("3003.webm: missing")
    assert len(browser.picker.listed.options) == browsing.LISTED + 1


def test_what_a_split_lacks_is_said_and_another_can_be_chosen(real):
    _, clips = real

    def of_split(split):
        if split == "test":
            raise DatasetError("no clip of test has a known class")
        return clips

    picker = ClipPicker(["test", "train"], of_split, ["down"])
    assert picker.clip is None and "known class" in picker.note.value
    picker.split.value = "train"
    assert picker.clip.id == "0"
    assert picker.find("3")[0] == "train"


def test_a_clip_without_a_class(real):
    run, clips = real
    browser = browsing.clip_browser(run, {"test": [Clip("0", clips[0].path, None, "", "", ())]}, ["down"])
    assert browser.stage.line.value == "" and browser.picker.clip is None
    browser.picker.kind.value = browsing.UNKNOWN
    assert named(browser) == ["0"] and browser.stage.contents.title == "0"


@pytest.mark.usefixtures("untouched")
def test_wrong_clips_open_from_the_confusion_matrix(run):
    clips = healthy_clips(run, "test")["test"]
    ids, labels = [clip.id for clip in clips], np.array([clip.label for clip in clips])
    said = labels.copy()
    said[labels == 0] = [1, 2]  # of this class, one clip as each of the others
    found = wrong_clips(run, said, labels, ids)
    view = WrongClips(run, found)
    assert view.stage.viewer is None  # nothing is asked of the model unasked
    assert [pair for _, pair in view.pair.options] == list(found)
    view.pair.value = pair = list(found)[-1]
    assert list(view.clip.options) == [(clip, clip) for clip in found[pair]]
    view.button.click()
    shown = view.stage.contents
    assert view.stage.line.value == "" and shown.clips[0].name == f"{found[pair][0]}.webm"
    assert (shown.target, shown.against) == (pair[1], pair[0]) and len(shown.clips) == 2
    assert {one.method for one in shown.clips[0].maps} == {
        "Exchanged cells", "Attention rollout", "Gradient-weighted rollout",
    }  # fmt: skip
    data = view._repr_mimebundle_()
    assert pair[1] in data["text/html"] and "<td>1</td>" in data["text/html"]
    view.pair.value = list(found)[0]
    assert view.stage.viewer is None


def test_no_clip_is_wrong(run):
    view = WrongClips(run, {})
    assert view.button.disabled and "No clip is named wrongly" in view._repr_mimebundle_()["text/html"]


def given(path: Path, name: str = "") -> tuple[dict]:
    """What a browser sends of a file."""
    content = path.read_bytes()
    about = {"type": "video/webm", "size": len(content), "last_modified": datetime.now(UTC)}
    return ({"name": name or path.name, "content": memoryview(content), **about},)


@pytest.mark.usefixtures("untouched")
def test_exploring_a_clip_of_the_run(run):
    explorer, index = Explorer(), load_index(run.data_root)
    assert explorer.run.options == ("t",) and explorer.stage.viewer is None
    assert explorer.params.tabletop == run.tabletop and explorer.picker.split.value == "test"
    assert explorer._found.layout.display == "none"
    explorer.methods.value = ("rollout",)
    explorer.button.click()
    clip = explorer.picker.clip.id
    assert explorer.stage.line.value == ""
    shown = explorer.stage.viewer.contents
    assert [one["name"] for one in shown["clips"]] == [f"{clip}.webm", f"{index[clip]['twin']}.webm"]
    assert {one["method"] for one in shown["clips"][0]["maps"]} == {"Attention rollout"}
    for swap, answers in explorer.study.answers.items():
        explorer.exchanged.value = swap
        assert answers[0][0] in explorer.told.value and f"({answers[0][1]:.0%})" in explorer.told.value
    explorer.moment.value = 0.5
    assert explorer.stage.viewer.frame == 12
    explorer.stage.viewer.frame = 20
    assert explorer.moment.value == pytest.approx(20.5 / 24)
    explorer.moment.value = 1.0
    assert explorer.stage.viewer.frame == 23


@pytest.mark.usefixtures("untouched")
def test_classes_and_another_clip(run):
    explorer = Explorer()
    explorer.methods.value = ("rollout",)
    names = results.load(run.results_dir / "audit.json")["classes"]
    explorer.target.value, explorer.against.value = names[2], names[0]
    explorer.other.value = ANOTHER
    assert not explorer.other_id.disabled
    explorer.button.click()
    assert "No other clip is chosen" in explorer.stage.line.value and explorer.study is None
    own = load_index(run.data_root)[explorer.picker.clip.id]
    explorer.other_id.value = next(
        one for one, told in load_index(run.data_root).items() if told["split"] == "test" and told["set"] != own["set"]
    )
    explorer.button.click()
    assert explorer.stage.contents.clips[1].name == f"{explorer.other_id.value}.webm"
    assert (explorer.stage.contents.target, explorer.stage.contents.against) == (names[2], names[0])
    explorer.target.value = names[0]
    explorer.button.click()
    assert "give another class" in explorer.stage.line.value and explorer.stage.viewer is None
    explorer.picker.kind.value = 2
    explorer.button.click()
    assert "No clip is chosen" in explorer.stage.line.value


@pytest.mark.usefixtures("untouched")
def test_a_video_of_one_s_own_leaves_nothing_behind(run, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    explorer = Explorer()
    explorer.source.value = OWN
    assert explorer._clip.children == (explorer.upload,) and CELLS not in explorer.methods.value
    explorer.methods.value = ("rollout",)
    explorer.button.click()
    assert "upload one" in explorer.stage.line.value
    explorer.upload.value = given(write_video(tmp_path / "mine.webm", 20), "../../mine.webm")
    explorer.button.click()
    assert explorer.stage.line.value == "" and explorer.stage.contents.clips[0].name == "mine.webm"
    assert len(explorer.stage.contents.clips) == 1 and not [*temporary.iterdir()]
    explorer.exchanged.value = "motion"
    assert explorer.told.value == "There is no other clip to take it from."
    (tmp_path / "text.mp4").write_bytes(b"this is no video")
    explorer.upload.value = given(tmp_path / "text.mp4")
    explorer.button.click()
    assert explorer.stage.line.value.startswith("text.mp4: not a video") and "\n" not in explorer.stage.line.value
    assert explorer.stage.viewer is None and not [*temporary.iterdir()]


def test_runs_that_cannot_be_explored(run, tmp_path, monkeypatch):
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    explorer = Explorer(tmp_path)
    assert explorer.run.options == () and explorer.button.disabled
    assert "no run there has a model" in explorer.stage.line.value
    shutil.copytree(run.run_dir, tmp_path / "runs" / "copy")
    explorer = Explorer(tmp_path)
    assert explorer.run.options == ("copy",) and not explorer.button.disabled
    assert explorer.params.run_dir == tmp_path / "runs" / "copy"
    (tmp_path / "runs" / "copy" / "results" / "audit.meta.json").unlink()
    explorer = Explorer(tmp_path)
    assert "to tell the run by" in explorer.stage.line.value and explorer.button.disabled


def test_cells_are_exchanged_where_twins_are_known(run):
    assert exploring.quick(run) == (CELLS, "rollout", "gradient_rollout")
    real = params.from_values({"dataset": "ssv2", "data_root": "x"})
    assert exploring.quick(real) == ("rollout", "gradient_rollout")
