"""What a stream adds to the plain call of its backbone: one clip through both, in turn, and the same numbers out.

Two plain calls stand beside each stream. One is the library's network on pixels that are ready, so that whatever the
stream does besides counts as overhead; the aim is at most 5%. The other resizes and normalises with torchvision first,
which is what a user of that network writes.

    TCAR_STREAMS="dinov2_vits14 i3d_r50" python -m pytest tests/benchmarks/test_streams.py -s    # some of them
"""

import importlib
import os
import statistics
import time

import pytest
import torch
from torchvision.transforms.v2 import functional as transforms

from tcar.streams.registry import create_stream

ROUNDS = {"dinov2_vits14": 7, "i3d_r50": 7, "videomae_vitb16": 5, "timesformer_vitb16": 5, "vjepa2_vitl16_256": 3}
CHOSEN = os.environ.get("TCAR_STREAMS", "").split() or list(ROUNDS)


def plain_network(stream):
    """The library's own network with the stream's weights: normalised frames [t 3 s s] to its last features."""
    if stream.name != "i3d_r50":  # these backbones are models of transformers
        batched = (lambda x: x) if stream.name.startswith("dinov2") else (lambda x: x[None])
        return "transformers", lambda x: stream.backbone(batched(x)).last_hidden_state
    try:
        build = importlib.import_module("pytorchvideo.models.hub.resnet").i3d_r50
    except ImportError:
        bare = "its bare network (pytorchvideo is not installed)"
        return bare, lambda x: stream.backbone.features(x.movedim(0, 1)[None])
    trunk = torch.nn.Sequential(*build().eval().blocks[:-1])
    trunk.load_state_dict({key.removeprefix("blocks."): v for key, v in stream.backbone.state_dict().items()})
    return "pytorchvideo", lambda x: trunk(x.movedim(0, 1)[None])


def prepare(stream, frames):
    """Resize and normalise with torchvision as the stream's specification says."""
    images = transforms.to_dtype(frames[0].permute(0, 3, 1, 2), torch.float32, scale=True)
    mode = transforms.InterpolationMode(stream.spec.interpolation)
    images = transforms.resize(images, [stream.input_size] * 2, mode, antialias=True).clamp(0, 1)
    return transforms.normalize(images, list(stream.spec.mean), list(stream.spec.std))


def ratios(call, others: list, rounds: int) -> list[float]:
    """The median over rounds of what a call takes in times of each other one; the order turns from round to round."""
    took, calls = [], [call, *others]
    for turn in range(rounds):
        seconds = {}
        for index in range(len(calls)):
            place = (index + turn) % len(calls)
            began = time.process_time()  # of one thread, so that waiting for the core does not count
            calls[place]()
            seconds[place] = time.process_time() - began
        took.append(seconds)
    return [statistics.median(t[0] / t[place] for t in took) for place in range(1, len(calls))]


@pytest.mark.parametrize("name", CHOSEN)
def test_a_stream_against_the_plain_call(name, capsys):
    torch.set_num_threads(1)
    stream = create_stream(name)
    library, network = plain_network(stream)
    frames = torch.randint(0, 256, (1, stream.frames, 240, 427, 3), generator=torch.Generator().manual_seed(0)).byte()
    with torch.inference_mode():
        pixels, tokens = prepare(stream, frames), stream(frames)
        features = network(pixels)  # also the first calls, which do not count
        plain = [lambda: network(pixels), lambda: network(prepare(stream, frames))]
        over_network, over_all = ratios(lambda: stream(frames), plain, ROUNDS[name])
    # The same numbers, in whatever order: only then do the times compare. The first token of these two is no patch.
    patches = features[:, 1:] if name.startswith(("dinov2", "timesformer")) else features
    values, expected = (x.flatten().sort().values for x in (tokens.values, patches))
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    with capsys.disabled():
        compared = f"{over_network:.3f} times {library} on ready pixels, {over_all:.3f} times with the same preparation"
        print(f"\n{name} takes {compared}")
