"""The one table of streams and of the checkpoints published for them: what a network is, and where its weights are.

Nothing heavy is imported: parameter files are checked with it. What was not found in a source is None or empty, never
guessed. To add a checkpoint, add its row here; a network of a new kind also needs a family (`tcar.streams.registry`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

TIMM = "timm:"  # begins the name of any image model of timm, which only timm knows
HUB = "https://huggingface.co"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # on the Hub: the first of these that a repository has
BASELINES = "CAST"  # stands among the streams where a checkpoint is an expert of that baseline
PACKAGED = {"dinov2_tiny": "Apache-2.0", "i3d_tiny": "Apache-2.0"}  # weights that come with the package: licence
COPY = "as of a copy on the Hub"  # size and digest seen there, since the publisher states none
TUNED = "tuned on SSv2 itself: as a stream, say so beside every number"

SEGMENTS = "{} frames at the middles of equal segments of the clip"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
KINETICS = {"mean": (0.45,) * 3, "std": (0.225,) * 3}


@dataclass(frozen=True)
class StreamFacts:
    """What a stream is and gives, as far as it is known without its network.

    `family` says which code builds its network, of `shape` and `width` channels, and reads its files. It takes `frames`
    frames of `input_size` pixels: every `step`th of the video, or with 0 the middles of equal segments of it. Frames
    are divided by `up` (rounding up), then by `down` (rounding down), for the moments of its grid, which has `side`
    rows and columns; `length` frames are read at a time, 0 = any number. `blocks` can have adapters.
    """

    name: str
    role: str
    family: str
    width: int
    frames: int
    input_size: int
    side: int
    shape: Mapping = field(default_factory=dict, hash=False)
    mean: tuple[float, float, float] = IMAGENET["mean"]
    std: tuple[float, float, float] = IMAGENET["std"]
    interpolation: str = "bilinear"
    step: int = 0
    up: int = 1
    down: int = 1
    length: int = 0
    blocks: int = 0

    def grid(self, frames: int) -> tuple[int, int, int]:
        """The grid (time, rows, columns) of a clip of so many frames."""
        frames = max(frames, self.length)
        return max(1, -(-frames // self.up) // self.down), self.side, self.side

    @property
    def sampling(self) -> str:
        """Which frames of a video make a clip, in words."""
        if not self.step:
            return SEGMENTS.format(self.frames)
        return f"{self.frames} frames, every {self.step}{'nd' if self.step % 10 == 2 else 'th'} frame"


@dataclass(frozen=True)
class Accuracy:
    """A published accuracy in percent, with what it was measured on and who says so."""

    dataset: str
    top1: float
    top5: float | None
    protocol: str
    source: str


@dataclass(frozen=True)
class Checkpoint:
    """One published checkpoint.

    `kind` says how it is had: "hub" (`address` is a repository, owner/name), "file" (`address` is that of a file) or
    "page" (no download: `address` is the page with the recipe). `files` are names of weights, the first one there is
    counts. `bytes` is exact, `megabytes` (10^6 bytes) as published, rounded. `sha256` is the digest of the first file,
    or the beginning of it that its publisher put into its name. `note` is what a user has to know before fetching.
    `raw` is the publisher's own file of the same weights, in its own names of keys, where there is one.
    """

    name: str
    streams: tuple[str, ...]
    kind: str
    address: str
    files: tuple[str, ...]
    licence: str
    layout: str
    bytes: int | None = None
    megabytes: float | int | None = None
    sha256: str | None = None
    accuracy: Accuracy | None = None
    note: str = ""
    raw: str = ""

    @property
    def page(self) -> str:
        """The address that a browser opens."""
        return f"{HUB}/{self.address}" if self.kind == "hub" else self.address

    def url(self, file: str) -> str:
        """Return the address of one of its files."""
        return f"{HUB}/{self.address}/resolve/main/{file}" if self.kind == "hub" else self.address

    def size(self) -> float | int | None:
        """Return the published size in megabytes (10^6 bytes), None where it is not known."""
        return self.bytes / 1e6 if self.bytes else self.megabytes


Rows = Iterator[StreamFacts | Checkpoint]


def _hub(name: str, streams: tuple[str, ...], licence: str, layout: str = "transformers", **about) -> Checkpoint:
    return Checkpoint(name, streams, "hub", name, WEIGHTS, licence, layout, **about)


def _semantic(name: str, family: str, width: int, side: int, **about) -> StreamFacts:
    return StreamFacts(name, "semantic", family, width, 8, about.pop("input_size", 224), side, **about)


def _tiny() -> Rows:
    """The two miniatures of the demo; `tcar.streams.i3d.TINY` is the shape of the second."""
    shape = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "mlp_ratio": 4, "patch_size": 14,
             "image_size": 112, "layerscale_value": 1.0, "use_mask_token": False}  # fmt: skip
    about = {"input_size": 112, "interpolation": "bicubic", "shape": shape, "blocks": 4}
    yield _semantic("dinov2_tiny", "dinov2_tiny", 128, 8, **about)
    yield StreamFacts("i3d_tiny", "motion", "i3d_tiny", 128, 16, 80, 5, up=2, **KINETICS)


def _dinov2() -> Rows:
    """Sources: Oquab et al. 2023, arXiv:2304.07193; Darcet et al. 2024, arXiv:2309.16588 (with registers)."""
    known = {  # letter: size, width, depth, heads, linear probe, the same with registers, megabytes, digest
        "s": ("small", 384, 12, 6, 81.1, 80.9, 88.2,
              "ae1e99fcefd534ed978cdeb8326f08030c96e28b7a81ffcbc98a857c84d14be1"),
        "b": ("base", 768, 12, 12, 84.5, 84.6, 346,
              "d73036b56966966d07975d696bde331762f37297e2f095de8cea0040c3aa0841"),
        "l": ("large", 1024, 24, 16, 86.3, 86.7, 1220,
              "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23"),
        "g": ("giant", 1536, 40, 24, 86.5, 87.1, 4550,
              "917d3c470db999d32a312f8542149be91c7cbac61ee8fb4b67ae3d82b79ce21f"),
    }  # fmt: skip
    for letter, (size, width, depth, heads, top1, top1_registers, megabytes, digest) in known.items():
        shape = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "patch_size": 14,
                 "image_size": 518, "use_swiglu_ffn": letter == "g"}  # fmt: skip
        for end, hub, top, file in (
            ("", f"facebook/dinov2-{size}", top1, {"megabytes": megabytes, "sha256": digest}),
            ("_reg", f"facebook/dinov2-with-registers-{size}", top1_registers, {}),
        ):
            stream, own = f"dinov2_vit{letter}14{end}", shape | ({"num_register_tokens": 4} if end else {})
            yield _semantic(stream, f"dinov2{end}", width, 16, shape=own, blocks=depth, interpolation="bicubic")
            raw = f"dinov2_vit{letter}14{'_reg4' if end else ''}_pretrain.pth"
            accuracy = Accuracy("ImageNet-1k", top, None, "linear probe", "facebookresearch/dinov2, README")
            yield _hub(hub, (stream,), "Apache-2.0", accuracy=accuracy, raw=raw, **file)


def _dinov3() -> Rows:
    """The vision transformers trained on LVD-1689M. The sizes called plus, and the 7B, have gated feed-forward layers.

    Source: Simeoni et al. 2025, arXiv:2508.10104.
    """
    known = {  # width, depth, heads, hidden width of the feed-forward layers, gated, accuracy
        "s16": (384, 12, 6, 1536, False, None),
        "s16plus": (384, 12, 6, 1536, True, None),
        "b16": (768, 12, 12, 3072, False, None),
        "l16": (1024, 24, 16, 4096, False, None),
        "h16plus": (1280, 32, 20, 5120, True, 69.8),
        "7b16": (4096, 40, 32, 8192, True, 70.1),
    }
    for size, (width, depth, heads, hidden, gated, top1) in known.items():
        stream, biased = f"dinov3_vit{size}", size != "7b16"
        shape = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads,
                 "intermediate_size": hidden, "use_gated_mlp": gated, "hidden_act": "silu" if gated else "gelu",
                 "num_register_tokens": 4, "query_bias": biased, "value_bias": biased}  # fmt: skip
        yield _semantic(stream, "dinov3", width, 14, shape=shape, blocks=depth)
        source = "V-JEPA 2.1 paper, arXiv:2603.14482, table 9"
        accuracy = top1 and Accuracy("SSv2", top1, None, "frozen, attentive probe of its authors", source)
        note = "gated: accept the licence on its page, then `hf auth login`"
        hub = f"facebook/dinov3-vit{size}-pretrain-lvd1689m"
        yield _hub(hub, (stream,), "DINOv3 License", accuracy=accuracy, note=note)


def _i3d() -> Rows:
    """The published layouts; their strides, pools and normalisation differ, their weights' shapes do not."""
    for name, family, frames, step, about in (
        ("i3d_r50", "i3d", 8, 8, {"down": 2, **KINETICS}),
        ("i3d_r50_mmaction2", "i3d", 32, 2, {"up": 2, "down": 4}),
        ("i3d_r50_tushar_n", "i3d", 32, 2, {"up": 2, "down": 4, **KINETICS}),
        ("i3d_r50_inflated", "i3d_inflated", 8, 0, {"down": 2}),
    ):
        yield StreamFacts(name, "motion", family, 2048, frames, 224, 7, step=step, **about)

    def kinetics(top1: float, top5: float, clips: str, source: str) -> Accuracy:
        return Accuracy("Kinetics-400", top1, top5, f"{clips} frames, 10 x 3 views", source)

    fbai, file = "https://dl.fbaipublicfiles.com", "I3D_8x8_R50.pyth"
    yield Checkpoint(
        "pytorchvideo/I3D_8x8_R50", ("i3d_r50",), "file", f"{fbai}/pytorchvideo/model_zoo/kinetics/{file}", (file,),
        "Apache-2.0", "pytorchvideo", bytes=224_733_497,
        sha256="eabc0c8de27af9ee7aa6348fb3a18f2c53fee4e73806b26d4499748543e857d8",
        accuracy=kinetics(73.27, 90.70, "8x8", "pytorchvideo model zoo"),
        note=f"size and digest {COPY} (jinmang2/test_video_fe)",
    )  # fmt: skip
    file = "I3D_8x8_R50.pkl"
    yield Checkpoint(
        "SlowFast/I3D_8x8_R50", ("i3d_r50",), "file", f"{fbai}/pyslowfast/model_zoo/kinetics400/{file}", (file,),
        "Apache-2.0", "slowfast", accuracy=kinetics(73.5, 90.8, "8x8", "SlowFast model zoo"),
    )  # fmt: skip
    name = "i3d_imagenet-pretrained-r50_8xb8-32x2x1-100e_kinetics400-rgb"
    folder, file = "https://download.openmmlab.com/mmaction/v1.0/recognition/i3d", f"{name}_20220812-e213c223.pth"
    yield Checkpoint(
        "mmaction2/I3D_32x2_R50", ("i3d_r50_mmaction2", "i3d_r50"), "file", f"{folder}/{name}/{file}", (file,),
        "Apache-2.0", "mmaction2", sha256="e213c223",
        accuracy=kinetics(73.47, 91.27, "32x2", "mmaction2 model zoo"),
    )  # fmt: skip
    yield Checkpoint(
        "Tushar-N/I3D_32x2_R50", ("i3d_r50_tushar_n", "i3d_r50"), "page",
        "https://github.com/Tushar-N/pytorch-resnet3d", ("i3d_r50_kinetics.pth",),
        "CC-BY-NC-4.0",  # of facebookresearch/video-nonlocal-net, whose weights these are
        "tushar_n", accuracy=kinetics(72.1, 90.2, "32x2", "Tushar-N/pytorch-resnet3d"),
        note="made by the script of this repository from i3d_baseline_32x2_IN_pretrain_400k.pkl",
    )  # fmt: skip


