"""The whole model: frames to logits, the budget, frozen streams, and keeping it without loss."""

import hashlib
import http.server
import json
import threading
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import tiny
import torch
from hub_files import COMMIT
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from tcar.data.video import segment_indices
from tcar.fusion.kinds import FusionConfig
from tcar.lab import params, results
from tcar.lab.steps import model as stage
from tcar.lab.steps.fits import Fit
from tcar.lab.steps.fusion import fusion_config
from tcar.models.tca import TCA, TCAConfig
from tcar.streams.registry import create_stream
from tcar.streams.weights import CheckpointError

FUSION = FusionConfig(semantic_width=128, motion_width=96, num_classes=3, width=16, heads=2)


@pytest.fixture(scope="module")
def config() -> TCAConfig:
    return tiny.config(FUSION, ("push", "pull", "hold"), {"semantic": 4, "motion": 8})


@pytest.fixture(scope="module")
def model(config) -> TCA:
    torch.manual_seed(0)
    return TCA.create(config).eval()


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    return torch.randint(0, 256, (2, 11, 48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_one_clip_gives_what_each_streams_own_frames_give(model, clip):
    logits = model(clip)
    assert logits.shape == (2, 3)
    picked = clip[:, segment_indices(11, 4)], clip[:, segment_indices(11, 8)]
    torch.testing.assert_close(model(*picked), logits)
    semantic, semantic_xyz = model.tokens("semantic", picked[0])
    assert semantic.shape == (2, 16, 128)
    assert semantic_xyz.shape == (16, 3)
    motion = model.tokens("motion", picked[1])
    torch.testing.assert_close(model.fusion(semantic, semantic_xyz, *motion), logits)


def test_intermediates_come_only_when_asked_for_and_change_nothing(model, clip):
    logits, steps = model(clip, return_intermediates=True)
    torch.testing.assert_close(logits, model(clip), atol=1e-5, rtol=1e-4)
    assert steps["block0.semantic_from_motion.weights"].shape == (2, 2, 16, 8)


def test_float_frames_mean_the_same_as_bytes(model, clip):
    torch.testing.assert_close(model(clip / 255), model(clip), atol=1e-4, rtol=1e-4)


def test_a_clip_of_too_few_frames_is_refused_by_name(model, clip):
    with pytest.raises(ValueError, match="motion stream needs clips .* of at least 8 frames"):
        model(clip[:, :7])


def test_only_the_fusion_learns_and_the_streams_stay_in_evaluation_mode(model, clip):
    before = {key: value.clone() for key, value in model.motion.state_dict().items()}
    model.train()
    model(clip).sum().backward()
    assert not model.tokens("semantic", clip)[0].requires_grad
    model.eval()
    assert not model.motion.training
    after = model.motion.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)  # batch-norm statistics among them
    assert all(p.grad is None for s in (model.semantic, model.motion) for p in s.parameters())
    assert all(p.grad is not None for p in model.fusion.parameters())
    model.zero_grad()


def test_wrong_streams_and_widths_are_refused(config):
    semantic, motion = create_stream("dinov2_tiny"), create_stream("i3d_tiny")
    with pytest.raises(ValueError, match="semantic stream is i3d_tiny, the configuration says dinov2_tiny"):
        TCA(config, motion, semantic)
    with pytest.raises(ValueError, match="dinov2_tiny is 128 wide, FusionConfig.semantic_width is 64; set it to 128"):
        TCA(replace(config, fusion=replace(config.fusion, semantic_width=64)), semantic, motion)
    with pytest.raises(ValueError, match="holds 2 names, FusionConfig.num_classes is 3"):
        replace(config, class_names=("a", "b"))


def test_the_streams_leave_nothing_for_the_backward_pass(model, clip):
    """Each tensor kept for backward was made by the fusion, or is one of its weights."""

    def kept(do) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            do()
        return sum(sizes)

    with torch.no_grad():
        inputs = *model.tokens("semantic", clip[:, :4]), *model.tokens("motion", clip[:, :8])
    assert kept(lambda: model(clip[:, :4], clip[:, :8])) == kept(lambda: model.fusion(*inputs)) > 0


def test_frames_that_mean_nothing_are_refused(unchecked, model, clip):
    with pytest.raises(ValueError, match=r"dinov2_tiny: float frames must lie in \[0, 1\], got .* divide 0-255 frames"):
        model(clip.float())
    with pytest.raises(ValueError, match=r"frames must be \[batch, time, height, width, 3\], got \[2, 4, 48, 64, 1\]"):
        model(clip[..., :1])


@pytest.mark.parametrize("kind", ["cross_attention", "late_concat"])
def test_saving_and_loading_is_exact(config, clip, kind, tmp_path):
    model = TCA.create(replace(config, fusion=replace(config.fusion, kind=kind))).eval()
    model.save_pretrained(tmp_path / "kept")
    loaded = TCA.from_pretrained(tmp_path / "kept")
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded(clip), model(clip))
    first, second = model.state_dict(), loaded.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    weights = load_file(tmp_path / "kept" / "model.safetensors")
    assert weights.keys() == model.fusion.state_dict().keys()  # frozen weights are not kept a second time


