"""The published checkpoints that streams and baselines load: where they are, how large, under which licence, how good.

A plain table: what was not found in a source is None or empty, never guessed. `tcar fetch` reads it.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

HUB = "https://huggingface.co"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # on the Hub: the first of these that a repository has
BASELINES = "CAST"  # stands among the streams where a checkpoint is an expert of that baseline
PACKAGED = {"dinov2_tiny": "Apache-2.0", "i3d_tiny": "Apache-2.0"}  # weights that come with the package: licence
COPY = "as of a copy on the Hub"  # size and digest seen there, since the publisher states none


@dataclass(frozen=True)
class Accuracy:
    """A published accuracy in percent, with what it was measured on and who says so."""

    dataset: str
    top1: float | None
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


def _linear(top1: float) -> Accuracy:
    return Accuracy("ImageNet-1k", top1, None, "linear probe", "facebookresearch/dinov2, README")


def _dinov2():
    known = {  # letter: size, linear probe, the same with registers, megabytes, digest
        "s": ("small", 81.1, 80.9, 88.2, "ae1e99fcefd534ed978cdeb8326f08030c96e28b7a81ffcbc98a857c84d14be1"),
        "b": ("base", 84.5, 84.6, 346, "d73036b56966966d07975d696bde331762f37297e2f095de8cea0040c3aa0841"),
        "l": ("large", 86.3, 86.7, 1220, "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23"),
        "g": ("giant", 86.5, 87.1, 4550, "917d3c470db999d32a312f8542149be91c7cbac61ee8fb4b67ae3d82b79ce21f"),
    }
    for letter, (size, top1, top1_registers, megabytes, digest) in known.items():
        stream, about = f"dinov2_vit{letter}14", {"licence": "Apache-2.0", "layout": "transformers"}
        hub, raw = f"facebook/dinov2-{size}", f"{stream}{{}}_pretrain.pth"
        size_there = {"megabytes": megabytes, "sha256": digest}
        yield Checkpoint(
            hub, (stream,), "hub", hub, WEIGHTS, **about, **size_there, accuracy=_linear(top1), raw=raw.format("")
        )
        hub = f"facebook/dinov2-with-registers-{size}"
        about |= {"accuracy": _linear(top1_registers), "raw": raw.format("_reg4")}
        yield Checkpoint(hub, (f"{stream}_reg",), "hub", hub, WEIGHTS, **about)


def _dinov3():
    probes = {"h16plus": 69.8, "7b16": 70.1}
    for size in ("s16", "s16plus", "b16", "l16", "h16plus", "7b16"):
        hub, accuracy = f"facebook/dinov3-vit{size}-pretrain-lvd1689m", None
        if size in probes:
            source = "V-JEPA 2.1 paper, arXiv:2603.14482, table 9"
            accuracy = Accuracy("SSv2", probes[size], None, "frozen, attentive probe of its authors", source)
        yield Checkpoint(
            hub,
            (f"dinov3_vit{size}",),
            "hub",
            hub,
            WEIGHTS,
            "DINOv3 License",
            "transformers",
            accuracy=accuracy,
            note="gated: accept the licence on its page, then `hf auth login`",
        )


def _i3d():
    """The four published layouts; their strides, pools and normalisation differ, their weights' shapes do not."""
    kinetics = "{} frames, 10 x 3 views"
    yield Checkpoint(
        "pytorchvideo/I3D_8x8_R50",
        ("i3d_r50",),
        "file",
        "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/I3D_8x8_R50.pyth",
        ("I3D_8x8_R50.pyth",),
        "Apache-2.0",
        "pytorchvideo",
        bytes=224_733_497,
        sha256="eabc0c8de27af9ee7aa6348fb3a18f2c53fee4e73806b26d4499748543e857d8",
        accuracy=Accuracy("Kinetics-400", 73.27, 90.70, kinetics.format("8x8"), "pytorchvideo model zoo"),
        note=f"size and digest {COPY} (jinmang2/test_video_fe)",
    )
    yield Checkpoint(
        "SlowFast/I3D_8x8_R50",
        ("i3d_r50",),
        "file",
        "https://dl.fbaipublicfiles.com/pyslowfast/model_zoo/kinetics400/I3D_8x8_R50.pkl",
        ("I3D_8x8_R50.pkl",),
        "Apache-2.0",
        "slowfast",
        accuracy=Accuracy("Kinetics-400", 73.5, 90.8, kinetics.format("8x8"), "SlowFast model zoo"),
    )
    name = "i3d_imagenet-pretrained-r50_8xb8-32x2x1-100e_kinetics400-rgb"
    yield Checkpoint(
        "mmaction2/I3D_32x2_R50",
        ("i3d_r50_mmaction2", "i3d_r50"),
        "file",
        f"https://download.openmmlab.com/mmaction/v1.0/recognition/i3d/{name}/{name}_20220812-e213c223.pth",
        (f"{name}_20220812-e213c223.pth",),
        "Apache-2.0",
        "mmaction2",
        sha256="e213c223",
        accuracy=Accuracy("Kinetics-400", 73.47, 91.27, kinetics.format("32x2"), "mmaction2 model zoo"),
    )
    yield Checkpoint(
        "Tushar-N/I3D_32x2_R50",
        ("i3d_r50_tushar_n", "i3d_r50"),
        "page",
        "https://github.com/Tushar-N/pytorch-resnet3d",
        ("i3d_r50_kinetics.pth",),
        "CC-BY-NC-4.0",  # of facebookresearch/video-nonlocal-net, whose weights these are
        "tushar_n",
        accuracy=Accuracy("Kinetics-400", 72.1, 90.2, kinetics.format("32x2"), "Tushar-N/pytorch-resnet3d"),
        note="made by the script of this repository from i3d_baseline_32x2_IN_pretrain_400k.pkl",
    )