def _video(name: str, family: str, width: int, size: int, **about) -> StreamFacts:
    about = {"frames": 16, "step": 4, "up": 2, **about}
    return StreamFacts(name, "motion", family, width, about.pop("frames"), size, size // 16, **about)


def _vjepa2() -> Rows:
    """Source: Assran et al. 2025, arXiv:2506.09985."""
    known = {  # size and pixels: width, depth, heads, feed-forward ratio, licence, top-1, views
        ("l", 256): (1024, 24, 16, 4.0, "MIT", 73.7, "16 frames, 2 x 3"),
        ("h", 256): (1280, 32, 16, 4.0, "Apache-2.0", 74.0, "16 frames, 2 x 3"),
        ("g", 256): (1408, 40, 22, 48 / 11, "Apache-2.0", 75.3, "16 frames, 2 x 3"),
        ("g", 384): (1408, 40, 22, 48 / 11, "Apache-2.0", 77.3, "64 frames, 2 x 3"),
    }

    def rated(top1: float, views: str) -> Accuracy:
        protocol = f"frozen, attentive probe of 4 layers, {views} views"
        return Accuracy("SSv2", top1, None, protocol, "facebookresearch/vjepa2, README")

    for (size, pixels), (width, depth, heads, ratio, licence, top1, views) in known.items():
        stream = f"vjepa2_vit{size}16_{pixels}"
        shape = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "mlp_ratio": ratio}
        yield _video(stream, "vjepa2", width, pixels, shape=shape)
        yield _hub(f"facebook/vjepa2-vit{size}-fpc64-{pixels}", (stream,), licence, accuracy=rated(top1, views))
    for hub, of in (("vjepa2-vitl-fpc16-256-ssv2", ("l", 256)), ("vjepa2-vitg-fpc64-384-ssv2", ("g", 384))):
        note, stream = "the frozen encoder with its probe for SSv2", f"vjepa2_vit{of[0]}16_{of[1]}"
        yield _hub(f"facebook/{hub}", (stream,), "", accuracy=rated(*known[of][-2:]), note=note)