def test_a_folder_that_does_not_match_is_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: not found"):
        TCA.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    kept = json.loads((tmp_path / "config.json").read_text())

    def rewrite(**changes):
        (tmp_path / "config.json").write_text(json.dumps(kept | changes))

    rewrite(config=kept["config"] | {"colour": 1})
    with pytest.raises(CheckpointError, match="TCAConfig has no colour"):
        TCA.from_pretrained(tmp_path)
    rewrite(config={key: value for key, value in kept["config"].items() if key != "motion"})
    with pytest.raises(CheckpointError, match="motion"):
        TCA.from_pretrained(tmp_path)
    rewrite(streams=kept["streams"] | {"motion": kept["streams"]["motion"] | {"digest": "0"}})
    with pytest.raises(CheckpointError, match="motion stream i3d_tiny was saved with other weights"):
        TCA.from_pretrained(tmp_path)
    rewrite(streams={"semantic": kept["streams"]["semantic"]})
    with pytest.raises(CheckpointError, match=r"config\.json: not a TCA configuration: it has no 'motion'; save"):
        TCA.from_pretrained(tmp_path)
    rewrite(config=kept["config"] | {"fusion": kept["config"]["fusion"] | {"motion_width": 64}})
    with pytest.raises(CheckpointError, match=r"config\.json: .*i3d_tiny is 128 wide, FusionConfig.motion_width is 64"):
        TCA.from_pretrained(tmp_path)
    for content in ("{", "[]", '{"config": []}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match="not a TCA configuration"):
            TCA.from_pretrained(tmp_path)
    rewrite()
    state = load_file(tmp_path / "model.safetensors")
    state["extra"] = state.pop("head.1.bias")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)missing \(1\): head.1.bias.*unexpected \(1\): extra"):
        TCA.from_pretrained(tmp_path)


def test_weights_that_do_not_belong_to_the_configuration_are_refused(config, model, tmp_path):
    """Another number of classes, a file that was cut off, none at all: the fix is named each time."""
    model.save_pretrained(tmp_path / "three")
    names = ("push", "pull", "hold", "drop")
    TCA.create(replace(config, class_names=names, fusion=replace(config.fusion, num_classes=4))).save_pretrained(
        tmp_path / "four"
    )
    path = tmp_path / "three" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes((tmp_path / "four" / "model.safetensors").read_bytes())
    with pytest.raises(
        CheckpointError, match=r"(?s)misshapen \(2\): head.1.bias \[4\], expected \[3\].*fetch both files"
    ):
        TCA.from_pretrained(tmp_path / "three")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model.safetensors: not a readable checkpoint .*truncated.*fetch both"):
        TCA.from_pretrained(tmp_path / "three")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors: no such checkpoint file; save the model again"):
        TCA.from_pretrained(tmp_path / "three")


# --- by name on the Hub

@pytest.fixture
def hub(model, cache, tmp_path, monkeypatch):
    """A Hub of one repository, owner/model, that lists what it was asked for."""
    model.save_pretrained(tmp_path / "sent")
    files, asked = {path.name: path.read_bytes() for path in (tmp_path / "sent").iterdir()}, []
    about = {"id": "owner/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
    tree = [{"type": "file", "path": name, "size": len(files[name]), "oid": "0" * 40} for name in files]

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            asked.append(self.path)
            name = self.path.rpartition("/")[2]
            content = files.get(name)
            if self.path.startswith("/api/models/owner/model/"):
                content = json.dumps(tree if "/tree/" in self.path else about).encode()
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        do_HEAD = do_GET

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{served.server_address[1]}"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    yield asked
    served.shutdown()
    served.server_close()


def test_a_model_is_loaded_by_its_name_and_then_from_the_cache(hub, model, clip, monkeypatch):
    assert torch.equal(TCA.from_pretrained("owner/model")(clip), model(clip))
    assert any("model.safetensors" in path for path in hub)
    hub.clear()
    assert torch.equal(TCA.from_pretrained("owner/model", local_files_only=True)(clip), model(clip))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    TCA.from_pretrained("owner/model")
    TCA.from_pretrained("owner/model", revision=COMMIT)
    assert hub == []


def test_with_local_files_only_the_network_is_left_alone(hub, cache):
    with pytest.raises(CheckpointError, match="hf download owner/model"):
        TCA.from_pretrained("owner/model", local_files_only=True)
    assert hub == []
    assert not list(cache.rglob("*.safetensors"))


def test_streams_too_are_local_when_only_local_files_are_wanted(model, hub, tmp_path):
    """A kept model whose stream is published: the stream is looked for in the cache alone."""
    model.save_pretrained(tmp_path / "kept")
    path = tmp_path / "kept" / "config.json"
    kept = json.loads(path.read_text())
    kept["config"]["semantic"] = "dinov2_vits14"
    kept["streams"]["semantic"]["pretrained"] = True
    path.write_text(json.dumps(kept))
    with pytest.raises(CheckpointError, match=r"(?s)dinov2-small: not in the local cache.*hf download facebook/dinov2"):
        TCA.from_pretrained(tmp_path / "kept", local_files_only=True)
    assert hub == []


def test_a_name_that_the_hub_does_not_give_says_what_to_fetch_and_where_to_put_it(hub, cache, monkeypatch):
    told = r"(?s)owner/other: no such folder.*hf download owner/other.*config.json and model.safetensors into a folder"
    with pytest.raises(CheckpointError, match=told):
        TCA.from_pretrained("owner/other")
    assert hub
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=told):
        TCA.from_pretrained("owner/other")
    with pytest.raises(CheckpointError, match="hf download owner/other --revision v2"):
        TCA.from_pretrained("owner/other", revision="v2")


