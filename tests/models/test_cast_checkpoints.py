"""CAST from published weights and from its own: whole, strictly, and refused where they do not match."""

import json
import math
from dataclasses import replace

import pytest
import torch
import transformers  # lazily: tcar repairs torchvision before its models need it
from cast_reference import MINI, SIDE, clips, disturb
from safetensors.torch import load_file, save_file

from tcar.models.cast import CAST
from tcar.streams.weights import CheckpointError


def published_shapes() -> tuple[dict, dict]:
    """Keys and shapes of openai/clip-vit-base-patch16 (its text model cut short) and of VideoMAE's file for SSv2."""
    d, hidden, linear = 768, 3072, ("weight", "bias")
    clip = {
        "logit_scale": (),
        "text_projection.weight": (512, 512),
        "visual_projection.weight": (512, d),
        "text_model.embeddings.position_ids": (1, 77),
        "text_model.embeddings.position_embedding.weight": (77, 512),
        "text_model.final_layer_norm.weight": (512,),
        "vision_model.embeddings.class_embedding": (d,),
        "vision_model.embeddings.patch_embedding.weight": (d, 3, 16, 16),
        "vision_model.embeddings.position_embedding.weight": (197, d),
        "vision_model.embeddings.position_ids": (1, 197),
    }
    mae = {
        "videomae.embeddings.patch_embeddings.projection.weight": (d, 3, 2, 16, 16),
        "videomae.embeddings.patch_embeddings.projection.bias": (d,),
        "fc_norm.weight": (d,),
        "fc_norm.bias": (d,),
        "classifier.weight": (174, d),
        "classifier.bias": (174,),
    }
    for i in range(12):
        root = f"vision_model.encoder.layers.{i}"
        for x in "kvq":
            clip |= {f"{root}.self_attn.{x}_proj.weight": (d, d), f"{root}.self_attn.{x}_proj.bias": (d,)}
        clip |= {f"{root}.self_attn.out_proj.weight": (d, d), f"{root}.self_attn.out_proj.bias": (d,)}
        clip |= {f"{root}.layer_norm{n}.{x}": (d,) for n in (1, 2) for x in linear}
        clip |= {f"{root}.mlp.fc1.weight": (hidden, d), f"{root}.mlp.fc1.bias": (hidden,)}
        clip |= {f"{root}.mlp.fc2.weight": (d, hidden), f"{root}.mlp.fc2.bias": (d,)}
        root = f"videomae.encoder.layer.{i}"
        mae |= {f"{root}.attention.attention.{x}": (d,) for x in ("q_bias", "v_bias")}
        mae |= {f"{root}.attention.attention.{x}.weight": (d, d) for x in ("query", "key", "value")}
        mae |= {f"{root}.attention.output.dense.weight": (d, d), f"{root}.attention.output.dense.bias": (d,)}
        mae |= {f"{root}.intermediate.dense.weight": (hidden, d), f"{root}.intermediate.dense.bias": (hidden,)}
        mae |= {f"{root}.output.dense.weight": (d, hidden), f"{root}.output.dense.bias": (d,)}
        mae |= {f"{root}.layernorm_{n}.{x}": (d,) for n in ("before", "after") for x in linear}
    for norm in ("pre_layrnorm", "post_layernorm"):
        clip |= {f"vision_model.{norm}.{x}": (d,) for x in linear}
    return clip, mae