def _vjepa2():
    probe = "frozen, attentive probe of 4 layers, {} views"
    known = {  # size and pixels: licence, top-1, views
        ("l", 256): ("MIT", 73.7, "16 frames, 2 x 3"),
        ("h", 256): ("Apache-2.0", 74.0, "16 frames, 2 x 3"),
        ("g", 256): ("Apache-2.0", 75.3, "16 frames, 2 x 3"),
        ("g", 384): ("Apache-2.0", 77.3, "64 frames, 2 x 3"),
    }
    for (size, pixels), (licence, top1, views) in known.items():
        hub, stream = f"facebook/vjepa2-vit{size}-fpc64-{pixels}", f"vjepa2_vit{size}16_{pixels}"
        accuracy = Accuracy("SSv2", top1, None, probe.format(views), "facebookresearch/vjepa2, README")
        yield Checkpoint(hub, (stream,), "hub", hub, WEIGHTS, licence, "transformers", accuracy=accuracy)
    for hub, of in (("vjepa2-vitl-fpc16-256-ssv2", ("l", 256)), ("vjepa2-vitg-fpc64-384-ssv2", ("g", 384))):
        _, top1, views = known[of]
        yield Checkpoint(
            f"facebook/{hub}",
            (f"vjepa2_vit{of[0]}16_{of[1]}",),
            "hub",
            f"facebook/{hub}",
            WEIGHTS,
            "",
            "transformers",
            accuracy=Accuracy("SSv2", top1, None, probe.format(views), "facebookresearch/vjepa2, README"),
            note="the frozen encoder with its probe for SSv2",
        )