def test_a_cache_that_lacks_the_weights_is_no_model(hub, cache, model):
    TCA.from_pretrained("owner/model")
    next(cache.rglob("snapshots/*/model.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"owner/model: .*hf download owner/model\. Without: .*model.safetensors"):
        TCA.from_pretrained("owner/model", local_files_only=True)


# --- from the parameters of a run


def test_every_field_of_a_fusion_can_be_set_by_a_parameter():
    values = {
        "fusion": "bottleneck", "fusion_width": 48, "heads": 2, "fusion_blocks": 3, "self_blocks": 2, "mlp_ratio": 1.5,
        "window": "space", "positions": "learned", "appearance": "averaged", "cross_width": 16, "bottleneck_tokens": 7,
        "dropout": 0.25, "drop_path": 0.125, "token_drop": 0.5, "fusion_checkpointing": True, "semantic_adapters": 1,
        "adapter_width": 9, "max_trained_parameters": 30_000_000, "task": "clips", "ablation_heads": [2],
        "methods": ["bottleneck", "cross_attention"],
    }  # fmt: skip
    run = params.from_values(values)
    config = TCAConfig.of(run.streams, run.fusion, ["a", "b"])
    widths = {"semantic_width": 128, "motion_width": 128, "num_classes": 2}
    assert asdict(config.fusion) == widths | {
        "kind": "bottleneck", "width": 48, "heads": 2, "blocks": 3, "self_blocks": 2, "mlp_ratio": 1.5,
        "window": "space", "positions": "learned", "appearance": "averaged", "cross_width": 16, "bottleneck_tokens": 7,
        "dropout": 0.25, "drop_path": 0.125, "token_drop": 0.5, "checkpointing": True,
    }  # fmt: skip
    default = asdict(FusionConfig())
    changed = {key for key, value in asdict(config.fusion).items() if value != default[key]}
    assert changed == {field.name for field in fields(FusionConfig)}  # so none of them was left at its default
    assert (config.semantic_adapters, config.adapter_width, config.max_trained_parameters) == (1, 9, 30_000_000)
    assert fusion_config(run, **widths) == config.fusion
    assert fusion_config(run, "gated", **widths, blocks=1) == replace(config.fusion, kind="gated", blocks=1)


@pytest.fixture
def run(project, config, model):
    """A run with an audit of three classes and a kept model."""
    made = params.from_values({"name": "t"})
    results.save(made.results_dir / "audit.json", {"classes": list(config.class_names)}, params=made)
    model.save_pretrained(stage.model_folder(made))
    return made


def test_a_model_of_other_classes_than_the_run_s_is_refused(run, config):
    assert stage.open_model(run).config == config
    results.save(run.results_dir / "audit.json", {"classes": ["push", "pull", "hold", "drop"]}, params=run)
    with pytest.raises(CheckpointError, match="its model names 3 classes and the run has 4.*run notebook 03 again"):
        stage.open_model(run)


def test_what_the_card_tells_comes_from_the_fit(run, model):
    history = [{"epoch": n, "validation_top1": score} for n, score in ((1, 0.25), (2, 0.75), (3, 0.5))]
    facts = stage.card_facts(run, Fit(Path("none"), model.config.fusion, 4, history, 2, {}))
    assert facts["synthetic"]
    assert facts["metrics"] == {"top-1 on the validation clips": 0.75}
    assert (facts["Epoch kept"], facts["Seed"]) == ("2 of 3", 4)
    assert facts["ranges"] == {}  # of an audit that has none
    summary = {"train": {"minimum": 2.0, "median": 2.5, "maximum": 4.0}, "test": {"minimum": 1.0, "maximum": 9.0}}
    results.save(run.results_dir / "audit.json", {"classes": ["push"], "durations": summary}, params=run)
    facts = stage.card_facts(run, Fit(Path("none"), model.config.fusion, 4, history, 2, {}))
    assert facts["ranges"] == {"seconds": [2.0, 4.0]}
