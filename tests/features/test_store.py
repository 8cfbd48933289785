"""The feature store: views, types of tokens, checksums, room on the disk, and the command."""

import json
import os
import pickle
import shutil
import tracemalloc
from collections import namedtuple
from functools import partial
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from bright import FRAMES, GRID, Brightness, extract_one, seven_clips
from stores import sparse_store
from torch import nn

from tcar.__main__ import main
from tcar.data.views import SegmentView
from tcar.features import FeatureError, unpacked, verify
from tcar.features.batches import Frames
from tcar.features.buffers import KEPT, LARGEST, Buffers
from tcar.features.packing import packed
from tcar.streams.grids import Tokens, pool_tokens

pytestmark = pytest.mark.usefixtures("extraction_inline")


class InLowPrecision(Brightness):
    """Notes whether it runs under autocast."""

    def forward(self, frames):
        product = nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1))
        tokens = super().forward(frames)
        return Tokens(tokens.values * 0 + product.element_size(), tokens.coordinates, None, tokens.grid)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return seven_clips(tmp_path_factory.mktemp("videos"))


@pytest.fixture
def make(clips, tmp_path):
    return partial(extract_one, clips, Brightness, tmp_path / "stores", batch_clips=3)


def test_the_first_of_several_views_is_the_only_one_of_a_plain_store(make):
    plain, several = make(), make(views=3, view_seed=5)
    assert plain.root != several.root
    np.testing.assert_array_equal(several.load(), plain.load())
    first, second, third = (several.load(view=view) for view in range(3))
    assert len({array.tobytes() for array in (first, second, third)}) == 3
    chosen = several.load(["6", "0", "3"], view=[2, 0, 1])
    np.testing.assert_array_equal(chosen, [third[6], first[0], second[3]])
    with pytest.raises(FeatureError, match="views 0 to 2 of each clip, not 3"):
        several.load(view=3)


def test_a_part_of_a_store_reads_the_same_tokens_and_knows_no_other_clip(make):
    whole = make(views=2)
    part = whole.only(whole.ids[4:1:-1])
    np.testing.assert_array_equal(part.load(view=1), whole.load(whole.ids[4:1:-1], view=1))
    with pytest.raises(FeatureError, match=f"clip {whole.ids[0]} has no features"):
        part.load(whole.ids[:3])
    with pytest.raises(FeatureError, match="clip lost has no features"):
        whole.only(["lost"])