def _vjepa2_1() -> Rows:
    """The shape of each size stands with its network, in `tcar.streams.vjepa2_1`."""
    known = {  # size: width, end of the name of the file, bytes, top-1, digest
        "b": (768, "_dist_vitG_384", 1_664_223_428, 74.5,
              "848a77c33cc9e6649ed2119c9bea1e2c569bcdab9539ff3e7c02ccc2959ddf4d"),
        "l": (1024, "_dist_vitG_384", 5_151_198_524, 76.5,
              "7ea9b7cb4a75d10644a8a8d42cff9e177b10dca8f02173f0eaf2b0bed82838c6"),
        "g": (1408, "_384", None, 76.9, None),
        "G": (1664, "_384", 30_238_058_912, 77.7, None),
    }  # fmt: skip
    protocol = "frozen, attentive probe of 4 layers, 16 frames, 2 x 3 views"
    for size, (width, end, count, top1, digest) in known.items():
        name, stream = f"vjepa2_1_vit{size}{end}", f"vjepa2_1_vit{size}16_384"
        yield _video(stream, "vjepa2_1", width, 384, shape={"size": size})
        yield Checkpoint(
            name, (stream,), "file", f"https://dl.fbaipublicfiles.com/vjepa2/{name}.pt", (f"{name}.pt",), "MIT",
            "vjepa2_1", bytes=count, sha256=digest,
            accuracy=Accuracy("SSv2", top1, None, protocol, "V-JEPA 2.1 paper, arXiv:2603.14482, tables 9 and 11"),
            note=f"size and digest {COPY} (yangpanqi/test_model)" if digest else "",
        )  # fmt: skip