def test_files_in_the_published_layout_load_whole_at_full_size(tmp_path):
    files = []
    for name, shapes in zip(("clip", "videomae"), published_shapes(), strict=True):
        noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(len(name))).half()
        state = {}
        for i, (key, shape) in enumerate(shapes.items()):
            state[key] = noise[i : i + math.prod(shape)].reshape(shape).clone()
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        files.append(state)
    model = CAST(num_classes=174)
    model.load_experts(tmp_path / "clip", tmp_path / "videomae" / "model.safetensors")
    clip, mae = files
    own = model.state_dict()

    def found(key):
        if key.startswith("vision_model.post_layernorm"):
            return own[key.replace("vision_model.post_layernorm", "head.norm.spatial")]
        if key.startswith("classifier"):
            return own[f"head.{key}"]
        key = key.replace("vision_model", "clip").replace("q_bias", "query.bias").replace("v_bias", "value.bias")
        return own.pop(key)

    for state, unused in ((clip, ("text", "visual", "logit")), (mae, ("fc_norm",))):
        for key, value in state.items():
            if not key.startswith(unused) and not key.endswith("position_ids"):
                assert torch.equal(found(key), value.float()), key
    assert not [key for key in own if key.startswith(("clip.", "videomae."))]
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Both experts in miniature, as transformers writes them."""
    folder = tmp_path_factory.mktemp("published")
    shape = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96,
        "image_size": SIDE, "patch_size": 16,
    }  # fmt: skip
    text = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(11)
    both = transformers.CLIPConfig(text_config=text, vision_config=shape, projection_dim=6)
    clip = disturb(transformers.CLIPModel(both))
    tuned = transformers.VideoMAEConfig(**shape, num_frames=4, num_labels=5)
    videomae = disturb(transformers.VideoMAEForVideoClassification(tuned))
    clip.save_pretrained(folder / "clip")
    videomae.save_pretrained(folder / "videomae")
    return folder, clip.eval(), videomae.eval()


def test_loaded_experts_are_those_of_the_files(published):
    folder, clip, videomae = published
    model = CAST(MINI)
    model.load_experts(folder / "clip", folder / "videomae")
    for key, value in videomae.videomae.state_dict().items():
        assert torch.equal(model.videomae.state_dict()[key], value)
    images = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = clip.vision_model(images)
        found = model.clip(images).last_hidden_state
        torch.testing.assert_close(found, wanted.last_hidden_state)
        torch.testing.assert_close(model.head.norm["spatial"](found[:, 0]), wanted.pooler_output)
    assert torch.equal(model.head.classifier.weight, videomae.classifier.weight)
    assert not any(p.requires_grad for expert in (model.clip, model.videomae) for p in expert.parameters())
    assert all(p.requires_grad for p in model.head.parameters())


def test_the_classifier_stays_as_it_is_on_request(published):
    model = CAST(MINI)
    before = model.head.classifier.weight.clone()
    model.load_experts(published[0] / "clip", published[0] / "videomae", fill_head=False)
    assert torch.equal(model.head.classifier.weight, before)


def test_experts_that_do_not_match_are_refused_and_change_nothing(published, tmp_path):
    folder = published[0]
    clip = load_file(folder / "clip" / "model.safetensors")
    mae = load_file(folder / "videomae" / "model.safetensors")
    model = CAST(MINI)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def refuses(clip_state, mae_state, message, target=model, **options):
        save_file(clip_state, tmp_path / "clip.safetensors")
        save_file(mae_state, tmp_path / "mae.safetensors")
        with pytest.raises(CheckpointError, match=message):
            target.load_experts(tmp_path / "clip.safetensors", tmp_path / "mae.safetensors", **options)

    post = "vision_model.post_layernorm.weight"
    cut = {key: value for key, value in clip.items() if key != post}
    refuses(cut, mae, r"(?s)clip.safetensors.*missing \(1\): post_layernorm.weight$")
    refuses(clip | {"vision_model.extra": torch.zeros(1)}, mae, r"unexpected \(1\): (vision_model\.)?extra$")
    refuses(clip | {post: torch.zeros(23)}, mae, r"misshapen \(1\): post_layernorm.weight \[23\], expected \[24\]")
    key = next(key for key in mae if key.endswith("layer.1.attention.attention.q_bias"))
    refuses(clip, {k: v for k, v in mae.items() if k != key}, r"(?s)mae.safetensors.*missing \(1\).*1.*query.bias$")
    refuses(clip, mae | {"decoder.norm.weight": torch.zeros(1)}, r"unexpected \(1\): decoder.norm.weight$")
    headless = {key: value for key, value in mae.items() if not key.startswith(("fc_norm", "classifier"))}
    refuses(clip, headless, r"(?s)missing \(4\): classifier.bias.*fill_head=False")
    refuses(clip, mae, r"(?s)classifier.weight \[5, 24\], expected \[7, 24\].*without a classifier of 7 classes",
            CAST(replace(MINI, num_classes=7)))  # fmt: skip
    with pytest.raises(CheckpointError, match="nowhere: no such checkpoint"):
        model.load_experts(tmp_path / "nowhere", folder / "videomae")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


# --- keeping it


def test_saving_and_loading_is_exact(published, tmp_path):
    random, loaded = CAST(MINI, seed=6), CAST(MINI)
    paths = {"clip_checkpoint": published[0] / "clip", "videomae_checkpoint": published[0] / "videomae"}
    loaded.load_experts(*paths.values())
    for name, model, given in (("random", random, {}), ("loaded", loaded, paths)):
        disturb(model.blocks)
        disturb(model.head)
        model.eval().save_pretrained(tmp_path / name)
        again = CAST.from_pretrained(tmp_path / name, **given)
        assert again.config == MINI and not again.training
        assert torch.equal(again(clips()), model(clips()))
        mine, kept = model.state_dict(), again.state_dict()
        assert mine.keys() == kept.keys() and all(torch.equal(mine[key], kept[key]) for key in mine)
        written = load_file(tmp_path / name / "model.safetensors")
        assert written.keys() == {key for key, p in model.named_parameters() if p.requires_grad}


def test_a_folder_that_does_not_match_is_refused(unchecked, published, tmp_path):
    model = CAST(MINI)
    with pytest.raises(CheckpointError, match=r"config\.json: not found"):
        CAST.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    kept = json.loads((tmp_path / "config.json").read_text())
    paths = {"clip_checkpoint": published[0] / "clip", "videomae_checkpoint": published[0] / "videomae"}

    def refuses(message, given=None, **changes):
        (tmp_path / "config.json").write_text(json.dumps(kept | changes))
        with pytest.raises(CheckpointError, match=message):
            CAST.from_pretrained(tmp_path, **(given or {}))

    refuses("missing or unknown: colour", config=kept["config"] | {"colour": 1})
    refuses("missing or unknown: depth", config={k: v for k, v in kept["config"].items() if k != "depth"})
    refuses("CASTConfig.heads must be a whole number", config=kept["config"] | {"heads": "3"})
    refuses("not a CAST configuration", experts={})
    refuses("not a CAST configuration", config=[1])
    refuses("saved with random experts; give no checkpoints", paths)
    loaded = kept["experts"] | {"pretrained": True}
    refuses("saved with loaded experts; give both clip_checkpoint= and", {"clip_checkpoint": "x"}, experts=loaded)
    refuses("saved with other experts", paths, experts=loaded)
    refuses("saved with other experts", experts=kept["experts"] | {"seed": 1})
    (tmp_path / "config.json").write_text(json.dumps(kept))
    state = load_file(tmp_path / "model.safetensors")
    state["extra"] = state.pop("head.classifier.bias")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)missing \(1\): head.classifier.bias.*unexpected \(1\): extra"):
        CAST.from_pretrained(tmp_path)
