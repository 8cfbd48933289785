"""V-JEPA 2.1's files in the published form, of small encoders: loaded exactly, or refused with the reason."""

import math

import psutil
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tcar.streams.vjepa2_1 import KEYS, SIZES, VJepa21Config, VJepa21Encoder, load_vjepa2_1
from tcar.streams.weights import CheckpointError

PREFIX = "module.backbone."


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Encoders that differ as the published ones do, in width and depth, with the published names of keys."""
    for width, (size, depth) in enumerate({"b": 2, "l": 3, "g": 4, "G": 5}.items(), 2):
        config = VJepa21Config(width=24 * width, depth=depth, heads=2, hidden=96)
        monkeypatch.setitem(SIZES, size, config)


def hollow(size: str, prefix: str = PREFIX) -> dict[str, Tensor]:
    """Tensors of a size's names and shapes: each repeats a single number."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in VJepa21Encoder(SIZES[size]).state_dict().items()}
    return {prefix + key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("size", ["b", "G"])
def test_a_published_file_loads_and_may_then_be_overwritten(tmp_path, size):
    generator = torch.Generator().manual_seed(0)
    wanted = {key: torch.empty(value.shape).uniform_(generator=generator) for key, value in hollow(size, "").items()}
    junk = {PREFIX + key: torch.full((1,), math.nan).expand(value.shape) for key, value in wanted.items()}
    path = tmp_path / "vjepa2_1.pt"
    torch.save(
        {
            "encoder": junk,
            "predictor": {"module.backbone.predictor_proj.weight": torch.randn(64, 32)},
            "opt": {"state": {0: {"step": 3, "exp_avg": torch.randn(64, 32)}}, "param_groups": [{"lr": 1e-4}]},
            "scaler": None,
            "target_encoder": junk,
            "ema_encoder": junk,
            "epoch": 7,
            KEYS[size]: {PREFIX + key: value for key, value in wanted.items()},
        },
        path,
    )
    encoder = load_vjepa2_1(path, size)
    # Nothing of the network is mapped from the file.
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    path.unlink()
    loaded = encoder.state_dict()
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[key], value) for key, value in wanted.items())
    assert all(type(p) is torch.nn.Parameter and p.requires_grad for p in encoder.parameters())


def test_half_precision_files_and_bare_ones_load_in_float32(tmp_path):
    wanted = {key: torch.zeros(1, dtype=torch.bfloat16).expand(value.shape) for key, value in hollow("b", "").items()}
    wanted["norms_block.3.bias"] = torch.linspace(-1, 1, 48, dtype=torch.bfloat16)
    torch.save(wanted, tmp_path / "bare.pt")
    save_file({key: value.contiguous() for key, value in wanted.items()}, tmp_path / "bare.safetensors")
    for path in (tmp_path / "bare.pt", tmp_path / "bare.safetensors"):
        encoder = load_vjepa2_1(path, "b")
        assert {p.dtype for p in encoder.parameters()} == {torch.float32}
        # With all other weights zero the tokens are the last norm's bias: what was loaded is what runs.
        tokens = encoder(torch.randn(1, 3, 2, 32, 32))
        assert torch.equal(tokens, wanted["norms_block.3.bias"].float().expand(1, 4, 48))


def save(path, size: str, state: dict, **beside) -> str:
    torch.save({KEYS[size]: state, "predictor": {}, "epoch": 1, **beside}, path / "file.pt")
    return str(path / "file.pt")


def test_what_is_not_the_encoder_takes_no_memory(tmp_path, monkeypatch):
    path, taken, load = save(tmp_path, "b", hollow("b"), predictor={"weight": torch.ones(50_000_000)}), [], torch.load

    def measured(*args, **options):
        before, held = psutil.Process().memory_info().rss, load(*args, **options)
        taken.append(psutil.Process().memory_info().rss - before)
        return held

    monkeypatch.setattr(torch, "load", measured)
    load_vjepa2_1(path, "b")
    assert taken[0] < 100e6  # the predictor's 200 MB stay on the disk


@pytest.mark.parametrize(("held", "asked"), [("l", "b"), ("G", "g"), ("g", "G"), ("G", "b"), ("b", "g")])
def test_a_file_of_another_size_is_refused_by_its_size(tmp_path, held, asked):
    path = save(tmp_path, held, hollow(held))
    with pytest.raises(CheckpointError, match=f"{path}: holds an encoder of size '{held}'.* load it as '{held}'"):
        load_vjepa2_1(path, asked)


@pytest.mark.parametrize("name", ["encoder", "target_encoder", "ema_encoder"])
@pytest.mark.parametrize("size", ["l", "g"])
def test_a_file_of_v_jepa_2_is_refused_with_a_hint(tmp_path, name, size):
    other = {key: value for key, value in hollow("l").items() if "norms_block" not in key and "mod_embed" not in key}
    other |= {f"{PREFIX}norm.{kind}": torch.zeros(1024) for kind in ("weight", "bias")}
    torch.save({name: other, "predictor": {}, "epoch": 1}, tmp_path / "vitl.pt")
    with pytest.raises(CheckpointError, match="vitl.pt: holds V-JEPA 2, another network.* load it as V-JEPA 2"):
        load_vjepa2_1(tmp_path / "vitl.pt", size)


def test_every_key_that_does_not_match_is_listed(tmp_path):
    state = hollow("b")
    del state[PREFIX + "blocks.1.mlp.fc2.bias"], state[PREFIX + "img_mod_embed"]
    state[PREFIX + "blocks.12.norm3.weight"] = state["pos_embed"] = torch.zeros(48)
    state[PREFIX + "patch_embed.proj.weight"] = torch.zeros(48, 3, 1, 16, 16)
    with pytest.raises(CheckpointError) as error:
        load_vjepa2_1(save(tmp_path, "b", state), "b")
    for line in (
        "missing (2): blocks.1.mlp.fc2.bias, img_mod_embed",
        "unexpected (2): blocks.12.norm3.weight, pos_embed",
        "misshapen (1): patch_embed.proj.weight [48, 3, 1, 16, 16], expected [48, 3, 2, 16, 16]",
    ):
        assert line in str(error.value)


def test_files_that_hold_no_such_encoder_are_refused(tmp_path):
    path = tmp_path / "file.pt"
    with pytest.raises(CheckpointError, match="file.pt: no such checkpoint file"):
        load_vjepa2_1(path, "b")
    save(tmp_path, "b", hollow("b"))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="file.pt: not a readable checkpoint"):
        load_vjepa2_1(path, "b")
    for held, message in [
        ({"encoder": hollow("b"), "epoch": 1}, r"has no 'ema_encoder'.* it has \['encoder', 'epoch'\]"),
        ({"ema_encoder": {**hollow("b"), "epoch": 1}}, "'ema_encoder' holds more than floating-point tensors"),
        ([1, 2], "holds no dictionary of weights"),
        ({"epoch": 1}, r"has no 'ema_encoder'.*it has \['epoch'\]"),
        ({}, "has no 'ema_encoder'"),
    ]:
        torch.save(held, path)
        with pytest.raises(CheckpointError, match=f"file.pt: {message}"):
            load_vjepa2_1(path, "b")


def test_code_in_a_file_is_never_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    path = save(tmp_path, "b", hollow("b"), opt=Payload())
    load_vjepa2_1(path, "b")
    assert not (tmp_path / "ran").exists()