def _others() -> Rows:
    """Video transformers of one length, the second expert of CAST, and the image network that is inflated."""
    # The library's default epsilon of VideoMAE is 1e-12; its weights were trained with 1e-6.
    yield _video("videomae_vitb16", "videomae", 768, 224, shape={"layer_norm_eps": 1e-6}, length=16)
    yield _video("timesformer_vitb16", "timesformer", 768, 224, frames=8, step=32, up=1, length=8, **KINETICS)
    zoo, readme = "VideoMAE model zoo at the time of its release", "facebookresearch/TimeSformer, README"
    yield _hub(
        "MCG-NJU/videomae-base-finetuned-kinetics", ("videomae_vitb16",), "CC-BY-NC-4.0", megabytes=346,
        accuracy=Accuracy("Kinetics-400", 80.9, 94.7, "16 frames, 5 x 3 views", zoo),
    )  # fmt: skip
    yield _hub(
        "MCG-NJU/videomae-base-finetuned-ssv2", ("videomae_vitb16", BASELINES), "CC-BY-NC-4.0", megabytes=346,
        accuracy=Accuracy("SSv2", 70.6, 92.6, "16 frames, 2 x 3 views", zoo), note=TUNED,
    )  # fmt: skip
    yield _hub(
        "facebook/timesformer-base-finetuned-k400", ("timesformer_vitb16",), "CC-BY-NC-4.0", megabytes=486,
        accuracy=Accuracy("Kinetics-400", 77.9, 93.2, "8 frames, 1 x 3 views", readme),
    )  # fmt: skip
    yield _hub(
        "facebook/timesformer-base-finetuned-ssv2", ("timesformer_vitb16",), "CC-BY-NC-4.0", megabytes=486,
        accuracy=Accuracy("SSv2", 59.1, 85.6, "8 frames, 1 x 3 views", readme), note=TUNED,
    )  # fmt: skip
    # The licence is that of the openai/CLIP repository; the page on the Hub states none.
    yield _hub("openai/clip-vit-base-patch16", (BASELINES,), "MIT", megabytes=599)
    yield _hub(
        "timm/resnet50.a1_in1k", ("timm:resnet50.a1_in1k", "i3d_r50_inflated"), "Apache-2.0", "timm", megabytes=102,
        sha256="773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb",
        accuracy=Accuracy("ImageNet-1k", 80.4, None, "one crop, 224 pixels", "Wightman et al. 2021, arXiv:2110.00476"),
        note="inflated, it makes an I3D whose weights know no motion yet",
    )  # fmt: skip


_ROWS = (*_tiny(), *_dinov2(), *_dinov3(), *_i3d(), *_vjepa2(), *_vjepa2_1(), *_others())
STREAMS: dict[str, StreamFacts] = {row.name: row for row in _ROWS if isinstance(row, StreamFacts)}
CHECKPOINTS: dict[str, Checkpoint] = {row.name: row for row in _ROWS if isinstance(row, Checkpoint)}