def _vjepa2_1():
    digests = {
        "b": "848a77c33cc9e6649ed2119c9bea1e2c569bcdab9539ff3e7c02ccc2959ddf4d",
        "l": "7ea9b7cb4a75d10644a8a8d42cff9e177b10dca8f02173f0eaf2b0bed82838c6",
    }
    known = {  # size: bytes, top-1
        "b": (1_664_223_428, 74.5),
        "l": (5_151_198_524, 76.5),
        "g": (None, 76.9),
        "G": (30_238_058_912, 77.7),
    }
    for size, (count, top1) in known.items():
        name = f"vjepa2_1_vit{size}{'_dist_vitG' if size in digests else ''}_384"
        protocol = "frozen, attentive probe of 4 layers, 16 frames, 2 x 3 views"
        yield Checkpoint(
            name,
            (f"vjepa2_1_vit{size}16_384",),
            "file",
            f"https://dl.fbaipublicfiles.com/vjepa2/{name}.pt",
            (f"{name}.pt",),
            "MIT",
            "vjepa2_1",
            bytes=count,
            sha256=digests.get(size),
            accuracy=Accuracy("SSv2", top1, None, protocol, "V-JEPA 2.1 paper, arXiv:2603.14482, tables 9 and 11"),
            note=f"size and digest {COPY} (yangpanqi/test_model)" if size in digests else "",
        )


def _others():
    zoo = "VideoMAE model zoo at the time of its release"
    yield Checkpoint(
        "MCG-NJU/videomae-base-finetuned-kinetics",
        ("videomae_vitb16",),
        "hub",
        "MCG-NJU/videomae-base-finetuned-kinetics",
        WEIGHTS,
        "CC-BY-NC-4.0",
        "transformers",
        megabytes=346,
        accuracy=Accuracy("Kinetics-400", 80.9, 94.7, "16 frames, 5 x 3 views", zoo),
    )
    yield Checkpoint(
        "MCG-NJU/videomae-base-finetuned-ssv2",
        ("videomae_vitb16", BASELINES),
        "hub",
        "MCG-NJU/videomae-base-finetuned-ssv2",
        WEIGHTS,
        "CC-BY-NC-4.0",
        "transformers",
        megabytes=346,
        accuracy=Accuracy("SSv2", 70.6, 92.6, "16 frames, 2 x 3 views", zoo),
        note="tuned on SSv2 itself: as a stream, say so beside every number",
    )
    yield Checkpoint(
        "facebook/timesformer-base-finetuned-k400",
        ("timesformer_vitb16",),
        "hub",
        "facebook/timesformer-base-finetuned-k400",
        WEIGHTS,
        "CC-BY-NC-4.0",
        "transformers",
        megabytes=486,
        accuracy=Accuracy("Kinetics-400", 77.9, 93.2, "8 frames, 1 x 3 views", "facebookresearch/TimeSformer, README"),
    )
    yield Checkpoint(
        "facebook/timesformer-base-finetuned-ssv2",
        ("timesformer_vitb16",),
        "hub",
        "facebook/timesformer-base-finetuned-ssv2",
        WEIGHTS,
        "CC-BY-NC-4.0",
        "transformers",
        megabytes=486,
        accuracy=Accuracy("SSv2", 59.1, 85.6, "8 frames, 1 x 3 views", "facebookresearch/TimeSformer, README"),
        note="tuned on SSv2 itself: as a stream, say so beside every number",
    )
    yield Checkpoint(
        "openai/clip-vit-base-patch16",
        (BASELINES,),
        "hub",
        "openai/clip-vit-base-patch16",
        WEIGHTS,
        "MIT",  # of the openai/CLIP repository; the page on the Hub states none
        "transformers",
        megabytes=599,
    )
    yield Checkpoint(
        "timm/resnet50.a1_in1k",
        ("timm:resnet50.a1_in1k", "i3d_r50_inflated"),
        "hub",
        "timm/resnet50.a1_in1k",
        WEIGHTS,
        "Apache-2.0",
        "timm",
        megabytes=102,
        sha256="773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb",
        accuracy=Accuracy("ImageNet-1k", 80.4, None, "one crop, 224 pixels", "Wightman et al. 2021, arXiv:2110.00476"),
        note="inflated, it makes an I3D whose weights know no motion yet",
    )


_ALL = (*_dinov2(), *_dinov3(), *_i3d(), *_vjepa2(), *_vjepa2_1(), *_others())
CHECKPOINTS: dict[str, Checkpoint] = {checkpoint.name: checkpoint for checkpoint in _ALL}