def test_random_views_draw_one_frame_of_each_segment():
    view = SegmentView(FRAMES)
    seen = [view.places("5", 24, number, 0) for number in range(1, 60)]  # segments of 6
    assert {tuple(place // 6 for place in places) for places in seen} == {(0, 1, 2, 3)}
    assert {place for places in seen for place in places} == set(range(24))
    assert view.places("5", 24, 7, 0) == seen[6] != view.places("5", 24, 7, 1)
    assert [place / 24 for place in seen[6]] != [place / 21 for place in view.places("4", 21, 7, 0)]


def test_bf16_keeps_the_upper_half_of_single_precision(make):
    half, brain = make(views=2), make(views=2, token_type="bf16")
    assert (brain.token_type, brain.load().dtype) == ("bf16", np.float32)
    assert np.load(brain.root / "tokens.npy").dtype == np.uint16
    np.testing.assert_allclose(brain.load(view=1), half.load(view=1), rtol=2**-8, atol=1e-3)
    for store in (half, brain):
        (parts, loaded) = store.read(["5", "1"], [1, 0]), store.load(["5", "1"], [1, 0])
        assert [part.dtype for part in parts] == [torch.float16 if store is half else torch.bfloat16]
        np.testing.assert_array_equal(unpacked(parts), loaded.astype(np.float32))
    assert half.content != brain.content
    bits = brain.load().view(np.uint32)
    assert not (bits & 0xFFFF).any()
    # the same again: the check of the first clip has to read bf16 as well
    before = (brain.root / "store.json").stat().st_mtime_ns
    assert (make(views=2, token_type="bf16").root / "store.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_int8_keeps_each_token_in_steps_of_its_own(make, clips, device):
    """The error that the store states is that of all that it holds."""
    store, view = make(views=2, token_type="int8", device=device), SegmentView(FRAMES)
    frames = [torch.from_numpy(view(clip, number, 0))[None] for number in range(2) for clip in clips]
    tokens = np.concatenate([pool_tokens(Brightness()(one), GRID).values.flatten(1, 2).numpy() for one in frames])
    values, scales = (torch.cat(parts).numpy() for parts in zip(*(store.read(view=n) for n in range(2)), strict=True))
    assert (values.dtype, scales.dtype) == (np.int8, np.float32)
    np.testing.assert_allclose(scales, np.abs(tokens).max(2) / 127, rtol=1e-6)
    loaded = np.concatenate([store.load(view=number) for number in range(2)])
    np.testing.assert_array_equal(loaded, values.astype(np.float32) * scales[..., None])
    stated, error = json.loads((store.root / "store.json").read_text())["error"], loaded - tokens
    assert np.all(np.abs(error) <= 0.5001 * scales[..., None])
    assert stated["largest"] == pytest.approx(np.abs(error).max(), rel=1e-3)
    assert stated["relative_rms"] == pytest.approx(np.sqrt((error**2).sum() / (tokens**2).sum()), rel=1e-3)
    kind = np.load(store.root / "tokens.npy", mmap_mode="r")
    assert kind.shape == (14,) and kind.dtype.itemsize == 24 * 3 + 24 * 4
    assert verify(store.root) == [] and make(views=2, token_type="int8", device=device).key == store.key


def test_steps_of_int8_at_their_limits():
    """Half-way numbers go to the even step, a token of zeros stays zero, and no number leaves the range."""
    tokens = torch.tensor([[[127.0, 0.5, 1.5, -2.5], [0.0] * 4, [1e-30, -1e-30, 0, 0], [3e38, 1, -3e38, 0]]])
    values, scales = packed(tokens, "int8")
    assert values[0].tolist() == [[127, 0, 2, -2], [0] * 4, [127, -127, 0, 0], [127, 0, -127, 0]]
    torch.testing.assert_close(unpacked((values, scales))[0, 3, 0], tokens[0, 3, 0])
    assert unpacked((values, scales))[0, 1].eq(0).all()


def test_a_store_of_all_clips_of_the_dataset_costs_no_disk(tmp_path):
    """The shapes of params/ssv2.yaml."""
    store = sparse_store(tmp_path, [str(number) for number in range(193_690)], (8, 7, 7), 384)
    tokens = (store.root / "tokens.npy").stat()
    assert tokens.st_size > 193_690 * 392 * 384 * 2 and tokens.st_blocks * 512 < 2**20
    assert store.load(["0", "193689"]).shape == (2, 392, 384) and not store.load(["193689"]).any()


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_low_precision_is_autocast(clips, tmp_path, device):
    make = partial(extract_one, clips[:1], InLowPrecision, tmp_path, device=device)
    sizes = {precision: float(make(precision=precision).load().max()) for precision in ("fp32", "bf16")}
    assert sizes == {"fp32": 4.0, "bf16": 2.0}  # bytes of a number in a matrix product


@pytest.mark.parametrize(("damage", "fault"), [
    ("bit", "tokens.npy: the tokens of the clips 3 to 5 have changed"),
    ("tokens", "tokens.npy: missing"),
    ("longer", "tokens.npy: another size or type of tokens"),
    ("head", "tokens.npy: another size or type of tokens"),
    ("index", "store.json: its content has changed"),
    ("coordinates", "coordinates.npy: its content has changed"),
    ("made", "store.json: its key is not that of what it says made it"),
    ("name", "store.json: its key is not that in the folder's name"),
])  # fmt: skip
def test_verify_finds_whatever_has_changed(make, damage, fault, capsys):
    root = make().root
    assert verify(root) == []
    assert main(["verify", str(root)]) == 0
    tokens, described = root / "tokens.npy", root / "store.json"
    if damage in ("bit", "head"):
        content = bytearray(tokens.read_bytes())
        place = -1 - 24 * 3 * 2 if damage == "bit" else 30  # before the last clip, a batch of its own
        content[place] ^= 1
        tokens.write_bytes(content)
    elif damage == "tokens":
        tokens.unlink()
    elif damage == "longer":
        with tokens.open("ab") as file:
            file.write(b"\0")
    elif damage == "index":
        described.write_text(described.read_text().replace('["0","1"', '["1","0"'))
    elif damage == "made":
        described.write_text(described.read_text().replace('"frames":4', '"frames":8'))
    elif damage == "name":
        root = root.rename(root.with_name("brightness-0123456789abcdef"))
    else:
        with (root / "coordinates.npy").open("ab") as file:
            file.write(b"\0")
    assert verify(root) == [fault]
    assert main(["verify", str(root)]) == 1
    assert fault in capsys.readouterr().err


@pytest.mark.parametrize("name", ["store.json", "tokens.npy", "coordinates.npy"])
def test_a_file_that_was_cut_off_is_named(make, name):
    store = make()
    content = (store.root / name).read_bytes()
    for length in (0, 1, len(content) // 2):
        (store.root / name).write_bytes(content[:length])
        with pytest.raises(FeatureError, match=f"{store.root.name}.*{name}.*extract again"):
            make()


def test_a_store_under_another_name_is_not_read(make, clips):
    one, other = make(), make(views=2)
    shutil.rmtree(other.root)
    one.root.rename(other.root)
    with pytest.raises(FeatureError, match="give the folder its old name back"):
        make(views=2)


def test_tokens_made_anew_under_their_old_name_are_read_anew(make, clips, tmp_path):
    old, new = make(), extract_one(clips, partial(Brightness, 0.5), tmp_path / "other", batch_clips=3)
    assert not np.array_equal(old.load(), new.load())
    shutil.copyfile(new.root / "tokens.npy", tmp_path / "draft")
    (tmp_path / "draft").replace(old.root / "tokens.npy")
    np.testing.assert_array_equal(old.load(), new.load())


def test_tokens_cut_short_are_an_error_that_names_the_clip(make):
    store = make()
    with (store.root / "tokens.npy").open("r+b") as file:
        file.truncate(store.start + 4 * 24 * 3 * 2 + 7)
    store.load(["0", "1", "2", "3"])
    with pytest.raises(FeatureError, match=r"tokens.npy ends before clip 4; verify"):
        store.load(["0", "4"])


def test_a_store_that_does_not_fit_on_the_disk_is_not_begun(clips, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    needed = 7 * 24 * 3 * 2  # clips, tokens, numbers, bytes
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(0, 0, needed - 1))
    with pytest.raises(FeatureError, match=r"needs 0.0 GB for 7 clips"):
        extract_one(clips, Brightness, tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(0, 0, needed))
    assert len(extract_one(clips, Brightness, tmp_path).ids) == 7


def test_frames_for_another_process_arrive_as_they_were_sent():
    """Twenty batches at once, held on to; then their memory is not left open."""
    draw, descriptors = np.random.default_rng(0), lambda: len(os.listdir("/proc/self/fd"))
    groups = (([0, 3], (2, 4, 6, 8, 3)), ([1], (1, 4, 10, 6, 3)))
    views = [[[(rows, draw.integers(0, 256, shape, np.uint8)) for rows, shape in groups]] * 2 for _ in range(20)]
    sent = [Frames(each, {"d": "empty"}) for each in views]
    ForkingPickler.loads(ForkingPickler.dumps(sent[0]))  # starts what hands the memory over
    before = descriptors()
    received = [ForkingPickler.loads(ForkingPickler.dumps(frames)) for frames in sent]
    for got, put in zip(received, sent, strict=True):
        assert got.broken == put.broken
        for one, other in zip(got.views, put.views, strict=True):
            assert [rows for rows, _ in one] == [rows for rows, _ in other]
            assert all(np.array_equal(had, gave) for (_, had), (_, gave) in zip(one, other, strict=True))
    nothing = pickle.loads(pickle.dumps(Frames([[]], {"d": "empty"})))
    assert (nothing.views, nothing.broken) == ([[]], {"d": "empty"})
    del received, got, one
    assert descriptors() < before + len(sent)


def test_memory_is_lent_again_when_nothing_refers_to_it():
    buffers, kind = Buffers(), np.dtype("<f2")
    first = buffers.empty((2, 1024, 512), kind)
    place = first.__array_interface__["data"]
    assert (first.shape, first.dtype, first.flags.c_contiguous) == ((2, 1024, 512), kind, True)
    first[:] = 1
    kept = torch.from_numpy(first[1, 7:9])
    del first
    other = buffers.empty((2, 1024, 512), kind)  # a tensor of two rows still refers to the first
    other[:] = 2
    assert (kept == 1).all()
    del kept
    again = buffers.empty((1, 1024, 512), kind)
    assert again.__array_interface__["data"] == place
    larger = buffers.empty((4, 1024, 512), kind)
    again[:], larger[:] = 3, 4
    assert (other == 2).all()
    assert (again == 3).all()


def test_idle_memory_is_bounded():
    buffers, kind = Buffers(), np.dtype(np.uint8)
    tracemalloc.start()
    try:
        lent = [buffers.empty((2**20,), kind) for _ in range(3 * KEPT)]
        lent.append(buffers.empty((LARGEST + 1,), kind))
        assert tracemalloc.get_traced_memory()[0] > LARGEST
        del lent
        assert KEPT * 2**20 <= tracemalloc.get_traced_memory()[0] < (KEPT + 1) * 2**20
        assert len(pickle.dumps(buffers)) < 1000
        del buffers
        assert tracemalloc.get_traced_memory()[0] < 2**20
    finally:
        tracemalloc.stop()


def test_how_it_was_made_lies_beside_it(make):
    store = make()
    meta = json.loads((store.root / "store.meta.json").read_text())
    assert meta["clips"] == 7
    assert meta["clips_per_second"] == pytest.approx(7 / meta["seconds"])
    assert meta["waiting"].keys() == {"decoding", "model", "writing"}
    assert sum(meta["waiting"].values()) == pytest.approx(1)
    assert "seconds" not in (store.root / "store.json").read_text()


@pytest.mark.parametrize("setting", [{"views": 0}, {"token_type": "fp32"}, {"precision": "fp16"}])
def test_settings_that_cannot_be(make, setting, unchecked):
    with pytest.raises(FeatureError, match=f"{next(iter(setting))}={next(iter(setting.values()))!r}"):
        make(**setting)


def test_the_command_says_what_is_wrong(project, capsys):
    (project / "p.yaml").write_text("name: t\n")
    assert main(["extract", "p.yaml"]) == 2
    assert "audit.json" in capsys.readouterr().err
    assert main(["verify", str(project)]) == 2
    assert "no complete feature store" in capsys.readouterr().err
    (project / "store.json").write_text("{")
    assert main(["verify", str(project)]) == 2
    assert "not JSON" in capsys.readouterr().err