def find(name: str) -> Checkpoint:
    """Return a checkpoint by its name; raises ValueError with the closest names otherwise."""
    if name not in CHECKPOINTS:
        close = difflib.get_close_matches(name, CHECKPOINTS, n=3, cutoff=0.4) or CHECKPOINTS
        raise ValueError(f"unknown checkpoint {name!r}; did you mean {', '.join(close)}?")
    return CHECKPOINTS[name]


def checkpoints_for(stream: str) -> list[Checkpoint]:
    """Return the checkpoints that a stream loads, its default first; none for a stream that comes with the package.

    `timm:<model>` gives the repository that timm itself names. Raises ValueError with the closest names for a stream
    that nothing is published for.
    """
    if stream in PACKAGED:
        return []
    listed = [checkpoint for checkpoint in CHECKPOINTS.values() if stream in checkpoint.streams]
    if not listed and stream.startswith("timm:"):
        listed = [_of_timm(stream)]
    if not listed:
        known = sorted({name for checkpoint in CHECKPOINTS.values() for name in checkpoint.streams})
        close = difflib.get_close_matches(stream, known, n=3, cutoff=0.4) or known
        raise ValueError(f"no checkpoint is published for {stream!r}; did you mean {', '.join(close)}?")
    # A file that a stream of its own serves comes after those whose layout is the stream's default.
    return sorted(listed, key=lambda checkpoint: checkpoint.streams[0] != stream)


def licence(stream: str) -> str:
    """Return the licence of the weights that a stream takes by default, "" where it is not known."""
    if stream in PACKAGED:
        return PACKAGED[stream]
    try:
        return checkpoints_for(stream)[0].licence
    except ValueError:  # a model of timm that nobody has published weights of
        return ""


def recognise(stream: str, checkpoint: str | Path) -> Checkpoint | None:
    """Return which published checkpoint of a stream was given, by name on the Hub, folder or file; None for another.

    A file counts by its own name or that of its folder, a folder by that of its repository: what a file holds says
    nothing of where it comes from.
    """
    given = Path(checkpoint)
    names = {given.name, given.parent.name} if given.is_file() else {given.name}
    try:
        listed = checkpoints_for(stream)
    except ValueError:
        return None
    for found in listed:
        own = {found.address.rpartition("/")[2], found.raw} - {""} if found.kind == "hub" else set(found.files)
        if str(checkpoint) == found.address or (given.exists() and names & own):
            return found
    return None


def _of_timm(stream: str) -> Checkpoint:
    import timm  # seconds to import, and only models outside the table need it

    model = stream.removeprefix("timm:")
    about = timm.get_pretrained_cfg(model, allow_unregistered=False) if timm.is_model(model) else None
    if about is None or not about.hf_hub_id:
        close = ", ".join(difflib.get_close_matches(model, timm.list_pretrained(), n=3))
        raise ValueError(f"timm has no published weights of {model!r}" + (f"; did you mean {close}?" if close else ""))
    if about.hf_hub_id in CHECKPOINTS:
        return CHECKPOINTS[about.hf_hub_id]
    return Checkpoint(about.hf_hub_id, (stream,), "hub", about.hf_hub_id, WEIGHTS, about.license or "", "timm")


def table() -> list[dict[str, str | float | int]]:
    """Return a row for each checkpoint, for a notebook: megabytes are 10^6 bytes, what is not known is empty."""
    return [
        {
            "checkpoint": c.name,
            "serves": ", ".join(c.streams),
            "address": c.page,
            "megabytes": "" if c.size() is None else round(c.size(), 1),
            "licence": c.licence,
            "dataset": c.accuracy.dataset if c.accuracy else "",
            "top1": "" if c.accuracy is None or c.accuracy.top1 is None else c.accuracy.top1,
            "top5": "" if c.accuracy is None or c.accuracy.top5 is None else c.accuracy.top5,
            "protocol": c.accuracy.protocol if c.accuracy else "",
            "source": c.accuracy.source if c.accuracy else "",
            "note": c.note,
        }
        for c in CHECKPOINTS.values()
    ]
